"""Git, read only: nothing in the repository changes, and nothing its configuration names is run."""

import os
import subprocess  # noqa: TID251 - the demonstration's tasks are programs of their own; this is where they call git
from collections.abc import Sequence

from retinue.errors import Invalid, Unavailable

# A repository may be anybody's: its own configuration must not make git run programs, fetch, or fail on a missing file.
_ASIDE = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "log.showSignature": "false",
    "log.showRoot": "true",
    "blame.ignoreRevsFile": "",
    "diff.orderFile": os.devnull,
    "diff.ignoreSubmodules": "all",
}
_ENVIRONMENT = {
    "GIT_OPTIONAL_LOCKS": "0",  # looking must not refresh the index
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}
_OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")


class GitFailed(Exception):
    """Git ended with a failure; the text is its own first sentence."""


def git(repo: bytes, *arguments: str | bytes, timeout: float | None = None, partly: bool = False) -> bytes:
    """What `git -C repo ARGUMENTS` prints; with `partly`, whatever it printed within `timeout` seconds.

    Raises:
        GitFailed: it failed, or took longer than `timeout`.
        Invalid: there is no git on this machine.
    """
    settings = [word for name, value in _ASIDE.items() for word in ("-c", f"{name}={value}")]
    environment = {name: value for name, value in os.environ.items() if name not in _OTHER_REPOSITORY}
    command: Sequence[str | bytes] = ["git", "-C", repo, *settings, *arguments]
    try:
        ran = subprocess.run(
            command,
            env=environment | _ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise Invalid("Git is not installed here; install it, or put it on the PATH.") from None
    except OSError as error:
        raise Unavailable(f"Git could not be started: {error.strerror}.") from error
    except subprocess.TimeoutExpired as late:
        if partly:
            return late.stdout or b""
        raise GitFailed(f"git took longer than {timeout:g} s") from None
    if ran.returncode:
        said = ran.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise GitFailed(said.removeprefix("fatal: ") or f"git ended with exit code {ran.returncode}")
    return ran.stdout


def shown(name: bytes) -> str:
    """A file's name for people: as it is when a line can hold it, else quoted as git does it, unambiguously."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        text = ""
    if text and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    plain = {ord("\n"): "\\n", ord("\t"): "\\t", ord("\r"): "\\r", ord('"'): '\\"', ord("\\"): "\\\\"}
    return '"' + "".join(plain.get(c) or (chr(c) if 32 <= c < 127 else f"\\{c:03o}") for c in name) + '"'


def line(text: bytes, most: int = 80) -> str:
    """A line of a file for people: no control characters, so that it cannot steer a terminal, and not long."""
    clean = "".join(c if c.isprintable() else " " for c in text.decode(errors="replace").strip())
    return clean if len(clean) <= most else clean[: most - 1] + "…"
