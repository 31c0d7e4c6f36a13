"""The pages for people as tests read them: their code blocks, their links, their headings."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "changes").glob("*.md")],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: `console` and `python` are run, `sh` and `py` are only read."""

    page: str
    number: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.kind}-{self.number}"


def name(path: Path) -> str:
    """A page's name within the repository."""
    return path.relative_to(ROOT).as_posix()


def blocks(kind: str) -> list[Block]:
    """Every block of this kind."""
    return [
        Block(name(path), number, found[1], found[2])
        for path in PAGES
        for number, found in enumerate(BLOCK.finditer(path.read_text()), 1)
        if found[1] == kind
    ]


def without_blocks(path: Path) -> str:
    """A page's prose."""
    return BLOCK.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """What `#…` may name in a page."""
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        for heading in HEADING.findall(without_blocks(path))
    }
