"""The definition of the loss against loops over single outputs, quadrature, PyTorch's own losses and gradcheck."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.integrate
import torch
import torch.nn.functional as F
from torch import Tensor

from gbseg.boosting import Boost, CubicBoost, ExponentialBoost, LinearBoost, MirroredExponentialBoost
from gbseg.losses.reference import boosted_loss, bounded_divergence, target_values


class Case(NamedTuple):
    """A boost with its targets, and ``g``, ``G`` and ``g^-1`` written out."""

    boost: Boost
    targets: tuple[float, float]
    g: Callable[[float], float]
    potential: Callable[[float], float]
    optimum: Callable[[float], float]


CASES = {
    "exp": Case(
        ExponentialBoost(0.1),
        (0.0, 6.0),
        lambda x: 0.1 * math.exp(x),
        lambda x: 0.1 * math.exp(x),
        # the loss of a target 0 has no smallest value, but falls to 0; exp(-60) is nothing
        lambda t: math.log(t / 0.1) if t else -60.0,
    ),
    "cubic": Case(
        CubicBoost(0.5, 0.4),
        (-2.0, 3.0),
        lambda x: 0.5 * x**3 + 0.4,
        lambda x: 0.125 * x**4 + 0.4 * x,
        lambda t: math.cbrt((t - 0.4) / 0.5),
    ),
    "linear": Case(LinearBoost(), (0.0, 1.0), lambda x: x, lambda x: x * x / 2, lambda t: t),
    "mirrored": Case(
        MirroredExponentialBoost(0.3, 0.2),
        (0.25, 2.0),  # the first lies in the jump
        lambda x: math.copysign(0.3 * math.exp(abs(x) - 1), x) + 0.2,
        lambda x: 0.3 * math.exp(abs(x) - 1) + 0.2 * x,
        lambda t: math.copysign(max(math.log(max(abs(t - 0.2), 1e-300) / 0.3) + 1, 0.0), t - 0.2),
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

SHAPES = {"rows": (5, 3), "maps": (2, 3, 2, 2), "points": (2, 3, 4)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def _batch(shape: tuple[int, ...], soft: bool, dtype: torch.dtype = torch.float64, scale: float = 1.5) -> tuple[Tensor, Tensor]:
    """Logits that require a gradient, and labels of which some are 255 (or soft labels that need not sum to one)."""
    rng = torch.Generator().manual_seed(sum(shape))
    x = (scale * torch.randn(shape, generator=rng, dtype=torch.float64)).to(dtype).requires_grad_()
    if soft:
        return x, torch.rand(shape, generator=rng, dtype=torch.float64)
    label = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=rng)
    label.view(-1)[1::3] = 255
    return x, label


def _value(case: Case, x: float, t: float, bound: float) -> float:
    """The integral of the clamped error delta from the optimum to ``x``."""
    if bound == math.inf:
        x0 = case.optimum(t)
        return case.potential(x) - t * x - (case.potential(x0) - t * x0)

    def delta(s: float) -> float:
        return min(max(case.g(s) - t, -bound), bound)

    start = case.optimum(t)
    kinks = [case.optimum(t + bound), case.optimum(t - bound) if t > bound or case.g(-60) < 0 else x, 0.0]
    inside = sorted({kink for kink in kinks if min(start, x) < kink < max(start, x)})
    return scipy.integrate.quad(delta, start, x, points=inside or None, epsabs=1e-12, limit=200)[0]


def _by_loops(
    case: Case,
    x: np.ndarray,
    label: np.ndarray,
    *,
    ignore_index: int | None = None,
    class_weight: Tensor | None = None,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
    max_delta: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The loss, and the gradient of its sum, one output at a time."""
    t_neg, t_pos = case.targets
    bound = math.inf if max_delta is None else max_delta
    soft = label.shape == x.shape
    loss, grad, valid = np.zeros((x.shape[0], *x.shape[2:])), np.zeros(x.shape), 0
    for pixel in np.ndindex(loss.shape):
        if not soft and label[pixel] == ignore_index:
            continue
        valid += 1
        for j in range(x.shape[1]):
            at = (pixel[0], j, *pixel[1:])
            t = t_neg + (t_pos - t_neg) * (label[at] if soft else float(label[pixel] == j))
            factor = 1.0 if class_weight is None else class_weight[j].item()
            factor *= 1.0 if weight is None else weight[pixel].item()
            loss[pixel] += factor * _value(case, float(x[at]), float(t), bound)
            grad[at] = factor * min(max(case.g(x[at]) - t, -bound), bound)
    if reduction == "none":
        return loss, grad
    divisor = 1.0 if reduction == "sum" else float(valid if avg_factor is None else avg_factor)
    return loss.sum() / divisor, grad / divisor


