"""Two processes with different numbers of labelled pixels: with ``sync_divisor`` their gradient is that of one process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gbseg import BoostedLoss, ExpGBLoss, LinearLoss, Pow3GBLoss
from gbseg.boosting import ExponentialBoost
from gbseg.losses import L1Loss, SigmoidBCELoss, SigmoidMSELoss, SoftmaxLoss, TanhMSELoss, WestonWatkinsLoss

SERVER = multiprocessing.get_context("forkserver")
WEIGHTS = [0.25, 1.0, 0.5, 2.75]
LABELS = {"class_weight": WEIGHTS, "class_weight_mode": "labels"}
Batch = tuple[Tensor, Tensor, Tensor]


def _batch(labelled: tuple[int, int] = (16, 3072)) -> Batch:
    """Features, labels and weights of two images, of which so many pixels have a label."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 48, 64, generator=rng, dtype=torch.float64)
    label = torch.randint(0, 4, (2, 48, 64), generator=rng)
    for image, count in enumerate(labelled):
        label[image].view(-1)[count:] = 255
    return x, label, torch.rand(2, 48, 64, generator=rng, dtype=torch.float64)


def _soft(x: Tensor, label: Tensor, weight: Tensor) -> Batch:
    return x, torch.softmax(torch.cat([x, x[:, :1]], 1), 1), weight * (label != 255)


def _rows(x: Tensor, label: Tensor, weight: Tensor) -> Batch:
    """A classifier's, 5 rows for one process and 3 for the other, without a label in some."""
    return (
        x[0, :, 0, :8].T[:, :, None, None],
        label[1, 0, :8].where(torch.arange(8) % 5 != 4, 255)[:, None, None],
        weight[0, 0, :8],
    )


