"""The generated parts of docs/: verbs, settings, events, errors, planted bugs. Run it when one of them changed.

A part stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`; the rest of a page is written by hand.
"""

import re
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
PART: Final = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
WIDTH: Final = 100


def verbs() -> str:
    """Every verb's help, as it is printed."""
    import typer

    from retinue.cli.main import root

    def help_of(command: Any, name: str, parent: Any = None) -> str:
        return str(command.get_help(context(command, name, parent))).rstrip()

    def context(command: Any, name: str, parent: Any) -> Any:
        settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
        return typer.Context(command, info_name=name, parent=parent, **settings)

    tree = root()
    top = context(tree, "retinue", None)
    pages = [f"```text\n{help_of(tree, 'retinue')}\n```"]
    for name in list(tree.commands):
        _, command, _ = tree.resolve_command(top, [name])
        pages.append(f"## retinue {name}\n\n```text\n{help_of(command, name, top)}\n```")
        group = context(command, name, top)
        for verb, below in getattr(command, "commands", {}).items():
            pages.append(f"### retinue {name} {verb}\n\n```text\n{help_of(below, verb, group)}\n```")
    return "\n\n".join(pages)


def settings() -> str:
    """Every setting."""
    from retinue.config import SETTINGS

    rows = ["| setting | what it is | may be | default | |", "|---|---|---|---|---|"]
    for setting in SETTINGS.values():
        notes = ", ".join(["not built yet"] * (not setting.used) + ["secret"] * setting.secret)
        what = f"{setting.description.rstrip('.')}" + (f"<br>`{setting.variable}`" if setting.used else "")
        rows.append(f"| `{setting.path}` | {what} | {setting.expected} | {_value(setting.default)} | {notes} |")
    return "\n".join(rows)


def _value(value: Any) -> str:
    if value is None or value in ([], {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
            if value.total_seconds() % seconds == 0:
                return f"{int(value.total_seconds() // seconds)}{unit}"
    return str(value)


def events() -> str:
    """Every type of event."""
    from retinue.events.model import EVENT_TYPES
    from retinue.tasks.model import EVENTS

    rows = ["| type | it says | the task's status then |", "|---|---|---|"]
    for kind, says in EVENT_TYPES.items():
        move = EVENTS.get(kind)
        ends = sorted(move.targets) if move is not None else []
        then = "" if not ends else f"`{ends[0]}`" if len(ends) == 1 else "as `status` says"
        rows.append(f"| `{kind}` | {says} | {then} |")
    return "\n".join(rows)


def errors() -> str:
    """Every error."""
    from retinue import errors as module

    found = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, module.RetinueError)]
    rows = ["| code | class | HTTP | what happened, and what to do |", "|---|---|---|---|"]
    for one in sorted(found, key=lambda one: (one.code, one.__name__)):
        sentence = " ".join((one.__doc__ or "").split())
        rows.append(f"| `{one.code}` | `{one.__name__}` | {one.status} | {sentence} |")
    return "\n".join(rows)


def bugs() -> str:
    """Every planted bug of the simulator."""
    import retinue.testing.sim.bugs  # noqa: F401 - it registers them
    from retinue.testing.sim.mutants import MUTANTS

    rows = ["| planted bug | breaks | profile |", "|---|---|---|"]
    rows += [f"| {name} | {', '.join(bug.invariants)} | {bug.profile} |" for name, bug in MUTANTS.items()]
    return "\n".join(rows)


def life() -> str:
    """The life of a task: the picture, and each move with its reason."""
    from retinue.tasks.model import MOVES, TERMINAL, TaskStatus

    drawn = ["```mermaid", "stateDiagram-v2"]
    for move in MOVES:
        name = move.event.removeprefix("task.")
        starts = [one.value for one in TaskStatus if one in move.sources] or ["[*]"]
        ends = [one.value for one in TaskStatus if one in move.targets]
        drawn += [f"    {start} --> {end}: {name}" for start in starts for end in ends if start != end]
    drawn += [f"    {one.value} --> [*]" for one in TaskStatus if one in TERMINAL]
    rows = ["| event | from | to | because |", "|---|---|---|---|"]
    for move in MOVES:
        sides = [", ".join(one.value for one in TaskStatus if one in side) for side in (move.sources, move.targets)]
        rows.append(f"| `{move.event}` | {sides[0] or 'nothing'} | {sides[1]} | {move.why} |")
    return "\n".join([*drawn, "```", "", *rows])


PARTS: Final[dict[str, Callable[[], str]]] = {
    "verbs": verbs,
    "life": life,
    "settings": settings,
    "events": events,
    "errors": errors,
    "bugs": bugs,
}


def refreshed(page: str) -> str:
    """The page with its generated parts as the code has them now."""
    return PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", page)


def pages() -> Iterator[tuple[Path, str, str]]:
    """Each page with generated parts: where it is, as it is, as it should be."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.read_text()
        if PART.search(page):
            yield path, page, refreshed(page)


def main() -> None:
    """Write what changed; with `--check`, only say so."""
    stale = [(path, new) for path, old, new in pages() if old != new]
    for path, new in stale:
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
        if "--check" not in sys.argv:
            path.write_text(new)
    sys.exit(1 if stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
