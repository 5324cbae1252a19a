"""ReLU and dropout in one step against what both are."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("mmseg")
from gbseg.mm.models.pixelnet_head import relu_dropout


@pytest.mark.parametrize("p", [0.5, 0.1, 0.9])
def test_shares_and_values(p: float) -> None:
    """Kept are (1 - p) of the positive numbers, to five standard deviations, scaled by 1/(1 - p); so are their gradients."""
    torch.manual_seed(0)
    x = torch.randn(401, 503, dtype=torch.float64, requires_grad=True)
    y = relu_dropout(x * 1, p, True)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    kept, positive = y != 0, x > 0
    count = int(positive.sum())
    assert abs(int(kept.sum()) - count * (1 - p)) < 5 * math.sqrt(count * p * (1 - p))
    torch.testing.assert_close(y, torch.where(kept, x / (1 - p), 0.0), rtol=1e-15, atol=0)
    torch.testing.assert_close(gradient, kept.double() / (1 - p), rtol=1e-15, atol=0)
    assert not kept[~positive].any()


def test_draws_stand_alone() -> None:
    """The four draws that share a number are not correlated: chi-squared of their 16 outcomes, and another call is another."""
    torch.manual_seed(0)
    ones = torch.ones(400_000)
    first, second = (relu_dropout(ones.clone(), 0.5, True) != 0 for _ in range(2))
    outcome = (first.view(-1, 4) * torch.tensor([1, 2, 4, 8])).sum(1)
    expected = len(outcome) / 16
    # 15 degrees of freedom: above 44.3 once in 10,000
    assert float(((torch.bincount(outcome, minlength=16) - expected) ** 2 / expected).sum()) < 44.3
    assert abs(float((first == second).float().mean()) - 0.5) < 0.005
    torch.manual_seed(0)
    assert torch.equal(relu_dropout(ones.clone(), 0.5, True) != 0, first)


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
def test_nothing_dropped(p: float, training: bool) -> None:
    x = torch.randn(5, 7)
    assert torch.equal(relu_dropout(x.clone(), p, training), torch.relu(x))


def test_everything_dropped() -> None:
    assert not relu_dropout(torch.ones(5, 7), 1.0, True).any()


def test_nan_stays() -> None:
    """A network that diverged must not look like one that did not."""
    torch.manual_seed(0)
    actual = relu_dropout(torch.full((100,), math.nan), 0.5, True)
    assert 20 < int(actual.isnan().sum()) < 80
