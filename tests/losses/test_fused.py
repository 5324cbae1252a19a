"""The loss in one pass against the definition in float64, by one rule: its error is no larger than the definition's own error
in the same precision, plus 1e-6 of the value.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gbseg.boosting import Boost, CubicBoost, ExponentialBoost, LinearBoost, MirroredExponentialBoost
from gbseg.losses import functional as fused
from gbseg.losses.functional import fused_boosted_loss
from gbseg.losses.kernels import cpu as fused_cpu
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


def _device(impl: str) -> str:
    """Kernels run where they are made for, and where there is no GPU in the interpreter."""
    return "cuda" if impl == "triton" and torch.cuda.is_available() else "cpu"


def _run(
    function: Any, x: Tensor, label: Tensor, boost: Boost, targets: tuple[float, float], **options: Any
) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of its sum under a grad_output; half precision is rounded again where that is not 1."""
    device = _device(options.get("impl", "cpu"))
    x = x.detach().to(device)
    x.requires_grad_()
    options = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()}
    loss = function(x, label.to(device), boost, targets, **options)
    grad_output = (
        torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape)
        if loss.ndim
        else torch.tensor(0.7 if x.dtype in (torch.float32, torch.float64) else 1.0, dtype=loss.dtype)
    )
    (gradient,) = torch.autograd.grad(loss, x, grad_output.to(device))
    assert gradient.dtype == x.dtype and gradient.shape == x.shape
    return loss.detach().cpu(), gradient.cpu()


def _held(x: Tensor, label: Tensor, boost: Boost, targets: tuple[float, float], impl: str = "cpu", **options: Any) -> None:
    before = x.detach().clone()
    actual = _run(fused_boosted_loss, x, label, boost, targets, impl=impl, **options)
    plain = _run(boosted_loss, x, label, boost, targets, **options)
    exact = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in options.items()
    }
    exact_label = label.double() if label.is_floating_point() else label
    true = _run(boosted_loss, x.double(), exact_label, boost, targets, **exact)
    torch.testing.assert_close(x.detach(), before, rtol=0, atol=0, equal_nan=True)
    for mine, reference, truth, is_gradient in zip(actual, plain, true, (False, True), strict=True):
        assert mine.dtype == reference.dtype and mine.shape == reference.shape
        finite = torch.isfinite(truth) & torch.isfinite(reference)
        assert torch.equal(mine[~finite].double().nan_to_num(7.0), reference[~finite].double().nan_to_num(7.0))
        error, allowed = (mine.double() - truth).abs(), (reference.double() - truth).abs()
        # a gradient near zero is a small difference of large numbers: it is measured against its pixel's largest
        size = truth.abs().nan_to_num(0.0, posinf=0.0)
        size = size.amax(1, keepdim=True) if is_gradient and size.numel() else size
        # Triton's interpreter cuts bfloat16 off where a GPU rounds it
        cut = torch.finfo(mine.dtype).eps * truth.abs() if impl == "triton" and mine.dtype == torch.bfloat16 else 0.0
        assert not finite.any() or bool((error <= allowed[finite].amax() + 1e-6 * size + cut)[finite].all())


# Triton's interpreter takes a second for what a kernel does in a microsecond: of each kind of input one is enough there
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
VALUES = [
    *(("cpu", dtype, shape) for dtype in DTYPES for shape in SHAPES),
    *(("triton", torch.float32, shape) for shape in SHAPES),
    *(("triton", dtype, shape) for dtype in DTYPES[2:] for shape in ((2, 3, 4), (5, 2))),
]
every_boost = pytest.mark.parametrize(("boost", "targets"), BOOSTS.values(), ids=BOOSTS)


@every_boost
@pytest.mark.parametrize(("impl", "dtype", "shape"), VALUES, ids=str)
def test_values_and_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, impl: str, boost: Boost, targets: tuple[float, float]
) -> None:
    """Hard and soft labels, every reduction, ignored pixels or none."""
    if impl == "triton":
        pytest.importorskip("triton")
    x = _logits(shape, dtype)
    soft = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    large = impl == "triton" and math.prod(shape) > 1e4
    for reduction in ("mean",) if large else ("mean", "sum", "none"):
        _held(x, _labels(shape), boost, targets, impl, ignore_index=255, reduction=reduction)
        if not large:
            _held(x, _labels(shape, ignored=False), boost, targets, impl, reduction=reduction)
            _held(x, soft, boost, targets, impl, reduction=reduction)


