"""Links between pages, README's size, and what the pages quote."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT, code_blocks, without_code

ALL = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "results").glob("*/README.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub, and MyST, give to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", without_code(page.read_text(encoding="utf-8")))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_whole(page: Path) -> None:
    """Every run of rows has a head: a blank line would end the table before it."""
    tables = re.findall(r"(?:^\|.*\n)+", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    assert [rows for rows in tables if not re.match(r".*\n[|:\- ]+\n", rows)] == []


def test_every_page_is_in_the_contents() -> None:
    """Pages of the site are reached from its first page."""
    contents = (ROOT / "docs/index.md").read_text(encoding="utf-8") + (ROOT / "docs/api/index.md").read_text(encoding="utf-8")
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/api").glob("*.rst")]:
        assert page.stem == "index" or re.search(rf"^{page.stem}$", contents, re.MULTILINE), f"{page.name} is in no toctree"


def test_readme_is_short() -> None:
    """At most 800 words, code and tables included; no line of prose is longer than 120 characters."""
    assert len(README.split()) <= 800
    prose = [line for line in without_code(README).splitlines() if not line.startswith("|")]
    assert [line for line in prose if len(line) > 120] == []


def test_readme_starts_with_the_main_users_config() -> None:
    """The config of README's first screen is that of the page on MMSegmentation."""
    (_, readme), *_ = code_blocks("python", [ROOT / "README.md"])
    (_, page), *_ = code_blocks("python", [ROOT / "docs/mmsegmentation.md"])
    assert re.sub(r"  #.*", "", readme) == re.sub(r"  #.*", "", page)


@pytest.mark.parametrize(
    ("row", "result"),
    [
        ("CIFAR-10, five layers, lowest", "fig1a"),
        ("the same, mean of epochs 2 to 5", "fig1a"),
        ("ImageNet, 200 classes", "many_classes"),
        ("CIFAR-10, a quarter of ResNet-18", "resnet18_reduced"),
        ("PixelNet, VOC subset", "subset"),
    ],
)
def test_readme_quotes_results_as_they_are(row: str, result: str) -> None:
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {row}")]
    text = (ROOT / "results" / result / "README.md").read_text(encoding="utf-8")
    cells = [cell.strip().replace("**", "") for cell in line.split("|")[2:5]]
    assert len(cells) == 3 and all(re.search(rf"(?<![\d.]){re.escape(cell)}(?!\d)", text) for cell in cells), cells


def test_no_page_speaks_of_a_plan_that_is_not_here() -> None:
    """What used to be a plan outside of the repository is docs/design.md."""
    word = re.compile(r"\bDES" + r"IGN\b")
    folders = ("gbseg", "reproduction", "benchmarks", "configs", "tests", "tools", "docs", "data/README.md", "results")
    files = [file for name in folders for file in [ROOT / name, *(ROOT / name).rglob("*")]] + list(ROOT.glob("*.md"))
    texts = {file: file.read_text(encoding="utf-8") for file in files if file.suffix in (".py", ".md", ".rst")}
    named = [str(file.relative_to(ROOT)) for file, text in texts.items() if word.search(text)]
    assert named == []
