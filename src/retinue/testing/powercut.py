"""Power cuts on a real file: record what the real engine writes and syncs, build what a cut could leave, open it again.

A child process runs `Sqlite` under group commit. Its writes and syncs are recorded where SQLite hands them to the
operating system, by wrapping the file methods of the very library that Python uses: no tool, no compiler, no second
SQLite. A cut keeps what was synced; each write since is kept, lost or torn into 512-byte sectors (INVARIANTS I-29).
"""

import asyncio
import ctypes
import shutil
import subprocess  # noqa: TID251 - the process whose machine loses power
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from random import Random  # noqa: TID251 - seeded
from typing import Any, Final

import msgspec

from retinue.clock import SystemClock
from retinue.errors import NotSupported
from retinue.storage.database import Kind, Transaction
from retinue.storage.group import GroupCommit
from retinue.storage.sql import Insert, Statement
from retinue.storage.sqlite import Sqlite, SqliteConnection

SECTOR: Final = 512
DATABASE: Final = "cut.db"
CALLERS: Final = 8

CREATE: Final = Statement("CREATE TABLE IF NOT EXISTS kept (id text PRIMARY KEY, body text NOT NULL)")
CREATE_TWICE: Final = Statement("CREATE TABLE IF NOT EXISTS twice (body text NOT NULL, id text NOT NULL)")
KEEP: Final = Insert("kept", "id text, body text")
TWICE: Final = Insert("twice", "body text, id text")
FORGET: Final = Statement("DELETE FROM twice WHERE rowid % 16 = 0 AND id < ?")
KEPT: Final = Statement("SELECT id, body FROM kept")
HALVES: Final = Statement("SELECT id FROM twice WHERE id NOT IN (SELECT id FROM kept)")
TABLES: Final = Statement("SELECT name FROM sqlite_master WHERE name = 'twice'")


# -- recording ---------------------------------------------------------------------------------------------------------


class Event(msgspec.Struct, array_like=True):
    """One thing that happened, in order: `open`, `write`, `truncate`, `sync`, `delete` of a file, or an `ack`."""

    kind: str
    file: str = ""
    offset: int = 0  # of a write; the size for `truncate`; 1 for a `delete` that is synced
    data: bytes = b""
    ids: list[str] = []


class Trace(msgspec.Struct):
    """Everything one process did to its files, and when it told its callers so."""

    events: list[Event]