OPTIONS: dict[str, dict[str, Any]] = {
    "class_weight": dict(class_weight=torch.tensor([0.5, 2.0, 0.0])),
    "weight": dict(weight="weight"),
    "avg_factor": dict(avg_factor=3.5),
    "avg_factor_tensor": dict(avg_factor=torch.tensor([3.5])),
    "max_delta": dict(max_delta=1.5),
    "no_bound": dict(max_delta=math.inf),
    "all": dict(class_weight=torch.tensor([0.5, 2.0, 0.0]), weight="weight", avg_factor=7, max_delta=1.5),
}


CASES = [
    *(("cpu", layout, name) for layout in LAYOUTS for name in OPTIONS),
    *(("triton", "contiguous", name) for name in OPTIONS),
    *(("triton", layout, "all") for layout in LAYOUTS if layout != "contiguous"),
]


@every_boost
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(("impl", "layout", "name"), CASES)
def test_every_option_in_every_layout(
    name: str, layout: str, soft: bool, impl: str, boost: Boost, targets: tuple[float, float]
) -> None:
    """Weights of classes and pixels, divisors and bounds, over logits of any strides."""
    if impl == "triton":
        pytest.importorskip("triton")
    shape = (2, 3, 5, 7)
    options = dict(OPTIONS[name])
    if "weight" in options:
        options["weight"] = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(3))
    x = LAYOUTS[layout](_logits(shape, torch.float32))
    label = torch.rand(shape, generator=torch.Generator().manual_seed(2)) if soft else _labels(shape)
    for reduction in ("mean", "none"):
        plain = {key: value for key, value in options.items() if reduction == "mean" or key != "avg_factor"}
        _held(x, label, boost, targets, impl, ignore_index=255, reduction=reduction, **plain)


