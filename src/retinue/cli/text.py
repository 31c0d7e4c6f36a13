"""Text for people: without anything that could steer their terminal, in columns, with times they can read."""

import codecs
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import timedelta

# OSC, DCS, SOS, PM and APC up to their end, CSI up to its final letter, any other sequence of ESC; in 7 and 8 bits.
SEQUENCE = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|(?=\x1b)|$)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*(?:[@-~]|$)"
    r"|\x1b(?:[ -/]*[0-~]|$)"
)
# Further control characters, and those that turn the direction of writing.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
UNFINISHED = re.compile(r"(?:\x1b|\x1b[\]PX^_][^\x07\x1b]*\x1b?|[\x9d\x90\x98\x9e\x9f][^\x07\x1b\x9c]*"
                        r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*|\x1b[ -/]+)\Z")  # fmt: skip
LONGEST_SEQUENCE = 4096


def plain(text: str) -> str:
    """The text on one line, without terminal sequences and control characters."""
    return CONTROL.sub("", " ".join(SEQUENCE.sub("", text).split()))


class Stripper:
    """Bytes of a program's output made harmless to a terminal, piece by piece; sequences may be cut anywhere."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes, *, last: bool = False) -> bytes:
        """What may be shown of it now."""
        text = self._held + self._decoder.decode(data, last)
        cut = None if last else UNFINISHED.search(text)
        self._held = ""
        if cut is not None and len(text) - cut.start() <= LONGEST_SEQUENCE:
            self._held = text[cut.start() :]
            text = text[: cut.start()]
        return CONTROL.sub("", SEQUENCE.sub("", text)).encode()


def shown_command(command: Sequence[str]) -> str:
    """A command as one could type it, on one line."""
    return plain(shlex.join(command))


def span(time: timedelta) -> str:
    """A length of time in two figures: `0.4s`, `12s`, `3m20s`, `5h12m`, `3d4h`."""
    seconds = max(0.0, time.total_seconds())
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for big, small, size, part in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size}{big}{rest}{small}" if rest else f"{whole // size}{big}"
    return f"{whole}s"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns: as wide as the terminal, the last column cut, or uncut when it is no terminal."""
    from rich.cells import cell_len, set_cell_size

    widths = [max(cell_len(row[place]) for row in [columns, *rows]) for place in range(len(columns))]
    most = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for row in [[column.upper() for column in columns], *rows]:
        line = "  ".join(set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()
        print(line if most is None or cell_len(line) <= most else set_cell_size(line, most - 1) + "…")
