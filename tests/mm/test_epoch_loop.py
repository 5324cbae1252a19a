"""The loop over epochs: its epochs are those of mmengine's, and a run killed anywhere is resumed bit for bit."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")
import engine_tiny as tiny
from mmengine.dataset import DefaultSampler
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader

from gbseg.mm.loops import ResumableEpochLoop
from gbseg.mm.resumable_sampler import ResumableSampler

RUNNER = SimpleNamespace(visualizer=SimpleNamespace())
# 10 images in batches of 4: 3 iterations an epoch, the last one of 2
EPOCHS: dict[str, Any] = {
    "train_cfg": {"type": "ResumableEpochLoop", "max_epochs": 4, "val_interval": 2, "_delete_": True},
    "param_scheduler": [
        {"type": "LinearLR", "start_factor": 0.1, "begin": 0, "end": 3, "by_epoch": True},
        {"type": "LinearMomentum", "start_factor": 0.5, "begin": 0, "end": 9, "by_epoch": False},
    ],
    "log_processor.by_epoch": True,
    "ckpt": 2,
}
BY_EPOCH: dict[str, Any] = {**EPOCHS, "default_hooks.checkpoint.by_epoch": True, "ckpt": 1}


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("round_up", [True, False])
def test_epochs_are_those_of_mmengine(monkeypatch: pytest.MonkeyPatch, world: int, round_up: bool) -> None:
    """As many samples and iterations as ``DefaultSampler`` gives each process, and together each image."""
    drawn: list[int] = []
    for rank in range(world):
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda rank=rank: (rank, world))
        ours, theirs = (
            ResumableSampler(range(10), round_up=round_up, seed=0),
            DefaultSampler(range(10), round_up=round_up, seed=0),
        )
        ours.endless = False
        assert len(list(ours)) == len(ours) == len(list(theirs))
        drawn += [int(index) for index in ours]
        orders = []
        for epoch in range(3):
            ours.set_epoch(epoch)
            orders.append(list(ours))
        draws = [index.draw for order in orders for index in order]
        assert len(set(draws)) == len(draws) and orders[0] != orders[1]
    assert set(drawn) == set(range(10))


@pytest.mark.parametrize("drop_last", [False, True])
def test_length(drop_last: bool) -> None:
    """``max_iters`` is that of mmengine's loop."""
    data = tiny.TinyDataset(pipeline=[{"type": "TinyAugment"}])
    lengths = []
    for kind, sampler in ((ResumableEpochLoop, ResumableSampler), (EpochBasedTrainLoop, DefaultSampler)):
        loader = DataLoader(data, 4, sampler=sampler(data, seed=1), collate_fn=list, drop_last=drop_last)
        lengths.append(kind(RUNNER, loader, max_epochs=5).max_iters)
    assert lengths == [10, 10] if drop_last else [15, 15]


def test_late_epoch_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The middle of epoch 10,000 takes one permutation, as the middle of the first does."""
    sampler = ResumableSampler(range(100), seed=1)
    sampler.endless = False
    orders: list[int] = []
    order = sampler.order
    monkeypatch.setattr(sampler, "order", lambda epoch: orders.append(epoch) or order(epoch))
    sampler.set_epoch(10_000)
    sampler.skip(50)
    assert len(list(sampler)) == 50
    assert orders == [10_000]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of runs that nobody killed: with checkpoints of iterations, and of epochs."""
    base = tmp_path_factory.mktemp("undisturbed")
    assert tiny.run(base / "iter", **EPOCHS) == 0
    assert tiny.run(base / "epoch", **BY_EPOCH) == 0
    return {"iter": tiny.result(base / "iter"), "epoch": tiny.result(base / "epoch", name="epoch_4.pth")}


def test_the_run_is_random(undisturbed: dict) -> None:
    """Every iteration differs; otherwise the comparisons here would hold trivially."""
    assert len(set(undisturbed["iter"]["curves"]["train/loss"])) == 12
    assert tiny.differences(undisturbed["iter"]["state_dict"], undisturbed["epoch"]["state_dict"]) == []