def test_blocks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of several images, of parts of one, and with a rest, give what one block gives."""
    shape = (5, 3, 4, 5)
    x, label = _logits(shape, torch.float64), _labels(shape)
    options = dict(ignore_index=255, weight=torch.rand(5, 4, 5, dtype=torch.float64), reduction="none")
    boost, targets = BOOSTS["exp"]
    expected_of_one_block = _run(fused_boosted_loss, x, label, boost, targets, **options)
    for size in (1, 7, 60, 130, 10_000):
        monkeypatch.setattr(fused_cpu, "_BLOCK", size)
        for actual, expected in zip(
            _run(fused_boosted_loss, x, label, boost, targets, **options), expected_of_one_block, strict=True
        ):
            torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)


def test_near_the_optimum() -> None:
    """Where ``alpha * exp(x) - t`` would be all rounding, the gradient has six right digits, and the loss those of `expm1`."""
    x0 = math.log(16 / 0.1)
    x = torch.tensor([[x0 + 1e-4, -60.0], [x0 - 1e-4, -60.0], [x0, -60.0]], dtype=torch.float64).float()
    label = torch.zeros(3, dtype=torch.long)
    mine = _run(fused_boosted_loss, x, label, ExponentialBoost(0.1), (0.0, 16.0), reduction="none")
    truth = _run(boosted_loss, x.double(), label, ExponentialBoost(0.1), (0.0, 16.0), reduction="none")
    torch.testing.assert_close(mine[0].double(), truth[0], rtol=1e-2, atol=1e-11)
    torch.testing.assert_close(mine[1].double(), truth[1], rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("impl", ["cpu", "triton"])
@pytest.mark.parametrize("value", [1e4, math.inf, -math.inf, math.nan], ids=str)
def test_logits_that_are_not_finite(value: float, impl: str) -> None:
    """At pixels that count they show in the loss; at ignored pixels they do not, nor in any gradient."""
    x = _logits((2, 3, 4), torch.float32)
    x[0, 1, 0] = value
    label = _labels((2, 3, 4), ignored=False)
    _held(x, label, ExponentialBoost(0.1), (0.0, 6.0), impl, ignore_index=255, reduction="none")
    label[0, 0] = 255
    for reduction in ("mean", "none"):
        _held(x, label, ExponentialBoost(0.1), (0.0, 6.0), impl, ignore_index=255, reduction=reduction)
    loss, gradient = _run(fused_boosted_loss, x, label, ExponentialBoost(0.1), (0.0, 6.0), impl=impl, ignore_index=255)
    assert math.isfinite(float(loss)) and bool((gradient[0, :, 0] == 0).all())


def test_nothing_to_learn_from() -> None:
    """Only ignored pixels: loss and gradient are 0."""
    x, label = _logits((2, 3, 4), torch.float32), torch.full((2, 4), 255)
    loss, gradient = _run(fused_boosted_loss, x, label, ExponentialBoost(0.1), (0.0, 6.0), ignore_index=255)
    assert float(loss) == 0 and not gradient.any()


@every_boost
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_derivatives(reduction: str, boost: Boost, targets: tuple[float, float]) -> None:
    """First and second, by finite differences; and twice through one graph."""
    x, label = _logits((2, 3, 3), torch.float64).requires_grad_(), _labels((2, 3, 3))

    def loss(x: Tensor) -> Tensor:
        return fused_boosted_loss(x, label, boost, targets, ignore_index=255, reduction=reduction)

    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)
    value = loss(x).sum() * 3
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    (second,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(first, second, rtol=1e-14, atol=0)
    assert first.data_ptr() != second.data_ptr()


@pytest.mark.parametrize("impl", ["cpu", "triton"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_grad_output(dtype: torch.dtype, keep: bool, impl: str) -> None:
    """It is multiplied before the gradient is rounded: what a scaler of 2^16 saves in float16 is not lost."""
    x, label = (tensor.to(_device(impl)) for tensor in (_logits((2, 3, 50), dtype), _labels((2, 3, 50))))
    x.requires_grad_()
    boost, targets = BOOSTS["exp"]
    for grad_output in (1.0, 2.0**16, 0.3):
        options: dict[str, Any] = dict(ignore_index=255, avg_factor=1e8)
        loss = fused_boosted_loss(x, label, boost, targets, keep_gradient=keep, impl=impl, **options)
        (mine,) = torch.autograd.grad(grad_output * loss, x)
        (reference,) = torch.autograd.grad(grad_output * boosted_loss(x, label, boost, targets, **options), x)
        # Triton's interpreter cuts bfloat16 off where a GPU rounds it
        rtol = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps * (2 if impl == "triton" else 1)
        torch.testing.assert_close(mine, reference, rtol=rtol, atol=1e-7 if dtype == torch.float16 else 0)


def test_logits_that_need_no_gradient() -> None:
    x, label = _logits((2, 3, 5), torch.float32), _labels((2, 3, 5))
    loss = fused_boosted_loss(x, label, *BOOSTS["exp"], ignore_index=255)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, boosted_loss(x, label, *BOOSTS["exp"], ignore_index=255))


def test_loss_weight_is_a_factor_of_all() -> None:
    x, label = _logits((2, 3, 5), torch.float32), _labels((2, 3, 5))
    for soft in (label, torch.rand(2, 3, 5)):
        mine = _run(fused_boosted_loss, x, soft, *BOOSTS["exp"], ignore_index=255, loss_weight=-0.4)
        plain = _run(boosted_loss, x, soft, *BOOSTS["exp"], ignore_index=255)
        for actual, reference in zip(mine, plain, strict=True):
            torch.testing.assert_close(actual, -0.4 * reference)


def test_a_fallback_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Of a device that nothing was made for; 'auto' on a CPU says nothing, for it falls back on nothing."""
    fused._log_once.cache_clear()
    with caplog.at_level("DEBUG", logger="gbseg"):
        fused_boosted_loss(_logits((2, 3, 5), torch.float32), _labels((2, 3, 5)), *BOOSTS["exp"], ignore_index=255)
        assert not caplog.records
        for _ in range(2):
            x = torch.empty(2, 3, 5, device="meta", requires_grad=True)
            fused_boosted_loss(x, torch.empty(2, 5, dtype=torch.long, device="meta"), *BOOSTS["exp"]).backward()
    (record,) = caplog.records
    assert record.levelname == "DEBUG"
    assert record.message == (
        "the loss with ExponentialBoost of torch.float32 logits on meta is the reference's: there is no kernel for it here."
    )


