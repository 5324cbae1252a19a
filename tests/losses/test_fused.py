"""The loss in one pass against the definition in float64, by one rule: its error is no larger than the definition's own error in
the same precision, plus 1e-6 of the value."""

import itertools
import math
import tracemalloc  # noqa: F401
from typing import Any

import pytest
import torch
from torch import Tensor

from gbseg.boosting import Boost, CubicBoost, ExponentialBoost, LinearBoost, MirroredExponentialBoost
from gbseg.losses.fused import fused_boosted_loss
from gbseg.losses.reference import boosted_loss

BOOSTS: dict[str, tuple[Boost, tuple[float, float]]] = {
    "exp": (ExponentialBoost(0.1), (0.0, 6.0)),
    "exp_above": (ExponentialBoost(0.1), (0.5, 6.0)),
    "cubic": (CubicBoost(0.5, 0.4), (-2.0, 3.0)),
    "linear": (LinearBoost(), (0.0, 1.0)),
    "mirrored": (MirroredExponentialBoost(0.3, 0.2), (0.25, 2.0)),
}
SHAPES = [(1, 1), (1, 1, 1, 1), (3, 21, 37, 53), (5, 2), (2, 1, 7), (6, 1000), (2, 3, 4), (0, 4), (2, 3, 0, 5)]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "every_other": lambda x: torch.stack([x, x + 9], -1)[..., 0],
    "part": lambda x: torch.cat([x, x + 9], 1)[:, : x.shape[1]],
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
}


def _labels(shape: tuple[int, ...], ignored: bool = True) -> Tensor:
    label = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(1))
    if ignored and label.numel() > 1:
        label.view(-1)[1::3] = 255
    return label


def _logits(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 2.0) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)


def _run(function: Any, x: Tensor, label: Tensor, boost: Boost, targets: tuple[float, float], **options: Any) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of its sum under an upstream gradient that is not 1."""
    x = x.detach()
    x.requires_grad_()
    loss = function(x, label, boost, targets, **options)
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape) if loss.ndim else torch.tensor(1.0, dtype=loss.dtype)
    (gradient,) = torch.autograd.grad(loss, x, upstream)
    assert gradient.dtype == x.dtype and gradient.shape == x.shape
    return loss.detach(), gradient


def _held(x: Tensor, label: Tensor, boost: Boost, targets: tuple[float, float], **options: Any) -> None:
    before = x.detach().clone()
    found = _run(fused_boosted_loss, x, label, boost, targets, **options)
    plain = _run(boosted_loss, x, label, boost, targets, **options)
    exact = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in options.items()
    }
    exact_label = label.double() if label.is_floating_point() else label
    true = _run(boosted_loss, x.double(), exact_label, boost, targets, **exact)
    torch.testing.assert_close(x.detach(), before, rtol=0, atol=0, equal_nan=True)
    for mine, reference, truth, is_gradient in zip(found, plain, true, (False, True), strict=True):
        assert mine.dtype == reference.dtype and mine.shape == reference.shape
        finite = torch.isfinite(truth) & torch.isfinite(reference)
        assert torch.equal(mine[~finite].double().nan_to_num(7.0), reference[~finite].double().nan_to_num(7.0))
        error, allowed = (mine.double() - truth).abs(), (reference.double() - truth).abs()
        # a gradient near zero is a small difference of large numbers: it is measured against its pixel's largest
        size = truth.abs().nan_to_num(0.0, posinf=0.0)
        size = size.amax(1, keepdim=True) if is_gradient and size.numel() else size
        assert bool((error <= allowed.amax() + 1e-6 * size)[finite].all()) if error.numel() else True


every_boost = pytest.mark.parametrize(("boost", "targets"), BOOSTS.values(), ids=BOOSTS)


@every_boost
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype, boost: Boost, targets: tuple[float, float]) -> None:
    """Hard and soft labels, every reduction, ignored pixels or none."""
    x = _logits(shape, dtype)
    soft = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    for reduction in ("mean", "sum", "none"):
        _held(x, _labels(shape), boost, targets, ignore_index=255, reduction=reduction)
        _held(x, _labels(shape, ignored=False), boost, targets, reduction=reduction)
        _held(x, soft, boost, targets, reduction=reduction)
