"""What the hook records, against the deltas of the paper written out and autograd's own gradients."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")
from engine_tiny import SERVER
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.visualization import TensorboardVisBackend, Visualizer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gbseg import ExpGBLoss
from gbseg.mm import GradientStatsHook
from gbseg.report.gradient_log import GradientHistory, read_gradients


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 6)
        self.output = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(torch.relu(self.hidden(x)))


def _runner(folder: Path, network: nn.Module, wrapper: OptimWrapper, visualizer: Any = None) -> SimpleNamespace:
    return SimpleNamespace(
        model=network,
        iter=0,
        log_dir=str(folder / "20260101_000000"),
        train_dataloader=range(4),
        optim_wrapper=wrapper,
        visualizer=visualizer or SimpleNamespace(get_backend=lambda name: None),
        logger=logging.getLogger("gradients"),
    )


def _optimizer(network: nn.Module) -> OptimWrapper:
    return OptimWrapper(torch.optim.SGD(network.parameters(), lr=0.05))


def _run(
    folder: Path,
    iterations: int,
    wrap: Callable[[nn.Module], OptimWrapper] = _optimizer,
    visualizer: Any = None,
    **options: Any,
) -> tuple[GradientHistory, list[dict[str, np.ndarray]]]:
    """Train with the hook; what is read back, and the error gradients of every iteration by hand in float64."""
    torch.manual_seed(0)
    network = Network()
    wrapper = wrap(network)
    runner = _runner(folder, network, wrapper, visualizer)
    hook = GradientStatsHook(output="output", layers=["hidden"], **options)
    hook.before_train(runner)
    loss = ExpGBLoss(0.1, (0, 6))
    expected = []
    for runner.iter in range(iterations):
        x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
        w1, b1, w2, b2 = (value.detach().double().numpy().copy() for value in network.parameters())
        units = x.double().numpy() @ w1.T + b1
        logits = np.maximum(units, 0) @ w2.T + b2
        delta = 0.1 * np.exp(logits) - 6 * np.eye(3)[y.numpy()]
        expected.append({"delta": delta, "hidden": delta @ w2 * (units > 0), "logits": logits})
        hook.before_train_iter(runner, runner.iter)
        wrapper.update_params(loss(network(x), y))
        hook.after_train_iter(runner, runner.iter)
    assert not network.output._forward_hooks and not network.hidden._forward_hooks
    return read_gradients(folder), expected


def _check(history: GradientHistory, expected: list[dict[str, np.ndarray]]) -> None:
    for place, iteration in enumerate(history.iterations):
        by_hand = expected[iteration]
        for name, values in (("output", by_hand["delta"]), ("hidden", by_hand["hidden"])):
            assert history.rms[name][place] == pytest.approx(math.sqrt((values**2).mean()), rel=1e-5), (name, iteration)
        s = np.exp(by_hand["logits"]).sum(1)
        for statistic in ("median", "mean", "min", "max"):
            value = getattr(np, statistic)(s) if statistic != "median" else math.sqrt(np.prod(np.sort(s)[2:4]))
            assert history.normaliser(statistic)[place] == pytest.approx(value, rel=1e-5), statistic


def test_records(tmp_path: Path) -> None:
    """Deltas of single rows although the loss is a mean; the hidden layer's; the normaliser; only when they are due."""
    history, expected = _run(tmp_path, 14, interval=3, histograms=(5,))
    # by default, the first batches of epochs 1 and 4, of 4 iterations each
    assert history.iterations.tolist() == [0, 3, 5, 6, 9, 12] and list(history.histograms) == [0, 5, 12]
    assert history.epochs.tolist() == [0, 0.75, 1.25, 1.5, 2.25, 3]
    assert list(history.rms) == ["output", "hidden"]
    _check(history, expected)
    for iteration, histogram in history.histograms.items():
        counts, edges = np.histogram(expected[iteration]["delta"], 200)
        assert histogram.counts.sum() == 18 and np.abs(histogram.counts - counts).sum() <= 2  # rounding at an edge
        np.testing.assert_allclose(histogram.edges, edges, rtol=1e-5, atol=1e-5)
    squares = {"output": [expected[i]["delta"] for i in (5, 6)], "hidden": [expected[i]["hidden"] for i in (5, 6)]}
    for layer, values in squares.items():
        epochs, rms = history.rms_by_epoch(layer)
        assert epochs.tolist() == [1, 2, 3, 4]
        assert rms[1] == pytest.approx(math.sqrt((np.stack(values) ** 2).mean()), rel=1e-5)


