"""What git prints is read as it is meant, whatever files and people are called."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from retinue.demo.git import line, shown
from retinue.demo.history import commits
from retinue.demo.repository import spread

NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name)
CHANGE = b":100644 100644 1234567 89abcde M"


def printed(parents: str, at: int, author: str, *files: bytes) -> bytes:
    """One commit as `git log -z --raw` prints it with our format."""
    head = b"\0".join([b"a" * 40, parents.encode(), str(at).encode(), author.encode(), b""])
    return head + (b"\0\n" + b"".join(CHANGE + b"\0" + file + b"\0" for file in files) if files else b"\0")


@given(st.lists(NAMES, max_size=4))
def test_every_file_of_a_commit_is_read_under_its_name(files: list[bytes]) -> None:
    output = printed("p", 7, "Ann", *files) + printed("", 8, "Bob", b"last")

    read = list(commits(output))

    assert read == [(True, 7, "Ann", [shown(file) for file in files]), (False, 8, "Bob", ["last"])]


def test_what_was_cut_off_is_dropped() -> None:
    whole = printed("p", 7, "Ann", b"one", b"two")

    read = [len(list(commits(whole + printed("p", 8, "Bob", b"three")[:size]))) for size in (0, 20, 41, 47)]

    assert read == [1, 1, 1, 1]


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_two_files_are_never_shown_alike_and_never_steer_a_terminal(names: list[bytes]) -> None:
    first, second = (shown(name) for name in names)

    assert first != second
    assert first.isprintable()


@given(st.binary(max_size=200))
def test_a_line_of_a_file_is_short_and_harmless(text: bytes) -> None:
    shortened = line(text)

    assert shortened.isprintable()
    assert len(shortened) <= 80


@given(st.integers(1, 60), st.integers(1, 20))
def test_a_sample_is_spread_evenly(files: int, most: int) -> None:
    names = [str(number).encode() for number in range(files)]

    chosen = spread(names, most)

    gaps = {int(b) - int(a) for a, b in pairwise(chosen)}
    assert len(chosen) == min(files, most)
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
