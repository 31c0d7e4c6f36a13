"""How far a demonstration is: a table that changes in a terminal, lines that stay elsewhere."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from retinue.demo.plan import STAGES
from retinue.demo.run import Watcher
from retinue.tasks.model import Task, TaskStatus


def watcher(console: Console, *, quiet: bool) -> "Table | Lines | Silent":
    """What suits this standard error."""
    if quiet:
        return Silent()
    return Table(console) if console.is_terminal and not console.no_color else Lines(console)


class Silent(Watcher):
    """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Table(Silent):
    """A bar for each stage, with the task that began last."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<22}"), BarColumn(28), MofNCompleteColumn(), TextColumn("{task.fields[now]}"),
            console=console, transient=True,
        )  # fmt: skip
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def planned(self, stages: Mapping[str, int]) -> None:
        for stage, tasks in stages.items():
            if tasks:
                self._bars[stage] = self._progress.add_task(STAGES[stage], total=tasks, now="")

    def started(self, stage: str, name: str) -> None:
        self._progress.update(self._bars[stage], now=f"[dim]{name}[/dim]")

    def ended(self, stage: str, task: Task) -> None:
        failed = task.status is not TaskStatus.COMPLETED
        now = f"[red]{task.name} {task.status}[/red]" if failed else ""
        self._progress.update(self._bars[stage], advance=1, now=now)


class Lines(Silent):
    """A line for each stage that is done, and for each task that failed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._left: dict[str, int] = {}
        self._tasks: Mapping[str, int] = {}

    def planned(self, stages: Mapping[str, int]) -> None:
        self._tasks, self._left = stages, dict(stages)
        self._say(f"{sum(stages.values())} tasks")

    def ended(self, stage: str, task: Task) -> None:
        self._left[stage] -= 1
        if task.status is not TaskStatus.COMPLETED:
            self._say(f"{task.name}: {task.status}, {task.error}")
        if not self._left[stage]:
            self._say(f"{STAGES[stage]}: {self._tasks[stage]} of {self._tasks[stage]} tasks")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