@pytest.mark.parametrize(
    ("impl", "x", "message"),
    [
        ("cpu", torch.empty(2, 3, device="meta"), "takes logits on a CPU, got them on meta"),
        ("triton", torch.empty(2, 3, dtype=torch.float64), "takes float32, bfloat16 and float16, got torch.float64"),
        ("fastest", torch.empty(2, 3), "impl must be one of"),
    ],
)
def test_an_implementation_that_cannot_be(impl: str, x: Tensor, message: str) -> None:
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match=message):
        fused_boosted_loss(x, torch.zeros(2, dtype=torch.long, device=x.device), *BOOSTS["exp"], impl=impl)


@pytest.mark.parametrize("impl", ["cpu", "triton"])
def test_a_bound_does_not_hide_a_nan(impl: str) -> None:
    """A gradient scaler steps on whatever is finite."""
    x = _logits((2, 3, 4), torch.float32)
    x[0, 1, 0] = math.nan
    label = _labels((2, 3, 4), ignored=False)
    for boost, targets in BOOSTS.values():
        loss, gradient = _run(fused_boosted_loss, x, label, boost, targets, impl=impl, max_delta=1.5)
        assert loss.isnan() and gradient[0, 1, 0].isnan() and int(gradient.isnan().sum()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["cpu", "triton"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32], ids=str)
@pytest.mark.parametrize("ignored", [255, -1, 1])
def test_labels_of_any_integers(ignored: int, kind: torch.dtype, impl: str) -> None:
    """And any number may be the ignored one, a class among them."""
    x, label = _logits((2, 300, 5), torch.float32), torch.randint(300, (2, 5), generator=torch.Generator().manual_seed(1))
    if kind == torch.uint8:
        x, label = x[:, :200], label % 200
    if ignored != -1 or kind != torch.uint8:
        label[0, 1:3] = ignored
    _held(x, label.to(kind), ExponentialBoost(0.1), (0.0, 6.0), impl, ignore_index=ignored)


@pytest.mark.parametrize("impl", ["cpu", "triton"])
def test_expanded_logits_and_weights(impl: str) -> None:
    """Tensors with strides of 0: one value for all classes, pixels or images."""
    label = _labels((2, 3, 4))
    for x in (torch.tensor([[[0.3]]]), torch.tensor([[[0.3, -1, 2, 0]]]), _logits((1, 3, 4), torch.float32)):
        weights = dict(class_weight=torch.tensor([0.5]).expand(3), weight=torch.tensor([[2.0]]).expand(2, 4))
        _held(x.expand(2, 3, 4), label, ExponentialBoost(0.1), (0.0, 6.0), impl, ignore_index=255, **weights)


def test_labels_with_other_strides() -> None:
    """(time, batch) turned around, with a class weight."""
    x, label = _logits((4, 3, 5), torch.float32), _labels((5, 3, 4)).T
    _held(x, label, ExponentialBoost(0.1), (0.0, 6.0), ignore_index=255, class_weight=torch.tensor([0.5, 2.0, 1.0]))


