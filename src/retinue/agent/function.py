"""Python functions as tasks: `@retinue.task` registers them, and both ends check arguments and results by annotation.

Only a name and JSON travel. A host process runs the functions that the modules it was started with have registered.
"""

import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from types import FunctionType
from typing import Any, Final, TypeVar, overload

import msgspec

from retinue.errors import Invalid
from retinue.tasks.model import Progress

F = TypeVar("F", bound=Callable[..., Any])

MARK: Final = "__retinue_task__"  # the attribute under which a function carries its `Registered`
MOST_BYTES: Final = 1024 * 1024  # of a call's arguments, or of a result, as JSON
_NAME: Final = re.compile(r"[^\s:]{1,200}")  # it stands in a capability, `function:NAME`
_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@overload
def task(function: F, /) -> F: ...
@overload
def task(*, name: str) -> Callable[[F], F]: ...
def task(function: F | None = None, /, *, name: str | None = None) -> F | Callable[[F], F]:
    """Register a module-level function as a task. It stays the function it was, to be called and tested as before.

    Its name is `module.qualname`; in a script it is the script's stem instead of the module (`script.add`).
    An `async def` runs in a host process's event loop beside others,
    a `def` alone in a host process that can be killed.

    Raises:
        Invalid: it is no plain function of a module, or the name is taken by another one.
    """
    if function is None:
        return lambda found: _register(found, name)
    return _register(function, name)


def registered() -> list["Registered"]:
    """What this process has registered, in order."""
    return list(_functions.values())


def find(name: str) -> "Registered | None":
    """The function of that name, if this process has registered it. Never imports anything."""
    return _functions.get(name)


def call_of(
    function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any] | None = None
) -> tuple[str, list[Any]]:
    """A call as it travels: the function's name, and its arguments as what JSON has.

    Raises:
        Invalid: the function is not registered, or the arguments are too few, too many or of another type.
    """
    known = getattr(function, MARK, None)
    if not isinstance(known, Registered):
        named = getattr(function, "__qualname__", repr(function))
        raise Invalid.field("function", f"{named} is not registered; put @retinue.task above its def")
    return known.name, known.encode(arguments, keywords)


def app_modules() -> list[str]:
    """What a host process has to be started with to have this process's functions: module names, and a script's path.

    Raises:
        Invalid: a host process is importing the script just now, so it would start itself for ever.
    """
    if _loading:
        guard = 'if __name__ == "__main__":'
        raise Invalid.field("app", f"host processes import a script again: put its work under `{guard}`")
    return list(dict.fromkeys(known.app for known in _functions.values()))


def loading(on: bool) -> None:
    """Said by a host process before and after it imports its apps."""
    global _loading
    _loading = on


def alias(module: str, path: str) -> None:
    """Said by a host process: the script at `path` is about to be imported as `module`."""
    _scripts[module] = path


