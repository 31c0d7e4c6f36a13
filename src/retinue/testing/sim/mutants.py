"""Planted bugs: each takes one safeguard out of the real code, to prove that the checkers would notice."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from retinue.storage.sql import Statement

Plant = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug, the invariants that must notice it, and how to plant it."""

    name: str
    number: str  # in INVARIANTS section 7
    invariants: tuple[str, ...]
    plant: Plant
    profile: str = "P5"


MUTANTS: Final[dict[str, Mutant]] = {}


def mutant(name: str, number: str, *invariants: str, profile: str = "P5") -> Callable[[Plant], Plant]:
    """Register the context manager below it as a planted bug."""

    def register(plant: Plant) -> Plant:
        MUTANTS[name] = Mutant(name, number, invariants, plant, profile)
        return plant

    return register


def planted(name: str | None) -> AbstractContextManager[None]:
    """The code with this bug in it, for a while; without a name, as it is."""
    return nullcontext() if name is None else MUTANTS[name].plant()


@contextmanager
def sql(*changes: tuple[Statement, str, str]) -> Iterator[None]:
    """Statements with a part of their text replaced. Keep the number of `?`: say `(fence = ? OR true)` to ignore one.

    Raises:
        LookupError: the statement does not say that any more; the mutant has to follow the code.
    """
    before = [(statement, statement.sqlite) for statement, _, _ in changes]
    try:
        for statement, old, new in changes:
            if old not in statement.sqlite:
                raise LookupError(f"{old!r} is not in {statement.sqlite!r}")
            statement.sqlite = statement.sqlite.replace(old, new)
        yield
    finally:
        for statement, text in before:
            statement.sqlite = text


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of a module or class replaced.

    Raises:
        AttributeError: it is not there any more; the mutant has to follow the code.
    """
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
