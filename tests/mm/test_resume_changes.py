"""Resuming with another config: what is kept, what is rebuilt, what is refused, and what the log says of it."""

from __future__ import annotations

import copy
import itertools
import shutil
from pathlib import Path
from typing import Any

import engine_tiny as tiny
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from gbseg.mm.config_difference import config_changes, parse_config, plain_config
from gbseg.mm.training import build_runner

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mmengine_scope")]
NUMBERS = itertools.count()
SGD = {"type": "SGD", "lr": 3e-3, "momentum": 0.9, "weight_decay": 1e-4}
POLY = [
    {"type": "LinearLR", "start_factor": 0.1, "begin": 0, "end": 4, "by_epoch": False},
    {"type": "PolyLR", "power": 1.0, "eta_min": 0.0, "begin": 4, "by_epoch": False},
]


@pytest.fixture(autouse=True)
def plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a short run's time: yapf lays out the config's text anew for each checkpoint."""
    text = property(lambda self: "\n".join(f"{key} = {value!r}" for key, value in self.items()))
    monkeypatch.setattr(Config, "pretty_text", text)


class Recorder(Hook):
    """Keep the settings of every parameter group before each iteration, and the optimizer's state before the first."""

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.settings: dict[int, list[dict]] = {}
        self.state: dict = {}

    def before_train(self, runner: Runner) -> None:
        """Keep the state."""
        self.state = copy.deepcopy(runner.optim_wrapper.optimizer.state_dict()["state"])

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the settings."""
        groups = runner.optim_wrapper.param_groups
        self.settings[runner.iter] = [{key: value for key, value in group.items() if key != "params"} for group in groups]


def base(folder: Path, schedule: Any, optimizer: dict = SGD, epochs: bool = False, **changes: Any) -> Config:
    """The tiny run with a schedule; of epochs, three iterations each."""
    config = tiny.config(folder, val=100)
    config.custom_hooks = []
    config.param_scheduler = schedule
    config.optim_wrapper = {"optimizer": dict(optimizer)}
    config.default_hooks.checkpoint.max_keep_ckpts = -1
    if epochs:
        config.train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": 4, "val_interval": 2}
        config.train_dataloader.sampler = {"type": "DefaultSampler", "shuffle": True}
        config.default_hooks.checkpoint = {"type": "DurableCheckpointHook", "interval": 1, "max_keep_ckpts": -1}
        config.log_processor = {"by_epoch": True}
    config.merge_from_dict(changes)
    return config


def train(config: Config, checkpoint: Path | None = None, interval: int = 100) -> tuple[Recorder, str]:
    """Train it, or resume from a checkpoint; returns what was recorded, and the log."""
    recorder = Recorder()
    if checkpoint is not None:
        config.default_hooks.checkpoint.interval = interval
    changes = {} if checkpoint is None else {"resume": True, "load_from": str(checkpoint)}
    # MMEngine names loggers by the second: of two runs in one, the second would write to the file of the first
    runner = build_runner(config, Path(config.work_dir), f"run{next(NUMBERS)}", **changes)
    runner.register_hook(recorder)
    runner.train()
    return recorder, "".join(path.read_text() for path in sorted(Path(config.work_dir).rglob("*.log")))


SCHEDULES: dict[str, list[dict]] = {
    "linear and poly": [
        {"type": "LinearLR", "start_factor": 0.02, "begin": 0, "end": 10, "by_epoch": False},
        {"type": "PolyLR", "power": 0.9, "eta_min": 1e-5, "begin": 10, "end": 20, "by_epoch": False},
    ],
    "multi-step": [{"type": "MultiStepLR", "milestones": [5, 11, 15], "gamma": 0.3, "by_epoch": False}],
    "cosine": [{"type": "CosineAnnealingLR", "T_max": 20, "eta_min": 1e-6, "by_epoch": False}],
    "cosine with restarts": [
        {"type": "CosineRestartLR", "periods": [5, 20], "restart_weights": [1, 0.5], "eta_min": 0.0, "by_epoch": False}
    ],
    "one cycle": [{"type": "OneCycleLR", "eta_max": 0.1, "total_steps": 20, "by_epoch": False}],
    "step, exponential, constant": [
        {"type": "ConstantLR", "factor": 0.5, "begin": 0, "end": 10, "by_epoch": False},
        {"type": "ExponentialLR", "gamma": 0.97, "begin": 2, "by_epoch": False},
        {"type": "StepLR", "step_size": 4, "begin": 3, "by_epoch": False},
    ],
    "rate and momentum": [
        {"type": "LinearLR", "start_factor": 0.1, "end": 15, "by_epoch": False},
        {"type": "CosineAnnealingMomentum", "T_max": 20, "eta_min": 0.5, "by_epoch": False},
        {"type": "CosineAnnealingParamScheduler", "param_name": "weight_decay", "T_max": 20, "by_epoch": False},
    ],
    "none": [],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of a run with SGD, and of one with Adam, after nine of twelve iterations, and of one after two epochs."""
    folder = tmp_path_factory.mktemp("done")
    with DefaultScope.overwrite_default_scope("mmengine"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, "pretty_text", property(lambda self: "\n".join(f"{k} = {v!r}" for k, v in self.items())))
        train(base(folder / "sgd", POLY))
        train(base(folder / "adam", POLY, {"type": "Adam", "lr": 3e-3}))
        train(base(folder / "epochs", [{"type": "MultiStepLR", "milestones": [1, 3]}], epochs=True))
    return {"sgd": folder / "sgd/iter_9.pth", "adam": folder / "adam/iter_9.pth", "epochs": folder / "epochs/epoch_2.pth"}


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("linear and poly", "sgd"),
        ("rate and momentum", "adam"),
        *(pytest.param(name, "sgd", marks=pytest.mark.slow) for name in [*SCHEDULES][1:]),
    ],
)
def test_a_new_schedule_has_the_rates_of_a_new_run(name: str, optimizer: str, done: dict[str, Path], tmp_path: Path) -> None:
    """All settings of all groups, bit for bit, of every iteration; and the optimizer's state is the checkpoint's.

    Without `rebuild_schedule`: the former rate, and the former schedule's steps from there on.
    """
    settings = {**SGD, "lr": 1e-2} if optimizer == "sgd" else {"type": "Adam", "lr": 1e-2}
    changes = {"train_cfg.max_iters": 20, "optim_wrapper.paramwise_cfg": None}
    new, _ = train(base(tmp_path / "new", SCHEDULES[name], settings, **changes))
    resumed, log = train(base(tmp_path / "resumed", SCHEDULES[name], settings, **changes), done[optimizer])
    assert list(resumed.settings) == list(range(9, 20))
    assert resumed.settings == {iteration: new.settings[iteration] for iteration in range(9, 20)}
    stored = torch.load(done[optimizer], weights_only=False)["optimizer"]["state"]
    assert stored and tiny.differences(stored, resumed.state) == []
    assert "optim_wrapper.optimizer.lr: 0.003 -> 0.01 (rebuilt: the optimizer's settings; its state is kept)" in log
    assert "train_cfg.max_iters: 12 -> 20" in log
    assert f"the rate is {new.settings[9][0]['lr']:g} now" in log


