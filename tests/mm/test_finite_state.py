"""A state that is not finite is not written, whatever part of it: sound checkpoints stay."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")
import engine_tiny as tiny
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor

from gbseg.mm.finite_state import nonfinite_entries
from gbseg.mm.hooks.checkpoint import DurableCheckpointHook
from gbseg.mm.hooks.nonfinite_guard import NonFiniteLossError


def _hook(runner: Runner, kind: type[Hook]) -> Any:
    return next(hook for hook in runner.hooks if isinstance(hook, kind))


def _buffer(runner: Runner) -> None:
    runner.model.layers[1].running_mean[3] = math.nan


def _optimizer(runner: Runner) -> None:
    runner.optim_wrapper.optimizer.state[runner.model.layers[0].weight]["exp_avg_sq"][2, 1] = math.inf


def _averaged(runner: Runner) -> None:
    _hook(runner, EMAHook).ema_model.module.layers[4].bias.data[1] = math.nan


def _schedule(runner: Runner) -> None:
    runner.param_schedulers[0].best = math.inf


PARTS: dict[Callable[[Runner], None], str] = {
    _buffer: "the buffers are not finite at iteration 9, the first being layers.1.running_mean",
    _optimizer: "the optimizer is not finite at iteration 9, the first being layers.0.weight.exp_avg_sq; ",
    _averaged: "the averaged weights are not finite at iteration 9, the first being module.layers.4.bias; ",
    _schedule: "the schedules are not finite at iteration 9, the first being LinearLR0.best; ",
}


class Poison(Hook):
    """Spoil a part of the state in one iteration."""

    def __init__(self, spoil: Callable[[Runner], None], at: int) -> None:
        self.spoil = spoil
        self.at = at

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Do it."""
        if runner.iter + 1 == self.at:
            self.spoil(runner)


def _built(folder: Path, **options: Any) -> Runner:
    return Runner.from_cfg(tiny.config(folder, **{"val": 100, **options}))


@pytest.mark.parametrize("guard", [True, False], ids=["guard", "alone"])
@pytest.mark.parametrize("spoil", PARTS, ids=lambda spoil: spoil.__name__)
def test_every_part_of_the_state(tmp_path: Path, spoil: Callable[[Runner], None], guard: bool) -> None:
    """Without the check: iter_9 is written, and with two kept files the last sound one is gone at iteration 12."""
    runner = _built(tmp_path, guard=guard)
    runner.register_hook(Poison(spoil, 8))
    with pytest.raises(NonFiniteLossError) as error:
        runner.train()
    assert PARTS[spoil] in str(error.value) and "learning rate: lr" in str(error.value)
    assert "This checkpoint was not written" in str(error.value) and error.value.iteration == 9
    assert {path.name for path in tmp_path.glob("*.pth")} == {"iter_3.pth", "iter_6.pth"}


@pytest.mark.parametrize("guard", [True, False], ids=["guard", "alone"])
def test_the_former_best_stays(tmp_path: Path, guard: bool) -> None:
    """Without the check: the former best is replaced by weights with a NaN."""
    runner = _built(tmp_path, guard=guard, val=4)
    runner.train()
    best = next(tmp_path.glob("best_*"))
    before = best.read_bytes()
    _buffer(runner)
    with pytest.raises(NonFiniteLossError, match=r"the buffers are not finite at iteration 12"):
        _hook(runner, DurableCheckpointHook).write_best(runner, {"score": 1e9})
    assert list(tmp_path.glob("best_*")) == [best] and best.read_bytes() == before


def test_nothing_spoilt_is_published(tmp_path: Path) -> None:
    """A best file of before this check may hold anything. Without the check of its own: it is published."""
    runner = _built(tmp_path, **{"default_hooks.checkpoint.published_keys": ["meta", "state_dict"]})
    runner.train()
    published = set(tmp_path.glob("*-*.pth"))
    content = torch.load(tmp_path / "iter_12.pth", weights_only=False)
    content["state_dict"]["layers.1.running_var"][0] = math.inf
    torch.save(content, tmp_path / "best_old.pth")
    hook = _hook(runner, DurableCheckpointHook)
    with pytest.raises(NonFiniteLossError, match=r"best_old.pth is not published, it is not finite: layers.1.running_var"):
        hook.write_published(runner, str(tmp_path / "best_old.pth"))
    hook.write_published(runner, str(tmp_path / "gone.pth"))
    assert set(tmp_path.glob("*-*.pth")) == published


