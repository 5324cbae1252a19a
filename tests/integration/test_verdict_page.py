"""docs/verdict.md quotes results as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [line for line in (ROOT / "docs/verdict.md").read_text().splitlines() if "](../results/" in line]
NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1][:30])
def test_every_figure_stands_in_its_result(row: str) -> None:
    """Each number under 'here', digit by digit, and the outcome under 'verdict'."""
    _, claim, _, here, verdict, link, _ = (cell.strip() for cell in row.split("|"))
    result = (ROOT / "docs" / re.findall(r"\]\((.*?)\)", link)[0]).parent
    text = (result / "README.md").read_text()
    numbers = re.findall(rf"{NUMBER}%?", here)
    assert numbers, "a row without a figure quotes nothing"
    assert [number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d|\.\d)", text)] == []
    if not (result / "summary.json").exists():
        return
    summary = json.loads((result / "summary.json").read_text())
    if "verdict" not in summary:
        # a search: what it answers
        assert verdict == summary["answer"]["outcome"]
        return
    budget = "" if summary["budget"] == "full" else f" ({summary['budget']})"
    partial = ", partial" if summary["missing_runs"] else ""
    judged = summary["convergence" if "faster convergence" in claim else "verdict"]
    assert verdict == judged["outcome"] + budget + partial
    # a median with its interval is that of the arm before it
    for name, *values in re.findall(rf"([\w-]+) ({NUMBER}) \[({NUMBER}), ({NUMBER})\]", here):
        arm = summary["arms"][name.lower().replace("-", "")]
        estimates = [arm[what] for what in ("best", "early", "last", "area", "best_epoch") if arm.get(what)]
        assert values in [[f"{one[key]:.2f}" for key in ("median", "low", "high")] for one in estimates], name


def test_there_are_rows() -> None:
    assert len(ROWS) >= 4
