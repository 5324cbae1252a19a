"""Boosts, link and prior logits against 50-digit arithmetic, numerical maximisation and differentiation."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from gbseg import boosting
from gbseg.boosting import (
    Boost,
    CubicBoost,
    ExponentialBoost,
    LinearBoost,
    MirroredExponentialBoost,
    build_boost,
    check_targets,
    link,
    prior_logits,
    register_boost,
)

MP = mpmath.MPContext()
MP.dps = 50
Number = Any  # an mpmath number: mpmath has no types
Function = Callable[[Number], Number]

BOOSTS: list[Boost] = [
    ExponentialBoost(0.1),
    ExponentialBoost(2.0),
    CubicBoost(0.001, 0.4),
    CubicBoost(0.5, -0.3),
    LinearBoost(),
    MirroredExponentialBoost(0.1, 0.0),
    MirroredExponentialBoost(0.3, 0.2),
]
every_boost = pytest.mark.parametrize("boost", BOOSTS, ids=str)
LOGITS = torch.linspace(-6, 6, 49, dtype=torch.float64)
"""Away from 0, where the mirrored boost jumps, except for the middle one."""

SETTINGS: list[tuple[Boost, tuple[float, float]]] = [
    (ExponentialBoost(0.1), (0.0, 16.0)),
    (ExponentialBoost(0.1), (1.0, 10.0)),
    (CubicBoost(0.001, 0.4), (0.0, 10.0)),
    (CubicBoost(0.001, 0.4), (-2.0, 10.0)),
    (LinearBoost(), (0.0, 1.0)),
    (LinearBoost(), (-1.0, 3.0)),
    (MirroredExponentialBoost(0.1, 0.0), (1.0, 10.0)),
    (MirroredExponentialBoost(0.3, 0.2), (-9.0, -1.0)),
]
every_setting = pytest.mark.parametrize(("boost", "targets"), SETTINGS, ids=lambda value: str(value).replace(" ", ""))


def _definition(boost: Boost) -> tuple[Function, Function, Function]:
    """``g``, ``G`` and the logit where ``G(x) - t*x`` is smallest, in 50 digits."""
    match boost:
        case ExponentialBoost(alpha=a):
            return (lambda x: a * MP.exp(x), lambda x: a * MP.exp(x), lambda t: MP.log(MP.mpf(t) / a))
        case CubicBoost(alpha=a, beta=b):
            return (
                lambda x: a * MP.mpf(x) ** 3 + b,
                lambda x: a * MP.mpf(x) ** 4 / 4 + b * MP.mpf(x),
                lambda t: MP.sign(MP.mpf(t) - b) * MP.cbrt(abs(MP.mpf(t) - b) / a),
            )
        case LinearBoost():
            return (MP.mpf, lambda x: MP.mpf(x) ** 2 / 2, MP.mpf)
        case MirroredExponentialBoost(alpha=a, beta=b):
            return (
                lambda x: a * MP.sign(x) * MP.exp(abs(MP.mpf(x)) - 1) + b,
                lambda x: a * MP.exp(abs(MP.mpf(x)) - 1) + b * MP.mpf(x),
                lambda t: MP.sign(MP.mpf(t) - b) * max(MP.log(abs(MP.mpf(t) - b) / a) + 1, 0) if t != b else MP.mpf(0),
            )
    raise AssertionError(boost)


def _divergence(boost: Boost, x: float, t: float) -> Number:
    """``G(x) - t*x`` above its smallest value; the smallest value is 0 for exponential boosting at ``t = 0``."""
    _, potential, optimum = _definition(boost)
    rise = potential(x) - MP.mpf(t) * x
    if isinstance(boost, ExponentialBoost) and t == 0:
        return rise
    return rise - (potential(optimum(t)) - MP.mpf(t) * optimum(t))


def _targets(boost: Boost) -> list[float]:
    """Target values: far away, near, and for the mirrored boost in the middle, off the middle and at the end of its jump."""
    match boost:
        case ExponentialBoost():
            return [0.0, 0.05, 1.0, 16.0]
        case MirroredExponentialBoost(alpha=a, beta=b):
            return [-2.0, b, b + 0.5 * a / math.e, b - 1.001 * a / math.e, 1.0, 10.0]
    return [-2.0, 0.0, 1.0, 10.0]


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x).sum(), x)
    return gradient


# --- the table of boosts in `gbseg.boosting` ---------------------------------------------------------------------------


@every_boost
def test_boost_and_potential(boost: Boost) -> None:
    """``g`` and ``G`` are the paper's, ``G' = g`` (autograd and central differences), and ``g`` increases."""
    g, potential, _ = _definition(boost)
    xs = LOGITS.tolist()
    torch.testing.assert_close(boost.boost(LOGITS), torch.tensor([float(g(x)) for x in xs], dtype=torch.float64))
    torch.testing.assert_close(boost.potential(LOGITS), torch.tensor([float(potential(x)) for x in xs], dtype=torch.float64))
    torch.testing.assert_close(_gradient(boost.potential, LOGITS), boost.boost(LOGITS), rtol=1e-12, atol=1e-12)
    h = 1e-5
    rise = (boost.potential(LOGITS + h) - boost.potential(LOGITS - h)) / (2 * h)
    torch.testing.assert_close(rise, boost.boost(LOGITS), rtol=1e-8, atol=1e-8)
    assert (boost.boost(LOGITS).diff() >= 0).all()


@every_boost
def test_inverse(boost: Boost) -> None:
    """``g^-1(g(x)) = x`` and ``g(g^-1(t)) = t``."""
    torch.testing.assert_close(boost.inverse(boost.boost(LOGITS)), LOGITS, rtol=1e-9, atol=1e-9)
    t = torch.tensor(_targets(boost), dtype=torch.float64)
    if isinstance(boost, MirroredExponentialBoost):
        t = t[(t - boost.beta).abs() > boost.alpha / math.e]
    torch.testing.assert_close(boost.boost(boost.inverse(t)), t, rtol=1e-12, atol=1e-12)


@every_boost
def test_conjugate(boost: Boost) -> None:
    """``G*(t)`` is the largest ``t*x - G(x)`` that a numerical search finds."""
    _, potential, _ = _definition(boost)
    for t in _targets(boost):
        fall = scipy.optimize.minimize_scalar(
            lambda x, t=t: float(potential(x) - t * x), bounds=(-60, 30), method="bounded", options=dict(xatol=1e-9)
        )
        actual = boost.conjugate(torch.tensor(t, dtype=torch.float64)).item()
        assert actual == pytest.approx(-fall.fun, rel=1e-9, abs=1e-9), t


def test_conjugate_out_of_reach() -> None:
    """Below 0 exponential boosting has no supremum, and its inverse no finite value."""
    t = torch.tensor([-1.0, -1e-30], dtype=torch.float64)
    assert ExponentialBoost().conjugate(t).tolist() == [math.inf, math.inf]
    assert ExponentialBoost().inverse(t).tolist() == [-math.inf, -math.inf]


@every_boost
def test_divergence(boost: Boost) -> None:
    """``L = G - t*x + G* >= 0`` everywhere, 0 at the optimum (to rounding), with the gradient ``g(x) - t``."""
    for t in _targets(boost):
        target = torch.tensor(t, dtype=torch.float64)
        actual = boost.divergence(LOGITS, target)
        expected = torch.tensor([float(_divergence(boost, x, t)) for x in LOGITS.tolist()], dtype=torch.float64)
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)
        plain = boost.potential(LOGITS) - t * LOGITS + boost.conjugate(target)
        torch.testing.assert_close(actual, plain, rtol=1e-11, atol=1e-12)
        assert (actual >= 0).all()
        gradient = _gradient(partial(boost.divergence, t=target), LOGITS)
        torch.testing.assert_close(gradient, boost.boost(LOGITS) - t, rtol=1e-12, atol=1e-12)
        if not (isinstance(boost, ExponentialBoost) and t == 0):
            assert boost.divergence(boost.inverse(target), target).item() < 1e-28


def test_divergence_of_zero_target() -> None:
    """At ``t = 0`` exponential boosting only approaches its minimum."""
    x = torch.tensor([-1e30, -700.0, 0.0, 3.0], dtype=torch.float64)
    actual = ExponentialBoost(0.1).divergence(x, torch.zeros(()))
    torch.testing.assert_close(actual, 0.1 * torch.exp(x), rtol=1e-14, atol=0.0)


def test_divergence_of_odd_targets() -> None:
    """Exponential boosting has no loss below 0 (NaN), and one for targets as small as float32 holds."""
    x = torch.tensor([-3.0, 0.0, 80.0])
    for t in (-1e-30, -1.0, math.nan):
        assert ExponentialBoost().divergence(x, torch.tensor(t)).isnan().all()
    tiny = torch.tensor(1e-38)
    torch.testing.assert_close(ExponentialBoost(0.1).divergence(x, tiny), 0.1 * torch.exp(x))
    torch.testing.assert_close(_gradient(partial(ExponentialBoost(0.1).divergence, t=tiny), x), 0.1 * torch.exp(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_boost
def test_divergence_near_the_optimum(boost: Boost, dtype: torch.dtype) -> None:
    """The relative error is what rounding the logit alone would cause, where the plain form has lost every digit."""
    eps = torch.finfo(dtype).eps
    steps = torch.logspace(math.log10(eps**0.57), 0, 30, dtype=torch.float64)
    plain_errors = []
    for t in _targets(boost):
        if isinstance(boost, ExponentialBoost) and t == 0:
            continue
        target = torch.tensor(t, dtype=dtype)
        # from here on the target is the one that the dtype holds
        exact_t = target.item()
        x0 = _definition(boost)[2](exact_t)
        x = (float(x0) + torch.cat([-steps, steps])).to(dtype)
        distance = torch.tensor([float(abs(value - x0)) for value in x.tolist()])
        expected = torch.tensor([float(_divergence(boost, value, exact_t)) for value in x.tolist()], dtype=torch.float64)
        actual = boost.divergence(x, target)
        assert (actual >= 0).all()
        error = (actual.double() - expected).abs() / expected
        assert (error <= 10 * eps * (1 + (1 + abs(float(x0))) / distance)).all(), (t, error.max())
        plain = boost.potential(x) - target * x + boost.conjugate(target)
        plain_errors.append(((plain.double() - expected).abs() / expected).max().item())
    assert max(plain_errors) > 1


def test_jump() -> None:
    """The mirrored boost jumps at 0, and every target inside the jump is reached there, at gradients of both signs."""
    boost = MirroredExponentialBoost(0.3, 0.2)
    step = 0.3 / math.e
    sides = torch.tensor([-1e-12, 0.0, 1e-12], dtype=torch.float64)
    torch.testing.assert_close(boost.boost(sides), torch.tensor([0.2 - step, 0.2, 0.2 + step], dtype=torch.float64))
    t = 0.2 + step * torch.linspace(-0.999, 0.999, 21, dtype=torch.float64)
    assert boost.inverse(t).tolist() == [0.0] * 21
    torch.testing.assert_close(boost.conjugate(t), torch.full_like(t, -step))
    assert boost.divergence(torch.zeros_like(t), t).tolist() == [0.0] * 21
    for x in (1e-9, -1e-9):
        gradient = _gradient(partial(boost.divergence, t=t), torch.full_like(t, x))
        assert (gradient * x > 0).all()


@pytest.mark.parametrize(
    ("boost", "reach"),
    [(ExponentialBoost(), 88.0), (CubicBoost(), 1e9), (LinearBoost(), 1e18), (MirroredExponentialBoost(), 88.0)],
    ids=str,
)
def test_gradient_at_large_logits(boost: Boost, reach: float) -> None:
    """In float32 loss and gradient are finite, and the gradient is ``g(x) - t``, as far as exp (or x^4) is."""
    x = torch.linspace(-reach, reach, 183)
    for t in (0.0, 1.0, 16.0):
        target = torch.tensor(t)
        assert torch.isfinite(boost.divergence(x, target)).all()
        gradient = _gradient(partial(boost.divergence, t=target), x)
        expected = (boost.boost(x.double()) - t).float()
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_mirrored_gradient_where_only_the_other_branch_overflows() -> None:
    """At x = 90.5 the loss of a target on its side is about 7e37, and what is not taken must not make its gradient NaN."""
    x = torch.tensor([90.5, -90.5])
    t = torch.tensor([16.0, -16.0])
    boost = MirroredExponentialBoost()
    assert torch.isfinite(boost.divergence(x, t)).all()
    gradient = _gradient(partial(boost.divergence, t=t), x)
    torch.testing.assert_close(gradient, (boost.boost(x.double()) - t).float(), rtol=1e-4, atol=0.0)


# --- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("boost", [ExponentialBoost, CubicBoost, MirroredExponentialBoost])
def test_alpha_is_refused(boost: Callable[[float], Boost], alpha: float) -> None:
    """Without a positive alpha nothing increases."""
    with pytest.raises(ValueError, match=f"alpha .* must be > 0, got {alpha!r}"):
        boost(alpha)


@pytest.mark.parametrize("boost", [CubicBoost, MirroredExponentialBoost])
def test_beta_is_refused(boost: Callable[[float, float], Boost]) -> None:
    """Beta is a number."""
    with pytest.raises(ValueError, match="beta must be a finite number, got nan"):
        boost(0.1, math.nan)


def test_build_boost() -> None:
    """A boost from itself or from a config, which stays as it was; else an error that says what there is."""
    config = dict(type="CubicBoost", alpha=0.5, beta=-0.3)
    assert build_boost(config) == CubicBoost(0.5, -0.3) and config == dict(type="CubicBoost", alpha=0.5, beta=-0.3)
    assert build_boost(LinearBoost()) == LinearBoost()
    with pytest.raises(ValueError, match="no boost of type 'Softmax'; there are ExponentialBoost, CubicBoost, LinearBoost"):
        build_boost(dict(type="Softmax"))
    with pytest.raises(ValueError, match="no boost of type None"):
        build_boost(dict(alpha=1.0))
    with pytest.raises(TypeError, match="got str"):
        build_boost("LinearBoost")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("boost", "targets", "message"),
    [
        (LinearBoost(), (1.0, 1.0), "t_pos must be larger than t_neg"),
        (LinearBoost(), (1.0, 0.0), "t_pos must be larger than t_neg"),
        (ExponentialBoost(), (-2.0, 10.0), r"t_neg = -2 is negative, and exponential boosting .* targets >= 0"),
        (ExponentialBoost(), (-2.0, -1.0), "t_neg = -2 is negative"),
        (LinearBoost(), (0.0, math.inf), "must be finite"),
        (LinearBoost(), (math.nan, 1.0), "must be finite"),
        (LinearBoost(), (0.0, 1.0, 2.0), "two numbers"),
        (LinearBoost(), 1.0, "two numbers"),
        (LinearBoost(), ("low", "high"), "two numbers"),
    ],
)
def test_targets_are_refused(boost: Boost, targets: Any, message: str) -> None:
    """Targets that have no order, no value or no minimum."""
    with pytest.raises(ValueError, match=message):
        check_targets(boost, targets)


def test_targets() -> None:
    """Whatever holds two numbers will do."""
    assert check_targets(ExponentialBoost(), [0, 16]) == (0.0, 16.0)  # type: ignore[arg-type]
    assert check_targets(CubicBoost(), (-2, 10)) == (-2.0, 10.0)


# --- the link ----------------------------------------------------------------------------------------------------------


def _link(boost: Boost, targets: tuple[float, float], row: list[float]) -> list[float]:
    """The link of one row of logits, in 50 digits."""
    g, _, _ = _definition(boost)
    t_neg, t_pos = targets
    shares = [max(MP.mpf(0), (g(x) - t_neg) / (MP.mpf(t_pos) - t_neg)) for x in row]
    if not sum(shares):
        shares = [MP.exp(MP.mpf(x) - max(row)) for x in row]
    return [float(share / sum(shares)) for share in shares]


@every_setting
def test_link(boost: Boost, targets: tuple[float, float]) -> None:
    """Every combination of moderate, large and huge logits: the definition's probabilities, which sum to one."""
    values = [0.0, 1.5, 4.0, -1.0, 1e4, -1e4, 1e30, -1e30]
    logits = torch.tensor(list(itertools.product(values, repeat=3)))
    actual = link(logits, boost, targets)
    assert actual.dtype == torch.float32
    expected = torch.tensor([_link(boost, targets, row) for row in logits.tolist()])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual.sum(1), torch.ones(len(logits)))