@MODELS.register_module()
class MaskedTinyModel(tiny.TinyModel):
    """With a mask of -inf, as attention has, in a buffer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("mask", torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -math.inf))


def _masked(folder: Path, **options: Any) -> Runner:
    return _built(folder, **{"model.type": "MaskedTinyModel"}, **options)


def test_what_was_infinite_when_training_began(tmp_path: Path) -> None:
    """A mask of -inf passes, also when it is resumed and elsewhere; a NaN in it does not, nor a new infinity beside it.

    Without the exception: no checkpoint of such a model is written. With one for the whole entry: the NaN is written.
    """
    _masked(tmp_path).train()
    state = torch.load(tmp_path / "iter_12.pth", weights_only=False)["training_state"]
    assert state["not_finite"] == {"buffers.mask": "inf", "averaged weights.module.mask": "inf"}
    for name, spoil in {
        "mask": lambda runner: runner.model.mask.__setitem__((0, 0), math.nan),
        "layers.1.running_var": lambda runner: runner.model.layers[1].running_var.fill_(math.inf),
    }.items():
        resumed = _masked(tmp_path, resume=True, **{"train_cfg.max_iters": 18})
        resumed.register_hook(Poison(spoil, 17))
        with pytest.raises(NonFiniteLossError, match=f"the buffers are not finite at iteration 18, the first being {name}"):
            resumed.train()
        (tmp_path / "iter_15.pth").unlink()
        (tmp_path / "last_checkpoint").write_text("iter_12.pth")


def test_what_an_older_checkpoint_holds(tmp_path: Path) -> None:
    """One of an earlier gbseg does not say what was infinite at its start: what is so now is named, once, and passes."""
    _masked(tmp_path).train()
    content = torch.load(tmp_path / "iter_12.pth", weights_only=False)
    del content["training_state"]["not_finite"]
    torch.save(content, tmp_path / "iter_12.pth")
    _masked(tmp_path, resume=True, **{"train_cfg.max_iters": 15}).train()
    log = "".join(path.read_text() for path in tmp_path.glob("*/*.log"))
    assert "The checkpoint holds values that are not finite, which no later check will look at: buffers.mask" in log
    assert (tmp_path / "iter_15.pth").is_file()


BAD: dict[str, Any] = {
    "float32": torch.tensor([1.0, math.nan]),
    "float64": torch.tensor([-math.inf], dtype=torch.float64),
    "bfloat16": torch.tensor([[math.inf]], dtype=torch.bfloat16),
    "float8": torch.tensor([math.nan]).to(torch.float8_e4m3fn),
    "complex": torch.tensor([complex(1, math.nan)]),
    "sparse": torch.tensor([0, math.inf]).to_sparse(),
    "scalar": torch.tensor(math.nan),
    "number": math.inf,
}
FINE: dict[str, Any] = {
    "large": torch.full((9,), 3e38),
    "empty": torch.empty(0),
    "whole": torch.tensor([2**62]),
    "bool": torch.tensor([True]),
    "float8": torch.ones(3).to(torch.float8_e5m2),
    "sparse": torch.eye(2).to_sparse(),
    "number": 1e308,
    "text": "nan",
    "nested": [({"a": torch.ones(2)}, None)],
}


def test_kinds_of_numbers() -> None:
    """Every kind is looked at, beside all others; what is finite passes, alone too."""
    assert nonfinite_entries(FINE) == {} == nonfinite_entries({}) and nonfinite_entries({"a": torch.empty(0)}) == {}
    for name, value in BAD.items():
        expected = "nan" if name in ("float32", "float8", "complex", "scalar") else "inf"
        assert nonfinite_entries({**FINE, "bad": [{name: value}]}) == {f"bad.0.{name}": expected}
        assert nonfinite_entries({name: value}, {name: expected}) == {}
    assert nonfinite_entries({"a": torch.tensor([math.nan, math.inf])}, {"a": "inf"}) == {"a": "nan"}
    assert nonfinite_entries({"a": torch.tensor([math.inf])}, {"a": "nan"}) == {}


def test_one_wait_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tensors there are: the host reads one number of what is finite."""
    waits = []
    real = Tensor.__float__
    monkeypatch.setattr(Tensor, "__float__", lambda self: waits.append(1) or real(self))
    monkeypatch.setattr(Tensor, "__bool__", lambda self: pytest.fail("the host waits"))
    assert nonfinite_entries({str(number): torch.ones(3) for number in range(50)}) == {}
    assert len(waits) == 1


@pytest.mark.slow
@pytest.mark.parametrize("guard", [True, False], ids=["guard", "alone"])
def test_the_state_of_another_process(tmp_path: Path, guard: bool) -> None:
    """A NaN in the buffers of the second of two processes stops both, at the checkpoint. Decided by each alone, one hangs."""
    store = str(tmp_path / "store")
    options = dict(store=store, guard=guard, val=100, spy=dict(poison_at=5, poison="layers.1.running_mean", rank=1))
    pair = [tiny.start(tmp_path, tiny.train_together, rank=rank, **options) for rank in range(2)]
    for process in pair:
        process.join(120)
    assert [process.exitcode for process in pair] == [1, 1]
    assert {path.name for path in tmp_path.glob("*.pth")} == {"iter_3.pth"}
    for rank in range(2):
        text = (tmp_path / f"out{rank}.txt").read_text()
        assert "the buffers are not finite at iteration 6, the first being layers.1.running_mean" in text
        assert "(process 1 of 2)" in text
