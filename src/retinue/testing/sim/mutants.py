"""Planted bugs: each takes one safeguard out of the real code, to prove that the checkers would notice."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from inspect import getsource
from textwrap import dedent
from types import CodeType
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
def code(*changes: tuple[Callable[..., Any], str, str]) -> Iterator[None]:
    """Functions with a part of their source replaced, wherever they are referred to.

    Raises:
        LookupError: the source does not say that any more; the mutant has to follow the code.
    """
    functions: list[Any] = [function for function, _, _ in changes]
    before = [function.__code__ for function in functions]
    try:
        for function, (_, old, new) in zip(functions, changes, strict=True):
            function.__code__ = _changed(function, old, new)
        yield
    finally:
        for function, compiled in zip(functions, before, strict=True):
            function.__code__ = compiled


@cache
def _changed(function: Any, old: str, new: str) -> CodeType:
    source = dedent(getsource(function))
    if old not in source:
        raise LookupError(f"{old!r} is not in {function.__qualname__}")
    compiled = compile(source.replace(old, new), function.__code__.co_filename, "exec")
    made: dict[str, Any] = {}
    exec(compiled, function.__globals__, made)  # noqa: S102 - our own source, with a planted bug
    changed = made[function.__name__]
    found: CodeType = getattr(changed, "fget", changed).__code__
    return found


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
