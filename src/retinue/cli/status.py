"""`retinue status`: what runs, what waits, who is there."""

from typing import Any

import typer

from retinue.cli.front import Front

ORDER = ("running", "claimed", "pending", "blocked", "scheduled", "input-required", "completed", "failed", "cancelled")


def command(context: typer.Context) -> None:
    """What runs, what waits, who is there.

    Examples:

        retinue status

        retinue status --json
    """
    from retinue.coordinator.datadir import holder

    front: Front = context.obj
    document: dict[str, Any] = front.look(lambda fleet: fleet.status())
    held = holder(front.data_dir)
    document["data_dir"] = str(front.data_dir)
    document["held_by"] = held and {"pid": held.get("pid"), "command": held.get("command")}
    document.pop("loops", None)
    if front.json:
        front.document(document)
        return
    pool, tasks = document["pool"], document["tasks"]
    print(f"{'pool':<8} {pool['status']}: {_some(pool['online'], 'node')} online, {pool['running']} tasks running")
    known = [f"{tasks[status]} {status}" for status in ORDER if tasks.get(status)]
    print(f"{'tasks':<8} {', '.join(known) or 'none yet'}")
    user = f", in use by process {held.get('pid')}" if held else ""
    print(f"{'data':<8} {front.data_dir}{user}")
    for trouble in document["degraded"]:
        print(f"{'trouble':<8} {trouble}")


def _some(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
