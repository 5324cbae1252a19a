"""Boosts: the monotone functions ``g`` that replace the softmax, with the convex losses that belong to them.

With linear outputs ``x`` and target values ``t``, gradient boosting back-propagates ``g(x) - t`` for every class on its
own (paper, section 2). As ``g`` is monotone, that is the gradient of a convex loss. With ``G' = g`` and ``G*`` the convex
conjugate of ``G``, it is the Fenchel-Young loss

    L(x, t) = G(x) - t*x + G*(t)  >=  0,   and 0 exactly where g(x) = t.

| boost                           | g(x)                       | G(x)                     | G*(t)                           |
|---------------------------------|----------------------------|--------------------------|---------------------------------|
| `ExponentialBoost`, section 2.1 | a exp(x)                   | a exp(x)                 | t ln(t/a) - t, and 0 at t = 0   |
| `CubicBoost`, section 2.2       | a x^3 + b                  | a x^4 / 4 + b x          | 3/4 abs(t-b)^(4/3) a^(-1/3)     |
| `LinearBoost`, section 1.3      | x                          | x^2 / 2                  | t^2 / 2                         |
| `MirroredExponentialBoost`, 2.2 | a sgn(x) exp(abs(x)-1) + b | a exp(abs(x)-1) + b x    | s ln(s/a), s = abs(t-b) > a/e;  |
|                                 |                            |                          | else -a/e                       |

Everything is elementwise on tensors of any shape and floating dtype. Shapes: C classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Boost",
    "CubicBoost",
    "ExponentialBoost",
    "LinearBoost",
    "MirroredExponentialBoost",
    "build_boost",
    "check_targets",
    "link",
    "prior_logits",
]


class Boost(ABC):
    """A monotone increasing function ``g`` of a logit, its antiderivative and the convex conjugate of that."""

    @abstractmethod
    def boost(self, x: Tensor) -> Tensor:
        """``g(x)``, what the target values are subtracted from."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """The logit at which ``g`` reaches ``y``."""

    @abstractmethod
    def potential(self, x: Tensor) -> Tensor:
        """``G(x)``, with ``G' = g``; convex."""

    @abstractmethod
    def conjugate(self, t: Tensor) -> Tensor:
        """``G*(t) = sup_x t*x - G(x)``, infinite where no logit approaches the supremum."""

    @abstractmethod
    def divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """``L(x, t) = G(x) - t*x + G*(t)``, written so that it does not cancel near the optimum ``g(x) = t``.

        ``x`` and ``t`` broadcast. The gradient in ``x`` is ``g(x) - t``.
        """

    def delta(self, x: Tensor, t: Tensor) -> Tensor:
        """``g(x) - t``, the derivative of `divergence` in ``x``, as exact as that near the optimum."""
        return self.boost(x) - t

    @abstractmethod
    def scaled_excess(self, x: Tensor, level: float, dim: int) -> Tensor:
        """``g(x) - level`` times a positive factor, shared along ``dim``, under which no positive value overflows."""

    def check_target(self, name: str, value: float) -> None:  # noqa: B027  (most boosts reach every value)
        """Refuse a target value at which the loss has no lower bound."""


def _require_positive(owner: Boost, alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"{type(owner).__name__}: alpha scales an increasing function and must be > 0, got {alpha!r}.")


def _require_finite(owner: Boost, beta: float) -> None:
    if not math.isfinite(beta):
        raise ValueError(f"{type(owner).__name__}: beta must be a finite number, got {beta!r}.")


