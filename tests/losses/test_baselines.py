"""The baselines against PyTorch's own losses, and the softmax's controls against exp-GB."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gbseg.losses import (
    ExpGBLoss,
    L1Loss,
    SigmoidBCELoss,
    SigmoidMSELoss,
    SoftmaxLoss,
    TanhMSELoss,
    WestonWatkinsLoss,
)
from gbseg.losses.modules import GuardedLoss

CLASSES = 5


def _one_hot(y: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * F.one_hot(y, CLASSES).double()


# each on rows (N, C) in float64, by PyTorch's own function
CASES: dict[str, tuple[GuardedLoss, Callable[[Tensor, Tensor], Tensor]]] = {
    "softmax": (SoftmaxLoss(), lambda x, y: F.cross_entropy(x, y, reduction="none")),
    "scaled": (SoftmaxLoss(scale=7.0), lambda x, y: 7 * F.cross_entropy(x, y, reduction="none")),
    "sigmoid_mse": (
        SigmoidMSELoss((0.1, 0.9)),
        lambda x, y: 0.5 * F.mse_loss(x.sigmoid(), _one_hot(y, 0.1, 0.9), reduction="none").sum(1),
    ),
    "tanh_mse": (TanhMSELoss(), lambda x, y: 0.5 * F.mse_loss(x.tanh(), _one_hot(y, -1, 1), reduction="none").sum(1)),
    "bce": (SigmoidBCELoss(), lambda x, y: F.binary_cross_entropy(x.sigmoid(), _one_hot(y, 0, 1), reduction="none").sum(1)),
    "hinge": (WestonWatkinsLoss(1.5), lambda x, y: CLASSES * F.multi_margin_loss(x, y, margin=1.5, reduction="none")),
    "l1": (L1Loss((-1.0, 3.0)), lambda x, y: F.l1_loss(x, _one_hot(y, -1, 3), reduction="none").sum(1)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _rows(seed: int = 0, count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), torch.randint(0, CLASSES, (count,), generator=generator)


@every_case
def test_against_torch(case: tuple[GuardedLoss, Callable]) -> None:
    """Values and gradients, of rows and of the same rows as a map with ignored pixels and weights."""
    loss, reference = case
    x, y = _rows()
    expected = reference(x, y)
    torch.testing.assert_close(loss(x, y, reduction_override="none"), expected)
    (gradient,) = torch.autograd.grad(expected.mean(), x)
    torch.testing.assert_close(torch.autograd.grad(loss(x, y), x)[0], gradient)
    assert torch.autograd.gradcheck(lambda logits: loss(logits, y), x)

    maps, labels = x.view(2, 2, 3, CLASSES).permute(0, 3, 1, 2), y.view(2, 2, 3).clone()
    labels[0, 1] = 255
    weight = torch.rand(2, 2, 3, dtype=torch.float64)
    valid = (labels != 255).view(-1)
    actual = loss(maps, labels, weight=weight)
    torch.testing.assert_close(actual, (expected * weight.view(-1))[valid].sum() / valid.sum())
    assert torch.isfinite(loss(maps.half(), labels)) and loss(maps.half(), labels).dtype == torch.float32


@pytest.mark.parametrize(("alpha", "t_pos"), [(0.1, 16.0), (0.01, 10.0)])
def test_the_softmax_with_scale_and_penalty_is_expgb(alpha: float, t_pos: float) -> None:
    """exp-GB is a scaled and penalised softmax, in values and gradients; without the scale it is a t_pos-th of exp-GB."""
    x, y = _rows(3)
    expgb = ExpGBLoss(alpha, (0, t_pos))(x, y)
    for scale in (1.0, t_pos):
        control = SoftmaxLoss(scale, 1.0, alpha, t_pos)(x, y)
        torch.testing.assert_close(control, expgb * scale / t_pos)
        gradient_of_control, gradient_of_softmax = (
            torch.autograd.grad(value, x)[0] for value in (control, SoftmaxLoss(scale)(x, y))
        )
        torch.testing.assert_close(
            gradient_of_control, torch.autograd.grad(ExpGBLoss(alpha, (0, t_pos))(x, y), x)[0] * scale / t_pos
        )
        assert not torch.allclose(gradient_of_control, gradient_of_softmax)


def test_soft_labels() -> None:
    """One-hot soft labels are labels; mixed ones are PyTorch's."""
    x, y = _rows(1)
    p = torch.softmax(torch.randn(12, CLASSES, dtype=torch.float64), 1)
    torch.testing.assert_close(SoftmaxLoss()(x, p), F.cross_entropy(x, p))
    for loss in (SoftmaxLoss(penalty=0.5), SigmoidMSELoss(), TanhMSELoss(), SigmoidBCELoss(), L1Loss()):
        torch.testing.assert_close(loss(x, F.one_hot(y, CLASSES).double()), loss(x, y))
    with pytest.raises(ValueError, match="takes no soft labels"):
        WestonWatkinsLoss()(x, p)


def test_probabilities() -> None:
    """By hand in float64, and finite where everything saturates."""
    x = _rows(2)[0].detach()
    sigmoid = 1 / (1 + np.exp(-x.numpy()))
    np.testing.assert_allclose(SigmoidBCELoss().probabilities(x), sigmoid / sigmoid.sum(1, keepdims=True))
    share = np.clip((np.tanh(x.numpy()) + 1) / 2, 0, None)
    np.testing.assert_allclose(TanhMSELoss().probabilities(x), share / share.sum(1, keepdims=True))
    share = np.clip((sigmoid - 0.1) / 0.8, 0, None)
    np.testing.assert_allclose(SigmoidMSELoss((0.1, 0.9)).probabilities(x), share / share.sum(1, keepdims=True))
    np.testing.assert_allclose(SoftmaxLoss().probabilities(x), F.softmax(x, 1))
    for loss, _ in CASES.values():
        actual = loss.probabilities(torch.full((2, CLASSES, 3), -500.0))
        torch.testing.assert_close(actual.sum(1), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftmaxLoss(scale=0), "scale must be > 0"),
        (lambda: SoftmaxLoss(penalty=-1), "penalty must be >= 0"),
        (lambda: SigmoidMSELoss((0, 2)), r"SigmoidMSELoss: targets .* in \[0, 1\], which its outputs reach, got \(0, 2\)"),
        (lambda: SigmoidMSELoss((0, 1, 2)), r"two numbers \(t_neg, t_pos\), got \(0, 1, 2\)"),
        (lambda: TanhMSELoss(None), "two numbers .*, got None"),
        (lambda: TanhMSELoss((1, -1)), "t_pos must be larger than t_neg"),
        (lambda: L1Loss((1, 1)), "t_pos must be larger than t_neg"),
        (lambda: WestonWatkinsLoss(0), "margin must be > 0"),
        (lambda: SoftmaxLoss(class_weight=[1.0] * CLASSES), "SoftmaxLoss takes no class_weight"),
        (lambda: SoftmaxLoss()(_rows()[0], torch.full((12,), 9)), "outside 0..4"),
    ],
)
def test_refused(make: Callable[[], object], message: str) -> None:
    """Options out of their range, and labels that are no class."""
    with pytest.raises(ValueError, match=message):
        make()