# iterations 3, 6, 9 end an epoch; 6 and 12 are validated
KILLS = [("after_train_iter", 5, 0), ("before_train_iter", 7, 2), ("after_val_iter", 6, 0)]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "at", "workers"), KILLS)
def test_killed_in_an_epoch(undisturbed: dict, tmp_path: Path, stage: str, at: int, workers: int) -> None:
    """With a checkpoint every two iterations, in the middle of epochs and at their ends.

    Without the position: with mmengine's ``EpochBasedTrainLoop``, the epoch begins again with other random numbers.
    """
    persistent = {"train_dataloader.persistent_workers": True} if workers else {}
    assert tiny.run(tmp_path, kill=(stage, at), workers=workers, **EPOCHS, **persistent) == -9
    assert tiny.run(tmp_path, resume=True, workers=workers, **EPOCHS, **persistent) == 0
    assert tiny.differences(undisturbed["iter"], tiny.result(tmp_path)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "at"), [("before_val_epoch", 6), ("after_val_iter", 12)])
def test_killed_with_checkpoints_of_epochs(undisturbed: dict, tmp_path: Path, stage: str, at: int) -> None:
    """A kill between an epoch's checkpoint and its validation leaves no hole either."""
    assert tiny.run(tmp_path, kill=(stage, at), **BY_EPOCH) == -9
    assert tiny.run(tmp_path, resume=True, **BY_EPOCH) == 0
    assert tiny.differences(undisturbed["epoch"], tiny.result(tmp_path, name="epoch_4.pth")) == []


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["ResumableIterLoop", "ResumableEpochLoop"])
def test_gradients_between_two_steps(tmp_path: Path, loop: str) -> None:
    """Killed two iterations after a step of every five: the gradients so far are in the checkpoint.

    Without them (``pending_gradients`` returning nothing) the first step after resuming is taken with a part.
    """
    options: dict[str, Any] = {"optim_wrapper.accumulative_counts": 5, **(EPOCHS if "Epoch" in loop else {})}
    assert tiny.run(tmp_path / "whole", **options) == 0
    assert tiny.run(tmp_path / "killed", kill=("before_train_iter", 9), **options) == -9
    checkpoint = "iter_6.pth" if loop == "ResumableIterLoop" else "iter_8.pth"
    (state,) = torch.load(tmp_path / "killed" / checkpoint, weights_only=False)["training_state"]["processes"]
    assert len(state["gradients"]) == 6 and any(float(gradient.abs().max()) > 0 for gradient in state["gradients"].values())
    assert tiny.run(tmp_path / "killed", resume=True, **options) == 0
    assert "none is lost" in tiny.output(tmp_path / "killed")
    assert tiny.differences(tiny.result(tmp_path / "whole"), tiny.result(tmp_path / "killed")) == []
    final = tiny.result(tmp_path / "whole")["training_state"]["processes"][0]
    assert "gradients" not in final


@pytest.mark.slow
def test_mixed_precision(tmp_path: Path) -> None:
    """The same with bfloat16 on a CPU."""
    options: dict[str, Any] = {**EPOCHS, "optim_wrapper.type": "CpuAmpOptimWrapper"}
    assert tiny.run(tmp_path / "whole", **options) == 0
    assert tiny.run(tmp_path / "killed", kill=("before_train_iter", 9), **options) == -9
    assert tiny.run(tmp_path / "killed", resume=True, **options) == 0
    assert tiny.differences(tiny.result(tmp_path / "whole"), tiny.result(tmp_path / "killed")) == []


@pytest.mark.slow
def test_mmengines_loop_ends_its_epochs(tmp_path: Path) -> None:
    """``EpochBasedTrainLoop`` with a ``ResumableSampler``: its first epoch would never end ("[1][365/3]")."""
    options = {**EPOCHS, "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": 2, "_delete_": True}}
    assert tiny.run(tmp_path, **options) == 0
    assert "Epoch(train) [2][3/3]" in tiny.output(tmp_path)
