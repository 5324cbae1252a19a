"""A boost that a user writes and registers, by its name through every implementation, against float64 mathematics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gbseg import BoostedLoss
from gbseg.boosting import Boost, build_boost, register_boost
from gbseg.losses import boosted_linear_loss, boosted_resize_loss, fused_boosted_loss
from gbseg.losses.reference import boosted_loss


@register_boost
@dataclass(frozen=True)
class OwnSinhBoost(Boost):
    """``g(x) = alpha * sinh(x)``."""

    alpha: float = 0.5

    def boost(self, x: Tensor) -> Tensor:
        return self.alpha * torch.sinh(x)

    def inverse(self, y: Tensor) -> Tensor:
        return torch.asinh(y / self.alpha)

    def potential(self, x: Tensor) -> Tensor:
        return self.alpha * torch.cosh(x)

    def conjugate(self, t: Tensor) -> Tensor:
        return t * self.inverse(t) - torch.sqrt(self.alpha**2 + t**2)

    def divergence(self, x: Tensor, t: Tensor) -> Tensor:
        return self.potential(x) - t * x + self.conjugate(t)

    def scaled_excess(self, x: Tensor, level: float, dim: int) -> Tensor:
        largest = x.abs().amax(dim, keepdim=True)
        return self.alpha * (torch.exp(x - largest) - torch.exp(-x - largest)) / 2 - level * torch.exp(-largest)


CONFIG, TARGETS = dict(type="OwnSinhBoost", alpha=0.4), (-1.0, 3.0)
CLASS_WEIGHT = np.array([0.5, 2.0, 1.0])


def _batch(*shape: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *shape, generator=rng, dtype=torch.float64).requires_grad_()
    label = torch.randint(0, 3, (2, *shape), generator=rng)
    label.view(-1)[1::3] = 255
    return x, label


def _mathematics(x: np.ndarray, label: np.ndarray, bound: float = math.inf) -> tuple[float, np.ndarray]:
    """The mean loss and its gradient, from the integral of the clamped ``alpha * sinh(x) - t``, by numpy alone."""
    t = np.where(np.moveaxis(label[..., None] == np.arange(3), -1, 1), TARGETS[1], TARGETS[0])
    x_low, x_high = np.arcsinh((t - bound) / 0.4), np.arcsinh((t + bound) / 0.4)
    inside = np.clip(x, x_low, x_high)
    best = np.arcsinh(t / 0.4)
    loss = 0.4 * (np.cosh(inside) - np.cosh(best)) - t * (inside - best)
    if math.isfinite(bound):
        loss += bound * (np.maximum(x - x_high, 0) + np.maximum(x_low - x, 0))
    factor = CLASS_WEIGHT.reshape(1, 3, *[1] * (x.ndim - 2)) * (label != 255)[:, None] / (label != 255).sum()
    return float((loss * factor).sum()), np.clip(0.4 * np.sinh(x) - t, -bound, bound) * factor


def _assert_mathematics(loss: Tensor, x: Tensor, label: Tensor, bound: float = math.inf) -> None:
    expected_loss, expected_gradient = _mathematics(x.detach().numpy(), label.numpy(), bound)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-12)
    np.testing.assert_allclose(torch.autograd.grad(loss, x)[0].numpy(), expected_gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (5, 4)], ids=["rows", "maps"])
@pytest.mark.parametrize("options", [{}, dict(max_delta=1.5), dict(keep_gradient=False)], ids=["plain", "bounded", "again"])
@pytest.mark.parametrize("impl", ["auto", "reference", "cpu"])
def test_a_registered_boost(impl: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    """The loss that a config builds has the value and the gradient of the formula; an instance gives the same."""
    x, label = _batch(*shape)
    for boost in (CONFIG, OwnSinhBoost(0.4)):
        loss = BoostedLoss(boost, TARGETS, class_weight=CLASS_WEIGHT.tolist(), impl=impl, **options)
        assert loss.boost == OwnSinhBoost(0.4)
        loss.class_weight = torch.from_numpy(CLASS_WEIGHT)
        _assert_mathematics(loss(x, label), x, label, options.get("max_delta", math.inf))


def test_functions_of_a_registered_boost() -> None:
    """The reference, the fused, resized and linear losses; resized and linear ones are the loss of those logits."""
    x, label = _batch(4, 5)
    boost = build_boost(CONFIG)
    options: dict[str, Any] = dict(ignore_index=255, class_weight=torch.from_numpy(CLASS_WEIGHT))
    for function in (boosted_loss, fused_boosted_loss):
        _assert_mathematics(function(x, label, boost, TARGETS, **options), x, label)
    _assert_mathematics(boosted_resize_loss(x, label, boost, TARGETS, **options), x, label)
    identity = torch.eye(3, dtype=torch.float64)
    rows, row_label = _batch()
    _assert_mathematics(boosted_linear_loss(rows, identity, None, row_label, boost, TARGETS, **options), rows, row_label)

    large_label = label.repeat_interleave(2, 1).repeat_interleave(2, 2)
    large = F.interpolate(x, (8, 10), mode="bilinear").detach().requires_grad_()
    loss = boosted_resize_loss(x, large_label, boost, TARGETS, **options)
    assert loss.item() == pytest.approx(_mathematics(large.detach().numpy(), large_label.numpy())[0], rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: boosted_resize_loss(x, large_label, boost, TARGETS, **options), x)


def test_triton_falls_back_on_the_reference() -> None:
    """'auto' computes on a GPU what has no kernel there by the reference; asked for by name, Triton says what it lacks."""
    gpu = pytest.importorskip("gbseg.losses.kernels.gpu")
    assert OwnSinhBoost not in gpu.KINDS
    x, label = _batch(4)
    with pytest.raises(ValueError, match="impl='triton' has no kernel for OwnSinhBoost; use impl='auto' or 'reference'"):
        BoostedLoss(CONFIG, TARGETS, impl="triton")(x.float(), label)
    if torch.cuda.is_available():
        loss = BoostedLoss(CONFIG, TARGETS, class_weight=torch.from_numpy(CLASS_WEIGHT))
        on_device = loss(x.cuda(), label.cuda())
        _assert_mathematics(on_device.cpu(), x, label)


def test_link_of_a_registered_boost() -> None:
    """Probabilities are the share of the targets' span that ``g`` reaches, and prior logits their inverse."""
    loss = BoostedLoss(CONFIG, TARGETS)
    p = np.array([0.7, 0.2, 0.1])
    logits = np.arcsinh((-1 + 4 * p) / 0.4)
    np.testing.assert_allclose(loss.prior_logits(torch.from_numpy(p)).numpy(), logits, rtol=1e-12)
    np.testing.assert_allclose(loss.probabilities(torch.from_numpy(logits[None]))[0].numpy(), p, rtol=1e-12)


