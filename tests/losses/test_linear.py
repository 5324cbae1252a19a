"""The last layer and its loss in blocks of classes, against `F.linear` and the definition."""

import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from gbseg.boosting import Boost, CubicBoost, ExponentialBoost, LinearBoost, MirroredExponentialBoost
from gbseg.losses import linear
from gbseg.losses.linear import boosted_linear_loss
from gbseg.losses.reference import boosted_loss

BOOSTS: dict[str, tuple[Boost, tuple[float, float]]] = {
    "exp": (ExponentialBoost(0.1), (0.0, 6.0)),
    "exp_above": (ExponentialBoost(0.1), (0.5, 6.0)),
    "cubic": (CubicBoost(0.5, 0.4), (-2.0, 3.0)),
    "linear": (LinearBoost(), (0.0, 1.0)),
    "mirrored": (MirroredExponentialBoost(0.3, 0.2), (0.25, 2.0)),
}


def _layer(rows: int, features: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=rng, dtype=torch.float64)
    weight = torch.randn(classes, features, generator=rng, dtype=torch.float64) / features**0.5
    bias = torch.randn(classes, generator=rng, dtype=torch.float64)
    label = torch.randint(0, classes, (rows,), generator=rng)
    label[1::4] = -1
    return *(tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias)), label


