"""The data directory: one process at a time, 0700, with what is remembered outside the store."""

import errno
import fcntl
import json
import os
import sys
from pathlib import Path
from random import Random  # noqa: TID251 - the type of the port
from typing import Any

from retinue.errors import ConfigInvalid, DataDirHeld, StoreFull


class DataDir:
    """Where a coordinator keeps its store, keys, blobs and nodes' folders (API.md 7)."""

    def __init__(self, path: Path) -> None:
        """Make it if it is missing.

        Raises:
            ConfigInvalid: it cannot be made or used.
        """
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
        except OSError as error:
            raise self._unusable(error) from error
        self._lock: int | None = None

    def _unusable(self, error: OSError) -> ConfigInvalid | StoreFull:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFull()
        return ConfigInvalid(
            f"The data directory {self.path} cannot be used: {error.strerror}; choose another with --data-dir."
        )

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.path / "retinue.db"

    @property
    def blobs(self) -> Path:
        """Logs and artifacts by digest."""
        return self.path / "blobs"

    def node(self, name: str) -> Path:
        """The folder of a node that runs here."""
        return self.path / "nodes" / name

    def hold(self, *, brief: bool = False) -> None:
        """Be the one process that uses it, until `release` or the end of this process; `brief` says it will be short.

        Raises:
            DataDirHeld: another one does; the sentence says which. ConfigInvalid, StoreFull: it cannot be written to.
        """
        try:
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _read(handle)
            os.close(handle)
            raise DataDirHeld(
                f"The data directory {self.path} is in use by process {holder.get('pid', '?')}"
                f" ({holder.get('command', 'unknown')}); wait for it, stop it, or choose another with --data-dir.",
                **holder,
            ) from None
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "command": _command(), "brief": brief}).encode(), 0)
        except OSError as error:
            os.close(handle)
            raise self._unusable(error) from error
        self._lock = handle

    def release(self) -> None:
        """Let another process use it."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def key(self, random: Random) -> bytes:
        """The secret that makes claim tokens: made at first use, 0600, the same for ever."""
        path = self.path / "keys" / "claim.key"
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self._write(path, random.randbytes(32).hex())
        return bytes.fromhex(path.read_text())

    def remembered(self) -> tuple[int, int]:
        """The highest (epoch, position) of the store that this machine has seen; (0, 0) at first."""
        try:
            seen = json.loads((self.path / "seen.json").read_text())
            return int(seen["epoch"]), int(seen["position"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0

    def remember(self, epoch: int, position: int) -> None:
        """Keep that outside the store, so that a restored one is noticed."""
        self._write(self.path / "seen.json", json.dumps({"epoch": epoch, "position": position}))

    def _write(self, path: Path, text: str) -> None:
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(handle, text.encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        beside.replace(path)


def holder(path: Path) -> dict[str, Any] | None:
    """The living process that holds a data directory (`pid`, `command`, `brief`), without touching its lock."""
    try:
        handle = os.open(path / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        found = _read(handle)
        os.kill(int(found["pid"]), 0)
    except PermissionError:
        return found
    except (KeyError, OSError, TypeError, ValueError):
        return None
    finally:
        os.close(handle)
    return found


def _read(handle: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _command() -> str:
    return " ".join(["retinue", *sys.argv[1:3]])[:80]
