"""What the fast paths promise about memory, by the bytes that the allocator gave out: no test here looks at time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import held, peak
from gbseg.boosting import CubicBoost, ExponentialBoost
from gbseg.losses.functional import fused_boosted_loss
from gbseg.losses.linear import boosted_linear_loss
from gbseg.losses.resize import boosted_resize_loss

EXP, TARGETS, SHAPE = ExponentialBoost(0.1), (0.0, 16.0), (4, 21, 321, 321)


def _batch(shape: tuple[int, ...], size: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    label = torch.randint(shape[1], (shape[0], *size))
    label[torch.rand(label.shape) < 0.05] = 255
    return torch.randn(shape, dtype=dtype).requires_grad_(), label


def _loss(x: Tensor, label: Tensor, keep: bool = True) -> Tensor:
    return fused_boosted_loss(x, label, EXP, TARGETS, ignore_index=255, keep_gradient=keep)


def test_the_loss_takes_its_gradient_and_little_else() -> None:
    """At most 1.1 times the logits, in both forms; cross-entropy takes three."""
    x, label = _batch(SHAPE, SHAPE[2:])
    size = x.numel() * x.element_size()
    for keep in (True, False):
        assert size <= peak(lambda keep=keep: torch.autograd.grad(_loss(x, label, keep), x)) <= 1.1 * size
    assert peak(lambda: torch.autograd.grad(F.cross_entropy(x, label, ignore_index=255), x)) >= 2.9 * size


def test_the_low_memory_form_holds_nothing_between_forward_and_backward() -> None:
    """And the other one holds the gradient."""
    x, label = _batch(SHAPE, SHAPE[2:])
    size = x.numel() * x.element_size()
    assert held(lambda: _loss(x, label, False)) < 1000
    assert peak(lambda: _loss(x, label, False)) <= 0.2 * size
    assert size <= held(lambda: _loss(x, label)) < size + 1000


def test_half_precision_has_no_float_copy() -> None:
    """The gradient is as small as the logits; of float32 there is one block."""
    x, label = _batch(SHAPE, SHAPE[2:], torch.bfloat16)
    size = x.numel() * x.element_size()
    # a float32 copy of the logits alone would be twice their size
    assert peak(lambda: torch.autograd.grad(_loss(x, label), x)) <= 1.8 * size


@pytest.mark.parametrize(("boost", "targets"), [(EXP, TARGETS), (CubicBoost(), (0.0, 10.0))], ids=["exp", "pow3"])
def test_upsampled_logits_are_not_held(boost: ExponentialBoost | CubicBoost, targets: tuple[float, float]) -> None:
    """A tenth of the memory of upsampling and cross-entropy."""
    x, label = _batch((4, 21, 64, 64), (512, 512))

    def plain() -> tuple[Tensor, ...]:
        large = F.interpolate(x, label.shape[1:], mode="bilinear")
        return torch.autograd.grad(F.cross_entropy(large, label, ignore_index=255), x)

    def fused() -> tuple[Tensor, ...]:
        return torch.autograd.grad(boosted_resize_loss(x, label, boost, targets, ignore_index=255), x)

    assert peak(fused) <= 0.1 * peak(plain)


def test_the_logits_of_many_classes_are_not_held() -> None:
    """Beside the gradient of the layer, a fifth of the logits at most."""
    torch.manual_seed(0)
    features = torch.randn(256, 64, requires_grad=True)
    weight = torch.randn(100_000, 64).mul_(0.01).requires_grad_()
    label = torch.randint(100_000, (256,))
    logits = 4 * len(features) * len(weight)

    def fused() -> tuple[Tensor, ...]:
        return torch.autograd.grad(boosted_linear_loss(features, weight, None, label, EXP, TARGETS), [features, weight])

    assert peak(fused) <= 4 * weight.numel() + 0.2 * logits


def test_dense_prediction_holds_a_fifth_of_the_reference() -> None:
    """PixelNet's widths divided by eight, at 224 x 224; the logits themselves count."""
    pytest.importorskip("mmseg")
    from benchmarks.head import OURS, REFERENCE, Widths, heads, maps

    widths = Widths((8, 16, 32, 64, 64, 512), 512)
    torch.manual_seed(0)
    features = maps(widths, 1, (224, 224), "cpu")
    built = heads(widths, "cpu")
    with torch.no_grad():
        most = {name: peak(lambda head=head: head.eval()(features, (224, 224))) for name, head in built.items()}
    assert most[OURS] <= 0.2 * most[REFERENCE]
