"""The interface: every route of the coordinator, and how a request finds its handler. Doors carry requests here."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec

from retinue import __version__
from retinue.client.client import LogPiece
from retinue.coordinator.app import Coordinator
from retinue.errors import Invalid, NotFound, TaskFinal
from retinue.events import api as events_api
from retinue.nodes.store import nodes
from retinue.routes import Answer, Caller, Request, Route
from retinue.tasks import api as tasks_api
from retinue.tasks.model import TERMINAL
from retinue.tasks.prune import Pruned

SWEEP: Final = 2.0  # seconds after which a waiting request looks though no hint came
LONGEST_WAIT: Final = 60


async def status(coordinator: Coordinator, request: Request) -> Answer:
    """GET /status"""
    known = await coordinator.database.read(lambda connection: nodes(connection, request.caller.team))
    counts = await coordinator.tasks.counts(request.caller.team)
    online = [node for node in known if node.status != "offline"]
    running = sum(counts.get(name, 0) for name in ("claimed", "running"))
    slots = sum(node.workers for node in online)
    pool = {
        "online": len(online),
        "offline": len(known) - len(online),
        "asleep": 0,
        "running": running,
        "idle": max(0, slots - running),
        "status": "offline" if not online else "running" if running else "idle",
    }
    loops = {loop.name: loop.status for loop in coordinator.loops}
    degraded = [f"{name}: {said}" for name, said in loops.items() if said not in ("ok", "starting")]
    return Answer(
        {"mode": "standalone", "version": __version__, "pool": pool, "tasks": counts, "leader": None,
         "degraded": degraded, "loops": loops, "store": coordinator.ports.engine.name}
    )  # fmt: skip


async def list_nodes(coordinator: Coordinator, request: Request) -> Answer:
    """GET /nodes"""
    found = await coordinator.database.read(lambda connection: nodes(connection, request.caller.team))
    return Answer({"nodes": found, "next": None})


async def show_node(coordinator: Coordinator, request: Request) -> Answer:
    """GET /nodes/{id}"""
    for node in await coordinator.database.read(lambda connection: nodes(connection, request.caller.team)):
        if request.path["id"] in (node.id, node.name):
            return Answer(node)
    raise NotFound(id=request.path["id"])


async def wait(coordinator: Coordinator, request: Request) -> Answer:
    """GET /tasks/{id}/wait: the task once it has ended, or as it is after `seconds` (at most 60)."""
    task_id, team = request.path["id"], request.caller.team
    clock = coordinator.ports.clock
    until = clock.monotonic() + request.number("seconds", 30, most=LONGEST_WAIT)
    wake = asyncio.Event()
    unsubscribe = coordinator.ports.bus.subscribe(f"ended.{task_id}", lambda topic, payload: wake.set())
    try:
        while True:
            wake.clear()
            task = await coordinator.tasks.get(team, task_id)
            left = until - clock.monotonic()
            if task.status in TERMINAL or left <= 0:
                return Answer(task)
            try:
                async with clock.timeout(min(left, SWEEP)):
                    await wake.wait()
            except TimeoutError:
                pass
    finally:
        unsubscribe()


async def log(coordinator: Coordinator, request: Request) -> AsyncIterator[LogPiece]:
    """GET /tasks/{id}/log: output of its attempts (`attempt=` of one), with `follow=1` until the task has ended."""
    task_id, team = request.path["id"], request.caller.team
    only = request.query.get("attempt")
    follow = request.query.get("follow") == "1"
    told: set[str] = set()
    while True:
        task = await coordinator.tasks.get(team, task_id)
        fresh = [a for a in task.attempts if a.id not in told and only in (None, a.id)]
        if not fresh:
            if not follow or task.status in TERMINAL or (only is not None and told):
                return
            await wait(coordinator, msgspec.structs.replace(request, query={"seconds": "1"}))
            continue
        attempt = fresh[0].id

        async def ended(attempt: str = attempt) -> bool:
            now = await coordinator.tasks.get(team, task_id)
            return not follow or all(a.ended_at is not None for a in now.attempts if a.id == attempt)

        async for piece in coordinator.logs.follow(task_id, attempt, ended):
            yield LogPiece(piece.attempt, piece.stream, piece.offset, piece.data)
        told.add(attempt)


class Stdin(msgspec.Struct, frozen=True):
    """The body of POST /tasks/{id}/stdin."""

    base64: bytes = b""
    end: bool = False


async def stdin(coordinator: Coordinator, request: Request) -> Answer:
    """POST /tasks/{id}/stdin: more standard input; answered once the program is not far behind."""
    task_id = request.path["id"]
    body = request.read(Stdin)
    task = await coordinator.tasks.get(request.caller.team, task_id)
    if task.status in TERMINAL:
        raise TaskFinal(task=task_id, status=task.status)
    room = asyncio.Event()
    coordinator.stdin.on_room(task_id, room.set)
    coordinator.stdin.put(task_id, body.base64, end=body.end)
    while coordinator.stdin.full(task_id):
        room.clear()
        await room.wait()
    return Answer({})


class OpenSession(msgspec.Struct, frozen=True):
    """The body of POST /sessions."""

    lease_seconds: float = 15.0


async def open_session(coordinator: Coordinator, request: Request) -> Answer:
    """POST /sessions"""
    lease = request.read(OpenSession).lease_seconds
    if not 1 <= lease <= 300:
        raise Invalid.field("lease_seconds", "from 1 to 300")
    session = await coordinator.tasks.open_session(request.caller.team, coordinator.boot, lease)
    return Answer({"id": session, "lease_seconds": lease}, 201)


async def keep_session(coordinator: Coordinator, request: Request) -> Answer:
    """POST /sessions/{id}/keep"""
    kept = await coordinator.tasks.keep_session(
        request.caller.team, request.path["id"], request.read(OpenSession).lease_seconds
    )
    if not kept:
        raise NotFound(id=request.path["id"])
    return Answer({"id": request.path["id"]})


async def close_session(coordinator: Coordinator, request: Request) -> Answer:
    """DELETE /sessions/{id}"""
    await coordinator.tasks.close_session(request.caller.team, request.path["id"], "its client went away")
    return Answer({})


async def prune(coordinator: Coordinator, request: Request) -> Answer:
    """POST /prune: delete now what is past its retention."""
    total = Pruned()
    while True:
        gone = await coordinator.pruner.bite()
        if not (gone.events or gone.tasks or gone.logs or gone.keys):
            return Answer(total)
        total = Pruned(
            total.events + gone.events, total.tasks + gone.tasks, total.logs + gone.logs, total.keys + gone.keys
        )


ROUTES: Final[tuple[Route[Coordinator], ...]] = (
    Route("GET", "/status", status),
    Route("GET", "/nodes", list_nodes),
    Route("GET", "/nodes/{id}", show_node),
    Route("GET", "/tasks/{id}/wait", wait),
    Route("GET", "/tasks/{id}/log", stream=log),
    Route("POST", "/tasks/{id}/stdin", stdin),
    Route("POST", "/sessions", open_session),
    Route("POST", "/sessions/{id}/keep", keep_session),
    Route("DELETE", "/sessions/{id}", close_session),
    Route("POST", "/prune", prune),
)


class Interface:
    """Calls the handler a request is meant for. What a door adds is how requests come in and who the caller is."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._routes: list[tuple[Route[Any], Any]] = [
            *((route, coordinator) for route in ROUTES),
            *((route, coordinator.tasks) for route in tasks_api.ROUTES),
            *((route, coordinator.events) for route in events_api.ROUTES),
        ]

    async def call(
        self, caller: Caller, method: str, path: str, query: Mapping[str, str], body: Any = None, key: str | None = None
    ) -> Answer:
        """The answer of one operation.

        Raises:
            NotFound: there is no such route. Whatever its handler raises.
        """
        route, service, fields = self._find(method, path)
        if route.handler is None:
            raise NotFound(f"{method} {path} is a stream; read it as one.")
        answer: Answer = await route.handler(service, Request(caller, fields, query, body, key))
        return answer

    def stream(self, caller: Caller, path: str, query: Mapping[str, str]) -> AsyncIterator[Any]:
        """The documents of one streaming operation.

        Raises:
            NotFound: there is no such stream.
        """
        route, service, fields = self._find("GET", path)
        if route.stream is None:
            raise NotFound(f"GET {path} is no stream.")
        return route.stream(service, Request(caller, fields, query))

    def _find(self, method: str, path: str) -> tuple[Route[Any], Any, dict[str, str]]:
        for route, service in self._routes:
            fields = route.match(method, path)
            if fields is not None:
                return route, service, fields
        raise NotFound(f"There is no {method} {path}.")