EPOCHS: dict[str, list[dict]] = {
    "multi-step": [{"type": "MultiStepLR", "milestones": [1, 2, 4], "gamma": 0.3}],
    "iterations and epochs": [
        {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 9},
        {"type": "CosineAnnealingLR", "T_max": 5, "begin": 1, "end": 6, "eta_min": 2e-3},
        {"type": "ExponentialLR", "gamma": 0.9},
    ],
    "converted": [{"type": "CosineAnnealingLR", "T_max": 6, "by_epoch": True, "convert_to_iter_based": True}],
    "converted cycle": [{"type": "OneCycleLR", "eta_max": 0.1, "by_epoch": True, "convert_to_iter_based": True}],
}


@pytest.mark.parametrize("name", EPOCHS)
def test_schedules_of_epochs(name: str, done: dict[str, Path], tmp_path: Path) -> None:
    """In the loop over epochs, two of six trained; the steps of epochs fall between those of iterations.

    Without the order of `_fast_forward`: other rates where both are used.
    """
    changes = {"train_cfg.max_epochs": 6, "optim_wrapper.optimizer.lr": 1e-2}
    new, _ = train(base(tmp_path / "new", EPOCHS[name], epochs=True, **changes))
    resumed, log = train(base(tmp_path / "resumed", EPOCHS[name], epochs=True, **changes), done["epochs"])
    assert list(resumed.settings) == list(range(6, 18))
    assert resumed.settings == {iteration: new.settings[iteration] for iteration in range(6, 18)}
    assert f"Resuming from {done['epochs']}: epoch 2 of 6 is done." in log


