"""The keys by which runs are cached, and the configs that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import CONFIGS, on, write_mnist

from gbseg.mm.config import load_config
from reproduction import runs
from reproduction.runs import Run


def run(mnist: Path, **changes: object) -> Run:
    """Of exp-GB on MNIST's network, because it has options."""
    loss = {"model.head.loss": dict(type="ExpGBLoss", alpha=0.1, targets=(0, 16))}
    options = on(mnist) | loss | changes.pop("options", {})
    settings = {"arm": "a", "stage": "final", "rate": 0.1, "seed": 0, "epochs": 2, "amp": False, "every": 1} | changes
    settings = {"together": False, "home": Path("somewhere"), "config": CONFIGS / "classification/mnist_linear.py"} | settings
    return Run(options=options, **settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"home": Path("elsewhere")},
        {"arm": "b"},
        {"stage": "sweep"},
        {"options": {"work_dir": "there"}},
        {"options": {"default_hooks.logger.interval": 1, "log_processor.window_size": 1, "log_level": "ERROR"}},
        {"options": {"default_hooks.checkpoint.interval": 3}},
        # what the options say is what another file says
        {"options": {"model.head.loss.alpha": 0.1}},
        {"config": CONFIGS / "classification/mnist_softmax.py", "options": {"model.head.loss._delete_": True}},
    ],
    ids=repr,
)
def test_equal_keys(mnist: Path, changes: dict) -> None:
    """Names, places and logging do not determine a run's numbers."""
    if "model.head.loss._delete_" in changes.get("options", {}):
        whole = dict(_delete_=True, type="ExpGBLoss", alpha=0.1, targets=(0, 16))
        changes = {**changes, "options": {"model.head.loss": whole}}
    assert run(mnist, **changes).key == run(mnist).key


def test_keys_differ(mnist: Path) -> None:
    """By everything that does, each from every other."""
    tune = {"train_dataloader.dataset.part": "tune", "train_dataloader.dataset.held_out": 100}
    changes: list[dict] = [
        {},
        {"seed": 1},
        {"rate": 0.2},
        {"rate": 0.1 * (1 + 1e-15)},
        {"epochs": 3},
        {"every": 2},
        {"amp": True},
        {"together": True},
        {"options": tune},
        {"options": tune | {"train_dataloader.dataset.held_out": 200}},
        {"options": {"val_dataloader.dataset.part": "held_out", "val_dataloader.dataset.held_out": 100}},
        {"options": {"train_dataloader.dataset.num": 300}},
        {"options": {"train_dataloader.batch_size": 50}},
        {"options": {"model.head.loss.alpha": 0.2}},
        {"options": {"model.head.loss.targets": (0, 6)}},
        {"options": {"model.backbone.hidden": (392, 51)}},
        {"options": {"model.head.init_bias": "prior"}},
        {"options": {"optim_wrapper.optimizer.weight_decay": 1e-4}},
        {"options": {"custom_hooks": [dict(type="GradientStatsHook", interval=10)]}},
    ]
    keys = [run(mnist, **change).key for change in changes]
    assert len(set(keys)) == len(changes)


def test_a_key_is_what_it_was(mnist: Path) -> None:
    """Results that took hours are found by it: what changes this hash throws them away."""
    options = {"train_dataloader.dataset.data_root": "data/mnist", "val_dataloader.dataset.data_root": "data/mnist"}
    one = run(mnist, options=options | {"val_dataloader.batch_size": 1000}, epochs=100, together=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "count_images", lambda *dataset: 60000)
        assert one.key == "aa4f9af80c2cd0a2"


def test_a_run_of_its_own_length(tmp_path: Path) -> None:
    """Epochs of the images that there are, a validation after each or every few."""
    mnist = write_mnist(tmp_path, 250, 10)
    config = run(mnist, epochs=4, every=2).resolved
    assert (config.train_cfg.max_iters, config.train_cfg.val_interval) == (4 * 3, 6)
    assert run(mnist, epochs=4, every=2).epoch == 3
    written = load_config(run(mnist, home=tmp_path, seed=7, rate=0.3).write())
    assert (written.randomness.seed, written.optim_wrapper.optimizer.lr) == (7, 0.3)
    assert written.model.head.loss.type == "ExpGBLoss"


def test_schedules_are_stretched(mnist: Path) -> None:
    """ResNet-18's two epochs of warm-up in thirty are a third of an epoch in five, of a smaller set."""
    original = load_config(CONFIGS / "classification/resnet18_cifar10_softmax.py")
    whole = original.train_cfg.max_iters
    assert [(one.begin, one.end) for one in original.param_scheduler] == [(0, whole / 15), (whole / 15, whole)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "count_images", lambda *dataset: 10000)
        config = run(mnist, config=CONFIGS / "classification/resnet18_cifar10_softmax.py", epochs=5).resolved
        steps = {"param_scheduler": [dict(type="MultiStepLR", milestones=[5000, 30000], by_epoch=False)]}
        stepped = run(mnist, config=CONFIGS / "classification/mnist_softmax.py", options=steps, epochs=10).resolved
    # 79 batches of 128
    assert config.train_cfg.max_iters == 395 and config.train_cfg.val_interval == 79
    assert [(one.begin, one.end) for one in config.param_scheduler] == [(0, 26), (26, 395)]
    # of 60,000 iterations 1,000 are left
    assert stepped.train_cfg.max_iters == 1000 and stepped.param_scheduler[0].milestones == [83, 500]


def test_no_result_yet(mnist: Path, tmp_path: Path) -> None:
    assert run(mnist, home=tmp_path).result() is None