def _gradient(loss: Tensor, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return gradient


CLASS_WEIGHT = torch.tensor([0.3, 0.0, 2.7], dtype=torch.float64)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "class_weight": dict(class_weight=CLASS_WEIGHT),
    "weight": dict(weight=True),
    "avg_number": dict(avg_factor=7.3),
    "avg_tensor": dict(avg_factor=torch.tensor(7.3, dtype=torch.float64)),
    "sum": dict(reduction="sum"),
    "none": dict(reduction="none"),
    "max_delta": dict(max_delta=0.7),
    "all": dict(class_weight=CLASS_WEIGHT, weight=True, avg_factor=11, max_delta=0.9),
    "all_none": dict(class_weight=CLASS_WEIGHT, weight=True, avg_factor=11, max_delta=0.9, reduction="none"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@every_shape
@every_case
def test_against_loops(case: Case, shape: tuple[int, ...], soft: bool, options: dict[str, Any]) -> None:
    """Value and gradient, ``g(x) - t`` times the weights over the divisor, in every layout with every option."""
    x, label = _batch(shape, soft)
    options = dict(options, ignore_index=None if soft else 255)
    if options.get("weight"):
        options["weight"] = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = boosted_loss(x, label, case.boost, case.targets, **options)
    expected_loss, expected_grad = _by_loops(case, x.detach().numpy(), label.numpy(), **options)
    assert loss.shape == expected_loss.shape and loss.dtype == torch.float64
    tolerance = 1e-9 if "max_delta" in options else 1e-12
    np.testing.assert_allclose(loss.detach().numpy(), expected_loss, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(_gradient(loss, x).numpy(), expected_grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
@every_shape
def test_target_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """``t_pos`` at the label and ``t_neg`` elsewhere, for every integer type; soft labels in between."""
    label = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(0)).to(dtype)
    one_hot = torch.from_numpy(np.moveaxis(np.eye(shape[1])[label.numpy()], -1, 1))
    actual = target_values(label, shape[1], (-2.0, 10.0), torch.float64)
    assert torch.equal(actual, -2 + 12 * one_hot)
    assert torch.equal(target_values(one_hot.float(), shape[1], (-2.0, 10.0), torch.float64), -2 + 12 * one_hot)


# --- against PyTorch's own losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "t_pos"), [(0.1, 16.0), (0.1, 6.0), (0.01, 10.0)])
@every_shape
def test_expgb_is_cross_entropy_and_a_penalty(shape: tuple[int, ...], alpha: float, t_pos: float) -> None:
    """exp-GB = t_pos * [cross_entropy + (z - ln z - 1)], z = alpha * S / t_pos, in value and gradient."""
    x, label = _batch(shape, soft=False)
    loss = boosted_loss(x, label, ExponentialBoost(alpha), (0.0, t_pos), ignore_index=255)
    log_z = torch.logsumexp(x, 1) + math.log(alpha / t_pos)
    penalty = (log_z.exp() - log_z - 1)[label != 255].mean()
    expected = t_pos * (F.cross_entropy(x, label, ignore_index=255) + penalty)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(_gradient(loss, x), _gradient(expected, x), rtol=1e-10, atol=1e-10)


@every_shape
def test_expgb_is_half_a_poisson_deviance(shape: tuple[int, ...]) -> None:
    """exp-GB is the Poisson loss of the rate ``alpha * exp(x)``, above its smallest value."""
    x, p = _batch(shape, soft=True)
    t = 6 * p
    loss = boosted_loss(x, p, ExponentialBoost(0.1), (0.0, 6.0), reduction="sum")
    poisson = F.poisson_nll_loss(x + math.log(0.1), t, log_input=True, reduction="sum")
    smallest = F.poisson_nll_loss(t.log(), t, log_input=True, reduction="sum")
    torch.testing.assert_close(loss, poisson - smallest, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(_gradient(loss, x), _gradient(poisson, x), rtol=1e-10, atol=1e-10)


@every_shape
def test_linear_is_the_squared_error(shape: tuple[int, ...]) -> None:
    """The linear boost's loss is half the squared error, summed over classes; clamped, it is Huber's."""
    x, p = _batch(shape, soft=True)
    pixels = p.numel() // shape[1]
    loss = boosted_loss(x, p, LinearBoost(), (0.0, 1.0))
    torch.testing.assert_close(loss, F.mse_loss(x, p, reduction="sum") / 2 / pixels)
    clamped = boosted_loss(x, p, LinearBoost(), (0.0, 1.0), max_delta=0.6)
    torch.testing.assert_close(clamped, F.huber_loss(x, p, reduction="sum", delta=0.6) / pixels)


# --- derivatives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_delta", [None, 0.7])
@every_case
def test_gradcheck(case: Case, max_delta: float | None) -> None:
    """First and second derivatives, of the logits and of both weights, agree with finite differences."""
    x, label = _batch((2, 3, 4), soft=False)
    weights = torch.rand(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    class_weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).requires_grad_()

    def loss(x: Tensor, weight: Tensor, class_weight: Tensor) -> Tensor:
        return boosted_loss(
            x,
            label,
            case.boost,
            case.targets,
            ignore_index=255,
            weight=weight,
            class_weight=class_weight,
            reduction="none",
            max_delta=max_delta,
        )

    assert torch.autograd.gradcheck(loss, (x, weights, class_weight))
    assert torch.autograd.gradgradcheck(loss, (x, weights, class_weight))


@pytest.mark.parametrize(
    ("boost", "second"),
    [
        (ExponentialBoost(0.1), lambda x: 0.1 * np.exp(x)),
        (CubicBoost(0.5, 0.4), lambda x: 1.5 * x**2),
        (LinearBoost(), np.ones_like),
        (MirroredExponentialBoost(0.3, 0.2), lambda x: 0.3 * np.exp(np.abs(x) - 1)),
    ],
    ids=["exp", "cubic", "linear", "mirrored"],
)
def test_double_backward(boost: Boost, second: Callable[[np.ndarray], np.ndarray]) -> None:
    """The second derivative is ``g'(x)``, diagonal, whatever the label."""
    x, label = _batch((6, 3), soft=False)
    loss = boosted_loss(x, label, boost, (1.0, 2.0), ignore_index=255, reduction="sum")
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    expected = second(x.detach().numpy()) * (label != 255).numpy()[:, None]
    np.testing.assert_allclose(_gradient(first, x).numpy(), expected, rtol=1e-12)


@every_case
def test_clamped_delta_where_the_clamp_sets_in(case: Case) -> None:
    """Where the delta is exactly ``max_delta`` the gradient is that too, not a mean of the two sides' formulas."""
    t = torch.tensor([case.targets[1]], dtype=torch.float64)
    x = torch.cat([case.boost.inverse(t + 0.5), case.boost.inverse(t - 0.5)]).requires_grad_()
    gradient = _gradient(bounded_divergence(case.boost, x, t, 0.5), x)
    torch.testing.assert_close(gradient, torch.tensor([0.5, -0.5], dtype=torch.float64))


@every_case
def test_clamped_delta_of_huge_logits(case: Case) -> None:
    """With a bound, any finite logit has a finite loss and a gradient no larger than the bound, in float32 too."""
    x = torch.tensor([-1e30, -1e4, -100.0, 0.5, 100.0, 1e4, 1e30]).requires_grad_()
    for t in case.targets:
        value = bounded_divergence(case.boost, x, torch.tensor(t), 2.0)
        assert torch.isfinite(value).all() and (value >= 0).all()
        gradient = _gradient(value, x)
        deltas = [case.g(logit) - t if abs(logit) <= 100 else math.copysign(math.inf, logit) for logit in x.tolist()]
        if isinstance(case.boost, ExponentialBoost):
            deltas[:2] = [-t, -t]  # exp(-1e4) is nothing
        torch.testing.assert_close(gradient, torch.tensor(deltas).clamp(-2.0, 2.0))


@pytest.mark.parametrize("max_delta", [None, 0.5])
def test_a_logit_of_minus_infinity(max_delta: float | None) -> None:
    """A masked-out class: exponential boosting approaches its target 0 there, so its loss and gradient are 0 and not NaN."""
    x = torch.tensor([[-math.inf, 1.0]], requires_grad=True)
    loss = boosted_loss(x, torch.tensor([1]), ExponentialBoost(0.1), (0.0, 6.0), max_delta=max_delta)
    expected = boosted_loss(x[:, 1:], torch.tensor([0]), ExponentialBoost(0.1), (0.0, 6.0), max_delta=max_delta)
    torch.testing.assert_close(loss, expected)
    assert _gradient(loss, x)[0].tolist() == [0.0, _gradient(expected, x)[0, 1].item()]


@every_case
def test_unbounded_bound(case: Case) -> None:
    """An infinite bound is no bound."""
    x, label = _batch((5, 3), soft=False)
    options = dict(ignore_index=255, reduction="sum")
    loss = boosted_loss(x, label, case.boost, case.targets, max_delta=math.inf, **options)  # type: ignore[arg-type]
    expected = boosted_loss(x, label, case.boost, case.targets, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(_gradient(loss, x), _gradient(expected, x))


# --- the ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_delta", [None, 0.5])
@every_shape
@every_case
def test_zero_at_the_optimum(case: Case, shape: tuple[int, ...], max_delta: float | None) -> None:
    """The loss is never negative, and 0 with a gradient of 0 where ``g(x) = t``."""
    case = case._replace(targets=(1.0, 2.0))  # outside the jump, within everybody's reach
    x, p = _batch(shape, soft=True)
    assert (boosted_loss(x, p, case.boost, case.targets, reduction="none", max_delta=max_delta) >= 0).all()
    best = torch.tensor(np.vectorize(case.optimum)(1 + p.numpy())).requires_grad_()
    loss = boosted_loss(best, p, case.boost, case.targets, max_delta=max_delta)
    assert 0 <= loss.item() < 1e-28
    torch.testing.assert_close(_gradient(loss, best), torch.zeros_like(best), rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@every_shape
@every_case
def test_nothing_to_learn(case: Case, shape: tuple[int, ...], reduction: str) -> None:
    """A batch of ignored pixels only has exactly no loss and no gradient."""
    x, label = _batch(shape, soft=False)
    loss = boosted_loss(x, torch.full_like(label, 255), case.boost, case.targets, ignore_index=255, reduction=reduction)
    assert not loss.any() and not _gradient(loss, x).any()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2, 2), (2, 3, 0)], ids=str)
def test_empty_batch(shape: tuple[int, ...], soft: bool, reduction: str) -> None:
    """A batch without pixels has a loss of 0 and a gradient of its shape."""
    x = torch.zeros(shape, requires_grad=True)
    label = torch.zeros(shape) if soft else torch.zeros(shape[0], *shape[2:], dtype=torch.long)
    loss = boosted_loss(x, label, ExponentialBoost(), (0.0, 16.0), ignore_index=255, reduction=reduction)
    assert loss.shape == ((shape[0], *shape[2:]) if reduction == "none" else ())
    assert not loss.isnan().any() and not loss.any()
    assert _gradient(loss, x).shape == shape


@pytest.mark.parametrize("max_delta", [None, 0.5])
@every_shape
@every_case
def test_wild_logits_of_ignored_pixels(case: Case, shape: tuple[int, ...], max_delta: float | None) -> None:
    """Whatever an ignored pixel holds changes neither the loss nor any gradient."""
    x, label = _batch(shape, soft=False, dtype=torch.float32)
    loss = boosted_loss(x, label, case.boost, case.targets, ignore_index=255, max_delta=max_delta)
    gradient = _gradient(loss, x)
    ignored = (label == 255).unsqueeze(1).expand(shape)
    for value in (math.inf, -math.inf, math.nan, 3e38, -3e38):
        wild = x.detach().masked_fill(ignored, value).requires_grad_()
        actual = boosted_loss(wild, label, case.boost, case.targets, ignore_index=255, max_delta=max_delta)
        assert torch.equal(actual, loss) and torch.equal(_gradient(actual, wild), gradient)


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@every_case
def test_half_precision_logits(case: Case, soft: bool, dtype: torch.dtype, autocast: bool) -> None:
    """Half-precision logits are computed in float32, inside an autocast region too; their gradient has their dtype."""
    x, label = _batch((2, 3, 4), soft, dtype, scale=4.0)
    label = label.float() if soft else label
    full = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = boosted_loss(x, label, case.boost, case.targets, ignore_index=255, reduction="sum")
    expected = boosted_loss(full, label, case.boost, case.targets, ignore_index=255, reduction="sum")
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    gradient = _gradient(loss, x)
    assert gradient.dtype == dtype and torch.equal(gradient, _gradient(expected, full).to(dtype))


@every_case
def test_float32_against_float64(case: Case) -> None:
    """The loss of float32 logits is the float64 loss of the same logits, to float32's precision."""
    x, label = _batch((2, 3, 4), soft=False, dtype=torch.float32)
    actual = boosted_loss(x, label, case.boost, case.targets, ignore_index=255)
    expected = boosted_loss(x.double(), label, case.boost, case.targets, ignore_index=255)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=3e-6, atol=1e-6)