@pytest.mark.parametrize("kind", ["sgd", "adam", "epochs"])
def test_the_same_config_takes_the_state_as_it_is(kind: str, done: dict[str, Path], tmp_path: Path) -> None:
    """Also a value that a hook has set, which a new run would not have; nothing is said to have changed.

    Without the look at the config in `_settings_differ`: the weight decay of the config.
    """
    stored = torch.load(done[kind], weights_only=False)
    stored["optimizer"]["param_groups"][0]["weight_decay"] = 0.123
    stored["param_schedulers"][-1]["_last_value"] = [7.0]
    torch.save(stored, tmp_path / "set.pth")
    optimizer = {"type": "Adam", "lr": 3e-3} if kind == "adam" else SGD
    schedule = [{"type": "MultiStepLR", "milestones": [1, 3]}] if kind == "epochs" else POLY
    recorder, log = train(base(tmp_path / "run", schedule, optimizer, epochs=kind == "epochs"), tmp_path / "set.pth")
    assert {settings[0]["weight_decay"] for settings in recorder.settings.values()} == {0.123}
    assert "has changed" not in log and "Rebuilt" not in log
    assert f"Resuming from {tmp_path / 'set.pth'}: " in log


def test_a_finished_run_is_extended(done: dict[str, Path], tmp_path: Path) -> None:
    """Where ``end`` is the number of iterations, it follows them, twice; else the rate would stay 0.

    Without `_extend_schedules`: eight iterations at the rate 0.
    """
    schedule = [POLY[0], {**POLY[1], "end": 12}]
    train(base(tmp_path / "run", schedule))
    longer, log = train(
        base(tmp_path / "run", schedule, **{"train_cfg.max_iters": 20}), tmp_path / "run/iter_12.pth", interval=3
    )
    new, _ = train(base(tmp_path / "new", POLY, **{"train_cfg.max_iters": 20}))
    assert longer.settings == {iteration: new.settings[iteration] for iteration in range(12, 20)}
    assert longer.settings[12][0]["lr"] > 0
    assert "param_scheduler[1].end: 12 -> 20, with train_cfg.max_iters (it ended there" in log
    # the same command once more, after a kill: nothing has changed since
    again, log = train(base(tmp_path / "again", schedule, **{"train_cfg.max_iters": 20}), tmp_path / "run/iter_15.pth")
    assert again.settings == {iteration: new.settings[iteration] for iteration in range(15, 20)}
    assert "has changed" not in log


def test_a_constant_rate_behind_the_schedule_stays(tmp_path: Path) -> None:
    """``end`` is the user's where the rate behind it is not 0. Without the look at ``eta_min``: another curve."""
    schedule = [{**POLY[1], "begin": 0, "end": 12, "eta_min": 1e-4}]
    train(base(tmp_path / "run", schedule))
    changes = {"train_cfg.max_iters": 20}
    longer, _ = train(base(tmp_path / "run", schedule, **changes), tmp_path / "run/iter_12.pth")
    assert {settings[0]["lr"] for settings in longer.settings.values()} == {1e-4}


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        ({"type": "Adam", "lr": 1e-3}, "it is of SGD, and optim_wrapper.optimizer.type is Adam"),
        ({"type": "RMSprop", "lr": 1e-3}, "it is of SGD, and optim_wrapper.optimizer.type is RMSprop"),
    ],
)
def test_another_optimizer_starts_anew(optimizer: dict, reason: str, done: dict[str, Path], tmp_path: Path) -> None:
    """The schedule goes on where it is. Without `_why_anew`: ``KeyError: 'betas'``, or 'momentum'."""
    new, _ = train(base(tmp_path / "new", POLY, optimizer))
    resumed, log = train(base(tmp_path / "run", POLY, optimizer), done["sgd"])
    assert resumed.settings == {iteration: new.settings[iteration] for iteration in range(9, 12)}
    assert resumed.state == {}
    assert f"The optimizer's state starts anew: {reason}." in log


def test_another_optimizer_is_known_by_its_state(done: dict[str, Path], tmp_path: Path) -> None:
    """Of a checkpoint whose config cannot be read, and which is then no reason to refuse it."""
    stored = torch.load(done["adam"], weights_only=False)
    stored["meta"]["cfg"] = "model = dict(type=<class 'a'>"
    torch.save(stored, tmp_path / "a.pth")
    _, log = train(base(tmp_path / "run", POLY), tmp_path / "a.pth")
    assert "The checkpoint holds no config that can be read" in log
    assert "The optimizer's state starts anew: it is of an optimizer of another type, with amsgrad, betas, " in log


