"""The routes of tasks (API.md 3)."""

from typing import Any, Final

import msgspec

from retinue.errors import Invalid, RetinueError
from retinue.routes import Answer, Request, Route
from retinue.tasks.model import TaskSpec, TaskStatus
from retinue.tasks.service import TaskService

MOST_IN_A_BATCH: Final = 1000


async def submit(tasks: TaskService, request: Request) -> Answer:
    """POST /tasks"""
    caller = request.caller
    task_id = await tasks.submit(caller.team, caller.principal, request.read(TaskSpec), key=request.key)
    return Answer(await tasks.get(caller.team, task_id), 201)


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /tasks/batch."""

    tasks: list[Any]


async def submit_many(tasks: TaskService, request: Request) -> Answer:
    """POST /tasks/batch"""
    caller = request.caller
    posted = request.read(Batch).tasks
    if len(posted) > MOST_IN_A_BATCH:
        raise Invalid.field("tasks", f"at most {MOST_IN_A_BATCH} in one batch")
    outcomes: list[Any] = []
    specs: list[TaskSpec] = []
    for body in posted:
        try:
            specs.append(Request(caller, body=body).read(TaskSpec))
            outcomes.append(None)
        except Invalid as error:
            outcomes.append(error)
    made = iter(await tasks.submit_many(caller.team, caller.principal, specs))
    outcomes = [next(made) if outcome is None else outcome for outcome in outcomes]
    return Answer({"tasks": [_outcome(outcome) for outcome in outcomes]}, 201)


def _outcome(outcome: str | BaseException) -> dict[str, Any]:
    if isinstance(outcome, str):
        return {"id": outcome}
    error = outcome if isinstance(outcome, RetinueError) else RetinueError()
    return {"error": {"code": error.code, "error": error.message, "details": error.details}}


async def list_tasks(tasks: TaskService, request: Request) -> Answer:
    """GET /tasks"""
    team = request.caller.team
    if "ids" in request.query:
        return Answer({"tasks": await tasks.get_many(team, request.listed("ids")), "next": None})
    status = request.query.get("status")
    if status is not None and status not in set(TaskStatus):
        raise Invalid.field("status", f"one of {', '.join(TaskStatus)}")
    limit = request.limit()
    page = await tasks.list(
        team, status=None if status is None else TaskStatus(status), before=request.query.get("cursor"), limit=limit
    )
    return Answer({"tasks": page, "next": page[-1].id if len(page) == limit else None})


async def show(tasks: TaskService, request: Request) -> Answer:
    """GET /tasks/{id}"""
    return Answer(await tasks.get(request.caller.team, request.path["id"]))


async def why(tasks: TaskService, request: Request) -> Answer:
    """GET /tasks/{id}/why"""
    task = await tasks.get(request.caller.team, request.path["id"])
    return Answer({"id": task.id, "status": task.status, "waiting_because": task.waiting_because})


async def cancel(tasks: TaskService, request: Request) -> Answer:
    """POST /tasks/{id}/cancel"""
    caller = request.caller
    await tasks.cancel(caller.team, caller.principal, request.path["id"])
    return Answer(await tasks.get(caller.team, request.path["id"]))


async def retry(tasks: TaskService, request: Request) -> Answer:
    """POST /tasks/{id}/retry"""
    caller = request.caller
    await tasks.retry(caller.team, caller.principal, request.path["id"])
    return Answer(await tasks.get(caller.team, request.path["id"]))


ROUTES: Final[tuple[Route[TaskService], ...]] = (
    Route("POST", "/tasks", submit),
    Route("POST", "/tasks/batch", submit_many),
    Route("GET", "/tasks", list_tasks),
    Route("GET", "/tasks/{id}", show),
    Route("GET", "/tasks/{id}/why", why),
    Route("POST", "/tasks/{id}/cancel", cancel),
    Route("POST", "/tasks/{id}/retry", retry),
)
