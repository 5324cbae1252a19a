"""docs/verdict.md quotes results as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [line for line in (ROOT / "docs/verdict.md").read_text().splitlines() if "](../results/" in line]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1][:30])
def test_every_figure_stands_in_its_result(row: str) -> None:
    """Each number under 'here', digit by digit, and the outcome under 'verdict'."""
    _, _, _, here, verdict, link, _ = (cell.strip() for cell in row.split("|"))
    result = (ROOT / "docs" / re.findall(r"\]\((.*?)\)", link)[0]).parent
    text = (result / "README.md").read_text()
    numbers = re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?%?", here)
    assert numbers, "a row without a figure quotes nothing"
    assert [number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d|\.\d)", text)] == []
    if (result / "summary.json").exists():
        found = json.loads((result / "summary.json").read_text())
        budget = "" if found["budget"] == "full" else f" ({found['budget']})"
        partial = ", partial" if found["missing_runs"] else ""
        assert verdict == found["verdict"]["outcome"] + budget + partial


def test_there_are_rows() -> None:
    assert len(ROWS) >= 4
