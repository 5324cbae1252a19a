"""Losses and parameters that are not finite: training ends, and nothing of it is kept."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")
import engine_tiny as tiny
from torch import Tensor, nn

from gbseg.losses.labels import BadLabelError
from gbseg.mm.hooks.nonfinite_guard import NonFiniteGuardHook, NonFiniteLossError, require_finite_parameters


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.pth")}


def test_infinite_loss(tmp_path: Path) -> None:
    """No step, no checkpoint and no further hook; the message names the iteration, the terms, the rate and the way out."""
    options = {"model.bad_at": 5, "default_hooks.checkpoint.save_best": None}
    assert tiny.run(tmp_path, spy={}, ckpt=1, val=100, **options) == 1
    text = tiny.output(tmp_path)
    assert re.search(
        r"NonFiniteLossError: the loss is not finite at iteration 5: aux_loss = inf \(finite: main_loss = [01]\.\d+\)", text
    )
    assert "learning rate: lr 0.0122857" in text
    for advice in ("learning rate", "clip_grad", "max_delta", "init_bias='prior'"):
        assert advice in text.split("NonFiniteLossError: ")[-1]
    assert "Iter(train) [ 4/12]" in text
    assert "Iter(train) [ 5/12]" not in text
    assert _files(tmp_path) == {"iter_3.pth", "iter_4.pth"}
    assert Path(tmp_path, "last_checkpoint").read_text() == str(tmp_path / "iter_4.pth")
    assert not Path(tmp_path, "after_train").exists()
    assert not Path(tmp_path, "after_run").exists()
    before, after = torch.load(tmp_path / "before.pt"), torch.load(tmp_path / "after.pt")
    # batch norm has counted the forward pass; the parameters have not moved
    parameters = [name for name in before if "running" not in name and "num_batches" not in name]
    assert len(parameters) == 6
    assert all(torch.equal(before[name], after[name]) for name in parameters)


def test_bad_labels_come_first(tmp_path: Path) -> None:
    """A loss that knows why is heard instead."""
    options = {"model.bad_at": 2, "model.report": "7 labels are outside 0..2"}
    assert tiny.run(tmp_path, **options) == 1
    assert "BadLabelError: iteration 2, TinyModel: 7 labels are outside 0..2" in tiny.output(tmp_path)
    assert "NonFiniteLossError" not in tiny.output(tmp_path)


@pytest.mark.parametrize("guard", [True, False])
def test_ruined_parameters_are_not_saved(tmp_path: Path, guard: bool) -> None:
    """Also where the loss looked well, and also without the guard: the checkpoint hook looks for itself."""
    assert tiny.run(tmp_path, spy={"poison_at": 6}, guard=guard, val=100) == 1
    text = tiny.output(tmp_path)
    assert "NonFiniteLossError: the parameters are not finite at iteration 6, the first being layers.4.bias; " in text
    assert "learning rate: lr" in text
    assert _files(tmp_path) == {"iter_3.pth"}


def test_nothing_is_left_on_the_model(tmp_path: Path) -> None:
    """After training, the model has its own parse_losses."""
    model = tiny.TinyModel()
    runner = SimpleNamespace(model=model, iter=0)
    hook = NonFiniteGuardHook()
    hook.before_train(runner)
    hook.before_train(runner)
    assert "parse_losses" in vars(model)
    hook.after_train(runner)
    assert "parse_losses" not in vars(model)


def test_a_wrapper_of_somebody_else_stays(tmp_path: Path) -> None:
    """One on the instance is called through while training, and stays afterwards."""
    model = tiny.TinyModel()
    runner = SimpleNamespace(model=model, iter=0)
    calls: list[str] = []
    plain = model.parse_losses

    def wrapper(losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        calls.append("wrapper")
        return plain(losses)

    model.parse_losses = wrapper
    hook = NonFiniteGuardHook()
    hook.before_train(runner)
    hook.before_train(runner)
    model.parse_losses({"loss": torch.tensor(1.0)})
    hook.after_train(runner)
    assert calls == ["wrapper"] and model.parse_losses is wrapper


class OnDevice(Tensor):
    """A value that claims to be on a device, and counts how often the host waits for one."""

    waits = 0

    @property
    def device(self) -> torch.device:
        """Where it claims to be."""
        return torch.device("cuda")

    def __float__(self) -> float:
        """Fetch it."""
        OnDevice.waits += 1
        return float(self.as_subclass(Tensor))


def _on_device(value: float) -> Tensor:
    return torch.tensor(value).as_subclass(OnDevice)


class Terms(nn.Module):
    """A model with nothing but mmengine's way of summing up."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum up."""
        total = sum(losses.values())
        return total, {"loss": total, **losses}


