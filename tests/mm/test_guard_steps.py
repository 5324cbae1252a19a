"""A loss or gradient that is not finite: no step with it, what is said of it, the step that is kept, and steps left out."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmseg")
import engine_tiny as tiny
import mmengine.runner.runner
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from gbseg.mm.hooks.nonfinite_guard import NonFiniteLossError
from gbseg.mm.replay import replay

STATE = ("state_dict", "optimizer", "param_schedulers")


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
    assert [moment["iteration"] for moment in result.dump["iterations"]] == [4, 5, 6]
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
    """It makes infinite entries finite, which is a step."""
    runner = _runner(tmp_path, monkeypatch, **{"model.trouble": [[5, "gradient"]]}, **NO_CLIP)
    runner.optim_wrapper = runner.build_optim_wrapper(
        {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.01}, "clip_grad": {"type": "value", "clip_value": 0.1}}
    )
    runner.model.register_full_backward_hook(lambda *_: None)
    # no entry is 0, of which infinity makes NaN
    with pytest.raises(NonFiniteLossError, match="iteration 5"):
        runner.train()


def test_spikes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss far above the median of those before it is a warning, and no error; not before there are 25 of them."""
    changes = {"train_cfg.max_iters": 40, "model.trouble": [[9, "large"], [33, "large"]]}
    _runner(tmp_path, monkeypatch, **changes).train()
    text = next(tmp_path.glob("*/*.log")).read_text()
    assert re.findall(r"WARNING - Iteration (\d+): the loss is \S+, \S+ times the median of the last (\d+)", text) == [
        ("33", "32")
    ]
