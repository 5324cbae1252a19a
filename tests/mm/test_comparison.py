"""Classifiers side by side: two short runs on drawn digits, their table, and the instruments that a config names."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import ConfigDict

pytest.importorskip("mmpretrain")
from gbseg.mm import NonFiniteLossError, compare_runs, load_config, train
from gbseg.report.gradient_log import read_gradients

ROOT = Path(__file__).parents[2]


def _digits(root: Path) -> None:
    """MNIST's four files with 40 and 20 images whose class is how bright they are."""
    rng = np.random.default_rng(0)
    for stem, count in (("train", 40), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        pixels = (rng.integers(0, 30, (count, 28, 28)) + 22 * labels[:, None, None]).astype(np.uint8)
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            (root / f"{stem}-{kind}-ubyte").write_bytes(header + values.tobytes())


def test_classifiers_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without pictures of predictions, by top-1; a config that asks for pictures is told, and has its table."""
    _digits(tmp_path)
    config = load_config(
        ROOT / "configs/classification/mnist_softmax.py",
        {
            "train_dataloader.dataset.data_root": str(tmp_path),
            "train_dataloader.batch_size": 10,
            "val_dataloader.dataset.data_root": str(tmp_path),
            "train_cfg.max_iters": 9,
            "train_cfg.val_interval": 3,
            "default_hooks.logger.interval": 1,
            "default_hooks.checkpoint.interval": 9,
        },
    )
    config.pop("cfg_options")
    config.custom_hooks = [
        ConfigDict(type="GradientStatsHook", layers=["backbone.layers.1"], interval=4, histogram_epochs=(1, 2)),
        ConfigDict(type="ConvergenceHook", targets=[-1.0, 101.0]),
    ]
    linear = dict(model=dict(head=dict(loss=dict(_delete_=True, type="LinearLoss", targets=(0, 1)))))
    slow, wild = (dict(**linear, optim_wrapper=dict(optimizer=dict(lr=rate))) for rate in (1e-4, 1e3))
    config.runs = ConfigDict(softmax=dict(), linear=slow, wild=wild)
    config.compare = ConfigDict(metric="accuracy/top1", baseline="softmax", epoch_length=4)
    work_dir = tmp_path / "work"
    with pytest.raises(NonFiniteLossError, match="wild: the loss is not finite"):
        train(config, work_dir)
    assert not (work_dir / "predictions.png").exists() and (work_dir / "curve.png").exists()
    assert "Predictions are in" not in capsys.readouterr().out
    comparison = json.loads((work_dir / "comparison.json").read_text())
    wild = comparison["runs"].pop()
    assert wild["status"].startswith("diverged at iteration ") and wild["mean"] is None
    assert not list(work_dir.glob("wild/*.pth"))
    for run, name in zip(comparison["runs"], ("softmax", "linear"), strict=True):
        assert run["status"] == "complete"
        convergence = json.loads((work_dir / name / "convergence.json").read_text())
        points = [(point["iteration"], point["value"]) for point in convergence["points"]]
        assert points == list(zip(run["steps"], run["values"], strict=True)) and [step for step, _ in points] == [3, 6, 9]
        assert [target["iteration"] for target in convergence["targets"]] == [3, None]
        # 100 minus the mean accuracy is the mean error
        assert convergence["area"]["mean_error"] == pytest.approx(100 - run["mean"])
        gradients = read_gradients(work_dir / name)
        assert gradients.iterations.tolist() == [0, 4, 8] and list(gradients.histograms) == [0, 4]
        assert list(gradients.rms) == ["head.fc", "backbone.layers.1"] and gradients.epochs.tolist() == [0, 1, 2]

    config.compare.images = 2
    compare_runs(config, work_dir)
    assert "compare.images is left out" in capsys.readouterr().out and not (work_dir / "predictions.png").exists()
    config.compare.update(metric="loss_of_nothing")
    with pytest.raises(ValueError, match="softmax has no metric 'loss_of_nothing'; it has accuracy/top1, accuracy/top5"):
        compare_runs(config, work_dir)
    config.compare.update(metric="accuracy/top1", lower_is_better=True)
    compare_runs(config, work_dir)
    assert json.loads((work_dir / "comparison.json").read_text())["target"] == min(comparison["runs"][0]["values"])
