"""The keys of all committed runs, computed anew: whoever has a run's folder finds it again.

The data are not needed: a run's length depends on how many images there are, and the numbers are given here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import CONFIGS, ROOT

from gbseg.mm.config import load_config
from reproduction import runs, search_space
from reproduction.grid import Grid, load_claim
from reproduction.runs import Run
from reproduction.search_space import read_base, suggest

TRAINING_IMAGES = {"MNIST": 60_000, "CIFAR10": 50_000, "folder": 16_000}
"""By the data sets' ``source``; the folder is data/imagenet200_32px, 80 images of each of 200 classes."""

CLAIMS = sorted(path.parent.name for path in ROOT.glob("results/*/runs.csv"))
SEARCHES = sorted(path.parent.name for path in ROOT.glob("results/*/trials.csv"))


def number_of_images(dataset: Mapping, scope: str) -> int:
    """As `gbseg.mm.datasets.array_dataset.ArrayImages` counts them."""
    count = TRAINING_IMAGES[dataset["source"]]
    if dataset["part"] == "tune":
        count -= dataset["held_out"]
    return dataset.get("num") or count


@pytest.fixture(autouse=True)
def without_data(parsed_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets of known size."""
    monkeypatch.setattr(runs, "count_images", number_of_images)
    monkeypatch.setattr(search_space, "count_images", number_of_images)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


def test_all_results_are_seen() -> None:
    assert len(CLAIMS) >= 9 and len(SEARCHES) >= 2


@pytest.mark.parametrize("result", CLAIMS)
def test_keys_of_a_claim(result: str) -> None:
    """Every row of its runs.csv; its rates are written with six digits, and are those of the claim's file."""
    folder = ROOT / "results" / result
    budget = json.loads((folder / "summary.json").read_text())["budget"]
    claim = load_claim(result.removesuffix(f"_{budget}"), budget)
    assert claim.label == result
    grid = Grid(claim)
    rows = rows_of(folder / "runs.csv")
    changed = []
    for row in rows:
        rate = next(rate for rate in claim.settings.arms[row["arm"]].rates if f"{rate:.6g}" == row["rate"])
        if grid.run(row["arm"], row["stage"], rate, int(row["seed"])).key != row["key"]:
            changed.append(row)
    assert rows and changed == []


@pytest.mark.parametrize("result", SEARCHES)
def test_keys_of_a_search(result: str) -> None:
    """Every run of every trial in its trials.csv, suggested again from what was drawn."""
    optuna = pytest.importorskip("optuna")
    folder = ROOT / "results" / result
    summary = json.loads((folder / "summary.json").read_text())
    settings = summary["settings"]
    config = load_config(CONFIGS / "classification" / summary["config"])
    base = read_base(config, {})
    data = {
        "train_dataloader.dataset.part": "tune",
        "val_dataloader.dataset.part": "held_out",
        "train_dataloader.dataset.held_out": settings["held_out"],
        "val_dataloader.dataset.held_out": settings["held_out"],
        "train_dataloader.dataset.num": settings["images"],
    }
    rows = rows_of(folder / "trials.csv")
    changed = []
    for row in rows:
        drawn = {name: row[name] == "True" for name in ("clip", "small_init", "bounded", "prior")}
        drawn |= {"rate": float(row["rate"]) / base.rate, "boost": row["output"]}
        if row["side"] == "boosted":
            t_neg, t_pos = float(row["t_neg"]), float(row["t_pos"])
            drawn |= {"span": t_pos - t_neg, f"{row['output']} t_neg": t_neg}
            drawn |= {f"{row['output']} {name}": float(row[name]) for name in ("alpha", "beta") if row[name]}
        candidate = suggest(optuna.trial.FixedTrial(drawn, int(row["trial"])), row["side"], base)
        assert candidate.rate == float(row["lr"])
        for key, epochs in zip(row["keys"].split(), summary["rungs"], strict=False):
            run: Run = candidate.run(base, "", epochs, 1000 + settings["seed"], data, settings["amp"], Path())
            if run.key != key:
                changed.append((row, epochs))
    assert rows and changed == []