def test_gradient_accumulation(tmp_path: Path) -> None:
    """The loss is divided by the number of batches gathered, the last of them by how many are left; both are taken out."""

    def wrap(network: nn.Module) -> OptimWrapper:
        wrapper = OptimWrapper(torch.optim.SGD(network.parameters(), lr=0.05), accumulative_counts=4)
        wrapper.initialize_count_status(network, 0, 11)
        return wrapper

    history, expected = _run(tmp_path, 11, wrap, interval=1)
    assert len(history.iterations) == 11
    _check(history, expected)


def test_loss_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GradScaler's factor is taken out, also where the step of that very iteration changes it."""
    monkeypatch.setattr("mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available", lambda: True)
    scales = []

    def wrap(network: nn.Module) -> OptimWrapper:
        wrapper = AmpOptimWrapper(optimizer=torch.optim.SGD(network.parameters(), lr=0.05), loss_scale=1.0)
        # mmengine's is of CUDA; this one doubles after every step
        wrapper.loss_scaler = torch.amp.GradScaler("cpu", init_scale=1024, growth_interval=1)
        plain = wrapper.loss_scaler.update
        monkeypatch.setattr(wrapper.loss_scaler, "update", lambda *_: (plain(), scales.append(wrapper.loss_scaler.get_scale())))
        return wrapper

    history, expected = _run(tmp_path, 5, wrap, interval=1)
    assert scales == [2048, 4096, 8192, 16384, 32768]
    _check(history, expected)


def test_tensorboard(tmp_path: Path) -> None:
    """TensorBoard's own reader gives the numbers and the histogram back."""
    visualizer = Visualizer(name=str(tmp_path), vis_backends=[TensorboardVisBackend(str(tmp_path / "events"))])
    history, expected = _run(tmp_path, 13, visualizer=visualizer, interval=4)
    visualizer.close()
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"histograms": 0})
    events.Reload()
    scalars = {
        "rms/output": history.rms["output"],
        "rms/hidden": history.rms["hidden"],
        **{f"ln_normaliser/{key}": values for key, values in history.ln_normaliser.items()},
    }
    for key, values in scalars.items():
        read = events.Scalars(f"gradients/{key}")
        assert [event.step for event in read] == [0, 4, 8, 12]
        np.testing.assert_allclose([event.value for event in read], values, rtol=1e-6)
    histograms = events.Histograms("gradients/delta")
    assert [event.step for event in histograms] == [0, 12]
    for event in histograms:
        delta, read = expected[event.step]["delta"], event.histogram_value
        assert (read.min, read.max, read.num) == pytest.approx((delta.min(), delta.max(), 18), rel=1e-5)
        assert (read.sum, read.sum_squares) == pytest.approx((delta.sum(), (delta**2).sum()), rel=1e-5)
        np.testing.assert_allclose(read.bucket_limit, np.linspace(delta.min(), delta.max(), 201)[1:], rtol=1e-4, atol=1e-4)
        assert read.bucket == history.histograms[event.step].counts.tolist()


class Shared(nn.Module):
    """A hidden layer that is used twice, and an output that may be."""

    def __init__(self, twice: bool, inplace: bool = False) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(4, 4), nn.Linear(4, 3)
        self.act = nn.Tanh()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.both = nn.LSTM(4, 4)
        self.twice, self.inplace = twice, inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.frozen(x)
        x = self.hidden(self.act(self.hidden(x)))
        out = self.output(x)
        if self.inplace:
            self.plain = out.detach().clone()
            out = out.mul_(0.5)
        return out + self.output(-x) if self.twice else out


def _once(folder: Path, network: nn.Module, **options: Any) -> torch.Tensor:
    wrapper = _optimizer(network)
    runner = _runner(folder, network, wrapper)
    hook = GradientStatsHook(output="output", **options)
    hook.before_train(runner)
    x = torch.randn(5, 4)
    hook.before_train_iter(runner, 0)
    wrapper.update_params(ExpGBLoss(0.1, (0, 6))(network(x), torch.arange(5) % 3))
    hook.after_train_iter(runner, 0)
    return x


