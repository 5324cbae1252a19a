"""Upsampling and loss at once against `F.interpolate` and the definition."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gbseg import BadLabelError, ExpGBLoss
from gbseg.boosting import Boost, CubicBoost, ExponentialBoost, LinearBoost, MirroredExponentialBoost
from gbseg.losses import resize
from gbseg.losses.reference import boosted_loss
from gbseg.losses.resize import boosted_resize_loss, resized_accuracy

BOOSTS: dict[str, tuple[Boost, tuple[float, float]]] = {
    "exp": (ExponentialBoost(0.1), (0.0, 6.0)),
    "exp_above": (ExponentialBoost(0.1), (0.5, 6.0)),
    "cubic": (CubicBoost(0.5, 0.4), (-2.0, 3.0)),
    "linear": (LinearBoost(), (0.0, 1.0)),
    "mirrored": (MirroredExponentialBoost(0.3, 0.2), (0.25, 2.0)),
}
every_boost = pytest.mark.parametrize(("boost", "targets"), BOOSTS.values(), ids=BOOSTS)
every_corner = pytest.mark.parametrize("align_corners", [False, True], ids=["centres", "corners"])
SIZES = [
    ((1, 1, 1, 1), (1, 1)),
    ((2, 3, 5, 7), (40, 56)),
    ((3, 21, 4, 6), (37, 53)),
    ((2, 2, 6, 5), (6, 5)),
    ((1, 4, 9, 8), (5, 3)),
]


def _batch(shape: tuple[int, ...], size: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = (2 * torch.randn(shape, generator=rng, dtype=torch.float64)).to(dtype).requires_grad_()
    label = torch.randint(0, shape[1], (shape[0], *size), generator=rng)
    label.view(-1)[1::3] = 255
    return x, label


def _plain(x: Tensor, label: Tensor, boost: Boost, targets: tuple[float, float], align_corners: bool, **options: Any) -> Tensor:
    large = F.interpolate(x, label.shape[1:], mode="bilinear", align_corners=align_corners)
    return boosted_loss(large, label, boost, targets, **options)


@every_boost
@every_corner
@pytest.mark.parametrize(("shape", "size"), SIZES, ids=str)
def test_values_and_gradients(
    shape: tuple[int, ...], size: tuple[int, int], align_corners: bool, boost: Boost, targets: tuple[float, float]
) -> None:
    x, label = _batch(shape, size)
    rng = torch.Generator().manual_seed(1)
    options = dict(
        ignore_index=255,
        class_weight=torch.rand(shape[1], generator=rng, dtype=torch.float64),
        weight=torch.rand(label.shape, generator=rng, dtype=torch.float64),
        max_delta=1.5,
    )
    for chosen in ({}, {"ignore_index": 255}, options):
        some = label.clamp(max=shape[1] - 1) if not chosen else label
        for reduction in ("mean", "sum", "none"):
            mine = boosted_resize_loss(x, some, boost, targets, align_corners=align_corners, reduction=reduction, **chosen)
            plain = _plain(x, some, boost, targets, align_corners, reduction=reduction, **chosen)
            torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-13)
            grad_output = torch.rand(plain.shape, generator=rng, dtype=torch.float64)
            for actual, expected in zip(
                torch.autograd.grad(mine, x, grad_output), torch.autograd.grad(plain, x, grad_output), strict=True
            ):
                torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


@every_corner
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precision(dtype: torch.dtype, align_corners: bool) -> None:
    """Float32 holds to float64 as interpolate-then-loss does; half precision is upsampled in float32 and rounded once."""
    x, label = _batch((3, 21, 4, 6), (37, 53), dtype)
    boost, targets = BOOSTS["exp"]
    mine = boosted_resize_loss(x, label, boost, targets, align_corners=align_corners, ignore_index=255)
    (gradient,) = torch.autograd.grad(3 * mine, x)
    exact = x.detach().double().requires_grad_()
    truth = _plain(exact, label, boost, targets, align_corners, ignore_index=255)
    (true_gradient,) = torch.autograd.grad(3 * truth, exact)
    single = x.detach().float().requires_grad_()
    plain = _plain(single, label, boost, targets, align_corners, ignore_index=255)
    (plain_gradient,) = torch.autograd.grad(3 * plain, single)
    assert mine.dtype == torch.float32 and gradient.dtype == dtype
    error, allowed = (abs(value.item() - truth.item()) for value in (mine, plain))
    assert error <= allowed + 1e-6 * abs(truth.item())
    allowed = (plain_gradient.double() - true_gradient).abs().amax()
    rounding = (
        0.0 if dtype == torch.float32 else torch.finfo(dtype).eps * true_gradient.abs() + torch.finfo(dtype).smallest_normal
    )
    error = (gradient.double() - true_gradient).abs()
    assert bool((error <= allowed + 1e-6 * true_gradient.abs().amax() + rounding).all())


def test_a_second_derivative() -> None:
    x, label = _batch((2, 3, 2, 3), (5, 7))
    boost, targets = BOOSTS["exp"]
    assert torch.autograd.gradcheck(lambda x: boosted_resize_loss(x, label, boost, targets, ignore_index=255), x)
    assert torch.autograd.gradgradcheck(lambda x: boosted_resize_loss(x, label, boost, targets, ignore_index=255), x)


def test_ignored_pixels_may_hold_anything() -> None:
    """An infinite logit whose pixels are all ignored reaches neither loss nor gradient."""
    x, label = _batch((1, 2, 2, 2), (4, 4), torch.float32)
    with torch.no_grad():
        x[0, 0, 0, 0] = math.inf
    label[:] = 0
    label[0, :3, :3] = 255
    loss = boosted_resize_loss(x, label, *BOOSTS["exp"], ignore_index=255)
    assert math.isfinite(loss.item()) and bool(torch.isfinite(torch.autograd.grad(loss, x)[0]).all())


def test_under_autocast_nothing_is_rounded_more() -> None:
    x, label = _batch((2, 3, 5, 7), (40, 56), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine = boosted_resize_loss(x, label, *BOOSTS["exp"], ignore_index=255)
    plain = _plain(x, label, *BOOSTS["exp"], False, ignore_index=255)
    torch.testing.assert_close(torch.autograd.grad(mine, x), torch.autograd.grad(plain, x), rtol=1e-5, atol=1e-8)


@every_corner
def test_accuracy(align_corners: bool) -> None:
    """As the argmax of the large logits, the first of equal ones."""
    x, label = _batch((3, 21, 4, 6), (37, 53), torch.float32)
    with torch.no_grad():
        x[:, 3] = x[:, 5]
    large = F.interpolate(x, (37, 53), mode="bilinear", align_corners=align_corners)
    valid = label != 255
    expected = 100 * (large.argmax(1) == label)[valid].float().mean()
    torch.testing.assert_close(resized_accuracy(x, label, 255, align_corners), expected)
    assert resized_accuracy(x, torch.full_like(label, 255), 255) == 0


def test_the_loss_of_a_config() -> None:
    """`BoostedLoss.resized`: settings, guard and messages of the loss."""
    x, label = _batch((2, 3, 5, 7), (40, 56), torch.float32)
    loss = ExpGBLoss(loss_weight=0.4, class_weight=[1.0, 2.0, 0.5], max_delta=3.0)
    plain = loss(F.interpolate(x, (40, 56), mode="bilinear"), label)
    mine = loss.resized(x, label)
    torch.testing.assert_close(mine, plain)
    torch.testing.assert_close(torch.autograd.grad(mine, x), torch.autograd.grad(plain, x), rtol=1e-5, atol=1e-8)
    bad = label.clone()
    bad[1, 2, 3] = 7
    with pytest.raises(BadLabelError, match=r"value 7, first at \(1, 2, 3\)"):
        loss.resized(x, bad)
    with pytest.raises(ValueError, match="integer labels"):
        loss.resized(x, torch.rand(2, 3, 40, 56))
    with pytest.raises(ValueError, match="weight must have the shape"):
        loss.resized(x, label, weight=torch.rand(2, 5, 7))


@every_corner
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_anything_at_ignored_pixels(reduction: str, align_corners: bool) -> None:
    """Infinite weights and grad_outputs there do not spread over the planes."""
    x, label = _batch((2, 3, 4, 5), (16, 20))
    weight = torch.where(label == 255, torch.inf, 1.0)
    options: dict[str, Any] = dict(ignore_index=255, weight=weight, reduction=reduction)
    mine = boosted_resize_loss(x, label, *BOOSTS["exp"], align_corners=align_corners, **options)
    plain = _plain(x, label, *BOOSTS["exp"], align_corners, **options)
    torch.testing.assert_close(mine, plain)
    gradients = [torch.autograd.grad(loss.sqrt().sum(), x)[0] for loss in (mine, plain)]
    torch.testing.assert_close(*gradients)
    assert bool(gradients[0].isfinite().all())


def test_weights_that_require_grad_and_small_labels() -> None:
    """A weight that requires a gradient gets the reference's; 255 as a byte is a class where there are 256."""
    x, label = _batch((2, 3, 4, 5), (16, 20))
    weight = torch.rand(2, 16, 20, dtype=torch.float64, requires_grad=True)
    actual = [
        torch.autograd.grad(loss, [x, weight])
        for loss in (
            boosted_resize_loss(x, label, *BOOSTS["exp"], ignore_index=255, weight=weight),
            _plain(x, label, *BOOSTS["exp"], False, ignore_index=255, weight=weight),
        )
    ]
    for mine, plain in zip(*actual, strict=True):
        torch.testing.assert_close(mine, plain)
    logits = torch.randn(1, 256, 2, 2, dtype=torch.float64)
    label = torch.tensor([[[255, 0], [3, 255]]], dtype=torch.uint8)
    torch.testing.assert_close(
        boosted_resize_loss(logits, label, *BOOSTS["exp"]), boosted_loss(logits, label.long(), *BOOSTS["exp"])
    )
    with pytest.raises(ValueError, match=r"integer labels \(N, H, W\) for logits .*, got torch.float64"):
        boosted_resize_loss(x, weight.detach(), *BOOSTS["exp"])


@every_corner
def test_upsample_backward_on_a_device(align_corners: bool) -> None:
    """A device uses the backward of the interpolation, a CPU two products: both are the same."""
    plane = torch.randn(17, 23, dtype=torch.float64)
    matrices = [resize._upsample_matrix(small, large, align_corners, plane) for small, large in ((4, 17), (5, 23))]
    torch.testing.assert_close(
        resize._upsample_backward(plane, (4, 5), align_corners), resize._upsample_backward_by_products(plane, *matrices)
    )


def test_labels_that_are_no_class() -> None:
    """A border of 255 that nobody ignores, and the channel that mmseg's labels have."""
    x, label = _batch((2, 3, 4, 5), (16, 20))
    with pytest.raises(BadLabelError, match=r"outside 0\.\.2"):
        boosted_resize_loss(x, label, *BOOSTS["exp"])
    with pytest.raises(ValueError, match=r"for logits \(2, 3, 4, 5\), got torch.int64 \(2, 1, 16, 20\)"):
        boosted_resize_loss(x, label.unsqueeze(1), *BOOSTS["exp"])
