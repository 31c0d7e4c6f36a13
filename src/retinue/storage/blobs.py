"""Blobs: bytes by their SHA-256. A blob is written once, never changed, and may be written again without harm."""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from retinue.errors import NotFound, StoreFull


class Blobs(Protocol):
    """Keeps bytes by digest. Durable when `put` returns."""

    async def put(self, data: bytes) -> str:
        """Keep these bytes; their digest in hex.

        Raises:
            StoreFull: there is no room; nothing was kept.
        """

    async def get(self, digest: str) -> bytes:
        """The bytes with this digest.

        Raises:
            NotFound: there are none.
        """

    async def drop(self, digests: Iterable[str]) -> None:
        """Forget these; the ones that are not there are passed over."""


def digest_of(data: bytes) -> str:
    """The name under which bytes are kept."""
    return hashlib.sha256(data).hexdigest()


class DirectoryBlobs:
    """A directory of digest-named files: written beside, synced, renamed, then the directory is synced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def put(self, data: bytes) -> str:
        return await asyncio.to_thread(self._put, data)  # noqa: TID251 - this is the port

    async def get(self, digest: str) -> bytes:
        return await asyncio.to_thread(self._get, digest)  # noqa: TID251 - this is the port

    async def drop(self, digests: Iterable[str]) -> None:
        await asyncio.to_thread(self._drop, list(digests))  # noqa: TID251 - this is the port

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest

    def _put(self, data: bytes) -> str:
        digest = digest_of(data)
        path = self._path(digest)
        if path.exists():
            return digest
        beside = self._folder / f".{digest}.{os.getpid()}"
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            _sync(path.parent)
            _sync(self._folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise StoreFull(f"A blob could not be kept: {error.strerror}; make room and try again.") from error
        return digest

    def _get(self, digest: str) -> bytes:
        try:
            return self._path(digest).read_bytes()
        except FileNotFoundError:
            raise NotFound(digest=digest) from None

    def _drop(self, digests: list[str]) -> None:
        for digest in digests:
            self._path(digest).unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class MemoryBlobs:
    """Blobs in memory, for service tests and the simulator."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def put(self, data: bytes) -> str:
        digest = digest_of(data)
        self.kept[digest] = data
        return digest

    async def get(self, digest: str) -> bytes:
        try:
            return self.kept[digest]
        except KeyError:
            raise NotFound(digest=digest) from None

    async def drop(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self.kept.pop(digest, None)
