"""Comparisons of runs whose curves are known, and the figure as an image."""

import csv
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gbseg.report.comparison_table import compare
from gbseg.report.curve import COLOURS, Line, draw_curves, line_styles, render_curves, spread_labels


def _run(root: Path, name: str, values: dict[int, float], losses: dict[int, float], epoch_length: int | None = None) -> Path:
    """Write a run's log; with an `epoch_length` the way MMEngine numbers validations by epochs."""
    lines: list[tuple[int, dict]] = []
    for step, loss in losses.items():
        epoch = {} if epoch_length is None else {"epoch": math.ceil(step / epoch_length)}
        lines.append((step, {"lr": 0.1, "loss": loss, **epoch, "iter": step, "step": step}))
    for step, value in values.items():
        lines.append((step * (epoch_length or 1), {"mIoU": value, "step": step}))
    path = root / name / "20260101_000000" / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for _, line in sorted(lines, key=lambda pair: pair[0])))
    return root / name


def _losses(last: int, scale: float = 1.0) -> dict[int, float]:
    return {step: scale * math.exp(-step / 300) for step in range(50, last + 1, 50)}


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Four runs: one reaches the baseline's 45 at 300 where the baseline needs 400; one falls short; one diverges."""
    curves = {
        "softmax": ({100: 20.0, 200: 35.0, 300: 41.0, 400: 45.0, 500: 44.0}, _losses(500)),
        "fast": ({100: 30.0, 200: 42.0, 300: 45.0, 400: 46.5, 500: 46.5}, _losses(500, 30)),
        "slow": ({100: 10.0, 200: 15.0, 300: 18.0, 400: 21.0, 500: 44.99}, _losses(500, 5)),
        "wild": ({100: 12.0}, _losses(100, 50) | {150: math.nan}),
    }
    return {name: _run(tmp_path, name, *curve) for name, curve in curves.items()}


def test_numbers(runs: dict[str, Path], tmp_path: Path) -> None:
    """Best values, the steps that reach the baseline's best, and what became of every run."""
    computed = compare(runs, tmp_path / "out", "mIoU", "softmax", epoch_length=200)
    assert computed.target == 45.0 and computed.unit == "iteration"
    softmax, fast, slow, wild = computed.runs
    assert (softmax.best, softmax.best_step, softmax.reached_step, softmax.status) == (45.0, 400, 400, "complete")
    assert (fast.best, fast.best_step, fast.reached_step, fast.status) == (46.5, 400, 300, "complete")
    assert (slow.best, slow.best_step, slow.reached_step, slow.status) == (44.99, 500, None, "complete")
    assert (wild.best, wild.best_step, wild.reached_step) == (12.0, 100, None)
    assert wild.ended_early and wild.status == "diverged at iteration 150" and wild.last_iteration == 150


def test_files(runs: dict[str, Path], tmp_path: Path) -> None:
    """The same table stands in the terminal's text, the Markdown, the CSV and the JSON."""
    computed = compare(runs, tmp_path / "out", "mIoU", "softmax", epoch_length=200)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "curve.png",
        "comparison.json",
        "comparison.md",
        "comparison.csv",
    }
    expected = [
        ["iteration", "epoch", "softmax", "fast", "slow", "wild"],
        ["100", "0.5", "20.0", "30.0", "10.0", "12.0"],
        ["200", "1.0", "35.0", "42.0", "15.0", ""],
        ["300", "1.5", "41.0", "45.0", "18.0", ""],
        ["400", "2.0", "45.0", "46.5", "21.0", ""],
        ["500", "2.5", "44.0", "46.5", "44.99", ""],
        ["best mIoU", "", "45.0", "46.5", "44.99", "12.0"],
        ["best at iteration", "", "400", "400", "500", "100"],
        ["best at epoch", "", "2.0", "2.0", "2.5", "0.5"],
        ["reaches softmax's best at iteration", "", "400", "300", "not reached", "not reached"],
        ["reaches softmax's best at epoch", "", "2.0", "1.5", "not reached", "not reached"],
        ["iterations to it, softmax = 1", "", "1.0", "0.75", "", ""],
        ["mean mIoU, iteration 100 to 500", "", "38.25", "42.9375", "20.37375", ""],
        ["status", "", "complete", "complete", "complete", "diverged at iteration 150"],
    ]
    with (tmp_path / "out" / "comparison.csv").open() as file:
        assert list(csv.reader(file)) == expected
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    assert "| 300 | 1.50 | 41.00 | 45.00 | 18.00 | - |" in markdown
    assert "| mean mIoU, iteration 100 to 500 |  | 38.25 | 42.94 | 20.37 | - |" in markdown
    assert "| reaches softmax's best at epoch |  | 2.00 | 1.50 | not reached | not reached |" in markdown
    text = computed.table().splitlines()
    assert text[4].split() == ["300", "1.50", "41.00", "45.00", "18.00", "-"]
    assert text[-1].endswith("diverged at iteration 150") and len({len(line) for line in text}) == 1
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["target"] == 45.0 and [run["name"] for run in content["runs"]] == ["softmax", "fast", "slow", "wild"]
    assert content["runs"][1] | {"reached_step": 300, "reached_epoch": 1.5, "best_epoch": 2.0} == content["runs"][1]
    assert content["runs"][3]["reached_epoch"] is None and content["runs"][3]["values"] == [12.0]
    # a result must not say where it was made
    assert all(str(tmp_path) not in (tmp_path / "out" / f"comparison.{kind}").read_text() for kind in ("json", "md", "csv"))


