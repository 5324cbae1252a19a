"""The documentation as text: its pages, their code blocks, and the command lines in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")] + sorted((ROOT / "docs").rglob("*.md"))


class Block(NamedTuple):
    """A fenced block; ``where`` is its page and line."""

    where: str
    text: str


def code_blocks(language: str, pages: list[Path] = PAGES) -> Iterator[Block]:
    """The blocks that are marked as ``language``."""
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            yield Block(f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}", match[1])


def command_lines(text: str) -> Iterator[list[str]]:
    """The commands of a shell script, split into words: comments dropped, continued lines joined, ``&&`` a new command."""
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield words
                words = []


def without_code(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```\n?", "", text, flags=re.DOTALL | re.MULTILINE)