class Job(msgspec.Struct):
    """What the child does: how many writes, from which seed, under which pragmas, into which directory."""

    directory: str
    trace: str
    writes: int
    seed: int
    pragmas: list[str]


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods`: how SQLite uses an open file."""

    _fields_ = [
        ("version", c_int),
        ("close", c_void_p),
        ("read", c_void_p),
        ("write", CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)),
        ("truncate", CFUNCTYPE(c_int, c_void_p, c_int64)),
        ("sync", CFUNCTYPE(c_int, c_void_p, c_int)),
        ("others", c_void_p * 13),
    ]


class _File(ctypes.Structure):
    """`sqlite3_file`."""

    _fields_ = [("methods", POINTER(_Methods))]


class _Vfs(ctypes.Structure):
    """`sqlite3_vfs`, as far as it is used here."""

    _fields_ = [
        ("version", c_int),
        ("file_size", c_int),
        ("longest_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", CFUNCTYPE(c_int, c_void_p, c_void_p, POINTER(_File), c_int, c_void_p)),
        ("delete", CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)),
    ]


class Recorder:
    """Notes every write, sync, truncation and deletion that SQLite does in this process from now on."""

    RECORDED: Final = 0x100 | 0x800 | 0x80000  # a database, its rollback journal, its write-ahead log

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._alive: list[Any] = []  # callbacks must outlive the files that use them

    def install(self) -> None:
        """Wrap the default file system of the SQLite library that the `sqlite3` module uses.

        Raises:
            NotSupported: this Python hides the library's functions.
        """
        import _sqlite3

        try:
            find = ctypes.CDLL(getattr(_sqlite3, "__file__", None)).sqlite3_vfs_find
        except (AttributeError, OSError) as error:
            raise NotSupported("This Python's SQLite cannot be recorded: its functions are hidden.") from error
        find.restype = POINTER(_Vfs)
        vfs = find(None).contents
        self._wrap(vfs, "open", self._open)
        self._wrap(vfs, "delete", self._delete)

    def ack(self, ids: Sequence[str]) -> None:
        """Note that callers have been told that these writes are durable."""
        self.events.append(Event("ack", ids=list(ids)))

    def _wrap(self, owner: ctypes.Structure, name: str, replacement: Callable[..., int]) -> None:
        original = getattr(owner, name)
        kind = type(original)
        # The pointer is read now: later the field holds the replacement.
        kept = kind(ctypes.cast(original, c_void_p).value)
        callback = kind(lambda *arguments: replacement(kept, *arguments))
        self._alive.append((kept, callback))
        setattr(owner, name, callback)

    def _open(self, original: Callable[..., int], vfs: int, name: int, file: Any, flags: int, out: int) -> int:
        result = original(vfs, name, file, flags, out)
        if result == 0 and name and flags & self.RECORDED:
            path = Path(ctypes.string_at(name).decode()).name
            methods = _Methods.from_buffer_copy(file.contents.methods.contents)
            self._wrap(methods, "write", lambda *call: self._write(path, *call))
            self._wrap(methods, "truncate", lambda *call: self._truncate(path, *call))
            self._wrap(methods, "sync", lambda *call: self._sync(path, *call))
            self._alive.append(methods)
            file.contents.methods = ctypes.pointer(methods)
            self.events.append(Event("open", path))
        return result

    def _write(self, path: str, original: Callable[..., int], file: int, data: int, size: int, offset: int) -> int:
        self.events.append(Event("write", path, offset, ctypes.string_at(data, size)))
        return original(file, data, size, offset)

    def _truncate(self, path: str, original: Callable[..., int], file: int, size: int) -> int:
        self.events.append(Event("truncate", path, size))
        return original(file, size)

    def _sync(self, path: str, original: Callable[..., int], file: int, flags: int) -> int:
        result = original(file, flags)
        if result == 0:
            self.events.append(Event("sync", path))
        return result

    def _delete(self, original: Callable[..., int], vfs: int, name: bytes, sync_directory: int) -> int:
        result = original(vfs, name, sync_directory)
        if result == 0:
            self.events.append(Event("delete", Path(name.decode()).name, 1 if sync_directory else 0))
        return result


def body(name: str) -> str:
    """What is stored under a name: up to a few pages long, the same every time."""
    return name * (1 + Random(name).choice((1, 1, 1, 20, 200)))  # noqa: S311 - sizes


def _keep(transaction: Transaction, names: Sequence[str]) -> list[None]:
    transaction.insert(KEEP, [(name, body(name)) for name in names])
    transaction.insert(TWICE, [(body(name), name) for name in names])
    transaction.run(FORGET, names[0])
    return [None] * len(names)


KIND: Final[Kind[str, None]] = Kind("keep", 1, _keep)


async def work(job: Job, recorder: Recorder) -> None:
    """Write through the real engine and group commit, and note what each caller was told."""
    engine = Sqlite(Path(job.directory) / DATABASE, SystemClock())
    await engine.write(lambda transaction: (transaction.run(CREATE), transaction.run(CREATE_TWICE)))
    for pragma in job.pragmas:
        engine._connection.raw.execute(f"PRAGMA {pragma}").fetchall()  # noqa: SLF001 - what the engine would never do
    groups = GroupCommit(engine, SystemClock(), Random(job.seed))  # noqa: S311 - jitter
    running = asyncio.create_task(groups.run())

    async def caller(number: int) -> None:
        for count in range(job.writes // CALLERS):
            name = f"{count:05}-{number}"
            await groups.submit(KIND, name)
            recorder.ack([name])

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    groups.close()
    await running
    await engine.close()


def record(*, writes: int = 800, seed: int = 0, pragmas: Sequence[str] = (), prefix: Sequence[str] = ()) -> Trace:
    """Run the engine in a child process and bring back what it did. `prefix` runs the child under another program."""
    with tempfile.TemporaryDirectory(dir=scratch()) as directory:
        trace = Path(directory) / "trace"
        job = Job(directory, str(trace), writes, seed, ["wal_autocheckpoint=100", *pragmas])
        command = [*prefix, sys.executable, "-m", "retinue.testing.powercut", msgspec.json.encode(job).decode()]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return msgspec.msgpack.decode(trace.read_bytes(), type=Trace)


def scratch() -> str | None:
    """Memory, where there is some: the images are written, not kept."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a fresh directory is made in it


# -- what a cut leaves -------------------------------------------------------------------------------------------------


@dataclass
class _OneFile:
    """A file: what is on the disk for certain, and what was asked for since."""

    synced: bytearray = field(default_factory=bytearray)
    since: list[Event] = field(default_factory=list)
    named: bool = False  # its name is on the disk for certain
    deleted: bool = False

    def sync(self) -> None:
        for event in self.since:
            _apply(self.synced, event)
        self.since.clear()

    def image(self, chance: Random, keep: float) -> bytearray:
        """What may be found after a cut."""
        found = bytearray(self.synced)
        for event in self.since:
            if chance.random() < keep:
                _apply(found, event)
            elif event.kind == "write" and chance.random() < 0.5:
                for torn in _sectors(event, chance):
                    _apply(found, torn)
        return found


class Disk:
    """The files as a trace left them at some moment, and what a power cut at that moment could make of them."""

    KEEP: Final = (0.0, 0.2, 0.5, 0.9, 1.0)

    def __init__(self) -> None:
        self._files: dict[str, _OneFile] = {}
        self._unsynced_journals: set[str] = set()

    def follow(self, event: Event) -> None:
        """Go on by one event."""
        if event.kind == "open":
            file = self._files.get(event.file)
            if file is None or file.deleted:
                self._files[event.file] = _OneFile()
            if event.file != DATABASE:
                self._unsynced_journals.add(event.file)
        elif event.kind == "sync":
            self._files[event.file].sync()
            if event.file in self._unsynced_journals:  # SQLite syncs the directory with a journal's first sync
                self._unsynced_journals.remove(event.file)
                self._sync_names()
        elif event.kind == "delete":
            self._files[event.file].deleted = True
            if event.offset:
                self._sync_names()
        elif event.kind != "ack":
            self._files[event.file].since.append(event)

    def _sync_names(self) -> None:
        self._files = {name: file for name, file in self._files.items() if not file.deleted}
        for file in self._files.values():
            file.named = True

    def cut(self, chance: Random, directory: Path) -> None:
        """Write the files of one possible outcome."""
        keep = chance.choice(self.KEEP)
        for name, file in self._files.items():
            if (file.deleted or not file.named) and chance.random() < 0.5:
                continue
            (directory / name).write_bytes(file.image(chance, keep))


def _apply(content: bytearray, event: Event) -> None:
    if event.kind == "truncate":
        del content[event.offset :]
        content.extend(bytes(event.offset - len(content)))
        return
    content.extend(bytes(max(0, event.offset - len(content))))
    content[event.offset : event.offset + len(event.data)] = event.data


def _sectors(event: Event, chance: Random) -> Iterator[Event]:
    """Some sectors of a write."""
    at = event.offset
    end = at + len(event.data)
    while at < end:
        upto = min(end, at - at % SECTOR + SECTOR)
        if chance.random() < 0.5:
            yield Event("write", event.file, at, event.data[at - event.offset : upto - event.offset])
        at = upto


# -- the examination ---------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What was found after the cuts: `lost` and `corrupt` name the cut; a seed and a number make it again."""

    cuts: int = 0
    acknowledged: int = 0  # names that had to be there, over all cuts
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)


def examine(trace: Trace, *, cuts: int, seed: int = 0) -> Report:
    """Cut the power at that many random moments of the trace; open, check and compare each time."""
    return asyncio.run(_examine(trace, cuts, seed))


async def _examine(trace: Trace, cuts: int, seed: int) -> Report:
    report = Report()
    disk = Disk()
    acknowledged: set[str] = set()
    followed = 0
    chance = Random(seed)  # noqa: S311 - seeded
    moments = sorted(chance.randrange(len(trace.events) + 1) for _ in range(cuts))
    with tempfile.TemporaryDirectory(dir=scratch()) as base:
        for number, moment in enumerate(moments):
            while followed < moment:
                disk.follow(trace.events[followed])
                acknowledged.update(trace.events[followed].ids)
                followed += 1
            directory = Path(base) / str(number)
            directory.mkdir()
            disk.cut(Random(f"{seed} {number}"), directory)  # noqa: S311 - seeded
            cut = f"seed {seed}, cut {number}, after event {moment}"
            report.cuts += 1
            report.acknowledged += len(acknowledged)
            problem, found = await _open(directory / DATABASE)
            if problem:
                report.corrupt.append(f"{cut}: {problem}")
            elif missing := acknowledged - found:
                report.lost.append(f"{cut}: {len(missing)} of {len(acknowledged)} names")
            shutil.rmtree(directory)
    return report


async def _open(path: Path) -> tuple[str, set[str]]:
    """What is wrong with this database, or else the names in it."""
    try:
        engine = Sqlite(path, SystemClock(), readers=1)
    except Exception as error:  # noqa: BLE001 - whatever keeps it from opening is a finding
        return f"does not open: {error!r}", set()
    try:
        return await engine.read(_look)
    except Exception as error:  # noqa: BLE001 - as above
        return f"cannot be read: {error!r}", set()
    finally:
        await engine.close()


def _look(connection: SqliteConnection) -> tuple[str, set[str]]:
    verdict = connection.raw.execute("PRAGMA integrity_check").fetchall()
    if verdict != [("ok",)]:
        return f"integrity_check: {verdict}", set()
    if not connection.rows(TABLES):
        return "", set()
    rows = connection.rows(KEPT)
    wrong = [name for name, text in rows if text != body(name)]
    halves = connection.rows(HALVES)
    if wrong or halves:
        return f"other content than was written: {wrong}; half a transaction: {halves}", set()
    return "", {name for name, _ in rows}


if __name__ == "__main__":
    _job = msgspec.json.decode(sys.argv[1], type=Job)
    _recorder = Recorder()
    _recorder.install()
    asyncio.run(work(_job, _recorder))
    Path(_job.trace).write_bytes(msgspec.msgpack.encode(Trace(_recorder.events)))