@pytest.mark.parametrize("scope", ["mmengine", "mmseg"])
def test_a_registered_boost_in_a_config(scope: str) -> None:
    """MMEngine's registries build the loss with it."""
    registry = pytest.importorskip(f"{scope}.registry").MODELS
    assert registry.build(dict(type="BoostedLoss", boost=CONFIG, targets=TARGETS)).boost == OwnSinhBoost(0.4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda loss: setattr(loss, "targets", (1.0, 0.0)), "t_pos must be larger than t_neg"),
        (lambda loss: setattr(loss, "max_delta", -1.0), "max_delta .* must be > 0"),
        (lambda loss: setattr(loss, "impl", "magic"), "impl must be one of"),
    ],
)
def test_options_that_are_changed_later(change: Callable[[BoostedLoss], None], message: str) -> None:
    """They count from the next call on, and are validated as at the start."""
    x, label = _batch(4)
    loss = BoostedLoss(CONFIG, (0.0, 1.0), class_weight=torch.from_numpy(CLASS_WEIGHT))
    loss.targets = TARGETS
    loss.max_delta = 1.5
    _assert_mathematics(loss(x, label), x, label, 1.5)
    with pytest.raises(ValueError, match=message):
        change(loss)
    _assert_mathematics(loss(x, label), x, label, 1.5)
