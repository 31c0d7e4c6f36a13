"""The tree of verbs: built from a table, a branch imported when it is used; help as plain text with its examples."""

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from retinue.cli.coercion import simplified
from retinue.cli.front import Common, Front

if TYPE_CHECKING:
    from retinue.cli.main import Verb

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
EXAMPLES = "Examples:"
Function = Callable[..., None]


def _common(
    as_json: Annotated[bool, typer.Option("--json", help="Documents for programs on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress on standard error.")] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Say what is going on; -vv more.")
    ] = 0,
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Where Retinue keeps its data.")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="Read this configuration and no other.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """What every verb takes."""


def _command(function: Function, name: str, kind: type[TyperCommand], settings: Mapping[str, Any]) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, cls=kind, context_settings={**SETTINGS, **settings})(function)
    return typer.main.get_command(app)


class ReaderGone(Exception):
    """The reader of our output wants no more."""


class VerbCommand(TyperCommand):
    """A verb, with the options that every verb takes; those that it declares itself it is handed itself."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        taken = {word for param in self.params for word in (param.name, *param.opts)}
        common = _command(_common, "common", TyperCommand, {}).params
        self.common = [param for param in common if not taken.intersection((param.name, *param.opts))]
        self.params += self.common

    def get_params(self, context: Any) -> Any:
        return simplified(super().get_params(context))

    def invoke(self, context: Any) -> Any:
        given = {param.name: context.params.pop(param.name) for param in self.common}
        context.obj = Front(Common(**given))
        try:
            return super().invoke(context)
        except BrokenPipeError as error:
            raise ReaderGone from error  # typer would make exit code 1 of it

    def format_options(self, context: Any, formatter: Any) -> None:
        ours = {id(param) for param in self.common}
        rows: dict[str, list[Any]] = {"Arguments": [], "Options": [], "Options of every verb": []}
        for param in self.get_params(context):
            record = param.get_help_record(context)
            if record is not None:
                shared = id(param) in ours or param.name == "help"
                place = "Arguments" if param.param_type_name == "argument" else "Options"
                rows["Options of every verb" if shared else place].append(record)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Group(TyperGroup):
    """Verbs of one noun. Suggests what may have been meant."""

    def get_params(self, context: Any) -> Any:
        return simplified(super().get_params(context))


class Root(Group):
    """All verbs. Until one is used, it is only its line in the help."""

    def __init__(self, *arguments: Any, table: "Mapping[str, Verb]", group: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.table = dict(table)
        self.group = group
        self.commands = {name: TyperCommand(name, help=verb.summary) for name, verb in self.table.items()}

    def resolve_command(self, context: Any, arguments: list[str]) -> Any:
        name = arguments[0]
        known = self.table.get(name)
        if known is not None and known.target is not None:
            self.commands[name] = _load(known.target, name)
        elif not name.startswith("-"):
            for point in _points(self.group):
                self.commands[point.name] = (
                    _branch(point.load(), name) if point.name == name else TyperCommand(point.name)
                )
        return super().resolve_command(context, arguments)

    def format_commands(self, context: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, verb in self.table.items():
            panels.setdefault(verb.panel, []).append((name, verb.summary))
        others = sorted({point.name for point in _points(self.group)} - set(self.table))
        panels["Plug-ins"] = [(name, f"`retinue {name} --help` says what it does") for name in others]
        for panel, rows in panels.items():
            if rows:
                with formatter.section(panel):
                    formatter.write_dl(rows, col_max=10)


def build(table: "Mapping[str, Verb]", group: str) -> TyperGroup:
    """The whole tree; no verb's module is imported yet."""
    params = list(typer.main.get_install_completion_arguments())
    version = _command(_version, "version", TyperCommand, {}).params
    return Root(
        name="retinue",
        help="Run agents and commands on every machine you own, as one fleet.",
        epilog="`retinue VERB --help` shows its options and examples.",
        params=[*version, *params],
        callback=lambda **given: None,
        no_args_is_help=True,
        context_settings=SETTINGS,
        rich_markup_mode=None,
        subcommand_metavar="VERB [OPTIONS] …",
        options_metavar="",
        table=table,
        group=group,
    )


def _tell_version(wanted: bool) -> None:
    if wanted:
        from retinue import __version__

        print(f"retinue {__version__} (Python {sys.version.split()[0]})")
        raise typer.Exit


def _version(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """An option of the root."""


def _load(target: str, name: str) -> Any:
    module_name, _, attribute = target.partition(":")
    module = import_module(f"retinue.cli.{module_name}")
    return _branch(getattr(module, attribute), name, getattr(module, "SETTINGS", {}))


def _branch(found: Any, name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """A verb out of a function, a group out of a mapping of functions with its help under the empty name."""
    if not isinstance(found, Mapping):
        return _command(found, name, VerbCommand, settings or {})
    return Group(
        name=name,
        help=found[""],
        commands={verb: _command(function, verb, VerbCommand, {}) for verb, function in found.items() if verb},
        no_args_is_help=True,
        context_settings=SETTINGS,
        rich_markup_mode=None,
        subcommand_metavar="VERB [OPTIONS] …",
        options_metavar="",
    )


@cache
def _points(group: str) -> Iterable[Any]:
    from importlib.metadata import entry_points

    return tuple(entry_points(group=group))


def examples(function: Function) -> list[str]:
    """The command lines below `Examples:` in a verb's docstring."""
    _, _, below = (function.__doc__ or "").partition(EXAMPLES)
    return [line.strip() for line in below.splitlines() if line.strip()]
