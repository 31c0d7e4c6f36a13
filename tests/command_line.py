"""The command line as people use it: a process with a data directory and a configuration of the test's own."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROGRAM = Path(sys.executable).with_name("retinue")
PATIENCE = 15.0  # seconds


@dataclass
class CommandLine:
    """Runs `retinue` in an empty folder."""

    folder: Path
    env: dict[str, str]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(
        self, *arguments: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run it to its end; without `stdin` there is none."""
        given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            [PROGRAM, *arguments], cwd=self.folder, env={**self.env, **(env or {})}, capture_output=True,
            timeout=PATIENCE, check=False, **given,
        )  # fmt: skip

    def start(
        self, *arguments: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.PIPE
    ) -> "subprocess.Popen[bytes]":
        """Start it in a group of its own, as a shell does."""
        started = subprocess.Popen(
            [PROGRAM, *arguments], cwd=self.folder, env=self.env, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE,
            process_group=0,
        )  # fmt: skip
        self.running.append(started)
        return started

    def said(self, *arguments: str) -> str:
        """What it prints when all is well."""
        ran = self.run(*arguments)
        assert ran.returncode == 0, ran.stderr.decode()
        return ran.stdout.decode()


def sleepers(number: str) -> list[psutil.Process]:
    """Processes whose command line is `sleep NUMBER`."""
    return [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == ["sleep", number]]
