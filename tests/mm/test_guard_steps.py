"""A loss or gradient that is not finite: no step with it, what is said of it, the step that is kept, and steps left out."""

import contextlib
import copy
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")
import engine_tiny as tiny
import mmengine.runner.runner
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import BaseOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from gbseg.cli import main
from gbseg.config_files import ConfigError
from gbseg.mm import compat
from gbseg.mm.checkpoint_loading import CheckpointError, read_checkpoint
from gbseg.mm.hooks.nonfinite_guard import NonFiniteGuardHook, NonFiniteLossError
from gbseg.mm.step_dump import image_names, plain, rebuilt
from gbseg.mm.step_replay import replay


def _runner(folder: Path, monkeypatch: pytest.MonkeyPatch, guard: dict | None = None, **changes: Any) -> Runner:
    """The tiny run in this process; its guard has the given settings."""
    monkeypatch.setattr(mmengine.runner.runner, "collect_env", dict)
    monkeypatch.setattr(Config, "pretty_text", property(lambda self: "no text"))
    changes = {"experiment_name": str(folder), "default_hooks.checkpoint.save_best": None, "val_cfg": None} | changes
    changes |= {"val_evaluator": None, "val_dataloader": None, "model.data_preprocessor": {"type": "BaseDataPreprocessor"}}
    cfg = tiny.config(folder, guard=False, **changes)
    cfg.custom_hooks.append({"type": "NonFiniteGuardHook", **(guard or {})})
    return Runner.from_cfg(cfg)


def _stopped(runner: Runner) -> str:
    with pytest.raises(NonFiniteLossError) as error:
        runner.train()
    return str(error.value)


NO_CLIP = {"optim_wrapper.clip_grad": None}


@pytest.mark.parametrize("changes", [{}, NO_CLIP], ids=["clipped", "not clipped"])
def test_infinite_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict) -> None:
    """It is named with its layer, and no step is taken with it. Without the check of the norm: iteration 6 has a NaN loss."""
    runner = _runner(tmp_path, monkeypatch, **{"model.trouble": [[5, "gradient"]]}, **changes)
    text = _stopped(runner)
    assert re.search(
        r"the gradient is not finite at iteration 5, though the loss is: layers\.1\.bias \(BatchNorm1d\), layers\.1\.weight "
        r"\(BatchNorm1d\), layers\.0\.bias \(Linear\), \.\.\., 4 of 6 parameters from the output on; main_loss = \S+, "
        r"aux_loss = \S+; learning rate: lr 0\.0122857\.",
        text,
    ), text
    assert all(value.isfinite().all() for value in runner.model.parameters())
    assert f"gbseg replay {tmp_path}/nonfinite_iter_5.dump" in text
    assert {path.name for path in tmp_path.glob("*.pth")} == {"iter_3.pth"}


