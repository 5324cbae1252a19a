"""What the hook writes, against loops over the validations that runs logged; interrupted runs, and runs that go wrong."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")
from engine_tiny import output, run

from gbseg.mm import ConvergenceHook
from gbseg.report.history import read_history


def _runner(folder: Path, iteration: int = 0, model: torch.nn.Module | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        model=model or torch.nn.Linear(2, 2),
        iter=iteration,
        work_dir=str(folder),
        train_dataloader=range(20),
        logger=logging.getLogger("convergence"),
    )


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "convergence.json").read_text())


def _validate(hook: ConvergenceHook, runner: SimpleNamespace, values: dict[int, float]) -> None:
    for runner.iter, value in values.items():
        hook.after_val_epoch(runner, {hook.metric: value})


def test_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of an accuracy: values reached, area and best by hand; the file after every validation, a line at the end."""
    caplog.set_level(logging.INFO)
    hook = ConvergenceHook(targets=[60, 70, 80])
    runner = _runner(tmp_path)
    hook.before_train(runner)
    _validate(hook, runner, {20: 50.0})
    assert _read(tmp_path)["area"] is None and not _read(tmp_path)["complete"]
    _validate(hook, runner, {40: 70.0, 50: 64.0, 70: 70.0})
    summary = _read(tmp_path)
    assert [(t["value"], t["iteration"], t["epoch"]) for t in summary["targets"]] == [
        (60, 40, 2),
        (70, 40, 2),
        (80, None, None),
    ]
    assert summary["best"] == {"value": 70, "iteration": 40, "epoch": 2} and summary["baseline"] is None
    area = 1 * (50 + 30) / 2 + 0.5 * (30 + 36) / 2 + 1 * (36 + 30) / 2
    assert summary["area"]["error_epochs"] == pytest.approx(area) and summary["area"]["mean_error"] == pytest.approx(area / 2.5)
    assert (summary["area"]["from_epoch"], summary["area"]["to_epoch"]) == (1, 3.5)
    assert [p["value"] for p in summary["points"]] == [50, 70, 64, 70] and not summary["complete"]
    hook.after_train(runner)
    assert _read(tmp_path) == summary | {"complete": True}
    assert "best 70 at iteration 40 (epoch 2); 60 at iteration 40 (epoch 2); 70 at" in caplog.text
    assert "80 not reached; mean error 35.8 from epoch 1 to 3.5" in caplog.text


def test_lower_is_better(tmp_path: Path) -> None:
    """Of an error or a loss."""
    hook = ConvergenceHook("loss", higher_is_better=False, targets=[2, 0.5])
    runner = _runner(tmp_path)
    hook.before_train(runner)
    _validate(hook, runner, {20: 3.0, 40: 1.0, 60: 2.0})
    summary = _read(tmp_path)
    assert [target["iteration"] for target in summary["targets"]] == [40, None]
    assert summary["best"]["value"] == 1 and summary["area"]["error_epochs"] == 3.5


def test_not_finite(tmp_path: Path) -> None:
    """A value that is NaN, or that a ruined network scores, reaches nothing, is no number, and leaves no area."""
    model = torch.nn.Linear(2, 2)
    hook = ConvergenceHook(targets=[10])
    runner = _runner(tmp_path, model=model)
    hook.before_train(runner)
    _validate(hook, runner, {20: math.nan})
    assert _read(tmp_path)["best"] is None
    model.weight.data[0, 0] = math.inf
    _validate(hook, runner, {40: 90.0})
    summary = _read(tmp_path)
    assert [p["value"] for p in summary["points"]] == [None, None]
    assert summary["targets"][0]["iteration"] is None and summary["area"] is None and summary["best"] is None


def test_interrupted(tmp_path: Path) -> None:
    """A run that is killed and resumed ends in the file of the one that was not, points and baseline's best included."""
    base, whole, parts = (tmp_path / name for name in ("base", "whole", "parts"))
    assert run(base, val=3, custom_hooks=[]) == 0
    best = max(read_history(base).metrics["score"])
    hook = {"type": "ConvergenceHook", "metric": "score", "baseline": str(base), "targets": [best + 1e9]}
    assert run(whole, val=3, custom_hooks=[hook]) == 0, output(whole)
    kill = {"type": "KillHook", "stage": "after_train_iter", "at": 8, "priority": "LOWEST"}
    assert run(parts, val=3, custom_hooks=[hook, kill]) == -9
    assert [p["iteration"] for p in _read(parts)["points"]] == [3, 6] and not _read(parts)["complete"]
    # of the first start, only the hook's own file is left
    for path in parts.glob("*/vis_data/scalars.json"):
        path.unlink()
    kill["at"] = 11
    assert run(parts, val=3, custom_hooks=[hook, kill], resume=True) == -9
    own = _read(parts)
    assert [p["iteration"] for p in own["points"]] == [3, 6, 9]
    # of the second start, only the logs; and a point of a start that is undone
    own["points"] = [own["points"][0], {"iteration": 10, "epoch": 1, "value": 1e6}]
    (parts / "convergence.json").write_text(json.dumps(own))
    assert run(parts, val=3, custom_hooks=[hook], resume=True) == 0, output(parts)
    history = read_history(whole)
    summary = _read(whole)
    assert [p["iteration"] for p in summary["points"]] == history.val_steps.tolist() == [3, 6, 9, 12]
    assert [p["value"] for p in summary["points"]] == history.metrics["score"].tolist()
    assert summary["baseline"]["value"] == best and summary["complete"]
    assert summary["baseline"]["iteration"] == history.val_steps[list(history.metrics["score"]).index(best)]
    assert _read(parts) == summary


def test_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Metrics that are not there are named with those that are; nothing to read is said."""
    with pytest.raises(ValueError, match="targets are values of accuracy/top1, got nan"):
        ConvergenceHook(targets=[70, math.nan])
    runner = _runner(tmp_path)
    hook = ConvergenceHook()
    hook.before_train(runner)
    with pytest.raises(ValueError, match="no metric 'accuracy/top1'; it has mIoU, aAcc"):
        hook.after_val_epoch(runner, {"mIoU": 1.0, "aAcc": 2.0})
    hook.after_train(runner)
    assert "there was no validation" in caplog.text and not (tmp_path / "convergence.json").exists()
    with pytest.raises(FileNotFoundError, match=r"no folder .*gone"):
        ConvergenceHook(baseline=str(tmp_path / "gone")).before_train(runner)
    folder = tmp_path / "base/20260101_000000/vis_data"
    folder.mkdir(parents=True)
    (folder / "scalars.json").write_text('{"mIoU": 3.0, "bad": NaN, "step": 5}\n')
    for metric, message in (
        ("accuracy/top1", "base has no metric 'accuracy/top1'; it has mIoU, bad"),
        ("bad", "no finite value"),
    ):
        with pytest.raises(ValueError, match=message):
            ConvergenceHook(metric, baseline=str(tmp_path / "base")).before_train(runner)
    (tmp_path / "convergence.json").write_text("[]")
    ConvergenceHook().before_train(_runner(tmp_path, 100))
    assert "is not what this hook wrote" in caplog.text and "what was reached before is not known" in caplog.text