def _device_run(hub: bool) -> tuple[NonFiniteGuardHook, Any]:
    history: dict[str, Any] = {}
    wrapper = SimpleNamespace(get_lr=lambda: {"lr": [0.1, 0.2, 0.1], "base_lr": [1.0]})
    runner = SimpleNamespace(model=Terms(), iter=0, message_hub=SimpleNamespace(log_scalars=history), optim_wrapper=wrapper)
    hook = NonFiniteGuardHook(interval=50)
    hook.before_train(runner)

    def iteration(number: int, loss: float, other: float = 1.0) -> None:
        runner.iter = number
        _, outputs = runner.model.parse_losses({"a_loss": _on_device(loss), "b_loss": _on_device(other)})
        if hub:
            # what RuntimeInfoHook does, whose waiting is not ours
            for name, value in outputs.items():
                history[f"train/{name}"] = SimpleNamespace(current=lambda value=value: float(value.as_subclass(Tensor)))
        hook.after_train_iter(runner, number, outputs=outputs)

    return hook, SimpleNamespace(iteration=iteration, runner=runner)


def test_a_device_is_not_waited_for() -> None:
    """In 100 iterations two values are fetched, and one before a checkpoint."""
    hook, run = _device_run(hub=False)
    OnDevice.waits = 0
    for number in range(100):
        run.iteration(number, 1.0)
    assert OnDevice.waits == 2
    hook.before_save_checkpoint(run.runner, {})
    assert OnDevice.waits == 3


def test_a_device_without_anybody_fetching() -> None:
    """A bad loss is found at the next look, and before any checkpoint."""
    hook, run = _device_run(hub=False)
    run.iteration(7, float("nan"))
    with pytest.raises(NonFiniteLossError, match="iteration 8: a_loss = nan"):
        hook.before_save_checkpoint(run.runner, {})
    with pytest.raises(NonFiniteLossError, match=r"iteration 51: b_loss = inf \(finite: a_loss = 1\).*lr 0.1 0.2\."):
        run.iteration(50, 1.0, float("inf"))


def test_a_device_whose_losses_are_fetched_anyway() -> None:
    """Where mmengine fetches every loss for its log, a bad one is found in its own iteration."""
    _, run = _device_run(hub=True)
    run.iteration(1, 1.0)
    with pytest.raises(NonFiniteLossError, match="iteration 3: a_loss = nan"):
        run.iteration(2, float("nan"))


def test_terms_that_overflow_in_their_sum() -> None:
    """Then it is the sum that is named."""
    _, run = _device_run(hub=True)
    with pytest.raises(NonFiniteLossError, match="the sum of the terms"):
        run.iteration(2, 3e38, 3e38)


def test_large_parameters_are_finite() -> None:
    """A Euclidean norm would overflow."""
    _, run = _device_run(hub=False)
    run.runner.model.weight.data.fill_(3e38)
    require_finite_parameters(run.runner)
    run.runner.model.weight.data[1] = float("inf")
    with pytest.raises(NonFiniteLossError, match="the first being weight"):
        require_finite_parameters(run.runner)
    run.runner.model.bad_label_report = lambda: "because"
    with pytest.raises(BadLabelError, match="because"):
        require_finite_parameters(run.runner)


def test_interval() -> None:
    """It must be positive."""
    with pytest.raises(ValueError, match="at least 1"):
        NonFiniteGuardHook(interval=0)