def test_options_and_groups_of_an_optimizer(done: dict[str, Path], tmp_path: Path) -> None:
    """Without a new state: ``KeyError: 'max_exp_avg_sq'`` in the first step, and a refusal by torch in words of its own."""
    _, log = train(base(tmp_path / "a", POLY, {"type": "Adam", "lr": 3e-3, "amsgrad": True}), done["adam"])
    assert "starts anew: amsgrad needs a state that it did not keep." in log
    paramwise = {"optim_wrapper.paramwise_cfg": {"bias_lr_mult": 2.0}}
    _, log = train(base(tmp_path / "b", POLY, **paramwise), done["sgd"])
    assert "starts anew: its parameters were grouped in another way, in 1 groups, and now in " in log
    train(base(tmp_path / "c", POLY, **paramwise))
    paramwise["optim_wrapper.paramwise_cfg"]["bias_lr_mult"] = 3.0
    new, _ = train(base(tmp_path / "new", POLY, **paramwise))
    resumed, log = train(base(tmp_path / "d", POLY, **paramwise), tmp_path / "c/iter_9.pth")
    assert resumed.settings == {iteration: new.settings[iteration] for iteration in range(9, 12)} and resumed.state
    assert "starts anew" not in log and "bias_lr_mult: 2.0 -> 3.0 (rebuilt: the optimizer's settings; its state is kept)" in log


def test_what_does_not_matter_is_not_said(done: dict[str, Path], tmp_path: Path) -> None:
    """Folders, workers, validation and hooks; what matters and is no schedule is said, and the state is kept."""
    changes = {"train_cfg.val_interval": 6, "train_dataloader.num_workers": 1, "default_hooks.logger.interval": 2}
    _, log = train(base(tmp_path / "a", POLY, **changes), done["sgd"])
    assert "has changed" not in log
    changes = {"optim_wrapper.clip_grad": {"max_norm": 3.0}, "randomness.seed": 9}
    _, log = train(base(tmp_path / "b", POLY, **changes), done["sgd"])
    assert "optim_wrapper.clip_grad: absent -> {'max_norm': 3.0} (the config's from here on)" in log
    assert "randomness.seed: 5 -> 9 (kept: the checkpoint's seed and random states)" in log
    assert "Kept: weights that fit, iteration 9, random states and the position in the data, the optimizer's state" in log


def test_the_text_of_a_config_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Literals and ``dict(...)`` are values, anything else is text. Without `parse_config`, by ``Config.fromstring``: run."""
    marker = tmp_path / "ran"
    text = f"a = dict(b=(1, 2.5), c=[dict(d=-1)], **{{'e': None}})\nf = open({str(marker)!r}, 'w')\ng = h.i\nj = float('nan')"
    parsed = parse_config(text)
    assert parsed == {
        "a": {"b": [1, 2.5], "c": [{"d": -1}], "None": {"e": None}},
        "f": f"open({str(marker)!r}, 'w')",
        "g": "h.i",
        "j": "float('nan')",
    }
    assert not marker.exists()
    for broken in ("a = (", "a\0", "(" * 5000, "=" * 99):
        assert parse_config(broken) is None
    monkeypatch.undo()
    config = Config({"model": {"type": torch.nn.Linear, "size": (1, 2)}, "optim_wrapper": {"x": 1e-3, "y": float("inf")}})
    assert config_changes(parse_config(config.pretty_text), plain_config(config)) == []


def test_resume_says_which_it_did(done: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Goes on, starts at the beginning, or has nothing to do; with MMEngine's own checkpoint hook as well.

    Without the sentence in `QuietRunner.load_or_resume`: "Auto resumed from the latest checkpoint None."
    """
    changes = {"default_hooks.checkpoint": {"_delete_": True, "type": "CheckpointHook", "by_epoch": False, "interval": 3}}
    for name, own in (("own", {}), ("stock", changes)):
        folder = tmp_path / name
        config = base(folder, POLY, **own)
        build_runner(config, folder, resume=True).train()
        out = capsys.readouterr().out
        assert f"There is no checkpoint in {folder} yet: training starts at the beginning." in out
        build_runner(config, folder, "again", resume=True).train()
        assert f"Resuming from {folder / 'iter_12.pth'}: iteration 12 of 12 is done, so this run is finished." in (
            capsys.readouterr().out
        )
        (folder / "iter_12.pth").unlink()
        (folder / "last_checkpoint").write_text(str(folder / "iter_9.pth"))
        build_runner(config, folder, "third", resume=True).train()
        assert f"Resuming from {folder / 'iter_9.pth'}: iteration 9 of 12 is done." in capsys.readouterr().out
    shutil.rmtree(tmp_path)
