"""What every test with real processes may need."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import CommandLine


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CommandLine]:
    folder = tmp_path / "folder"
    folder.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RETINUE_")}
    env |= {
        "RETINUE_DATA_DIR": str(tmp_path / "data"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "HOME": str(tmp_path),
        "MARK": f"test-{tmp_path}",
        "NO_COLOR": "1",
    }
    line = CommandLine(folder, env)
    yield line
    for process in line.running:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
