"""Fenced blocks of the documentation, and the marks that say how each is checked.

A mark is an HTML comment on the line before the fence: `<!-- not run: why -->`, or
`<!-- run: name -->` for a block that the test of that name carries out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.compose import ROOT

FENCE = re.compile(
    r"(?:^<!-- (?P<mark>(?:not run|run): [^\n]*) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    flags=re.M | re.S,
)
COMMANDS = frozenset({"sh", "bash", "console", "shell"})


@dataclass(frozen=True)
class Fence:
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str
    mark: str | None

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page of the documentation."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    found += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    return sorted(found)


def fences(page: Path) -> Iterator[Fence]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Fence(page, line, match["language"], match["text"], match["mark"])


def command_of(page: Path, name: str) -> str:
    """The commands of the block with the mark `run: NAME`."""
    (found,) = [each.text for each in fences(page) if each.mark == f"run: {name}"]
    return found
