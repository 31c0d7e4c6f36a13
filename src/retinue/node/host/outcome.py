"""What a call came to, as the node hears it: a checked result, or an error with its traceback."""

import traceback
from types import TracebackType
from typing import Any, Final

import msgspec

from retinue.agent import function
from retinue.errors import Invalid
from retinue.node.runners import wire

_LONGEST_ERROR: Final = 4096
_LONGEST_TRACEBACK: Final = 64 * 1024


def prepare(call: wire.Call) -> tuple[function.Registered, tuple[Any, ...]] | wire.Raised:
    """The function that is called, and its arguments; or that another try would not help either."""
    known = function.find(call.function)
    if known is None:
        return wire.Raised(call.call, f"No app of this node has a function {call.function}.", retryable=False)
    try:
        return known, known.decode(call.arguments)
    except Invalid as problem:
        return wire.Raised(call.call, problem.message, retryable=False)


def returned(call: int, known: function.Registered, value: Any) -> wire.Message:
    """The function returned `value`."""
    try:
        return wire.Returned(call, msgspec.Raw(msgspec.msgpack.encode(known.encode_result(value))))
    except Invalid as problem:
        return wire.Raised(call, problem.message)


def raised(call: int, problem: BaseException, *, last: bool = False) -> wire.Raised:
    """The function raised `problem`; never raises itself, however the exception behaves."""
    if isinstance(problem, MemoryError) and problem.__traceback__ is not None:
        traceback.clear_frames(problem.__traceback__)  # what they hold is what fills the memory
    try:
        sentence = str(problem)
    except BaseException as second:  # noqa: BLE001 - an author's __str__ may do anything
        sentence = f"its message cannot be shown: {type(second).__name__}"
    error = ": ".join(filter(None, (type(problem).__name__, sentence)))[:_LONGEST_ERROR]
    return wire.Raised(call, error, _stack(problem, _authors(problem.__traceback__)), last=last)


def _authors(stack: TracebackType | None) -> TracebackType | None:
    """The stack without the host's own frame."""
    return stack.tb_next if stack is not None else None


def _stack(problem: BaseException, stack: TracebackType | None) -> str:
    try:
        return "".join(traceback.format_exception(type(problem), problem, stack))[-_LONGEST_TRACEBACK:]
    except BaseException:  # noqa: BLE001 - out of memory, or an author's __str__
        return ""
