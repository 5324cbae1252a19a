"""Checkpoints do not grow with what was logged, and what is logged after resuming is the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")
import engine_tiny as tiny
from mmengine.runner import Runner

from gbseg.mm.checkpoint_contents import CURVE

WINDOWS = [
    dict(data_src="loss", log_name="long_loss", method_name="mean", window_size=150),
    dict(data_src="main_loss", log_name="lowest_loss", method_name="min", window_size="global"),
]


def _run(folder: Path, iterations: int, **options: Any) -> None:
    changes = {"train_cfg.max_iters": iterations, "default_hooks.checkpoint.save_best": None, **options}
    Runner.from_cfg(tiny.config(folder, ckpt=100, val=100, **changes)).train()


def _curves(path: Path) -> dict[str, int]:
    curves = torch.load(path, weights_only=False)["message_hub"]["log_scalars"]
    return {name: len(curve.data[0]) for name, curve in curves.items()}


@pytest.mark.slow
def test_checkpoints_do_not_grow(tmp_path: Path) -> None:
    """As large after 600 iterations as after 100. Without the limit: 16 bytes an iteration and curve more."""
    _run(tmp_path, 600, **{"default_hooks.checkpoint.max_keep_ckpts": -1, "train_cfg.val_interval": 50})
    sizes = {number: (tmp_path / f"iter_{number}.pth").stat().st_size for number in (100, 300, 600)}
    # numbers below 256 take a byte less
    assert max(sizes.values()) <= sizes[100] + 256
    assert set(_curves(tmp_path / "iter_600.pth").values()) == {CURVE, 1}


@pytest.mark.slow
@pytest.mark.parametrize("by_epoch", [False, True], ids=["iterations", "epochs"])
def test_logged_windows_are_the_same(by_epoch: bool, tmp_path: Path) -> None:
    """Every value logged after resuming at 300 is that of the run that went on, whatever its window.

    With the newest 100 values alone: the means over 150 and over an epoch, and the lowest of all, are others.
    """
    windows = [*WINDOWS]
    processor: dict[str, Any] = dict(window_size=120, by_epoch=by_epoch, custom_cfg=windows)
    options: dict[str, Any] = {"log_processor": processor}
    if by_epoch:
        windows.append(dict(data_src="aux_loss", log_name="epoch_loss", method_name="mean", window_size="epoch"))
    _run(tmp_path / "whole", 400, **options)
    (tmp_path / "parts").mkdir()
    _run(tmp_path / "parts", 300, **options)
    _run(tmp_path / "parts", 400, resume=True, **options)
    logged = {}
    for name in ("whole", "parts"):
        last = max((tmp_path / name).glob("*/vis_data/scalars.json"))
        lines = [json.loads(line) for line in last.read_text().splitlines()]
        keys = ("loss", "long_loss", "lowest_loss", "epoch_loss", "aux_loss")
        logged[name] = [[line.get(key) for key in keys] for line in lines if "loss" in line and line["step"] > 300]
    assert len(logged["whole"]) == 100 and logged["whole"] == logged["parts"]
    counts = _curves(tmp_path / "parts/iter_400.pth")
    assert counts["train/loss"] == 150 and counts["train/main_loss"] == 400 and counts["train/lr"] == 120
