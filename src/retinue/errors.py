"""Every error Retinue raises. The docstring is the message, `code` the wire name, details are data."""

from typing import Any, ClassVar


class RetinueError(Exception):
    """Something went wrong inside Retinue; the log has the details."""

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[int] = 500

    def __init__(self, message: str | None = None, **details: Any) -> None:
        self.message = message or _sentence(type(self))
        self.details = details
        super().__init__(self.message)

    def document(self) -> dict[str, Any]:
        """The one shape in which an error leaves Retinue (API.md 1)."""
        return {"success": False, "error": self.message, "code": self.code, "details": self.details}


def _sentence(error: type[RetinueError]) -> str:
    return " ".join((error.__doc__ or "").split())


class Invalid(RetinueError):
    """Some fields are wrong; `details.fields` says which and why."""

    code = "INVALID"
    status = 422

    @classmethod
    def field(cls, path: str, problem: str) -> "Invalid":
        """One wrong field, as path and problem."""
        return cls(f"{path}: {problem}", fields=[{"path": path, "problem": problem}])


class NotSupported(RetinueError):
    """This field belongs to a part that is not built yet; leave it out."""

    code = "NOT_SUPPORTED"
    status = 422


class ConfigInvalid(RetinueError):
    """The configuration cannot be used; mend the line that is named and start again."""

    code = "CONFIG_INVALID"
    status = 422


class Forbidden(RetinueError):
    """You may not do this; ask an administrator of your team."""

    code = "FORBIDDEN"
    status = 403


class NotFound(RetinueError):
    """There is no such thing here; check the id."""

    code = "NOT_FOUND"
    status = 404


class TaskClaimed(RetinueError):
    """Someone has claimed this task; no fault of yours, try another."""

    code = "TASK_CLAIMED"
    status = 409


class TaskFinal(RetinueError):
    """The task has ended; only `retry` makes a new attempt of it."""

    code = "TASK_FINAL"
    status = 409


class TaskNotFinal(RetinueError):
    """The task has not ended yet; cancel it first, or wait for it."""

    code = "TASK_NOT_FINAL"
    status = 409


class ParentCancelled(RetinueError):
    """The parent task is cancelled and takes no new children."""

    code = "PARENT_CANCELLED"
    status = 409


class NotEligible(RetinueError):
    """This node cannot run the task: its labels, capabilities or resources do not match."""

    code = "NOT_ELIGIBLE"
    status = 409


class StaleClaim(RetinueError):
    """The claim was lost or taken over; stop, and do not report a result."""

    code = "STALE_CLAIM"
    status = 409


class NotRegistered(RetinueError):
    """This registration is unknown or was replaced; register again."""

    code = "NOT_REGISTERED"
    status = 409


class NodeDuplicate(RetinueError):
    """Another process of this node still answers; stop it, or give this machine its own data directory."""

    code = "NODE_DUPLICATE"
    status = 409


class IdempotencyConflict(RetinueError):
    """This idempotency key was used with another body; use a new key."""

    code = "IDEMPOTENCY_CONFLICT"
    status = 409


class CursorExpired(RetinueError):
    """The events before this position are pruned; go on from `details.start`."""

    code = "CURSOR_EXPIRED"
    status = 410


class TooManyQueues(RetinueError):
    """The team has 1,000 different requirement sets waiting; use fewer combinations of labels and resources."""

    code = "TOO_MANY_QUEUES"
    status = 429


class Unavailable(RetinueError):
    """The store cannot be reached just now; nothing is lost, try again in a moment."""

    code = "UNAVAILABLE"
    status = 503


class OutcomeUnknown(Unavailable):
    """The store went away during the commit, so whether it happened is unknown; ask again with the same key."""


class StoreFull(Unavailable):
    """The disk is full: no new work is taken until there is space again."""

    code = "STORE_FULL"
    status = 503


class StoreBroken(RetinueError):
    """The disk refused to make data durable; Retinue stops rather than promise what it cannot keep."""

    code = "STORE_BROKEN"


class StoreNewer(RetinueError):
    """The store was written by a newer Retinue; update this program, or use another data directory."""

    code = "STORE_NEWER"


class StoreBehind(RetinueError):
    """The store is older than this machine remembers: it was restored. `retinue restore --accept` takes it as it is."""

    code = "STORE_BEHIND"


class StoreNotDurable(RetinueError):
    """The database does not make commits durable; turn the settings in `details` on."""

    code = "STORE_NOT_DURABLE"


class DataDirHeld(RetinueError):
    """Another Retinue process uses this data directory; wait for it, stop it, or choose another with --data-dir."""

    code = "DATA_DIR_HELD"


class CommandNotFound(RetinueError):
    """The command could not be started; check its name and that it may be executed."""

    code = "COMMAND_NOT_FOUND"
    status = 422


class LinkClosed(RetinueError):
    """The link between node and coordinator is gone; it is opened again by itself."""

    code = "LINK_CLOSED"
    status = 503


class CannotRun(RetinueError):
    """Nothing here can run the task; `details` say why."""

    code = "CANNOT_RUN"
    status = 409


class TaskFailed(RetinueError):
    """The task ended without a result; `details` say how."""

    code = "TASK_FAILED"
