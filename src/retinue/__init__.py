"""Retinue runs agents on every machine you own, as one fleet."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinue.agent.function import current, task
    from retinue.client.client import Fleet
    from retinue.embedded import connect
    from retinue.errors import RetinueError
    from retinue.tasks.model import Task, TaskSpec

__version__ = "0.1.0"
__all__ = ["Fleet", "RetinueError", "Task", "TaskSpec", "__version__", "connect", "current", "task"]

_WHERE = {
    "Fleet": "retinue.client.client",
    "RetinueError": "retinue.errors",
    "Task": "retinue.tasks.model",
    "TaskSpec": "retinue.tasks.model",
    "connect": "retinue.embedded",
    "current": "retinue.agent.function",
    "task": "retinue.agent.function",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `retinue --help` and a node never load what they do not need."""
    if name not in _WHERE:
        raise AttributeError(f"module 'retinue' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
