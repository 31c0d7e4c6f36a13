"""`retinue`: finds the verb, imports only that verb's module, and turns every error into one sentence and an exit code.

A verb is a function with typed options whose docstring ends with `Examples:`. Its module is named in `VERBS`; other
distributions add verbs by the entry point group `retinue.cli`.
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from typer.core import TyperGroup

    from retinue.errors import RetinueError


class Verb(NamedTuple):
    """Where a verb is (`module:function`, or `module:GROUP` of several), and what `retinue --help` says about it."""

    target: str | None  # None: an entry point of this name
    summary: str
    panel: str


WORK, LOOK, CARE = "Work", "Look", "Take care"
VERBS: Final = {
    "run": Verb("run:command", "Run a command, with its output live and its exit code", WORK),
    "task": Verb("task:GROUP", "Tasks: submit, list, show, log, wait, cancel, retry", WORK),
    "demo": Verb("demo:command", "Real work over a git repository, with a report", WORK),
    "status": Verb("status:command", "What runs, what waits, who is there", LOOK),
    "tasks": Verb("task:listing", "The same as `task list`", LOOK),
    "nodes": Verb("node:listing", "The same as `node list`", LOOK),
    "node": Verb("node:GROUP", "Nodes: list, show", LOOK),
    "events": Verb("events:command", "What happened, in order; -f to follow", LOOK),
    "config": Verb("config:GROUP", "Settings: show where they come from, validate", CARE),
    "doctor": Verb("doctor:command", "Check this machine and say what is weak", CARE),
    "prune": Verb("prune:command", "Delete now what is past its retention", CARE),
    "restore": Verb("restore:command", "Take a store that was put back as it is", CARE),
    "torture": Verb(None, "Play thousands of bad days and check every guarantee", CARE),
}
GROUP: Final = "retinue.cli"
CLOSED_PIPE: Final = 141  # what a shell reports for a program that SIGPIPE ended
INTERRUPTED: Final = 130


def main() -> None:
    """The command line of this process; never returns."""
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _closed_pipe()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say and answer the exit code; whatever went wrong is one sentence on standard error."""
    from typer.exceptions import Abort, TyperException

    from retinue.cli.tree import ReaderGone
    from retinue.errors import RetinueError

    try:
        answer = root().main(args=list(arguments), prog_name="retinue", standalone_mode=False)
    except TyperException as error:
        return _usage(error)
    except (KeyboardInterrupt, Abort):
        return INTERRUPTED
    except (ReaderGone, BrokenPipeError):
        return _closed_pipe()
    except RetinueError as error:
        return _failed(error)
    except Exception as error:
        if _debug():
            raise
        _say(f"retinue: {type(error).__name__}: {error}. This is a mistake in Retinue; --debug shows where it is.")
        return 1
    return answer if isinstance(answer, int) else 0


def root() -> "TyperGroup":
    """The command line as a tree whose branches are imported when they are used."""
    from retinue.cli.tree import build

    return build(VERBS, GROUP)


def exit_code(error: "RetinueError") -> int:
    """2: what was asked for, or how it is set up, is wrong. 3: it cannot be reached. 1: anything else."""
    from retinue import errors

    wrong = (errors.Invalid, errors.NotSupported, errors.ConfigInvalid, errors.StoreNewer, errors.StoreBehind)
    away = (errors.Unavailable, errors.DataDirHeld, errors.Forbidden)
    if isinstance(error, errors.CannotRun):
        return 125
    if isinstance(error, (*wrong, errors.StoreNotDurable)):
        return 2
    return 3 if isinstance(error, away) else 1


def _failed(error: "RetinueError") -> int:
    if _debug():
        import traceback

        traceback.print_exception(error)
    from retinue.cli.text import plain

    _say(f"retinue: {plain(error.message)}")
    return exit_code(error)


def _usage(error: Any) -> int:
    """Wrong options: what is wrong and where to look, in one line. Help that nobody asked for goes to stderr too."""
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        _say(context.get_help())
        return 2
    path = context.command_path if context is not None else " ".join(["retinue", *_named()])
    problem = " ".join(error.format_message().split()).rstrip(".")
    if type(error).__name__ == "NoSuchOption" and hasattr(getattr(context, "command", None), "commands"):
        problem = f"No such option: {error.option_name}; options stand behind the verb"
    _say(f"{path}: {problem}{'' if problem.endswith('?') else '.'} See `{path} --help`.")
    return int(error.exit_code)


def _named() -> list[str]:
    return sys.argv[1:2] if sys.argv[1:2] and sys.argv[1] in VERBS else []


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr)
    except OSError:
        pass  # there is nobody to tell


def _closed_pipe() -> int:
    """Whoever read our output wants no more, which is their right; Python must not stumble over it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    return CLOSED_PIPE


def _debug() -> bool:
    given = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    return "--debug" in given