@pytest.mark.parametrize(("boost", "targets"), BOOSTS.values(), ids=BOOSTS)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "plain"])
def test_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, with_bias: bool, boost: Boost, targets: tuple[float, float]
) -> None:
    """Blocks of three classes and a rest, every option."""
    monkeypatch.setattr(linear, "_BLOCK", 9 * 3)
    x, weight, bias, label = _layer(9, 4, 11)
    rng = torch.Generator().manual_seed(1)
    inputs = (x, weight, bias) if with_bias else (x, weight)
    bias = bias if with_bias else None
    each = torch.rand(9, generator=rng, dtype=torch.float64)
    options: dict[str, Any] = dict(class_weight=torch.rand(11, generator=rng, dtype=torch.float64), max_delta=1.5)
    for chosen, rows in (({}, None), ({}, each), (options, each)):
        for reduction in ("mean", "sum", "none"):
            settings = dict(ignore_index=-1, reduction=reduction, **chosen)
            mine = boosted_linear_loss(x, weight, bias, label, boost, targets, row_weight=rows, loss_weight=0.7, **settings)
            plain = 0.7 * boosted_loss(F.linear(x, weight, bias), label, boost, targets, weight=rows, **settings)
            torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-13)
            grad_output = torch.rand(plain.shape, generator=rng, dtype=torch.float64)
            actual = torch.autograd.grad(mine, inputs, grad_output)
            for tensor, expected in zip(actual, torch.autograd.grad(plain, inputs, grad_output), strict=True):
                torch.testing.assert_close(tensor, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("requiring_grad", [(0,), (1,), (2,), (0, 2), (1, 2), ()], ids=str)
def test_what_needs_no_gradient(requiring_grad: tuple[int, ...]) -> None:
    tensors = [tensor.detach().requires_grad_(index in requiring_grad) for index, tensor in enumerate(_layer(9, 4, 11)[:3])]
    label = _layer(9, 4, 11)[3]
    mine = boosted_linear_loss(*tensors, label, *BOOSTS["exp"], ignore_index=-1)
    plain = boosted_loss(F.linear(*tensors), label, *BOOSTS["exp"], ignore_index=-1)
    torch.testing.assert_close(mine, plain)
    assert mine.requires_grad == bool(requiring_grad)
    if requiring_grad:
        inputs = [tensors[index] for index in requiring_grad]
        torch.testing.assert_close(torch.autograd.grad(mine, inputs), torch.autograd.grad(plain, inputs))


def test_second_derivatives() -> None:
    x, weight, bias, label = _layer(3, 2, 4)

    def loss(*tensors: Tensor) -> Tensor:
        return boosted_linear_loss(*tensors, label, *BOOSTS["exp"], ignore_index=-1)

    assert torch.autograd.gradcheck(loss, (x, weight, bias))
    assert torch.autograd.gradgradcheck(loss, (x, weight, bias))


def test_a_hundred_thousand_classes() -> None:
    """Float32 against the definition in float64, no worse than the definition in float32."""
    x, weight, bias, label = _layer(8, 16, 100_000, torch.float32)
    inputs = (x, weight, bias)
    mine = boosted_linear_loss(*inputs, label, *BOOSTS["exp"], ignore_index=-1)
    plain = boosted_loss(F.linear(*inputs), label, *BOOSTS["exp"], ignore_index=-1)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    truth = boosted_loss(F.linear(*exact), label, *BOOSTS["exp"], ignore_index=-1)
    actual = [mine, *torch.autograd.grad(mine, inputs)]
    reference = [plain, *torch.autograd.grad(plain, inputs)]
    for tensor, reference_gradient, true in zip(actual, reference, [truth, *torch.autograd.grad(truth, exact)], strict=True):
        assert (tensor - true).abs().amax() <= (reference_gradient - true).abs().amax() + 1e-6 * true.abs().amax()


def _shard(rank: int, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    x, weight, bias, label = _layer(9, 4, 11)
    start, stop = ((0, 7), (7, 11))[rank]
    part = [x, *(tensor.detach()[start:stop].clone().requires_grad_() for tensor in (weight, bias))]
    factors = torch.linspace(0.5, 1.5, 11, dtype=torch.float64)
    for reduction in ("mean", "none"):
        settings: dict[str, Any] = dict(ignore_index=-1, class_weight=factors, reduction=reduction)
        mine = boosted_linear_loss(*part, label, *BOOSTS["exp"], first_class=start, group=dist.group.WORLD, **settings)
        expected_loss = boosted_loss(F.linear(x, weight, bias), label, *BOOSTS["exp"], **settings)
        torch.testing.assert_close(mine, expected_loss, rtol=1e-12, atol=1e-13)
        grad_output = torch.full_like(expected_loss, 0.3)
        actual = torch.autograd.grad(mine, part, grad_output)
        expected = torch.autograd.grad(expected_loss, (x, weight, bias), grad_output)
        for tensor, reference_gradient in zip(
            actual, (expected[0], expected[1][start:stop], expected[2][start:stop]), strict=True
        ):
            torch.testing.assert_close(tensor, reference_gradient, rtol=1e-11, atol=1e-12)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_classes() -> None:
    """With gloo, seven classes and four: the loss and its derivatives are those of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_shard, (port,), nprocs=2)


def test_float16_keeps_what_a_gradient_scaler_saves() -> None:
    """Slopes of 1e-8 are nothing in float16 until the scale is multiplied in."""
    x, weight, _, label = _layer(16, 4, 40, torch.float16)
    (mine,) = torch.autograd.grad(
        2.0**16 * boosted_linear_loss(x, weight, None, label, *BOOSTS["exp"], ignore_index=-1, avg_factor=1e6), weight
    )
    exact = weight.detach().double().requires_grad_()
    plain = boosted_loss(F.linear(x.double(), exact), label, *BOOSTS["exp"], ignore_index=-1, avg_factor=1e6)
    (expected,) = torch.autograd.grad(2.0**16 * plain, exact)
    torch.testing.assert_close(mine.double(), expected, rtol=0, atol=1e-2 * float(expected.abs().max()))
    assert float((mine == 0).double().mean()) < 0.2


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_under_autocast(reduction: str) -> None:
    """Features of half precision meet a weight in float32, and the backward computes what the forward did."""
    x, weight, bias, label = _layer(9, 4, 11, torch.float32)
    half = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = boosted_linear_loss(half, weight, bias, label, *BOOSTS["exp"], ignore_index=-1, reduction=reduction)
        plain = boosted_loss(F.linear(half, weight, bias), label, *BOOSTS["exp"], ignore_index=-1, reduction=reduction)
    torch.testing.assert_close(loss, plain)
    actual = [torch.autograd.grad(tensor.sum(), (half, weight, bias)) for tensor in (loss, plain)]
    for mine, expected in zip(*actual, strict=True):
        assert mine.dtype == expected.dtype
        torch.testing.assert_close(mine, expected, rtol=2e-2, atol=2e-2)


def test_features_that_come_from_the_weight() -> None:
    """Tied embeddings: the first derivative is the same whether a second one is asked for or not."""
    _, weight, _, label = _layer(9, 4, 11)
    features = weight[torch.arange(9) % 11] * 1.5
    actual = [
        torch.autograd.grad(
            boosted_linear_loss(features, weight, None, label, *BOOSTS["exp"], ignore_index=-1),
            weight,
            create_graph=again,
            retain_graph=True,
        )[0]
        for again in (False, True)
    ]
    torch.testing.assert_close(*actual, rtol=1e-12, atol=1e-13)


def test_small_labels_and_weights_that_require_grad(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes do not wrap from one block to the next; a weight that requires a gradient gets the reference's."""
    monkeypatch.setattr(linear, "_BLOCK", 9 * 3)
    x, weight, bias, label = _layer(9, 4, 11)
    label = label.clamp(min=0)
    mine = boosted_linear_loss(x, weight, bias, label.to(torch.uint8), *BOOSTS["exp"])
    torch.testing.assert_close(mine, boosted_loss(F.linear(x, weight, bias), label, *BOOSTS["exp"]))
    rows = torch.rand(9, dtype=torch.float64, requires_grad=True)
    (actual,) = torch.autograd.grad(boosted_linear_loss(x, weight, bias, label, *BOOSTS["exp"], row_weight=rows), rows)
    each = boosted_loss(F.linear(x, weight, bias), label, *BOOSTS["exp"], reduction="none")
    torch.testing.assert_close(actual, each / 9)
    with pytest.raises(ValueError, match=r"integer labels \(N,\) for features .*, got torch.float64"):
        boosted_linear_loss(x, weight, bias, rows.detach(), *BOOSTS["exp"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(label=torch.tensor([0, 11, 3])), r"1 label is outside 0..10 \(nothing is ignored\): value 11, first at \(1,\)"),
        (dict(label=torch.tensor([0])), r"labels \(N,\) for features \(3, 4\), got torch.int64 \(1,\)"),
        (dict(reduction="avg"), r"reduction must be one of \('none', 'sum', 'mean'\), got 'avg'"),
        (dict(targets=(-1.0, 16.0)), "t_neg = -1 is negative"),
        (dict(max_delta=-1.0), "must be > 0"),
    ],
)
def test_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    x, weight, bias, _ = _layer(3, 4, 11)
    settings: dict[str, Any] = dict(label=torch.tensor([0, 1, 3]), boost=BOOSTS["exp"][0], targets=(0.0, 6.0)) | changes
    with pytest.raises(ValueError, match=message):
        boosted_linear_loss(x, weight, bias, **settings)


def test_a_loss_is_no_boost() -> None:
    x, weight, bias, label = _layer(3, 4, 11)
    with pytest.raises(TypeError, match=r"must be a gbseg.boosting.Boost .*, got dict"):
        boosted_linear_loss(x, weight, bias, label, dict(type="ExponentialBoost"), (0.0, 6.0), ignore_index=-1)