def _call(loss: nn.Module, x: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    return loss(x, label)  # type: ignore[no-any-return]


def _weighted(loss: nn.Module, x: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    return loss(x, label, weight=weight)  # type: ignore[no-any-return]


def _resized(loss: BoostedLoss, x: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    return loss.resized(x[:, :, ::4, ::4], label)


def _flat(loss: nn.Module, x: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    return loss(x.flatten(1), label.flatten())  # type: ignore[no-any-return]


# the loss, how it is called, and with what
Case = tuple[Callable[..., nn.Module], Callable[..., Tensor], Callable[..., Batch]]
CASES: dict[str, Case] = {
    "exp": (ExpGBLoss, _call, Batch),
    "exp, reference": (lambda **o: ExpGBLoss(impl="reference", **o), _call, Batch),
    "exp, nothing kept": (lambda **o: ExpGBLoss(keep_gradient=False, **o), _call, Batch),
    "exp, compiled": (lambda **o: ExpGBLoss(impl="compile", **o), _call, Batch),
    "exp, weights": (ExpGBLoss, _weighted, Batch),
    "exp, weights of outputs": (lambda **o: ExpGBLoss(class_weight=WEIGHTS, **o), _call, Batch),
    "exp, weights of labels": (lambda **o: ExpGBLoss(**LABELS, **o), _call, Batch),
    "exp, weights of labels, smoothed": (lambda **o: ExpGBLoss(label_smoothing=0.1, **LABELS, **o), _weighted, Batch),
    "exp, smoothed": (lambda **o: ExpGBLoss(label_smoothing=0.1, **o), _call, Batch),
    "exp, soft": (ExpGBLoss, _weighted, _soft),
    "exp, soft, weights of labels": (lambda **o: ExpGBLoss(**LABELS, **o), _weighted, _soft),
    "exp, resized": (ExpGBLoss, _resized, Batch),
    "exp, resized, weights of labels": (lambda **o: ExpGBLoss(**LABELS, **o), _resized, Batch),
    "exp, rows": (ExpGBLoss, _flat, _rows),
    "boosted": (lambda **o: BoostedLoss(ExponentialBoost(0.3), (0.1, 2.0), max_delta=1.5, **o), _call, Batch),
    "pow3": (Pow3GBLoss, _call, Batch),
    "linear": (LinearLoss, _call, Batch),
    "softmax": (SoftmaxLoss, _call, Batch),
    "softmax, weights of labels": (lambda **o: SoftmaxLoss(**LABELS, **o), _call, Batch),
    "softmax, rows": (SoftmaxLoss, _flat, _rows),
    "sigmoid": (SigmoidBCELoss, _call, Batch),
    "squared": (SigmoidMSELoss, _call, Batch),
    "tanh": (TanhMSELoss, _call, Batch),
    "hinge": (WestonWatkinsLoss, _call, Batch),
    "l1": (L1Loss, _call, Batch),
}


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 1).double()


def _make(make: Callable[..., Batch], batch: Batch) -> Batch:
    return batch if make is Batch else make(*batch)


def _gradient(network: nn.Module, loss: nn.Module, call: Callable[..., Tensor], batch: Batch) -> dict[str, Any]:
    """The gradients, and the value."""
    network.zero_grad()
    value = call(loss, network(batch[0]), *batch[1:])
    value.backward()
    return {"value": value.detach(), "gradients": [parameter.grad.clone() for parameter in network.parameters()]}


def _one_of_two(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    # what hangs ends with an error
    options = {"rank": rank, "world_size": 2, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", **options)
    results: dict[str, Any] = {}
    network = nn.parallel.DistributedDataParallel(_network())
    for name, (loss, call, make) in CASES.items():
        batch = _make(make, _batch())
        cut = len(batch[0]) * 5 // 8
        mine: Any = tuple(part[cut:] if rank else part[:cut] for part in batch)
        results[name] = _gradient(network, loss(sync_divisor=True), call, mine)
    image = slice(rank, rank + 1)

    def both(loss: nn.Module, labelled: tuple[int, int], call: Callable[..., Tensor] = _call) -> dict[str, Any]:
        batch: Any = tuple(part[image] for part in _batch(labelled))
        return _gradient(network, loss, call, batch)

    results["default"] = both(ExpGBLoss(), (16, 3072))
    results["none here"] = both(ExpGBLoss(sync_divisor=True), (0, 3072))
    results["none at all"] = both(ExpGBLoss(sync_divisor=True), (0, 0))
    results["none at all, weighed"] = both(ExpGBLoss(sync_divisor=True, **LABELS), (0, 0))
    results["given"] = both(ExpGBLoss(sync_divisor=True), (16, 3072), lambda loss, x, y, w: loss(x, y, avg_factor=100 + rank))
    # a float32 loss stays one
    logits = torch.zeros(1, 4, 2, 2)
    assert SoftmaxLoss(sync_divisor=True)(logits, torch.zeros(1, 2, 2, dtype=torch.int64)).dtype == torch.float32
    # compiled as a whole, with the collective in the graph
    step = torch.compile(lambda x, y: ExpGBLoss(sync_divisor=True)(x, y), fullgraph=True, backend="aot_eager")
    results["torch.compile"] = both(nn.Identity(), (16, 3072), lambda loss, x, y, w: step(x, y))
    dist.barrier()
    if rank == 0:
        # the other process has nothing to do with these
        x, label, _ = _batch()
        for loss in (ExpGBLoss(), ExpGBLoss(sync_divisor=True).eval()):
            results["alone"] = loss(_network()(x), label).detach()
        for reduction in ("sum", "none"):
            ExpGBLoss(sync_divisor=True, reduction=reduction)(_network()(x), label)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of two processes, of all cases."""
    folder = tmp_path_factory.mktemp("sync")
    processes = [SERVER.Process(target=_one_of_two, args=(folder, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _one(case: Case, labelled: tuple[int, int] = (16, 3072)) -> dict[str, Any]:
    loss, call, make = case
    return _gradient(_network(), loss(sync_divisor=True), call, _make(make, _batch(labelled)))


def _same_gradients(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-12) -> bool:
    pairs = zip(one["gradients"], other["gradients"], strict=True)
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs)


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_one_process(both: list[dict[str, Any]], name: str) -> None:
    """Both processes have it, and the mean of their values is the loss of the whole batch.

    Without the all-reduce: each gradient is a mean of two means, see `test_off_by_default`.
    """
    expected = _one(CASES[name])
    tolerance = 1e-5 if "compiled" in name else 1e-12
    for rank in range(2):
        assert _same_gradients(both[rank][name], expected, tolerance)
    torch.testing.assert_close((both[0][name]["value"] + both[1][name]["value"]) / 2, expected["value"], rtol=1e-6, atol=1e-9)


def test_compiled_as_a_whole(both: list[dict[str, Any]]) -> None:
    """Without a graph that has the collective: ``fullgraph=True`` raises."""
    assert _same_gradients(both[0]["torch.compile"], _one(CASES["exp"]))


def test_off_by_default(both: list[dict[str, Any]]) -> None:
    """In plain PyTorch the mean is this process's: the sixteen pixels weigh as much as the 3,072 of the other process."""
    parts = []
    for image in range(2):
        batch: Any = tuple(part[image : image + 1] for part in _batch())
        parts.append(_gradient(_network(), ExpGBLoss(), _call, batch)["gradients"])
    means = [(a + b) / 2 for a, b in zip(*parts, strict=True)]
    assert _same_gradients(both[0]["default"], {"gradients": means})
    assert not _same_gradients(both[0]["default"], _one(CASES["exp"]), 0.1)
    # one step at the same rate: of one process, of two, and of two with the mean over all pixels
    rate = 0.05
    one, off, on = (
        float((_network().bias.detach() - rate * gradients["gradients"][1])[0])  # type: ignore[union-attr,operator]
        for gradients in (_one(CASES["exp"]), both[0]["default"], both[0]["exp"])
    )
    assert on == pytest.approx(one, abs=1e-12)
    assert abs(off - one) > 1e-3


def test_no_labelled_pixel(both: list[dict[str, Any]]) -> None:
    """A process without one contributes zero; where there is none at all the loss is 0 and has gradients of 0.

    Without the divisor 1 where nothing has a label: 0 / 0 is NaN.
    """
    assert _same_gradients(both[0]["none here"], _one(CASES["exp"], (0, 3072)))
    assert both[0]["none here"]["value"] == 0
    for name in ("none at all", "none at all, weighed"):
        for rank in range(2):
            assert both[rank][name]["value"] == 0
            assert not any(gradient.any() for gradient in both[rank][name]["gradients"])


def test_a_given_divisor_is_not_reduced(both: list[dict[str, Any]]) -> None:
    """Without the exception: 100 and 101 would both become 100.5."""
    for rank in range(2):
        batch: Any = tuple(part[rank : rank + 1] for part in _batch())
        value = ExpGBLoss()(_network()(batch[0]), batch[1], avg_factor=100 + rank).detach()
        torch.testing.assert_close(both[rank]["given"]["value"], value, rtol=1e-12, atol=0)


def test_no_collective_alone(both: list[dict[str, Any]]) -> None:
    """One process calls a loss by itself: by default, after ``eval()``, and without a mean.

    Without ``self.training`` in the condition, the first process waits for the other until the time-out.
    """
    x, label, _ = _batch()
    torch.testing.assert_close(both[0]["alone"], ExpGBLoss()(_network()(x), label).detach(), rtol=1e-12, atol=0)


def test_an_old_pickle() -> None:
    """A loss that was pickled before it had the option."""
    loss = ExpGBLoss()
    del loss.sync_divisor
    x, label, _ = _batch()
    loss(_network()(x), label)