def test_epochs(tmp_path: Path) -> None:
    """Validations by epochs and by iterations meet where `epoch_length` says how, and are refused where nothing does."""
    by_epoch = _run(tmp_path, "a", {1: 10.0, 2: 20.0}, _losses(200), epoch_length=100)
    by_iteration = _run(tmp_path, "b", {100: 20.0, 200: 30.0}, _losses(200))
    computed = compare({"a": by_epoch, "b": by_iteration}, tmp_path / "out", "mIoU", "a", "epoch", epoch_length=100)
    assert [run.steps for run in computed.runs] == [(100, 200), (100, 200)] and computed.runs[1].reached_step == 100
    computed = compare({"a": by_epoch}, tmp_path / "out", "mIoU", "a", "epoch")
    assert computed.unit == "epoch" and computed.runs[0].steps == (1, 2) and computed.rows()[0] == ["epoch", "a"]
    with pytest.raises(ValueError, match="a was validated by epochs: to show iterations, give epoch_length"):
        compare({"a": by_epoch}, tmp_path / "out", "mIoU", "a")
    with pytest.raises(ValueError, match="b was validated by iterations: to show epochs, give epoch_length"):
        compare({"b": by_iteration}, tmp_path / "out", "mIoU", "b", "epoch")


def test_lower_is_better(runs: dict[str, Path], tmp_path: Path) -> None:
    """For an error the best value is the least."""
    computed = compare(runs, tmp_path / "out", "mIoU", "fast", lower_is_better=True)
    assert computed.target == 30.0 and [run.best for run in computed.runs] == [20.0, 30.0, 10.0, 12.0]
    assert [run.reached_step for run in computed.runs] == [100, 100, 100, 100]


def test_stopped_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    """A run that just stopped is marked as such, also if it never got to a validation."""
    runs["cut"] = _run(tmp_path, "cut", {100: 25.0, 200: 45.0}, _losses(250))
    runs["dead"] = _run(tmp_path, "dead", {}, {10: 1e9, 20: math.inf})
    computed = compare(runs, tmp_path / "out", "mIoU", "softmax")
    cut, dead = computed.runs[4:]
    assert cut.status == "ended early at iteration 250" and cut.reached_step == 200
    assert dead.status == "diverged at iteration 20" and dead.best is None and dead.reached_step is None
    assert "dead" in computed.table().splitlines()[0]
    assert cut.mean is None and dead.mean is None


def test_means(tmp_path: Path) -> None:
    """Over the steps that all runs have, and none of a run that diverged, whatever its network scores afterwards."""
    late = _run(tmp_path, "late", {200: 10.0, 300: 20.0, 400: 40.0}, _losses(400))
    long = _run(tmp_path, "long", {100: 90.0, 200: 30.0, 400: 50.0}, _losses(400))
    wild = _run(tmp_path, "wild", {200: 10.0, 300: 10.0, 400: 10.0}, {100: math.nan, 400: math.nan})
    hole = _run(tmp_path, "hole", {200: 10.0, 300: math.nan, 400: 10.0}, _losses(400))
    computed = compare({"late": late, "long": long, "wild": wild, "hole": hole}, tmp_path / "out", "mIoU", "late")
    assert computed.mean_range == (200, 400) and [run.mean for run in computed.runs] == [22.5, 40.0, None, None]
    once = compare({"late": _run(tmp_path, "once", {200: 10.0}, _losses(200))}, tmp_path / "out", "mIoU", "late")
    assert once.mean_range is None and once.runs[0].mean is None and "mean" not in once.table()


def test_restarted_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    """The Markdown says where log lines of an earlier start were left out."""
    again = runs["fast"] / "20260102_000000" / "vis_data" / "scalars.json"
    again.parent.mkdir(parents=True)
    again.write_text('{"lr": 0.1, "loss": 1.0, "iter": 450, "step": 450}\n')
    assert compare(runs, tmp_path / "out", "mIoU", "softmax").runs[1].superseded == 3
    assert "fast: 3 log lines of an earlier start were left out" in (tmp_path / "out" / "comparison.md").read_text()


