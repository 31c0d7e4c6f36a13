"""What tasks do with a slice of the history: who changed what how often, and how old a line is."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from retinue.demo.findings import Aged, Ages, Author, History, Note
from retinue.demo.git import GitFailed, git, line, shown

LONGEST_BLAME: Final = 5.0  # seconds
_FORMAT: Final = "--format=%H%x00%P%x00%at%x00%aN"


def history(repo: bytes, head: str, *, skip: int, most: int, shallow: bool, seconds: float) -> History:
    """The commits of one slice, merges left out. What git printed within `seconds` counts.

    The last commit of a shallow clone seems to add every file, so its files are not counted.
    """
    found = History()
    log = ["log", "-z", "--no-merges", "--raw", "--no-abbrev", "--no-renames", "--no-ext-diff", "--no-textconv"]
    output = git(repo, *log, _FORMAT, f"--skip={skip}", f"--max-count={most}", head, "--", timeout=seconds, partly=True)
    for parents, at, author, files in commits(output):
        found.commits += 1
        known = found.authors.setdefault(author, Author(0, at, at))
        known.commits += 1
        known.first, known.last = min(known.first, at), max(known.last, at)
        if parents or not shallow:
            for file in files:
                found.files[file] = found.files.get(file, 0) + 1
    found.late = found.commits < most
    return found


def commits(output: bytes) -> Iterator[tuple[bool, int, str, list[str]]]:
    """Whether it has parents, time, author and files of each commit in what `git log -z --raw` printed.

    A token that starts with a colon says how a file changed and the next one is its name, whatever that looks like;
    any other that is not empty begins a commit. What is cut off at the end is dropped.
    """
    tokens = output.split(b"\0")
    files: list[str] | None = None
    head: tuple[bool, int, str] | None = None
    place = 0
    while place < len(tokens):
        token = tokens[place].removeprefix(b"\n")
        if token.startswith(b":"):
            if files is not None and place + 2 < len(tokens):
                files.append(shown(tokens[place + 1]))
            place += 2
        elif token:
            if head is not None and files is not None:
                yield *head, files
            if place + 4 >= len(tokens):  # a whole one ends with a NUL
                return
            _, parents, at, author = tokens[place : place + 4]
            head, files = (bool(parents), _number(at), line(author, 40) or "nobody"), []
            place += 4
        else:
            place += 1
    if head is not None and files is not None:
        yield *head, files


def ages(repo: bytes, notes: Sequence[Note], in_time: Callable[[], bool], *, committed: bool) -> Ages:
    """Who wrote each of these lines, and when."""
    found = Ages()
    for place, note in enumerate(notes):
        if not in_time():
            found.late = len(notes) - place
            break
        found.asked += 1
        author, at = _blame(repo, note) if committed else ("", None)
        found.found.append(Aged(note.file, note.line, note.word, note.text, author, at))
    return found


def _blame(repo: bytes, note: Note) -> tuple[str, int | None]:
    lines = f"{note.line},{note.line}"
    try:
        said = git(
            repo, "blame", "--porcelain", "--no-textconv", "-L", lines, "--", note.path, timeout=LONGEST_BLAME
        )  # fmt: skip
    except GitFailed:
        return "", None  # not committed yet, gone since, or too long a history
    fields = dict(part.split(b" ", 1) for part in said.split(b"\n") if b" " in part and not part.startswith(b"\t"))
    if said.startswith(b"0" * 40):
        return "not committed", None
    return line(fields.get(b"author", b""), 40), _number(fields.get(b"author-time", b""))


def _number(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        return 0
