"""The folder that the tasks of one demonstration share: the list of files, and what each task found, by its name."""

import os
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Folder:
    """Parts are written whole or not at all, so a task that runs twice does no harm."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def list_files(self, names: list[bytes]) -> None:
        """Write down which files are looked at, so that every task slices the same list."""
        (self._path / "files").write_bytes(b"\0".join(names))

    def files(self, number: int, of: int) -> list[bytes]:
        """The files of slice `number` (from 1 on) of `of`: every `of`-th, so that each slice gets of everything."""
        names = (self._path / "files").read_bytes().split(b"\0")
        return [name for name in names if name][number - 1 :: of]

    def write(self, name: str, part: msgspec.Struct) -> None:
        """Keep what the task of this name found."""
        beside = self._path / f".{name}.{os.getpid()}"
        beside.write_bytes(msgspec.json.encode(part))
        beside.replace(self._path / f"{name}.json")

    def read(self, name: str, kind: type[T]) -> T | None:
        """What the task of this name found; None when it found no end."""
        try:
            return msgspec.json.decode((self._path / f"{name}.json").read_bytes(), type=kind)
        except FileNotFoundError:
            return None
