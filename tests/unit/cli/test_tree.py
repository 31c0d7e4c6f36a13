"""The tree of verbs: all listed, each with examples, nothing imported before it is used."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from retinue import errors
from retinue.cli import main, tree
from retinue.cli.main import VERBS


def verbs() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Every verb as it is typed, its function, and its line in a help text."""
    for name, verb in VERBS.items():
        if verb.target is None:
            continue
        module, _, attribute = verb.target.partition(":")
        found = getattr(import_module(f"retinue.cli.{module}"), attribute)
        if isinstance(found, dict):
            yield from ((f"{name} {one}", function, "") for one, function in found.items() if one)
        else:
            yield name, found, verb.summary


def test_help_lists_every_verb_and_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    code = main.run(["--help"])

    out = capsys.readouterr().out
    assert code == 0
    assert [name for name in VERBS if not re.search(rf"^  {name} ", out, re.MULTILINE)] == []
    assert max(len(line) for line in out.splitlines()) <= 80


def test_help_imports_no_verb_and_nothing_heavy() -> None:
    code = (
        "import sys; from retinue.cli.main import run; run(['--help'])\n"
        "heavy = 'asyncio msgspec yaml pydantic rich.table sqlite3 retinue.client retinue.cli.run'.split()\n"
        "sys.exit(', '.join(name for name in heavy if name in sys.modules) or 0)"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(("name", "function"), [pytest.param(name, made, id=name) for name, made, _ in verbs()])
def test_every_verb_says_what_it_does_with_an_example(name: str, function: Callable[..., Any]) -> None:
    shown = tree.examples(function)

    assert shown
    assert [line for line in shown if "retinue " not in line] == []
    assert (function.__doc__ or "").splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", [name for name, _, _ in verbs()])
def test_every_verb_has_help_and_the_options_of_every_verb(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main.run([*name.split(), "--help"])

    out = capsys.readouterr().out
    assert code == 0
    assert [word for word in ("--json", "--quiet", "--data-dir", "--config", "--debug") if word not in out] == []


USAGE = {
    "no verb like it": (["rum"], "retinue: No such command 'rum'. Did you mean 'run'? See `retinue --help`."),
    "nothing like it": (["zzz"], "retinue: No such command 'zzz'. See `retinue --help`."),
    "no verb of the noun": (
        ["task", "lisst"],
        "retinue task: No such command 'lisst'. Did you mean 'list'? See `retinue task --help`.",
    ),
    "option before the verb": (
        ["--json", "status"],
        "retinue: No such option: --json; options stand behind the verb. See `retinue --help`.",
    ),
    "no number": (
        ["tasks", "--limit", "x"],
        "retinue tasks: Invalid value for '--limit': 'x' is not a whole number. See `retinue tasks --help`.",
    ),
    "out of range": (
        ["tasks", "--limit", "0"],
        "retinue tasks: Invalid value for '--limit': 0 is not in the range from 1 to 500. See `retinue tasks --help`.",
    ),
    "argument missing": (
        ["task", "show"],
        "retinue task show: Missing argument 'TASK'. See `retinue task show --help`.",
    ),
    "no pair": (
        ["run", "--env", "X", "true"],
        "retinue run: Invalid value for --env: 'X': write K=V. See `retinue run --help`.",
    ),
    "no duration": (
        ["run", "--timeout", "5", "true"],
        "retinue run: Invalid value for --timeout: '5': expected a duration such as 30s, 5m, 1h or 30d. {see}",
    ),
    "contradiction": (
        ["run", "--once", "--retries", "2", "true"],
        "retinue run: Invalid value for --once: it contradicts --retries. See `retinue run --help`.",
    ),
    "not built yet": (
        ["run", "--repo", ".", "true"],
        "retinue: --repo: this part of Retinue is not built yet; leave it out.",
    ),
    "no size": (
        ["run", "--output-limit", "1X", "true"],
        "retinue run: Invalid value for --output-limit: '1X': write a size such as 64M or 1G. {see}",
    ),
}


@pytest.mark.parametrize("name", USAGE)
def test_what_was_typed_wrong_is_one_sentence_and_exit_code_2(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments, sentence = USAGE[name]
    sentence = sentence.replace("{see}", "See `retinue run --help`.")
    monkeypatch.setenv("RETINUE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    code = main.run(arguments)

    caught = capsys.readouterr()
    assert (code, caught.out, caught.err.strip()) == (2, "", sentence)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Invalid("x"), 2),
        (errors.ConfigInvalid(), 2),
        (errors.StoreNewer(), 2),
        (errors.StoreBehind(), 2),
        (errors.StoreNotDurable(), 2),
        (errors.DataDirHeld(), 3),
        (errors.Unavailable(), 3),
        (errors.StoreFull(), 3),
        (errors.Forbidden(), 3),
        (errors.NotFound(), 1),
        (errors.TaskFinal(), 1),
        (errors.CannotRun(), 125),
    ],
)
def test_an_error_has_its_exit_code(error: errors.RetinueError, code: int) -> None:
    assert main.exit_code(error) == code
