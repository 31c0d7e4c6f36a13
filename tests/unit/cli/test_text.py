"""What people see: harmless to their terminal, in columns, in figures they can read."""

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as some

from retinue.cli import text
from retinue.cli.text import Stripper, plain, shown_command, span

HARMLESS = {
    "title": ("\x1b]0;owned\x07hello", "hello"),
    "clipboard": ("a\x1b]52;c;cm0gLXJm\x1b\\b", "ab"),
    "colour": ("\x1b[1;31mred\x1b[0m", "red"),
    "cursor": ("\x1b[2J\x1b[1;1Hgone", "gone"),
    "eight bits": ("\x9b31mred\x9d0;t\x9cx", "redx"),
    "device control": ("\x1bPq#0\x1b\\x", "x"),
    "charset and reset": ("\x1b(0\x1bcx", "x"),
    "backspace and bell": ("a\x08\x07b", "ab"),
    "direction of writing": ("a\u202egnp.exe", "agnp.exe"),
    "sequence without end": ("a\x1b]0;never", "a"),
    "lone escape": ("a\x1b", "a"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_could_steer_a_terminal_is_taken_out(name: str) -> None:
    given_text, expected = HARMLESS[name]

    assert plain(given_text) == expected


@pytest.mark.parametrize("name", HARMLESS)
def test_it_is_taken_out_however_the_output_is_cut(name: str) -> None:
    given_text, expected = HARMLESS[name]
    data = given_text.encode()

    for cut in range(len(data) + 1):
        stripper = Stripper()
        shown = stripper.feed(data[:cut]) + stripper.feed(data[cut:]) + stripper.feed(b"", last=True)

        assert shown.decode() == expected, cut


@given(some.binary(max_size=60), some.lists(some.integers(0, 60), max_size=5))
def test_no_control_character_passes_whatever_comes(data: bytes, cuts: list[int]) -> None:
    stripper = Stripper()
    places = [0, *sorted(cuts), len(data)]
    pieces = [data[begin:end] for begin, end in pairwise(places)]

    shown = b"".join(stripper.feed(piece) for piece in pieces) + stripper.feed(b"", last=True)

    assert not text.CONTROL.search(shown.decode())


def test_lines_tabs_and_other_scripts_pass_unchanged() -> None:
    stripper = Stripper()
    data = "eins\tzwei\n三\r\n안녕 🎉\n".encode()

    assert stripper.feed(data) + stripper.feed(b"", last=True) == data


def test_a_sequence_that_never_ends_is_not_kept_for_ever() -> None:
    stripper = Stripper()
    stripper.feed(b"\x1b]0;")

    for _ in range(100):
        stripper.feed(b"x" * 1000)

    assert len(stripper._held) < 10_000


def test_a_command_is_shown_as_one_could_type_it() -> None:
    assert shown_command(["sh", "-c", "echo 'a  b'\n"]) == """sh -c 'echo '"'"'a b'"'"' '"""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0s"),
        (0.44, "0.4s"),
        (12, "12s"),
        (200, "3m20s"),
        (120, "2m"),
        (18720, "5h12m"),
        (273600, "3d4h"),
        (-5, "0.0s"),
    ],
)
def test_a_length_of_time_has_two_figures(seconds: float, expected: str) -> None:
    assert span(timedelta(seconds=seconds)) == expected


def test_columns_line_up_also_with_wide_letters(capsys: pytest.CaptureFixture[str]) -> None:
    text.table(["name", "what"], [["三三", "x"], ["a", "a long one that is not cut when it goes to a file" * 4]])

    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["NAME  WHAT", "三三  x"]
    assert lines[2].endswith("file")