def test_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept step gives the same losses and gradients bit for bit, dropout and batch norm included.

    Without the random states or the parameters of then: other values.
    """
    _stopped(_runner(tmp_path, monkeypatch, **{"model.trouble": [[5, "gradient"]]}))
    result = replay(tmp_path / "nonfinite_iter_5.dump")
    report = result.report()
    assert result.same_losses and result.same_gradients, report
    assert result.bad_forward is None and result.bad_backward == "layers.0 (Linear)"
    assert "    main_loss = " in report and "(as recorded)" in report
    other = replay(tmp_path / "nonfinite_iter_5.dump", {"model.trouble": []})
    assert other.same_losses and not other.same_gradients and other.bad_backward is None
    result.dump["iterations"][0]["losses"]["main_loss"] += 1e-7
    assert not result.same_losses and "losses equal to those recorded: no" in result.report()


def _state(runner: Runner) -> dict[str, Any]:
    return {
        "weights": {name: value.clone() for name, value in runner.model.state_dict().items()},
        "optimizer": runner.optim_wrapper.state_dict(),
        "schedule": [scheduler.state_dict() for scheduler in runner.param_schedulers],
    }


@pytest.mark.parametrize("kind", ["gradient", "loss"])
@pytest.mark.parametrize("changes", [{}, NO_CLIP], ids=["clipped", "not clipped"])
def test_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, changes: dict) -> None:
    """A bad step leaves parameters, buffers and the optimizer's state alone; the schedule goes on, and the log stays finite.

    Without the buffers put back: the running mean is infinite after a bad loss. Without ``_drop_bad_losses``: so is the log.
    """
    runner = _runner(
        tmp_path,
        monkeypatch,
        {"policy": "skip"},
        **{"model.trouble": [[5, kind], [7, kind]], "train_cfg.max_iters": 8},
        **changes,
    )
    states: list[dict[str, Any]] = []
    runner.register_hook(_Keep(states), priority="LOWEST")
    runner.train()
    for number in (5, 7):
        before, after = states[number - 2], states[number - 1]
        assert not tiny.differences(before["weights"], after["weights"])
        assert not tiny.differences(before["optimizer"]["state"], after["optimizer"]["state"])
        assert after["schedule"][0]["last_step"] == before["schedule"][0]["last_step"] + 1
    assert tiny.differences(states[4]["weights"], states[5]["weights"])
    assert runner.message_hub.get_info("skipped_steps") == 2
    history = runner.message_hub.get_scalar("train/loss").data[0]
    assert all(math.isfinite(value) for value in history) and len(history) == (8 if kind == "gradient" else 6)
    text = next(tmp_path.glob("*/*.log")).read_text()
    assert re.search(rf"WARNING - A step is left out, the 1\. of at most 10: the {kind} is not finite at iteration 5", text)
    assert {path.name for path in tmp_path.glob("*.dump")} == {"nonfinite_iter_5.dump", "nonfinite_iter_7.dump"}


class _Keep(Hook):
    """Keeps the state after each iteration."""

    def __init__(self, states: list[dict[str, Any]]) -> None:
        self.states = states

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Keep it."""
        self.states.append(copy.deepcopy(_state(runner)))


def test_skip_changes_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without trouble has the same weights under either policy, bit for bit."""
    weights = []
    for policy in ("stop", "skip"):
        runner = _runner(tmp_path / policy, monkeypatch, {"policy": policy})
        runner.train()
        weights.append(_state(runner))
    assert not tiny.differences(*weights)


def test_limit_of_skips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts the whole run: what was left out before an interruption is in the checkpoint."""
    trouble = {"model.trouble": [[2, "loss"], [5, "gradient"], [7, "loss"]]}
    guard = {"policy": "skip", "max_skips": 2}
    runner = _runner(tmp_path, monkeypatch, guard, **trouble, **{"train_cfg.max_iters": 6})
    runner.train()
    again = {"experiment_name": f"{tmp_path} again", "load_from": str(tmp_path / "iter_6.pth"), "resume": True}
    text = _stopped(_runner(tmp_path, monkeypatch, guard, **trouble, **again))
    assert "the loss is not finite at iteration 7: aux_loss = inf (finite: main_loss = " in text
    assert "2 steps were left out before, and max_skips is 2. " in text


def test_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of several iterations is checked at their step, and replayed whole.

    Without keeping all iterations since the last step: the gradients of the replay are others.
    """
    changes = {"optim_wrapper.accumulative_counts": 3, "model.trouble": [[5, "gradient"]]}
    text = _stopped(_runner(tmp_path, monkeypatch, **changes))
    assert "the gradient is not finite at iteration 6, though the loss is" in text
    result = replay(tmp_path / "nonfinite_iter_6.dump")
    assert [record["iteration"] for record in result.dump["iterations"]] == [4, 5, 6]
    assert result.same_losses and result.same_gradients


def test_bad_loss_in_accumulation_is_skipped_at_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the iterations of the next step are taken."""
    changes = {"optim_wrapper.accumulative_counts": 3, "model.trouble": [[5, "loss"]]}
    runner = _runner(tmp_path, monkeypatch, {"policy": "skip"}, **changes)
    states: list[dict[str, Any]] = []
    runner.register_hook(_Keep(states), priority="LOWEST")
    runner.train()
    assert runner.message_hub.get_info("skipped_steps") == 1
    assert not tiny.differences(states[2]["weights"], states[5]["weights"])
    assert tiny.differences(states[5]["weights"], states[8]["weights"])
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())


