"""One SQL text for both engines: `?` is an argument, `{rows m(id text, n bigint)}` a table made of many rows."""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

Row = tuple[Any, ...]

_SLOT: Final = re.compile(r"\?|\{rows (\w+)\(([^)]*)\)\}")
_DIALECT: Final = re.compile(r"\{(sqlite|postgres):([^{}]*)\}")
_AFFINITY: Final = {"text": "TEXT", "bigint": "INTEGER"}
_encode = msgspec.json.Encoder().encode


class Statement:
    """SQL written once. `{sqlite:…}` and `{postgres:…}` hold what only one of them says."""

    __slots__ = ("postgres", "slots", "sqlite")

    def __init__(self, text: str) -> None:
        self.slots: list[int] = []  # per argument: 0 for a value, else the number of columns of its rows
        self.sqlite = _SLOT.sub(self._for_sqlite, only(text, "sqlite"))
        self.slots.clear()
        self.postgres = _SLOT.sub(self._for_postgres, only(text, "postgres").replace("%", "%%"))

    def _for_sqlite(self, slot: re.Match[str]) -> str:
        name, columns = self._note(slot)
        if name is None:
            return "?"
        # The type has to be said: SQLite looks a value of no type up in no index but by its first column.
        picked = ", ".join(
            f"CAST(value->>{place} AS {_AFFINITY[kind]}) AS {column}" for place, (column, kind) in enumerate(columns)
        )
        return f"(SELECT {picked} FROM json_each(?)) AS {name}"  # noqa: S608 - names written in our own source

    def _for_postgres(self, slot: re.Match[str]) -> str:
        name, columns = self._note(slot)
        if name is None:
            return "%s"
        arrays = ", ".join(f"%s::{kind}[]" for _, kind in columns)
        return f"unnest({arrays}) AS {name}({', '.join(column for column, _ in columns)})"

    def _note(self, slot: re.Match[str]) -> tuple[str | None, list[tuple[str, str]]]:
        if slot[0] == "?":
            self.slots.append(0)
            return None, []
        columns = [_column(text) for text in slot[2].split(",")]
        self.slots.append(len(columns))
        return slot[1], columns

    def sqlite_arguments(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments as SQLite takes them: rows as one JSON text."""
        return [_encode(value).decode() if width else value for width, value in zip(self.slots, arguments, strict=True)]

    def postgres_arguments(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments as PostgreSQL takes them: rows as one array a column."""
        flat: list[Any] = []
        for width, value in zip(self.slots, arguments, strict=True):
            if not width:
                flat.append(value)
            elif value:
                flat.extend(list(column) for column in zip(*value, strict=True))
            else:
                flat.extend([] for _ in range(width))
        return flat


class Insert:
    """`INSERT INTO table` of many rows at once: `Insert("log", "task text, at bigint")`, columns with their types."""

    __slots__ = ("postgres", "sqlite")

    def __init__(self, table: str, columns: str, conflict: str = "") -> None:
        typed = [_column(text) for text in columns.split(",")]
        names = ", ".join(name for name, _ in typed)
        arrays = ", ".join(f"%s::{kind}[]" for _, kind in typed)
        places = ", ".join("?" * len(typed))
        self.sqlite = f"INSERT INTO {table} ({names}) VALUES ({places}) {conflict}"  # noqa: S608 - as above
        conflict = conflict.replace("%", "%%")
        self.postgres = f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays}) {conflict}"  # noqa: S608


def _column(text: str) -> tuple[str, str]:
    name, kind = text.split()
    return name, kind


def only(text: str, dialect: str) -> str:
    """The text without what only the other dialect says."""
    return _DIALECT.sub(lambda found: found[2] if found[1] == dialect else "", text)