@every_setting
def test_link_below_the_lower_target(boost: Boost, targets: tuple[float, float]) -> None:
    """Where every class is at or below ``t_neg`` the link is softmax(x)."""
    lower = boost.inverse(torch.tensor(targets[0], dtype=torch.float64)).item()
    below = max(lower, -100.0) - torch.tensor([[0.5, 1.0, 3.0], [2.0, 2.0, 2.5]], dtype=torch.float64)
    torch.testing.assert_close(link(below, boost, targets), torch.softmax(below, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_link_of_expgb_is_softmax(dtype: torch.dtype) -> None:
    """With ``t_neg = 0`` exp-GB's link is softmax(x), along any dimension, in at least float32."""
    x = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    for dim in (1, -1):
        actual = link(x, ExponentialBoost(0.1), (0.0, 16.0), dim)
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(actual.double(), torch.softmax(x.double(), dim), rtol=1e-6, atol=1e-7)


@every_setting
def test_link_of_any_layout(boost: Boost, targets: tuple[float, float]) -> None:
    """Classes along any dimension."""
    x = 3 * torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = link(x.movedim(1, -1).reshape(-1, 5), boost, targets).reshape(2, 3, 4, 5)
    torch.testing.assert_close(link(x, boost, targets), rows.movedim(-1, 1))
    torch.testing.assert_close(link(x.movedim(1, -1), boost, targets, dim=-1), rows)


@every_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_prior_logits(boost: Boost, targets: tuple[float, float], dtype: torch.dtype) -> None:
    """The link of the prior logits gives the frequencies back, and ``g`` of them the targets' mean."""
    p = torch.tensor([0.7, 0.2, 0.07, 0.03], dtype=dtype)
    logits = prior_logits(p, boost, targets)
    assert logits.dtype == dtype
    rtol, atol = (1e-9, 1e-12) if dtype == torch.float64 else (2e-4, 1e-5)
    torch.testing.assert_close(link(logits[None], boost, targets)[0], p, rtol=rtol, atol=atol)
    torch.testing.assert_close(boost.boost(logits), targets[0] + (targets[1] - targets[0]) * p, rtol=rtol, atol=atol)


def test_prior_logits_normalise() -> None:
    """A head of exp-GB that starts at the prior starts with ``z = alpha * S / t_pos = 1``."""
    logits = prior_logits(torch.full((21,), 1 / 21, dtype=torch.float64), ExponentialBoost(0.1), (0.0, 16.0))
    assert 0.1 * np.exp(logits.numpy()).sum() / 16 == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("frequencies", "message"),
    [
        ([0.5, 0.2], "sum to 1, got a sum of 0.7"),
        ([1.5, -0.5], "must be >= 0"),
        ([math.nan, 1.0], "sum to 1"),
        ([math.inf, 0.0], "sum to 1"),
        ([[0.5, 0.5]], r"shape \(C,\), got shape \(1, 2\)"),
        ([], r"shape \(C,\)"),
        ([0.5, 0.0, 0.5, 0.0], r"frequency 0 is infinite .* classes \[1, 3\]. Give every class a small count"),
    ],
)
def test_prior_logits_refuse(frequencies: list, message: str) -> None:
    """Anything but frequencies, and a class that exp-GB could never start at."""
    with pytest.raises(ValueError, match=message):
        prior_logits(torch.tensor(frequencies), ExponentialBoost(), (0.0, 16.0))
    if "infinite" in message:
        assert torch.isfinite(prior_logits(torch.tensor(frequencies), CubicBoost(), (0.0, 10.0))).all()


# --- a boost of a user's own -------------------------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Boost]]:
    """The registered boosts, which are restored after the test."""
    boosts = dict(boosting._BOOSTS)
    monkeypatch.setattr(boosting, "_BOOSTS", boosts)
    return boosts


def test_register_boost(registry: dict[str, type[Boost]]) -> None:
    """A registered class is built by its name with its parameters, and is itself as before."""

    @register_boost
    @dataclass(frozen=True)
    class Tripled(LinearBoost):
        factor: float = 3.0

    assert registry["Tripled"] is Tripled
    assert build_boost(dict(type="Tripled", factor=4.0)) == Tripled(4.0)
    assert build_boost(Tripled()) == Tripled(3.0)
    with pytest.raises(ValueError, match=r"no boost of type 'Doubled'; there are .*Mirrored.*, Tripled\. .*register_boost"):
        build_boost(dict(type="Doubled"))


def test_register_boost_again(registry: dict[str, type[Boost]]) -> None:
    """A definition that is run again replaces itself; a name that another class has is refused."""

    def define() -> type[Boost]:
        class Own(LinearBoost):
            pass

        return register_boost(Own)

    first, second = define(), define()
    assert first is not second and registry["Own"] is second
    taken = type("CubicBoost", (LinearBoost,), {"__module__": "mine"})
    with pytest.raises(ValueError, match=r"the boost CubicBoost of gbseg\.boosting is registered already: .* mine a name"):
        register_boost(taken)
    assert registry["CubicBoost"] is CubicBoost


@pytest.mark.parametrize("boost", [LinearBoost(), int, lambda x: x], ids=["instance", "type", "function"])
def test_register_boost_refuses(registry: dict[str, type[Boost]], boost: Any) -> None:
    """Only classes of boosts."""
    with pytest.raises(TypeError, match=r"a boost is a subclass of gbseg\.boosting\.Boost, got"):
        register_boost(boost)