def test_clipping_by_value_keeps_its_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes infinite entries finite, so that they are stepped with as before; NaN it leaves alone, which is refused."""
    runner = _runner(tmp_path, monkeypatch)
    bias = runner.model.layers[0].bias
    runner.optim_wrapper = OptimWrapper(torch.optim.SGD([bias], 1.0), clip_grad={"type": "value", "clip_value": 0.5})
    hook = next(hook for hook in runner.hooks if isinstance(hook, NonFiniteGuardHook))
    runner.call_hook("before_run")
    runner.param_schedulers = []
    hook.before_train(runner)
    bias.data.zero_()
    bias.grad = torch.full((16,), 0.25)
    bias.grad[0] = math.inf
    runner.optim_wrapper.step()
    assert bias.tolist() == [-0.5] + 15 * [-0.25]
    bias.grad = torch.full((16,), math.nan)
    with pytest.raises(NonFiniteLossError, match=r"the gradient is not finite at iteration 1, .*: layers.0.bias \(Linear\)"):
        runner.optim_wrapper.step()


def test_spikes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss far above the median of those before it is a warning, and no error; not before there are 25 of them."""
    changes = {"train_cfg.max_iters": 40, "model.trouble": [[9, "large"], [33, "large"]]}
    _runner(tmp_path, monkeypatch, **changes).train()
    text = next(tmp_path.glob("*/*.log")).read_text()
    assert re.findall(r"WARNING - Iteration (\d+): the loss is \S+, \S+ times the median of the last (\d+)", text) == [
        ("33", "32")
    ]


class _Elements(Tensor):
    """A norm that claims to be on a device."""

    @property
    def device(self) -> torch.device:
        """Where it claims to be."""
        return torch.device("cuda")