@dataclass(frozen=True)
class ExponentialBoost(Boost):
    """Exponential boosting (exp-GB), ``g(x) = alpha * exp(x)``: paper, section 2.1. Half a unit Poisson deviance.

    Raises:
        ValueError: ``alpha <= 0``.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        _require_positive(self, self.alpha)

    def boost(self, x: Tensor) -> Tensor:
        """``alpha * exp(x)``."""
        return self.alpha * torch.exp(x)

    def inverse(self, y: Tensor) -> Tensor:
        """``ln(y / alpha)``; minus infinity for ``y <= 0``, which ``g`` approaches or never reaches."""
        return torch.log(y.clamp(min=0) / self.alpha)

    def potential(self, x: Tensor) -> Tensor:
        """``alpha * exp(x)``."""
        return self.alpha * torch.exp(x)

    def conjugate(self, t: Tensor) -> Tensor:
        """``t*ln(t/alpha) - t``, 0 at ``t = 0``, and infinite below."""
        return torch.where(t < 0, torch.inf, torch.special.xlogy(t, t / self.alpha) - t)

    def divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """``t*(expm1(u) - u)`` with ``u = x - ln(t/alpha)``, for u > 1 ``alpha*exp(x) - t*(1 + u)``; ``alpha*exp(x)`` at t = 0.

        NaN where ``t`` is negative or NaN: there is no such loss.
        """
        reachable = t > 0
        # stand-ins keep the branches that are not taken finite: 0 * inf in their gradients would be NaN
        some_t = torch.where(reachable, t, 1.0)
        u = x - torch.log(some_t / self.alpha)
        near = reachable & (u <= 1)
        u_near = torch.where(near, u, 0.0)
        # away from the optimum nothing cancels, and exp(u) would overflow for a tiny t where alpha*exp(x) does not
        far = self.alpha * torch.exp(torch.where(near, 0.0, x)) - torch.where(reachable & ~near, t * (1 + u), 0.0)
        loss = torch.where(near, some_t * (torch.expm1(u_near) - u_near), far)
        # a product, so that the gradient is NaN as well
        return loss * torch.where(t >= 0, 1.0, torch.nan)

    def delta(self, x: Tensor, t: Tensor) -> Tensor:
        """``t * expm1(u)`` with ``u = x - ln(t/alpha)``, for u > 1 and at t = 0 ``alpha*exp(x) - t``."""
        u = x - torch.log(t / self.alpha)
        near = (t > 0) & (u <= 1)
        return torch.where(near, t * torch.expm1(torch.where(near, u, 0.0)), self.alpha * torch.exp(x) - t)

    def scaled_excess(self, x: Tensor, level: float, dim: int) -> Tensor:
        """``exp(-m) * (g(x) - level)`` with ``m`` the maximum of ``x`` along ``dim``."""
        top = x.amax(dim, keepdim=True)
        excess = self.alpha * torch.exp(x - top)
        # without a level there is nothing to subtract, and 0 * exp(-m) is NaN for a very negative m
        return excess - level * torch.exp(-top) if level else excess

    def check_target(self, name: str, value: float) -> None:
        """Refuse negative targets: ``G(x) - t*x`` then falls without end as ``x`` goes to minus infinity."""
        if value < 0:
            raise ValueError(
                f"{name} = {value:g} is negative, and exponential boosting (alpha*exp(x) > 0) can never reach it: the loss "
                "would have no minimum. Use targets >= 0, or a boost that goes below zero (CubicBoost, LinearBoost)."
            )


@dataclass(frozen=True)
class CubicBoost(Boost):
    """Cubic boosting (pow3-GB), ``g(x) = alpha * x^3 + beta``: paper, section 2.2.

    Raises:
        ValueError: ``alpha <= 0`` or ``beta`` not finite.
    """

    alpha: float = 0.001
    beta: float = 0.4

    def __post_init__(self) -> None:
        _require_positive(self, self.alpha)
        _require_finite(self, self.beta)

    def boost(self, x: Tensor) -> Tensor:
        """``alpha * x^3 + beta``."""
        return self.alpha * x**3 + self.beta

    def inverse(self, y: Tensor) -> Tensor:
        """The real cube root of ``(y - beta) / alpha``."""
        cube = (y - self.beta) / self.alpha
        return torch.sign(cube) * torch.abs(cube) ** (1 / 3)

    def potential(self, x: Tensor) -> Tensor:
        """``alpha * x^4 / 4 + beta * x``."""
        return self.alpha * x**4 / 4 + self.beta * x

    def conjugate(self, t: Tensor) -> Tensor:
        """``3/4 * |t - beta|^(4/3) * alpha^(-1/3)``."""
        return 0.75 * torch.abs(t - self.beta) ** (4 / 3) * self.alpha ** (-1 / 3)

    def divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """``alpha/4 * (x - x0)^2 * (x^2 + 2*x*x0 + 3*x0^2)`` with ``g(x0) = t``."""
        x0 = self.inverse(t)
        return self.alpha / 4 * (x - x0) ** 2 * (x**2 + 2 * x * x0 + 3 * x0**2)

    def delta(self, x: Tensor, t: Tensor) -> Tensor:
        """``alpha * (x - x0) * (x^2 + x*x0 + x0^2)`` with ``g(x0) = t``."""
        x0 = self.inverse(t)
        return self.alpha * (x - x0) * (x**2 + x * x0 + x0**2)

    def scaled_excess(self, x: Tensor, level: float, dim: int) -> Tensor:
        """``(g(x) - level) / r^3`` with ``r`` the larger of 1 and the maximum of ``x`` along ``dim``."""
        reach = x.amax(dim, keepdim=True).clamp(min=1)
        return self.alpha * (x / reach) ** 3 + (self.beta - level) * reach**-3


@dataclass(frozen=True)
class LinearBoost(Boost):
    """No boosting, ``g(x) = x``: linear outputs with the mean squared error (paper, section 1.3 and Table 1)."""

    def boost(self, x: Tensor) -> Tensor:
        """``x``."""
        return x

    def inverse(self, y: Tensor) -> Tensor:
        """``y``."""
        return y

    def potential(self, x: Tensor) -> Tensor:
        """``x^2 / 2``."""
        return x**2 / 2

    def conjugate(self, t: Tensor) -> Tensor:
        """``t^2 / 2``."""
        return t**2 / 2

    def divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """``(x - t)^2 / 2``."""
        return (x - t) ** 2 / 2

    def scaled_excess(self, x: Tensor, level: float, dim: int) -> Tensor:
        """``(x - level) / r`` with ``r`` the larger of 1 and the maximum of ``x`` along ``dim``."""
        reach = x.amax(dim, keepdim=True).clamp(min=1)
        return x / reach - level / reach


@dataclass(frozen=True)
class MirroredExponentialBoost(Boost):
    """``g(x) = alpha * sgn(x) * exp(|x| - 1) + beta``, which the paper rejects (section 2.2).

    It jumps at 0 from ``beta - alpha/e`` to ``beta + alpha/e``, and ``g(0) = beta``.

    Raises:
        ValueError: ``alpha <= 0`` or ``beta`` not finite.
    """

    alpha: float = 0.1
    beta: float = 0.0

    def __post_init__(self) -> None:
        _require_positive(self, self.alpha)
        _require_finite(self, self.beta)

    def boost(self, x: Tensor) -> Tensor:
        """``alpha * sgn(x) * exp(|x| - 1) + beta``."""
        return self.alpha * torch.sign(x) * torch.exp(torch.abs(x) - 1) + self.beta

    def inverse(self, y: Tensor) -> Tensor:
        """``sgn(s) * (ln(|s|/alpha) + 1)`` with ``s = y - beta``, and 0 for ``s`` inside the jump."""
        s = y - self.beta
        return torch.sign(s) * (torch.log(s.abs() / self.alpha) + 1).clamp(min=0)

    def potential(self, x: Tensor) -> Tensor:
        """``alpha * exp(|x| - 1) + beta * x``."""
        return self.alpha * torch.exp(torch.abs(x) - 1) + self.beta * x

    def conjugate(self, t: Tensor) -> Tensor:
        """``s*ln(s/alpha)`` for ``s = |t - beta| > alpha/e``, else ``-alpha/e``."""
        s = torch.abs(t - self.beta)
        return torch.where(s > self.alpha / math.e, torch.special.xlogy(s, s / self.alpha), -self.alpha / math.e)

    def divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """With ``s = t - beta``, three cases, each a sum of terms that are not negative (up to rounding).

        ``|s| <= alpha/e`` (the optimum is the jump itself): ``alpha/e * (expm1|x| - |x|) + alpha/e * |x| - s*x``;
        ``x`` on the side of ``s``: ``|s| * (expm1(u) - u)`` with ``u = |x| - 1 - ln(|s|/alpha)``;
        ``x`` on the other side, or 0: ``alpha*exp(|x| - 1) - s*x + |s|*ln(|s|/alpha)``.
        """
        step = self.alpha / math.e
        s = t - self.beta
        size = torch.abs(s).clamp(min=step)
        in_jump = torch.abs(s) <= step
        same_side = x * torch.sign(s) > 0
        reach = torch.abs(x)
        # 0 in each branch that is not taken keeps it finite, see ExponentialBoost.divergence
        within = torch.where(in_jump, reach, 0.0)
        jump = step * (torch.expm1(within) - within) + step * within - s * x
        log_size = torch.log(size / self.alpha)
        u = torch.where(same_side & ~in_jump, reach - 1 - log_size, 0.0)
        near = size * (torch.expm1(u) - u)
        across = torch.where(same_side | in_jump, 0.0, reach)
        far = self.alpha * torch.exp(across - 1) - s * x + size * log_size
        return torch.where(in_jump, jump, torch.where(same_side, near, far))

    def scaled_excess(self, x: Tensor, level: float, dim: int) -> Tensor:
        """``exp(-m) * (g(x) - level)`` with ``m`` the larger of 0 and the maximum of ``x`` along ``dim``."""
        reach = x.amax(dim, keepdim=True).clamp(min=0)
        return self.alpha * torch.sign(x) * torch.exp(x.abs() - 1 - reach) + (self.beta - level) * torch.exp(-reach)


_BOOSTS: dict[str, type[Boost]] = {
    boost.__name__: boost for boost in (ExponentialBoost, CubicBoost, LinearBoost, MirroredExponentialBoost)
}


def build_boost(boost: Boost | dict) -> Boost:
    """A boost from itself, or from a config's ``dict(type='CubicBoost', alpha=0.001, beta=0.4)``.

    Raises:
        ValueError: the type is not one of the four.
        TypeError: neither a boost nor a dict.
    """
    if isinstance(boost, Boost):
        return boost
    if not isinstance(boost, dict):
        raise TypeError(f"a boost is a gbseg.boosting.Boost or a dict(type=...), got {type(boost).__name__}.")
    settings = dict(boost)
    name = settings.pop("type", None)
    if name not in _BOOSTS:
        raise ValueError(f"there is no boost of type {name!r}; there are {', '.join(_BOOSTS)}.")
    return _BOOSTS[name](**settings)


def target_pair(targets: tuple[float, float]) -> tuple[float, float]:
    """``(t_neg, t_pos)`` as floats: the target values of the other classes and of the pixel's own class.

    Raises:
        ValueError: not two finite numbers, or ``t_pos <= t_neg``.
    """
    try:
        t_neg, t_pos = (float(value) for value in targets)
    except (TypeError, ValueError):
        raise ValueError(f"targets are two numbers (t_neg, t_pos), got {targets!r}.") from None
    if not (math.isfinite(t_neg) and math.isfinite(t_pos)):
        raise ValueError(f"targets must be finite, got (t_neg, t_pos) = ({t_neg:g}, {t_pos:g}).")
    if t_pos <= t_neg:
        raise ValueError(
            f"t_pos must be larger than t_neg, got (t_neg, t_pos) = ({t_neg:g}, {t_pos:g}); "
            "the first value is the target of the wrong classes, the second that of the right one."
        )
    return t_neg, t_pos


def check_targets(boost: Boost, targets: tuple[float, float]) -> tuple[float, float]:
    """`target_pair`, for a boost.

    Raises:
        ValueError: see there; or a value that the boost can never reach.
    """
    t_neg, t_pos = target_pair(targets)
    boost.check_target("t_neg", t_neg)
    boost.check_target("t_pos", t_pos)
    return t_neg, t_pos


def link(logits: Tensor, boost: Boost, targets: tuple[float, float], dim: int = 1) -> Tensor:
    """Class probabilities out of logits that were trained with ``boost`` and ``targets``.

    At the optimum ``g(x_j) = t_neg + (t_pos - t_neg) * P(j)``, so ``p_j = max(0, (g(x_j) - t_neg) / (t_pos - t_neg))``,
    normalised to sum to one. For the exponential boost with ``t_neg = 0`` this is ``softmax(x)``. Where every class is at
    or below ``t_neg`` the sum is zero, and the link is ``softmax(x)`` instead. Finite logits never give a NaN.

    Args:
        logits: (..., C, ...) with the classes along ``dim``; float16 and bfloat16 are computed in float32.
        boost: the boost of the loss.
        targets: its ``(t_neg, t_pos)``.
        dim: the dimension of the classes.

    Returns:
        Probabilities of the shape of ``logits``, float32 or float64.
    """
    x = logits if logits.dtype == torch.float64 else logits.float()
    t_neg, _ = targets
    if isinstance(boost, ExponentialBoost) and t_neg == 0:
        return torch.softmax(x, dim)
    share = boost.scaled_excess(x, t_neg, dim).clamp(min=0)
    # only the proportions count, and the largest share as unit keeps the smallest of them from vanishing
    largest = share.amax(dim, keepdim=True)
    share = share / torch.where(largest > 0, largest, 1.0)
    total = share.sum(dim, keepdim=True)
    return torch.where(total > 0, share / total.clamp(min=1), torch.softmax(x, dim))


def prior_logits(frequencies: Tensor, boost: Boost, targets: tuple[float, float]) -> Tensor:
    """The logits ``g^-1(t_neg + (t_pos - t_neg) * p_j)`` at which the link gives the class frequencies ``p_j``.

    Args:
        frequencies: (C,), not negative, summing to one.
        boost: the boost of the loss.
        targets: its ``(t_neg, t_pos)``.

    Returns:
        (C,) logits, where a head may start its output bias.

    Raises:
        ValueError: not a vector of frequencies, or a class whose logit would be infinite.
    """
    p = torch.as_tensor(frequencies)
    p = p if p.dtype == torch.float64 else p.float()
    if p.ndim != 1 or p.numel() == 0:
        raise ValueError(f"frequencies are one number a class, shape (C,), got shape {tuple(p.shape)}.")
    if bool((p < 0).any()) or not math.isclose(float(p.sum()), 1.0, abs_tol=1e-4):
        raise ValueError(f"frequencies must be >= 0 and sum to 1, got a sum of {float(p.sum()):g}: {p.tolist()}.")
    t_neg, t_pos = targets
    logits = boost.inverse(t_neg + (t_pos - t_neg) * p)
    infinite = torch.nonzero(~torch.isfinite(logits)).flatten().tolist()
    if infinite:
        raise ValueError(
            f"the logit of frequency 0 is infinite under {boost}: classes {infinite}. "
            "Give every class a small count, e.g. frequencies = (counts + 1) / (counts + 1).sum()."
        )
    return logits