def test_called_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A hidden layer counts with the units of both calls; an output is refused, because its number of rows is not known."""
    torch.manual_seed(0)
    network = Shared(False)
    weights = {name: value.detach().clone() for name, value in network.named_parameters()}
    x = _once(tmp_path / "one", network, layers=["hidden", "frozen"])
    first = (x @ weights["hidden.weight"].T + weights["hidden.bias"]).double()
    second = first.tanh() @ weights["hidden.weight"].T.double() + weights["hidden.bias"]
    logits = second @ weights["output.weight"].T.double() + weights["output.bias"]
    delta = 0.1 * logits.exp() - 6 * nn.functional.one_hot(torch.arange(5) % 3, 3)
    at_second = delta @ weights["output.weight"].double()
    at_first = at_second @ weights["hidden.weight"].double() * (1 - first.tanh() ** 2)
    history = read_gradients(tmp_path / "one")
    assert history.rms["hidden"][0] == pytest.approx(float(torch.stack([at_first, at_second]).square().mean().sqrt()), rel=1e-5)
    assert "frozen" not in history.rms and "no gradient came to the output of frozen" in caplog.text
    with pytest.raises(ValueError, match="output is back-propagated through more than once an iteration"):
        _once(tmp_path / "two", Shared(True))


def test_logits_changed_in_place(tmp_path: Path) -> None:
    """The normaliser is that of what the module returned, not of what was made of it later."""
    network = Shared(False, inplace=True)
    _once(tmp_path, network)
    s = np.exp(network.plain.double().numpy()).sum(1)
    assert read_gradients(tmp_path).normaliser("median")[0] == pytest.approx(np.median(s), rel=1e-5)


def _one_of_two(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = Network()
    model = nn.parallel.DistributedDataParallel(network)
    wrapper = _optimizer(network)
    runner = _runner(folder, model, wrapper)
    hook = GradientStatsHook(output="output", layers=["hidden"])
    hook.before_train(runner)
    x, y = torch.randn(7, 4), torch.arange(7) % 3
    mine = slice(0, 3) if rank else slice(3, 7)
    hook.before_train_iter(runner, 0)
    wrapper.update_params(ExpGBLoss(0.1, (0, 6))(model(x[mine]), y[mine]))
    hook.after_train_iter(runner, 0)
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """The rows of both count, each once, whatever their number; one process writes."""
    processes = [SERVER.Process(target=_one_of_two, args=(tmp_path, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    torch.manual_seed(0)
    network = Network()
    x, y = torch.randn(7, 4), torch.arange(7) % 3
    with torch.no_grad():
        logits = network(x).double()
        delta = 0.1 * logits.exp() - 6 * nn.functional.one_hot(y, 3)
        hidden = delta @ network.output.weight.double() * (network.hidden(x) > 0)
    history = read_gradients(tmp_path)
    assert history.iterations.tolist() == [0] and history.histograms[0].counts.sum() == 21
    assert history.rms["output"][0] == pytest.approx(float(delta.square().mean().sqrt()), rel=1e-5)
    assert history.rms["hidden"][0] == pytest.approx(float(hidden.square().mean().sqrt()), rel=1e-5)
    s = logits.exp().sum(1)
    assert history.normaliser("median")[0] == pytest.approx(float(s.median()), rel=1e-5)
    assert history.normaliser("mean")[0] == pytest.approx(float(s.mean()), rel=1e-5)


def test_refused(tmp_path: Path) -> None:
    """Modules are named with those that there are; numbers below 1; a wrapper whose scale is not known; no single tensor."""
    network = Network()
    runner = _runner(tmp_path, network, _optimizer(network))
    with pytest.raises(ValueError, match=r"the model has no head\.fc; it has hidden, output"):
        GradientStatsHook(layers=["hidden"]).before_train(runner)
    for options, message in (
        ({"interval": 0}, r"interval .* must be >= 1, got 0"),
        ({"bins": 0}, r"bins .* must be >= 1, got 0"),
        ({"histogram_epochs": (0,)}, "histogram_epochs count from 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            GradientStatsHook(**options)
    apex = type("ApexOptimWrapper", (OptimWrapper,), {})(torch.optim.SGD(network.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="does not know by what ApexOptimWrapper scales the loss"):
        GradientStatsHook(output="output").before_train(_runner(tmp_path, network, apex))
    hook = GradientStatsHook(output="both")
    shared = Shared(False)
    runner = _runner(tmp_path, shared, _optimizer(shared))
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    with pytest.raises(ValueError, match="both returns a tuple, not one tensor"):
        shared.both(torch.randn(2, 1, 4))