def test_device_without_clipping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the norm is read an iteration later, or before a checkpoint; the error says how to get at the step.

    Without ``_read_norm``: the run goes on to the loss of iteration 6.
    """
    plain = compat.largest_entry
    monkeypatch.setattr(compat, "largest_entry", lambda tensors: plain(tensors).as_subclass(_Elements))
    runner = _runner(tmp_path, monkeypatch, **{"model.trouble": [[5, "gradient"]], "model.bad_at": None}, **NO_CLIP)
    waits: list[int] = []
    hook = next(hook for hook in runner.hooks if isinstance(hook, NonFiniteGuardHook))
    read = hook._read_norm
    monkeypatch.setattr(hook, "_read_norm", lambda runner: (waits.append(runner.iter + 1), read(runner)))
    # the losses are on the host here, where they would be found first
    monkeypatch.setattr(hook, "_check", lambda *_: None)
    text = _stopped(runner)
    # iterations 2, 4, 5 look at those before them; the third was read before its checkpoint
    assert waits == [3, 3, 5, 6]
    assert "the gradient is not finite at iteration 5, though the loss is: main_loss = " in text
    assert "the step with it was taken, in memory only. To look at the step itself, resume with" in text
    assert not list(tmp_path.glob("*.dump"))


def test_grad_scaler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Its infinite gradients are counted and no error; a bad loss is an error, or a step that is left out."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    class Scaled(OptimWrapper):
        """What ``AmpOptimWrapper`` does, which refuses a CPU."""

        loss_scaler = scaler

        def backward(self, loss: Tensor, **kwargs: Any) -> None:
            """Scale."""
            self.loss_scaler.scale(loss).backward(**kwargs)
            self._inner_count += 1

        def step(self, **kwargs: Any) -> None:
            """Clip what is unscaled, and step."""
            if self.clip_grad_kwargs:
                self.loss_scaler.unscale_(self.optimizer)
                self._clip_grad()
            self.loss_scaler.step(self.optimizer, **kwargs)
            self.loss_scaler.update()

    for policy in ("stop", "skip"):
        trouble = [[3, "gradient"], [5, "gradient"], [8, "loss"]]
        runner = _runner(tmp_path / policy, monkeypatch, {"policy": policy}, **{"model.trouble": trouble}, **NO_CLIP)
        runner.optim_wrapper = Scaled(torch.optim.SGD(runner.model.parameters(), 0.01))
        runner.param_schedulers = []
        if policy == "stop":
            assert "the loss is not finite at iteration 8: aux_loss = inf" in _stopped(runner)
        else:
            runner.train()
            assert runner.message_hub.get_info("skipped_steps") == 1
        assert runner.message_hub.get_info("scaler_skips") == 2
        assert all(value.isfinite().all() for value in runner.model.parameters())
        text = next((tmp_path / policy).glob("*/*.log")).read_text()
        assert "Iteration 3: the GradScaler left a step out, the 1. of this process" in text


class _Own(BaseOptimWrapper):
    """A wrapper of somebody else's."""

    def update_params(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Step in a way of its own."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Not used."""

    def zero_grad(self, **kwargs: Any) -> None:
        """Not used."""

    def step(self, **kwargs: Any) -> None:
        """Not used."""


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_other_wrappers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    """One that steps in its own way is named in the log; 'skip' is refused."""
    runner = _runner(tmp_path, monkeypatch, {"policy": policy})
    runner.optim_wrapper = _Own(torch.optim.SGD(runner.model.parameters(), 0.01))
    hook = next(hook for hook in runner.hooks if isinstance(hook, NonFiniteGuardHook))
    runner.call_hook("before_run")
    runner.param_schedulers = []
    if policy == "skip":
        with pytest.raises(ValueError, match="policy='skip' works with OptimWrapper and AmpOptimWrapper, not _Own"):
            hook.before_train(runner)
    else:
        hook.before_train(runner)
        text = next(tmp_path.glob("*/*.log")).read_text()
        assert "NonFiniteGuardHook does not check the gradients of _Own, which steps in its own way." in text
        hook.after_train(runner)


def test_wrappers_in_a_dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is asked before its step, and gets its methods back after training."""
    runner = _runner(tmp_path, monkeypatch)
    one, two = (OptimWrapper(torch.optim.SGD(layer.parameters(), 0.1)) for layer in (nn.Linear(2, 2), nn.Linear(2, 2)))
    runner.optim_wrapper = OptimWrapperDict(a=one, b=two)
    hook = next(hook for hook in runner.hooks if isinstance(hook, NonFiniteGuardHook))
    runner.call_hook("before_run")
    runner.param_schedulers = []
    hook.before_train(runner)
    for parameter in runner.model.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    for wrapper in (one, two):
        wrapper.optimizer.param_groups[0]["params"][0].grad = torch.full((2, 2), math.inf)
        with pytest.raises(
            NonFiniteLossError, match=r"the gradient is not finite at iteration 1, though the loss is: layers\.4"
        ):
            wrapper.step()
    hook.after_train(runner)
    assert "step" not in vars(one) and "step" not in vars(two)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"policy": "ignore"}, "policy must be 'stop' or 'skip', got 'ignore'"),
        ({"max_skips": -1}, "max_skips must be at least 0, got -1"),
        ({"spike": 1.0}, "spike must be above 1 or None"),
    ],
    ids=["policy", "max_skips", "spike"],
)
def test_arguments(settings: dict, text: str) -> None:
    """What means nothing is refused."""
    with pytest.raises(ValueError, match=text):
        NonFiniteGuardHook(**settings)


def test_images_of_a_batch() -> None:
    """Paths of data samples and of dictionaries, else numbers; a few of them."""
    segmentation = {"data_samples": [SegDataSample(metainfo={"img_path": f"{name}.jpg"}) for name in "abcde"]}
    assert image_names(segmentation) == "a.jpg, b.jpg, c.jpg, d.jpg, ..."
    assert image_names({"data_samples": [DataSample(metainfo={"sample_idx": 7})]}) == "sample 7"
    assert image_names([{"img_path": ["x.png"], "sample_idx": [3]}]) == "x.png"
    assert image_names({"inputs": torch.zeros(2)}) == ""


def test_batches_are_data(tmp_path: Path) -> None:
    """Samples of segmentors and classifiers, arrays, tuples and paths come back as they were, from a file read as data."""
    sample = SegDataSample(metainfo={"img_path": "a.jpg", "scale": (2, 3), "flip": False, "map": np.arange(3, dtype=np.uint16)})
    sample.gt_sem_seg = PixelData(data=torch.arange(6).view(1, 2, 3))
    batch = {
        "inputs": [torch.rand(3, 2, 3)],
        "data_samples": [sample, DataSample().set_gt_label(2)],
        "path": Path("x"),
        "n": (1, [2]),
    }
    torch.save({"batch": plain(batch)}, tmp_path / "batch.pth")
    again = rebuilt(read_checkpoint(tmp_path / "batch.pth")["batch"])
    first = again["data_samples"][0]
    assert isinstance(first, SegDataSample) and isinstance(first.gt_sem_seg, PixelData)
    assert torch.equal(first.gt_sem_seg.data, sample.gt_sem_seg.data) and first.scale == (2, 3) and first.flip is False
    assert first.map.dtype == np.uint16 and first.map.tolist() == [0, 1, 2]
    assert isinstance(again["data_samples"][1], DataSample) and again["data_samples"][1].gt_label.tolist() == [2]
    assert torch.equal(again["inputs"][0], batch["inputs"][0]) and again["n"] == (1, [2]) and again["path"] == "x"
    with pytest.raises(ValueError, match=r"the batch holds builtins\.object, which is no data, so it was left out"):
        rebuilt(plain({"thing": object()}))


HOSTILE = {
    "a module": {"custom_imports": {"imports": ["this_is_hostile"]}},
    "a type with a path": {"model": {"type": "this_is_hostile.Model"}},
    "a part with a path": {"model": {"data_preprocessor": {"type": "this_is_hostile.run"}}},
    "a scope": {"model": {"data_preprocessor": {"type": "BaseDataPreprocessor", "_scope_": "this_is_hostile"}}},
    "a default scope": {"default_scope": "this_is_hostile"},
    "installing": {"model": {"data_preprocessor": {"type": "mmengine.utils.install_package", "package": "this_is_hostile"}}},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_dump_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict) -> None:
    """Nothing that its config names is imported or called. Without ``registered_types_only``: the module is run."""
    _stopped(_runner(tmp_path / "run", monkeypatch, **{"model.trouble": [[1, "loss"]]}))
    dump = torch.load(tmp_path / "run" / "nonfinite_iter_1.dump", weights_only=True)
    for key, value in change.items():
        dump["config"][key] = {**dump["config"][key], **value} if key == "model" else value
    torch.save(dump, tmp_path / "hostile.dump")
    (tmp_path / "this_is_hostile").mkdir()
    for name in ("__init__.py", "registry.py"):
        (tmp_path / "this_is_hostile" / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr("subprocess.check_call", lambda *_: (tmp_path / "ran").touch())
    with contextlib.suppress(ValueError, ConfigError):
        replay(tmp_path / "hostile.dump")
    assert not (tmp_path / "ran").exists() and "this_is_hostile" not in sys.modules
    if "custom_imports" in change:
        with pytest.raises(ValueError, match=r"asks for this_is_hostile, whose code would run: .* with --trust\."):
            replay(tmp_path / "hostile.dump")
        replay(tmp_path / "hostile.dump", trust=True)
        assert (tmp_path / "ran").exists()
        del sys.modules["this_is_hostile"]


def test_a_dump_with_an_object(tmp_path: Path) -> None:
    """It is refused like any checkpoint; so is a checkpoint that is no dump."""
    torch.save({"gbseg_dump": 1, "batch": Path}, tmp_path / "object.dump")
    with pytest.raises(CheckpointError, match="to load that could run code"):
        replay(tmp_path / "object.dump")
    torch.save({"state_dict": {}}, tmp_path / "iter_3.pth")
    with pytest.raises(CheckpointError, match=r"it is no dump of a step, which training writes as nonfinite_iter_\*\.dump"):
        replay(tmp_path / "iter_3.pth")
    torch.save({"gbseg_dump": 1, "config": {}}, tmp_path / "half.dump")
    with pytest.raises(CheckpointError, match="its state_dict is missing or of another kind"):
        replay(tmp_path / "half.dump")


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """``gbseg replay`` prints the report; a state that does not fit is a sentence."""
    _stopped(_runner(tmp_path, monkeypatch, **{"model.trouble": [[5, "loss"]]}))
    capsys.readouterr()
    dump = str(tmp_path / "nonfinite_iter_5.dump")
    assert main(["replay", dump, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "    aux_loss = inf (as recorded)" in out and "losses equal to those recorded: yes" in out
    assert "first output that is not finite: none, all layers are finite" in out.replace(
        "the model itself (TinyModel)", "none, all layers are finite"
    )
    assert "gradients equal to those recorded: none were recorded" in out
    assert main(["replay", dump, "--cfg-options", "model.type=TinierModel"]) == 1
    assert "TinierModel" in capsys.readouterr().err


def test_a_full_disk_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the step cannot be kept, the error says so and is the same."""
    runner = _runner(tmp_path, monkeypatch, **{"model.trouble": [[5, "gradient"]]})
    (tmp_path / "nonfinite_iter_5.dump").mkdir()
    text = _stopped(runner)
    assert "the gradient is not finite at iteration 5" in text
    assert f"The step could not be kept: {tmp_path}/nonfinite_iter_5.dump could not be written: Is a directory" in text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_processes_decide_together(tmp_path: Path, policy: str, kind: str) -> None:
    """A bad loss or gradient of one process is refused by both in the same iteration, with its images and its dump.

    Without the factor of the loss: one process raises and the other waits for it until the time-out.
    """
    options = {"model.trouble": [[5, kind, 1]], "default_hooks.checkpoint.save_best": None, "guard": False, "val": 100}
    hooks = [{"type": "NonFiniteGuardHook", "policy": policy}]
    store = str(tmp_path / "store")
    processes = [
        tiny.start(tmp_path, tiny.train_together, rank=rank, store=store, custom_hooks=hooks, **options) for rank in range(2)
    ]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == ([1, 1] if policy == "stop" else [0, 0])
    texts = [(tmp_path / f"out{rank}.txt").read_text() for rank in range(2)]
    if policy == "stop":
        for text in texts:
            assert f"NonFiniteLossError: the {kind} is not finite at iteration 5" in text
    else:
        assert "A step is left out, the 1. of at most 10" in texts[0]
        weights = torch.load(tmp_path / "iter_12.pth", weights_only=False)["state_dict"]
        assert all(value.isfinite().all() for value in weights.values())
    dumps = {path.name for path in tmp_path.glob("*.dump")}
    ranks = [1] if kind == "loss" else [0, 1]
    assert dumps == {f"nonfinite_iter_5_process{rank}.dump" for rank in ranks}