def test_weights_and_soft_labels_that_require_grad() -> None:
    """They get the reference's gradient; where an implementation is asked for that has none, that is said."""
    x = _logits((2, 3, 5), torch.float32).requires_grad_()
    boost, targets = BOOSTS["exp"]
    weight, outputs, factor = torch.rand(2, 5), torch.rand(3), torch.tensor(3.0)
    requiring_grad = [tensor.requires_grad_() for tensor in (weight, outputs, factor)]
    options: dict[str, Any] = dict(weight=weight, class_weight=outputs, avg_factor=factor, ignore_index=255)
    actual = [
        torch.autograd.grad(f(x, _labels((2, 3, 5)), boost, targets, **options), [x, *requiring_grad])
        for f in (fused_boosted_loss, boosted_loss)
    ]
    for mine, reference in zip(*actual, strict=True):
        assert torch.equal(mine, reference) and bool(mine.any())
    soft = torch.rand(2, 3, 5, requires_grad=True)
    assert bool(torch.autograd.grad(fused_boosted_loss(x, soft, boost, targets), soft)[0].any())
    with pytest.raises(ValueError, match="gives a gradient to logits alone"):
        fused_boosted_loss(x, soft, boost, targets, impl="cpu")
    with torch.no_grad():
        fused_boosted_loss(x, soft, boost, targets, impl="cpu")


def test_what_is_changed_before_the_backward() -> None:
    """A gradient that is computed in the backward would be that of other labels."""
    x, label = _logits((2, 3, 5), torch.float32).requires_grad_(), _labels((2, 3, 5))
    loss = fused_boosted_loss(x, label, *BOOSTS["exp"], ignore_index=255, reduction="none").sum()
    label.fill_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_transforms_of_functions(reduction: str) -> None:
    """``torch.func`` over labels or logits, and a batch of grad_outputs."""
    x, labels = _logits((2, 3, 5), torch.float64), torch.stack([_labels((2, 3, 5)), _labels((2, 3, 5)).flip(1)])

    def loss(x: Tensor, label: Tensor) -> Tensor:
        return fused_boosted_loss(x, label, *BOOSTS["exp"], ignore_index=255, reduction=reduction)

    actual = torch.func.vmap(loss, (None, 0))(x, labels)
    torch.testing.assert_close(actual, torch.stack([loss(x, label) for label in labels]))
    x.requires_grad_()
    value = loss(x, labels[0])
    grad_outputs = torch.stack([torch.ones_like(value), 2 * torch.ones_like(value)])
    (batched,) = torch.autograd.grad(value, x, grad_outputs, retain_graph=True, is_grads_batched=True)
    for tensor, grad_output in zip(batched, grad_outputs, strict=True):
        (expected,) = torch.autograd.grad(loss(x, labels[0]), x, grad_output)
        torch.testing.assert_close(tensor, expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_any_grad_output_of_ignored_pixels(reduction: str) -> None:
    """An infinite weight or grad_output there has no effect."""
    x, label = _logits((2, 3, 5), torch.float32).requires_grad_(), _labels((2, 3, 5))
    weight = torch.where(label == 255, torch.inf, 1.0)
    actual = [
        f(x, label, *BOOSTS["exp"], ignore_index=255, weight=weight, reduction=reduction)
        for f in (fused_boosted_loss, boosted_loss)
    ]
    # the derivative of a root at 0 is infinite
    gradients = [torch.autograd.grad(tensor.sqrt().sum(), x)[0] for tensor in actual]
    torch.testing.assert_close(*actual)
    torch.testing.assert_close(*gradients)
    assert bool(gradients[0].isfinite().all())


class DoubledBoost(ExponentialBoost):
    """A boost of a user, whose loss is twice as large."""

    def divergence(self, x: Tensor, t: Tensor) -> Tensor:
        return 2 * super().divergence(x, t)

    def delta(self, x: Tensor, t: Tensor) -> Tensor:
        return 2 * super().delta(x, t)


def test_a_subclass_of_a_boost() -> None:
    """Its own loss and gradient are computed, not those of the class that it inherits from."""
    x, label = _logits((2, 3, 5), torch.float32), _labels((2, 3, 5))
    for own, plain in zip(
        _run(fused_boosted_loss, x, label, DoubledBoost(0.1), (0.0, 6.0), ignore_index=255),
        _run(boosted_loss, x, label, ExponentialBoost(0.1), (0.0, 6.0), ignore_index=255),
        strict=True,
    ):
        torch.testing.assert_close(own, 2 * plain)
