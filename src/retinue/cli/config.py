"""`retinue config …`: every setting, its value and where it comes from; and what is wrong with them."""

from typing import Annotated, Any, Final

import typer

from retinue.cli.front import Front
from retinue.cli.text import plain


def show(
    context: typer.Context,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
) -> None:
    """Every setting and its value. Secrets are hidden.

    Examples:

        retinue config show

        retinue config show --origin --json
    """
    from retinue.config import SETTINGS, as_text, masked

    front: Front = context.obj
    loaded = front.loaded
    shown = {path: masked(setting, loaded.value(path)) for path, setting in SETTINGS.items()}
    if front.json:
        document: dict[str, Any] = {
            path: {"value": as_text(value) if _is_span(value) else value}
            | ({"origin": loaded.origins[path]} if origin else {})
            for path, value in shown.items()
        }
        front.document(document)
        return
    columns = ["setting", "value", *(["from"] if origin else [])]
    rows = [
        [path, plain(as_text(value)), *([plain(loaded.origins[path])] if origin else [])]
        for path, value in shown.items()
    ]
    front.table(columns, rows)


def validate(context: typer.Context) -> None:
    """Check the configuration: every mistake on a line of its own with file, line and key; exit code 2 if there is one.

    Examples:

        retinue config validate
    """
    import sys

    from retinue.config import SETTINGS
    from retinue.errors import ConfigInvalid

    front: Front = context.obj
    problems: list[str] = []
    unused: list[str] = []
    files: list[str] = []
    try:
        loaded = front.loaded
        unused = loaded.unused
        files = [str(path) for path in loaded.files]
    except ConfigInvalid as error:
        problems = list(error.details["problems"])
    if front.json:
        front.document({"valid": not problems, "problems": problems, "files": files, "not_used_yet": unused})
    else:
        for problem in problems:
            print(plain(problem), file=sys.stderr)
        for path in unused:
            front.note(f"{loaded.origins[path]}: {path} is fine, but not used yet: its part is not built.")
        if not problems:
            print(f"The configuration is valid ({', '.join(files) or 'no file'}; {len(SETTINGS)} settings).")
    raise typer.Exit(2 if problems else 0)


def _is_span(value: Any) -> bool:
    from datetime import timedelta

    return isinstance(value, timedelta)


GROUP: Final = {"": "The configuration.", "show": show, "validate": validate}
