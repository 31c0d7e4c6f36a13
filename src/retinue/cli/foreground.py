"""Tasks of a foreground client: tied to it, given up when nothing can run them, and how they end for a shell."""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from retinue.client.client import Fleet
    from retinue.embedded import Embedded
    from retinue.tasks.model import Task, TaskSpec

TIMED_OUT: Final = 124
COULD_NOT_RUN: Final = 125
INTERRUPTED: Final = 130
# Reasons to wait that nothing can end while only this process works on the store.
HOPELESS: Final = frozenset({"NO_NODE", "NO_MATCHING_NODE", "PARENTS"})


async def tied(embedded: "Embedded", fleet: "Fleet", spec: "TaskSpec", *, stdin: bool = False) -> "TaskSpec":
    """The spec of a task that only this process runs, and that does not outlive it."""
    from msgspec.structs import replace

    session = await fleet.session()
    return replace(spec, session=session.id, stdin=stdin, requires=[*spec.requires, *embedded.requires])


async def refuse_hopeless(fleet: "Fleet", task: "Task") -> None:
    """A task that nothing here can ever run is given up at once.

    Raises:
        CannotRun: why.
    """
    reason = task.waiting_because
    if reason is not None and reason.code in HOPELESS:
        await fleet.tasks.cancel(task.id)
        from retinue.errors import CannotRun

        hint = " `retinue task wait` runs those first." if reason.code == "PARENTS" else ""
        raise CannotRun(f"{reason.sentence}{hint}")


def exit_code(task: "Task") -> int:
    """What a shell should hear of a task that has ended."""
    if task.status == "completed":
        return task.exit_code or 0
    if task.status == "cancelled":
        return INTERRUPTED
    if task.code in ("TIMEOUT", "DEADLINE"):
        return TIMED_OUT
    if task.code == "EXIT" and task.exit_code is not None:
        return task.exit_code
    return COULD_NOT_RUN


def document(task: "Task", output: "dict[str, bytearray]") -> dict[str, Any]:
    """A task that has ended, with its output: text, or base64 where it is none."""
    import base64

    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(task)
    for stream in ("stdout", "stderr"):
        data = bytes(output.get(stream, b""))
        try:
            found[stream] = data.decode()
        except UnicodeDecodeError:
            found[f"{stream}_base64"] = base64.b64encode(data).decode()
    return found
