"""The fleet for scripts without an event loop: the same verbs, each returning when it is done."""

import asyncio
import threading  # noqa: TID251 - this is the door between a script's thread and the loop
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

from retinue.events.model import Event
from retinue.nodes.model import Node
from retinue.tasks.model import Task, TaskSpec

if TYPE_CHECKING:
    from retinue.client.client import Fleet, LogPiece

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class SyncFleet:
    """A context manager. Its event loop runs in a thread of its own, so it may be used from any thread but that one."""

    def __init__(self, fleet: "Fleet") -> None:
        self.fleet = fleet
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="retinue-fleet", daemon=True)
        self.tasks = SyncTasks(self)
        self.nodes = SyncNodes(self)
        self.events = SyncEvents(self)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.wait(self.fleet.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait(self.fleet.close())
        finally:
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the fleet's loop and wait for it; Ctrl-C cancels it."""
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            raise

    def status(self) -> dict[str, Any]:
        """As `Fleet.status`."""
        return self.wait(self.fleet.status())

    @overload
    def run(self, function: Callable[P, Awaitable[R]], *arguments: P.args, **keywords: P.kwargs) -> R: ...
    @overload
    def run(self, function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs) -> R: ...
    def run(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """As `Fleet.run`."""
        return self.wait(self.fleet.run(function, *arguments, **keywords))

    @overload
    def map(self, function: Callable[[T], Awaitable[R]], items: Iterable[T]) -> list[R]: ...
    @overload
    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]: ...
    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """As `Fleet.map`."""
        return self.wait(self.fleet.map(function, items))

    def each(self, stream: Any) -> Iterator[Any]:
        """What an asynchronous stream yields, one by one."""
        iterator = aiter(stream)

        async def following() -> tuple[bool, Any]:
            try:
                return True, await anext(iterator)
            except StopAsyncIteration:
                return False, None

        while True:
            more, item = self.wait(following())
            if not more:
                return
            yield item


class SyncTasks:
    """As `Tasks`."""

    def __init__(self, fleet: SyncFleet) -> None:
        self._fleet = fleet

    def submit(self, spec: TaskSpec | None = None, *, key: str | None = None, **fields: Any) -> Task:
        """As `Tasks.submit`."""
        return self._fleet.wait(self._fleet.fleet.tasks.submit(spec, key=key, **fields))

    def submit_many(self, specs: Iterable[TaskSpec]) -> "list[str]":
        """As `Tasks.submit_many`."""
        return self._fleet.wait(self._fleet.fleet.tasks.submit_many(specs))

    def get(self, task_id: str) -> Task:
        """As `Tasks.get`."""
        return self._fleet.wait(self._fleet.fleet.tasks.get(task_id))

    def list(self, *, status: str | None = None, limit: int = 50, cursor: str | None = None) -> "list[Task]":
        """As `Tasks.list`."""
        return self._fleet.wait(self._fleet.fleet.tasks.list(status=status, limit=limit, cursor=cursor))

    def cancel(self, task_id: str) -> Task:
        """As `Tasks.cancel`."""
        return self._fleet.wait(self._fleet.fleet.tasks.cancel(task_id))

    def retry(self, task_id: str) -> Task:
        """As `Tasks.retry`."""
        return self._fleet.wait(self._fleet.fleet.tasks.retry(task_id))

    def wait(self, task_id: str) -> Task:
        """As `Tasks.wait`."""
        return self._fleet.wait(self._fleet.fleet.tasks.wait(task_id))

    def log(self, task_id: str, *, follow: bool = False, attempt: str | None = None) -> "Iterator[LogPiece]":
        """As `Tasks.log`."""
        return self._fleet.each(self._fleet.fleet.tasks.log(task_id, follow=follow, attempt=attempt))


class SyncNodes:
    """As `Nodes`."""

    def __init__(self, fleet: SyncFleet) -> None:
        self._fleet = fleet

    def list(self) -> list[Node]:
        """As `Nodes.list`."""
        return self._fleet.wait(self._fleet.fleet.nodes.list())


class SyncEvents:
    """As `Events`."""

    def __init__(self, fleet: SyncFleet) -> None:
        self._fleet = fleet

    def page(
        self, *, after: str | None = None, types: Iterable[str] = (), limit: int = 50
    ) -> tuple[list[Event], str | None]:
        """As `Events.page`."""
        return self._fleet.wait(self._fleet.fleet.events.page(after=after, types=tuple(types), limit=limit))

    def stream(self, *, after: int | None = None, types: Iterable[str] = ()) -> Iterator[Event]:
        """As `Events.stream`."""
        return self._fleet.each(self._fleet.fleet.events.stream(after=after, types=tuple(types)))