def test_wrong_use(runs: dict[str, Path], tmp_path: Path) -> None:
    """Unknown baselines, metrics and axes are named, with what there is to choose from."""
    with pytest.raises(ValueError, match="'sofmax' is not among the runs: softmax, fast, slow, wild"):
        compare(runs, tmp_path, "mIoU", "sofmax")
    with pytest.raises(ValueError, match="softmax has no metric 'mIoU-7'; it has mIoU"):
        compare(runs, tmp_path, "mIoU-7", "softmax")
    with pytest.raises(ValueError, match="xlabel must be"):
        compare(runs, tmp_path, "mIoU", "softmax", "epochs")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1 iteration"):
        compare(runs, tmp_path, "mIoU", "softmax", epoch_length=0)
    runs["dead"] = _run(tmp_path, "dead", {}, {10: 1.0})
    with pytest.raises(ValueError, match="'dead' has no value of mIoU"):
        compare(runs, tmp_path, "mIoU", "dead")


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def _count(pixels: np.ndarray, colour: str) -> int:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels - wanted).max(-1) <= 2).sum())


def test_figure(runs: dict[str, Path], tmp_path: Path) -> None:
    """The figure has its size, a line in every run's colour, and the losses only where they are wanted."""
    compare(runs, tmp_path / "both", "mIoU", "softmax")
    compare(runs, tmp_path / "one", "mIoU", "softmax", loss_panel=False)
    both, one = (_pixels(tmp_path / name / "curve.png") for name in ("both", "one"))
    assert both.shape == (1060, 1440, 3) and one.shape == (680, 1440, 3)
    for colour in COLOURS[:3]:
        assert _count(both, colour) > _count(one, colour) > 500
    assert _count(one, COLOURS[3]) == 0
    assert (both[:, [0, -1]] == 255).all() and (both[[0, -1]] == 255).all()  # nothing runs over the edge


def test_figure_height_is_the_value(tmp_path: Path) -> None:
    """A flat line at the middle of the range is drawn at the middle of the axes."""
    steps, none = np.array([0.0, 10.0]), np.empty(0)
    ends = Line("ends", steps, np.array([0.0, 100.0]), none, none)
    flat = Line("flat", steps, np.array([50.0, 50.0]), none, none)
    draw_curves([ends, flat], tmp_path / "a.png", "m", "x", baseline="ends", target=100.0)
    flat_rows = np.nonzero(np.abs(_pixels(tmp_path / "a.png")[:, 400] - [0, 0x72, 0xB2]).max(-1) <= 2)[0]
    axes_top, axes_bottom = 0.12 * 200, (3.4 - 0.48) * 200
    assert flat_rows.mean() == pytest.approx((axes_top + axes_bottom) / 2, abs=2)


def test_band_and_lines_without_a_value(tmp_path: Path) -> None:
    """A band stands around its line; a line that has neither value nor note keeps its colour and has no label."""
    steps, values = np.arange(5.0), np.linspace(10, 50, 5)
    empty = Line("empty", np.empty(0), np.empty(0))
    images = []
    for band in (None, np.array([values - 5, values + 5])):
        line = Line("line", steps, values, band=band)
        (tmp_path / "b.png").write_bytes(render_curves([empty, line], "m", "x", baseline="none", top=60))
        images.append(_pixels(tmp_path / "b.png"))
    assert _count(images[0], COLOURS[0]) == 0 and _count(images[0], COLOURS[1]) > 500
    pale = [255 - 0.18 * (255 - int(COLOURS[1][i : i + 2], 16)) for i in (1, 3, 5)]
    assert [int((np.abs(image - pale).max(-1) <= 2).sum() > 5000) for image in images] == [0, 1]
    assert list(line_styles(["a", "base", "b"], "base").values()) == [(COLOURS[0], "-"), ("#404040", "-"), (COLOURS[1], "-")]


@pytest.mark.parametrize("centres", [[0.5, 0.5, 0.5], [0.9, 0.1, 0.95], [0.0, 1.0, 0.02], [0.3, 0.6, 0.9]])
def test_spread(centres: Sequence[float]) -> None:
    """Labels end up apart, within the room, in their order, and where they were if there was nothing to do."""
    sizes = [0.2, 0.1, 0.1]
    placed = spread_labels(centres, sizes, 0.0, 1.0)
    order = np.argsort(centres, kind="stable")
    for below, above in itertools.pairwise(order):
        assert placed[above] - placed[below] >= (sizes[above] + sizes[below]) / 2 - 1e-12
    assert all(size / 2 - 1e-12 <= y <= 1 - size / 2 + 1e-12 for y, size in zip(placed, sizes, strict=True))
    if centres == [0.3, 0.6, 0.9]:
        assert placed == centres
