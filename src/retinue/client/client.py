"""The client: a `Fleet` with `.tasks`, `.nodes` and `.events`, whatever carries its requests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar, cast, overload

import msgspec

from retinue.client.session import Session
from retinue.client.transport import Transport
from retinue.errors import Invalid, NotFound, TaskFailed
from retinue.events.model import Event
from retinue.nodes.model import Node
from retinue.tasks.model import TERMINAL, Task, TaskSpec, TaskStatus

if TYPE_CHECKING:
    from retinue.client.sync import SyncFleet

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
MARK = "__retinue_task__"  # what `@retinue.task` leaves on a function
LARGEST_BATCH = 1000
LARGEST_LOOK = 200  # ids in one request


class _Registered(Protocol):
    """What `@retinue.task` leaves: the function's name, and how its arguments and result travel."""

    name: str

    def encode(self, arguments: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> list[Any]: ...

    def decode_result(self, value: Any) -> Any: ...


class _Page(msgspec.Struct):
    tasks: list[Task] = []
    nodes: list[Node] = []
    events: list[Event] = []
    next: str | None = None


class _Made(msgspec.Struct):
    id: str | None = None
    error: dict[str, Any] | None = None


class _Batch(msgspec.Struct):
    tasks: list[_Made]


class LogPiece(msgspec.Struct, frozen=True):
    """Output of an attempt, from `offset` of that stream on."""

    attempt: str
    stream: str
    offset: int
    base64: bytes


class Tasks:
    """`fleet.tasks`: submit, look, wait, cancel, retry, read output."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._waiting: dict[str, asyncio.Future[Task]] = {}
        self._look: asyncio.Queue[str] = asyncio.Queue()  # ids that may have ended
        self._watch: asyncio.Task[None] | None = None

    async def submit(self, spec: TaskSpec | None = None, *, key: str | None = None, **fields: Any) -> Task:
        """Submit a task: a `TaskSpec`, or its fields (`command=["make"]`). With a `key`, repeating it is harmless.

        Raises:
            Invalid: a field is wrong. NotFound: a parent does not exist. IdempotencyConflict, ParentCancelled.
        """
        return await self._transport.call("POST", "/tasks", Task, body=_spec(spec, fields), key=key)

    async def submit_many(self, specs: Iterable[TaskSpec]) -> list[str]:
        """The ids of the new tasks, in order. All are checked first; nothing is submitted if one of them is wrong.

        Raises:
            Invalid: a field of one is wrong; `details.index` says of which.
        """
        ids: list[str] = []
        batch = list(specs)
        for begin in range(0, len(batch), LARGEST_BATCH):
            body = {"tasks": batch[begin : begin + LARGEST_BATCH]}
            made = await self._transport.call("POST", "/tasks/batch", _Batch, body=body)
            for place, one in enumerate(made.tasks):
                if one.id is None:
                    error = one.error or {}
                    raise Invalid(str(error.get("error", "refused")), index=begin + place, **error)
                ids.append(one.id)
        return ids

    async def get(self, task_id: str) -> Task:
        """The task's document; `waiting_because` says why it waits.

        Raises:
            NotFound: there is none.
        """
        return await self._transport.call("GET", f"/tasks/{task_id}", Task)

    async def list(self, *, status: str | None = None, limit: int = 50, cursor: str | None = None) -> "list[Task]":
        """Tasks, newest first."""
        query = {"limit": str(limit)} | ({"status": status} if status else {}) | ({"cursor": cursor} if cursor else {})
        return (await self._transport.call("GET", "/tasks", _Page, query=query)).tasks

    async def cancel(self, task_id: str) -> Task:
        """Cancel a task and everything below it; no result is accepted after this returns.

        Raises:
            NotFound: there is none. TaskFinal: it has completed or failed.
        """
        return await self._transport.call("POST", f"/tasks/{task_id}/cancel", Task)

    async def retry(self, task_id: str) -> Task:
        """Run a task that has ended once more.

        Raises:
            NotFound: there is none. TaskNotFinal: it has not ended.
        """
        return await self._transport.call("POST", f"/tasks/{task_id}/retry", Task)

    async def wait(self, task_id: str) -> Task:
        """The task once it has ended, however it ended.

        Raises:
            NotFound: there is none.
        """
        waiting = self._waiting.get(task_id)
        if waiting is None:
            waiting = self._waiting[task_id] = asyncio.get_running_loop().create_future()
            waiting.add_done_callback(lambda done: self._waiting.pop(task_id, None))
            self._look.put_nowait(task_id)
            if self._watch is None or self._watch.done():
                self._watch = asyncio.get_running_loop().create_task(self._notice(), name="waiting")
        return await asyncio.shield(waiting)

    async def _notice(self) -> None:
        """Follow the feed while anything is waited for, and look at what may have ended, many in one request."""
        last = await self._transport.call("GET", "/events/last", dict)

        async def listen() -> None:
            query = {"types": "task.completed,task.failed,task.cancelled", "after": str(last["position"])}
            async for event in self._transport.stream("/events/stream", Event, query=query):
                if event.correlation_id in self._waiting:
                    self._look.put_nowait(event.correlation_id)

        listening = asyncio.get_running_loop().create_task(listen())
        listening.add_done_callback(lambda done: self._look.put_nowait(""))  # wakes the loop below when it fails
        try:
            while True:
                ids = {await self._look.get()}
                while not self._look.empty() and len(ids) < LARGEST_LOOK:
                    ids.add(self._look.get_nowait())
                if listening.done():
                    listening.result()
                await self._settle(ids)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told
            for waiting in list(self._waiting.values()):
                if not waiting.done():
                    waiting.set_exception(error)
        finally:
            listening.cancel()

    async def _settle(self, ids: set[str]) -> None:
        """Answer those who wait for what has ended, or does not exist."""
        page = await self._transport.call("GET", "/tasks", _Page, query={"ids": ",".join(sorted(ids))})
        found = {task.id: task for task in page.tasks}
        for task_id in ids:
            waiting, task = self._waiting.get(task_id), found.get(task_id)
            if waiting is None or waiting.done():
                continue
            if task is None:
                waiting.set_exception(NotFound(id=task_id))
            elif task.status in TERMINAL:
                waiting.set_result(task)

    def log(self, task_id: str, *, follow: bool = False, attempt: str | None = None) -> AsyncIterator[LogPiece]:
        """Its output, attempt by attempt; with `follow`, as it comes, until the task has ended."""
        query = {"follow": "1"} if follow else {}
        return self._transport.stream(
            f"/tasks/{task_id}/log", LogPiece, query=query | ({"attempt": attempt} if attempt else {})
        )

    async def write(self, task_id: str, data: bytes, *, end: bool = False) -> None:
        """Give a task that was submitted with `stdin=True` more input; waits while the program is far behind."""
        await self._transport.call("POST", f"/tasks/{task_id}/stdin", dict, body={"base64": data, "end": end})

    async def _close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)


class Nodes:
    """`fleet.nodes`: what machines there are."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> list[Node]:
        """Every node, by name."""
        return (await self._transport.call("GET", "/nodes", _Page)).nodes


class Events:
    """`fleet.events`: what happened, in order."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def page(
        self, *, after: str | None = None, types: Sequence[str] = (), limit: int = 50
    ) -> tuple[list[Event], str | None]:
        """The next events behind a position, oldest first, and the position to go on from.

        Raises:
            CursorExpired: they are pruned; `details.start` is where the feed begins now.
        """
        query = {"limit": str(limit), "types": ",".join(types)} | ({"cursor": after} if after else {})
        page = await self._transport.call("GET", "/events", _Page, query=query)
        return page.events, page.next

    def stream(self, *, after: int | None = None, types: Sequence[str] = ()) -> AsyncIterator[Event]:
        """Every event behind `after` (from now on, if None), each once, in order, for ever."""
        query = {"types": ",".join(types)} | ({} if after is None else {"after": str(after)})
        return self._transport.stream("/events/stream", Event, query=query)


class Fleet:
    """All your machines as one: `async with retinue.connect() as fleet`, or `with retinue.connect().sync as fleet`."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.tasks = Tasks(transport)
        self.nodes = Nodes(transport)
        self.events = Events(transport)
        self._session: Session | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self.transport.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; an embedded coordinator ends with it, after what it runs."""
        if self._session is not None:
            await self._session.close()
        await self.tasks._close()  # noqa: SLF001 - one module
        await self.transport.close()

    async def status(self) -> dict[str, Any]:
        """The pool, the tasks by status, and what is not as it should be."""
        return cast("dict[str, Any]", await self.transport.call("GET", "/status", dict))

    @overload
    async def run(self, function: Callable[P, Awaitable[R]], *arguments: P.args, **keywords: P.kwargs) -> R: ...
    @overload
    async def run(self, function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs) -> R: ...
    async def run(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Run a registered function somewhere in the fleet and return its result.

        Raises:
            Invalid: it is not registered, or the arguments do not fit. TaskFailed: it ended without a result.
        """
        known = _registered(function)
        session = await self.session()
        spec = TaskSpec(function=known.name, arguments=known.encode(arguments, keywords), session=session.id)
        task = await self.tasks.submit(spec)
        return _result(known, await self.tasks.wait(task.id))

    @overload
    async def map(self, function: Callable[[T], Awaitable[R]], items: Iterable[T]) -> list[R]: ...
    @overload
    async def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]: ...
    async def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """The results for all items, in order, computed wherever there is room.

        Raises:
            TaskFailed: one of them ended without a result; the others go on.
        """
        known = _registered(function)
        session = (await self.session()).id
        specs = [TaskSpec(function=known.name, arguments=known.encode([item]), session=session) for item in items]
        ids = await self.tasks.submit_many(specs)
        ended = await asyncio.gather(*(self.tasks.wait(task_id) for task_id in ids))
        return [_result(known, task) for task in ended]

    async def session(self) -> Session:
        """This client's session, opened at first use: tasks that name it are cancelled when the client is gone."""
        async with self._opening:
            if self._session is None:
                opened = Session(self.transport)
                await opened.open()
                self._session = opened
        return self._session

    @property
    def sync(self) -> "SyncFleet":
        """The same verbs for scripts without an event loop of their own."""
        from retinue.client.sync import SyncFleet

        return SyncFleet(self)


def _spec(spec: TaskSpec | None, fields: Mapping[str, Any]) -> TaskSpec:
    if spec is not None:
        return msgspec.structs.replace(spec, **fields)
    try:
        return TaskSpec(**fields)
    except TypeError as error:
        raise Invalid.field("task", str(error)) from None


def _registered(function: Callable[..., Any]) -> _Registered:
    known: _Registered | None = getattr(function, MARK, None)
    if known is None:
        name = getattr(function, "__qualname__", repr(function))
        raise Invalid.field("function", f"{name} is not registered; put @retinue.task above its def")
    return known


def _result(known: _Registered, task: Task) -> Any:
    if task.status is not TaskStatus.COMPLETED:
        said = task.error or f"it was {task.status}"
        raise TaskFailed(f"{known.name} did not complete: {said}", task=task.id, status=task.status, code=task.code)
    return known.decode_result(task.result)