class Registered:
    """One function that may run as a task, and how its arguments and its result travel."""

    def __init__(self, function: Callable[..., Any], name: str, app: str) -> None:
        self.function = function
        self.name = name
        self.app = app
        self.is_async = inspect.iscoroutinefunction(function)
        self._signature = inspect.signature(function)
        for at in self._signature.parameters.values():
            if at.kind is at.KEYWORD_ONLY and at.default is at.empty:
                raise Invalid.field(
                    "function", f"{name}: {at.name} cannot be given, as only positional arguments travel"
                )
        self._arguments = lru_cache(maxsize=16)(self._arguments_of)
        self._result = lru_cache(maxsize=1)(self._result_of)

    def encode(self, arguments: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> list[Any]:
        """The arguments, in order, as what JSON has.

        Raises:
            Invalid: too few, too many, of another type, not for JSON, or more than 1 MiB.
        """
        given = self._in_order(arguments, keywords or {})
        try:
            data = _to_json(list(given))
        except ValueError as problem:
            raise Invalid.field("arguments", f"{self.name}: {problem}") from problem
        self.decode(data)
        values: list[Any] = msgspec.json.decode(data)
        return values

    def decode(self, arguments: bytes) -> tuple[Any, ...]:
        """The arguments as the function wants them, from a JSON list.

        Raises:
            Invalid: they do not fit the function.
        """
        try:
            count = len(msgspec.json.decode(arguments, type=list[msgspec.Raw]))
            values: tuple[Any, ...] = self._arguments(count).decode(arguments)
        except ValueError as problem:
            raise Invalid.field("arguments", f"{self.name}: {self._named(str(problem))}") from problem
        return values

    def encode_result(self, value: Any) -> Any:
        """A result as what JSON has.

        Raises:
            Invalid: it is not what the function's annotation says, not for JSON, or more than 1 MiB.
        """
        try:
            data = _to_json(value)
            self._result().decode(data)
            return msgspec.json.decode(data)
        except ValueError as problem:
            raise Invalid.field("result", f"{self.name}: {problem}") from problem

    def decode_result(self, value: Any) -> Any:
        """A result as the function's annotation has it, from what JSON has.

        Raises:
            Invalid: it is something else; the node runs another version of the function.
        """
        try:
            return self._result().decode(msgspec.json.encode(value))
        except ValueError as problem:
            raise Invalid.field("result", f"{self.name}: {problem}") from problem

    def check(self) -> None:
        """Resolve the annotations, which may name what stands further down in the module.

        Raises:
            Invalid: one of them names nothing, or cannot be checked.
        """
        self._arguments(len(self._parameters()))
        self._result()

    def _parameters(self) -> list[inspect.Parameter]:
        return [at for at in self._signature.parameters.values() if at.kind in _POSITIONAL]

    def _in_order(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Sequence[Any]:
        names = {at.name for at in self._parameters()}
        for word in keywords:
            if word not in names:
                raise Invalid.field("arguments", f"{self.name}: {word} cannot be given by name")
        try:
            bound = self._signature.bind(*arguments, **keywords)
        except TypeError as problem:
            raise Invalid.field("arguments", f"{self.name}: {problem}") from problem
        if keywords:
            bound.apply_defaults()
        return bound.args

    def _arguments_of(self, count: int) -> "msgspec.json.Decoder[Any]":
        parameters = self._parameters()
        needed = sum(at.default is at.empty for at in parameters)
        rest = next((at for at in self._signature.parameters.values() if at.kind is at.VAR_POSITIONAL), None)
        if count < needed or (count > len(parameters) and rest is None):
            wanted = f"{needed}" if needed == len(parameters) else f"{needed} to {len(parameters)}"
            wanted = f"at least {needed}" if rest else wanted
            raise Invalid.field("arguments", f"{self.name}: takes {wanted} arguments, not {count}")
        hints = self._hints()
        kinds = [hints.get(at.name, Any) for at in parameters[:count]]
        kinds += [hints.get(rest.name, Any)] * (count - len(parameters)) if rest else []
        # `tuple[()]` is the empty tuple's type; subscribing by a tuple spreads it
        return self._decoder(tuple[tuple(kinds)])  # type: ignore[misc]

    def _result_of(self) -> "msgspec.json.Decoder[Any]":
        return self._decoder(self._hints().get("return", Any))

    def _decoder(self, kind: Any) -> "msgspec.json.Decoder[Any]":
        try:
            return msgspec.json.Decoder(kind)
        except TypeError as problem:
            raise Invalid.field("function", f"{self.name}: its annotations cannot be checked: {problem}") from problem

    def _hints(self) -> dict[str, Any]:
        try:
            return typing.get_type_hints(self.function, include_extras=True)
        except Exception as problem:
            raise Invalid.field("function", f"{self.name}: its annotations cannot be resolved: {problem}") from problem

    def _named(self, problem: str) -> str:
        """`... - at `$[1].x`` with the parameter's name, which is what its author knows."""
        found = re.search(r" - at `\$\[(\d+)\](.*)`$", problem)
        if found is None:
            return problem
        names = [at.name for at in self._signature.parameters.values()]
        name = names[min(int(found[1]), len(names) - 1)]
        return f"{name}{found[2]}: {problem[: found.start()]}"


@dataclass(frozen=True, slots=True)
class Context:
    """The attempt that the running function is; `current()` gives it."""

    task: str
    attempt: str
    fence: int  # only grows from attempt to attempt: an outside system can refuse whoever comes with an older one
    env: Mapping[str, str] = field(default_factory=dict)
    tell: Callable[[Progress], None] = field(default=lambda progress: None, repr=False)

    @property
    def idempotency_key(self) -> str:
        """The same in every attempt of this task: give it to outside systems that know such keys."""
        return self.task

    def progress(
        self,
        percent: float | None = None,
        *,
        stage: str | None = None,
        message: str | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Tell how far it is. The latest counts; more than ten a second are left out, but not the last.

        Raises:
            Invalid: a percent outside 0 to 100, or a value of another type.
        """
        told = {"percent": percent, "stage": stage, "message": message, "counts": dict(counts or {})}
        try:
            progress = msgspec.convert(told, Progress)
        except msgspec.ValidationError as problem:
            raise Invalid.field("progress", str(problem)) from problem
        if percent is not None and not 0 <= percent <= 100:
            raise Invalid.field("progress", f"percent is from 0 to 100, not {percent}")
        self.tell(progress)


running: ContextVar[Context] = ContextVar("running")  # set by host processes around each call


def current() -> Context:
    """The attempt this code runs in.

    Raises:
        Invalid: it does not run as a task (a thread of your own needs `contextvars.copy_context()`).
    """
    try:
        return running.get()
    except LookupError:
        raise Invalid.field("current", "this code does not run as a task, so there is no current one") from None


_functions: dict[str, Registered] = {}
_scripts: dict[str, str] = {}  # a module that is a script, and its file
_loading = False


def _register(function: F, name: str | None) -> F:
    home, app = _home(function)
    known = Registered(function, name or f"{home}.{function.__qualname__}", app)
    if not _NAME.fullmatch(known.name):
        raise Invalid.field("name", f"{known.name!r} has a space or a colon, or is too long; use @task(name=...)")
    earlier = _functions.get(known.name)
    if earlier is not None and _origin(earlier.function) != _origin(function):
        taken, _ = _origin(earlier.function)
        raise Invalid.field("name", f"{known.name} is taken by one in {taken}; use @task(name=...)")
    _functions[known.name] = known
    setattr(function, MARK, known)
    return function


def _home(function: Callable[..., Any]) -> tuple[str, str]:
    """The first part of a function's name, and what a host process has to import to have the function."""
    named = getattr(function, "__qualname__", type(function).__qualname__)
    if not isinstance(function, FunctionType):
        raise Invalid.field("function", f"{named} is not a plain function; write a def")
    if "." in named or "<" in named:
        raise Invalid.field("function", f"{named} cannot be found by another process; write a def at a module's top")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise Invalid.field("function", f"{named} is a generator; return a list")
    module = function.__module__
    if module != "__main__":
        script = _scripts.get(module)
        return (_stem(script), script) if script else (module, module)
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return spec.name, spec.name  # python -m package.module
    path = getattr(main, "__file__", None)
    if path is None or not os.path.isfile(path):
        raise Invalid.field("function", f"{named} is in no file that a host process could import; save it as one")
    return _stem(path), os.path.abspath(path)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _origin(function: Callable[..., Any]) -> tuple[str, str]:
    """Where a function is written: the same for a script and its second import."""
    code = inspect.unwrap(function).__code__
    return os.path.realpath(code.co_filename), code.co_qualname


def _to_json(value: Any) -> bytes:
    """JSON that the store and the link can carry.

    Raises:
        ValueError: it cannot be encoded; the sentence says what.
    """
    try:
        data = msgspec.json.encode(value)
    except (TypeError, RecursionError, UnicodeEncodeError) as problem:
        raise ValueError(f"it cannot be written as JSON: {problem}") from problem
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data):,} bytes as JSON are more than {MOST_BYTES:,}; store it and send its address")
    try:
        msgspec.msgpack.encode(msgspec.json.decode(data))
    except OverflowError as problem:
        raise ValueError("an integer in it has more than 64 bits; send it as text") from problem
    return data
