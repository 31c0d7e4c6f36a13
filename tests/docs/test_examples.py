"""What the pages show runs as they show it: in a home of its own, with nothing set up."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pages import Block, blocks

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(180)]

COMMAND = re.compile(r"^\$ (.*?)(?:\s+# exit (\d+))?$", re.MULTILINE)


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has just installed Retinue, in a small git repository."""
    home, here = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    here.mkdir()
    (here / "hello.py").write_text("print('hello')\n")
    environment = {
        "HOME": str(home),
        "PWD": str(here),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    person = ["-c", "user.name=A Person", "-c", "user.email=person@example.org"]
    for arguments in (["init", "-q"], ["add", "-A"], [*person, "commit", "-qm", "hello"]):
        run(["git", *arguments], environment)
    return environment


def run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    where = environment["PWD"]
    return subprocess.run(command, env=environment, cwd=where, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("block", blocks("console"), ids=str)
def test_every_command_of_a_page_ends_as_the_page_says(block: Block, machine: dict[str, str]) -> None:
    commands = COMMAND.findall(block.text)

    ended = {line: run(["bash", "-c", line], machine) for line, _ in commands}

    codes = {line: (one.returncode, one.stderr) for line, one in ended.items()}
    assert codes == {line: (int(code or 0), codes[line][1]) for line, code in commands}
    assert commands
    assert [one.stderr for one in ended.values() if "Traceback" in one.stderr] == []


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_every_program_of_a_page_runs(block: Block, machine: dict[str, str]) -> None:
    named = re.match(r'"""(\w+\.py):', block.text)
    file = Path(machine["PWD"]) / (named[1] if named else "example.py")
    file.write_text(block.text)

    ended = run(["python", file.name], machine)

    assert (ended.returncode, ended.stderr) == (0, "")
