"""Boosts: the monotone functions ``g`` that replace the softmax, the convex losses that belong to them, and their options.

With linear outputs ``x`` and target values ``t``, gradient boosting back-propagates ``g(x) - t`` for every class separately
(paper, section 2). As ``g`` is monotone, that is the gradient of a convex loss: with ``G' = g`` and ``G*`` the convex conjugate
of ``G``, the Fenchel-Young loss

    L(x, t) = G(x) - t*x + G*(t)  >=  0,   and 0 exactly where g(x) = t.

================================  ============================  =======================  ======================================
boost                             g(x)                          G(x)                     G*(t)
================================  ============================  =======================  ======================================
`ExponentialBoost`, section 2.1   ``a exp(x)``                  ``a exp(x)``             ``t ln(t/a) - t``, and 0 at t = 0
`CubicBoost`, section 2.2         ``a x^3 + b``                 ``a x^4 / 4 + b x``      ``3/4 abs(t-b)^(4/3) a^(-1/3)``
`LinearBoost`, section 1.3        ``x``                         ``x^2 / 2``              ``t^2 / 2``
`MirroredExponentialBoost`, 2.2   ``a sgn(x) exp(|x|-1) + b``   ``a exp(|x|-1) + b x``   ``s ln(s/a)`` for s = abs(t-b) > a/e;
                                                                                         else ``-a/e``
================================  ============================  =======================  ======================================

Everything is elementwise on tensors of any shape and floating dtype. Shapes: C classes.

A boost of your own is a subclass of `Boost`. Every loss takes an instance of it; `register_boost` makes it available to configs
by its name, ``dict(type='MyBoost', ...)``.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

__all__ = [
    "IMPLEMENTATIONS",
    "Boost",
    "CubicBoost",
    "ExponentialBoost",
    "LinearBoost",
    "LossInputs",
    "LossSpec",
    "MirroredExponentialBoost",
    "build_boost",
    "check_targets",
    "link",
    "prior_logits",
    "register_boost",
]


class Boost(ABC):
    """A monotone increasing function ``g`` of a logit, its antiderivative ``G``, and the convex conjugate ``G*`` of that.

    Subclasses are immutable and comparable, best frozen dataclasses whose fields are the parameters of ``g``. Losses with a
    boost that has no kernel of its own are computed from `divergence` and `delta`.
    """

    @abstractmethod
    def boost(self, x: Tensor) -> Tensor:
        """``g(x)``, which the target values are subtracted from."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """``g^-1(y)``, the logit at which ``g`` reaches ``y``."""

    @abstractmethod
    def potential(self, x: Tensor) -> Tensor:
        """``G(x)``, with ``G' = g``; convex."""

    @abstractmethod
    def conjugate(self, t: Tensor) -> Tensor:
        """``G*(t) = sup_x t*x - G(x)``; infinite where the supremum is."""

    @abstractmethod
    def divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """``L(x, t) = G(x) - t*x + G*(t)``, in a form without cancellation near the optimum ``g(x) = t``.

        ``x`` and ``t`` broadcast. The gradient in ``x`` is ``g(x) - t``.
        """

    def delta(self, x: Tensor, t: Tensor) -> Tensor:
        """``g(x) - t``, the gradient of `divergence` in ``x``; overridden where it would cancel near the optimum."""
        return self.boost(x) - t

    @abstractmethod
    def scaled_excess(self, x: Tensor, level: float, dim: int) -> Tensor:
        """``g(x) - level`` times a positive factor that is constant along ``dim`` and prevents overflow of positive values."""

    def check_target(self, name: str, value: float) -> None:  # noqa: B027  (most boosts reach every value)
        """Raise a ValueError about a target value at which the loss has no lower bound."""


_BOOSTS: dict[str, type[Boost]] = {}

BoostType = TypeVar("BoostType", bound=type[Boost])


def register_boost(boost: BoostType) -> BoostType:
    """Class decorator: make a boost available by its name, ``dict(type='MyBoost', ...)``, to configs and `build_boost`.

    A class that is defined again (a cell of a notebook that is run twice) replaces its earlier definition.

    Returns:
        The class.

    Raises:
        TypeError: it is not a subclass of `Boost`.
        ValueError: another boost has its name.
    """
    if not (isinstance(boost, type) and issubclass(boost, Boost)):
        raise TypeError(f"a boost is a subclass of gbseg.boosting.Boost, got {boost!r}.")
    name = boost.__name__
    other = _BOOSTS.get(name, boost)
    if (other.__module__, other.__qualname__) != (boost.__module__, boost.__qualname__):
        raise ValueError(
            f"the boost {name} of {other.__module__} is registered already: give that of {boost.__module__} a name of its own."
        )
    _BOOSTS[name] = boost
    return boost


def _check_parameters(boost: Boost, alpha: float, beta: float = 0.0) -> None:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"{type(boost).__name__}: alpha scales an increasing function and must be > 0, got {alpha!r}.")
    if not math.isfinite(beta):
        raise ValueError(f"{type(boost).__name__}: beta must be a finite number, got {beta!r}.")


@register_boost
@dataclass(frozen=True)
class ExponentialBoost(Boost):
    """Exponential boosting (exp-GB), ``g(x) = alpha * exp(x)``: paper, section 2.1. Half a unit Poisson deviance.

    Raises:
        ValueError: ``alpha`` is not positive.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        _check_parameters(self, self.alpha)

    def boost(self, x: Tensor) -> Tensor:
        """``alpha * exp(x)``."""
        return self.alpha * torch.exp(x)

    def inverse(self, y: Tensor) -> Tensor:
        """``ln(y / alpha)``; minus infinity for ``y <= 0``, which ``g`` does not reach."""
        return torch.log(y.clamp(min=0) / self.alpha)

    def potential(self, x: Tensor) -> Tensor:
        """``alpha * exp(x)``."""
        return self.alpha * torch.exp(x)

    def conjugate(self, t: Tensor) -> Tensor:
        """``t*ln(t/alpha) - t``, 0 at ``t = 0``, and infinite below."""
        return torch.where(t < 0, torch.inf, torch.special.xlogy(t, t / self.alpha) - t)

    def divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """``t*(expm1(u) - u)`` with ``u = x - ln(t/alpha)``, for u > 1 ``alpha*exp(x) - t*(1 + u)``; ``alpha*exp(x)`` at t = 0.

        NaN where ``t`` is negative or NaN, for which there is no loss.
        """
        reachable = t > 0
        # harmless values where a branch is not taken keep it finite: 0 * inf in its gradient would be NaN
        safe_t = torch.where(reachable, t, 1.0)
        u = x - torch.log(safe_t / self.alpha)
        near = reachable & (u <= 1)
        u_near = torch.where(near, u, 0.0)
        # away from the optimum nothing cancels, and exp(u) would overflow for a tiny t where alpha*exp(x) does not
        far = self.alpha * torch.exp(torch.where(near, 0.0, x)) - torch.where(reachable & ~near, t * (1 + u), 0.0)
        loss = torch.where(near, safe_t * (torch.expm1(u_near) - u_near), far)
        # a factor, so that the gradient is NaN as well
        return loss * torch.where(t >= 0, 1.0, torch.nan)

    def delta(self, x: Tensor, t: Tensor) -> Tensor:
        """``t * expm1(u)`` with ``u = x - ln(t/alpha)``, for u > 1 and at t = 0 ``alpha*exp(x) - t``."""
        u = x - torch.log(t / self.alpha)
        near = (t > 0) & (u <= 1)
        return torch.where(near, t * torch.expm1(torch.where(near, u, 0.0)), self.alpha * torch.exp(x) - t)

    def scaled_excess(self, x: Tensor, level: float, dim: int) -> Tensor:
        """``exp(-m) * (g(x) - level)`` with ``m`` the maximum of ``x`` along ``dim``."""
        largest = x.amax(dim, keepdim=True)
        excess = self.alpha * torch.exp(x - largest)
        # 0 * exp(-m) would be NaN for a very negative m
        return excess - level * torch.exp(-largest) if level else excess

    def check_target(self, name: str, value: float) -> None:
        """Refuse negative targets, for which ``G(x) - t*x`` has no lower bound as ``x`` goes to minus infinity."""
        if value < 0:
            raise ValueError(
                f"{name} = {value:g} is negative, and exponential boosting (alpha*exp(x) > 0) can never reach it: the loss "
                "would have no minimum. Use targets >= 0, or a boost that goes below zero (CubicBoost, LinearBoost)."
            )


@register_boost
@dataclass(frozen=True)
class CubicBoost(Boost):
    """Cubic boosting (pow3-GB), ``g(x) = alpha * x^3 + beta``: paper, section 2.2.

    Raises:
        ValueError: ``alpha`` is not positive or ``beta`` not finite.
    """

    alpha: float = 0.001
    beta: float = 0.4

    def __post_init__(self) -> None:
        _check_parameters(self, self.alpha, self.beta)

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


@register_boost
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


@register_boost
@dataclass(frozen=True)
class MirroredExponentialBoost(Boost):
    """``g(x) = alpha * sgn(x) * exp(|x| - 1) + beta``, which the paper rejects (section 2.2).

    It jumps at 0 from ``beta - alpha/e`` to ``beta + alpha/e``; ``g(0) = beta``.

    Raises:
        ValueError: ``alpha`` is not positive or ``beta`` not finite.
    """

    alpha: float = 0.1
    beta: float = 0.0

    def __post_init__(self) -> None:
        _check_parameters(self, self.alpha, self.beta)

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
        """Three cases of ``s = t - beta``, each a sum of terms that are not negative (up to rounding).

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
        # 0 where a branch is not taken keeps it finite, see ExponentialBoost.divergence
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


def build_boost(boost: Boost | dict) -> Boost:
    """A boost from itself, or from its config, ``dict(type='CubicBoost', alpha=0.001, beta=0.4)``.

    Raises:
        ValueError: no boost of this type is registered.
        TypeError: neither a boost nor a dict.
    """
    if isinstance(boost, Boost):
        return boost
    if not isinstance(boost, dict):
        raise TypeError(f"a boost is a gbseg.boosting.Boost or a dict(type=...), got {type(boost).__name__}.")
    settings = dict(boost)
    name = settings.pop("type", None)
    if name not in _BOOSTS:
        raise ValueError(
            f"there is no boost of type {name!r}; there are {', '.join(_BOOSTS)}. "
            "A boost of your own needs the decorator gbseg.boosting.register_boost, and its module in custom_imports."
        )
    return _BOOSTS[name](**settings)


def target_pair(targets: tuple[float, float]) -> tuple[float, float]:
    """``(t_neg, t_pos)`` as floats: the target values of the wrong classes and of the label's class.

    Raises:
        ValueError: not two finite numbers, or ``t_pos <= t_neg``.
    """
    try:
        t_neg, t_pos = (float(value) for value in targets)
    except (TypeError, ValueError):
        raise ValueError(f"targets are two numbers (t_neg, t_pos), got {targets!r}.") from None
    # not math.isfinite: a compiler may hold them as symbols
    if not (-math.inf < t_neg < math.inf and -math.inf < t_pos < math.inf):
        raise ValueError(f"targets must be finite, got (t_neg, t_pos) = ({t_neg:g}, {t_pos:g}).")
    if t_pos <= t_neg:
        raise ValueError(
            f"t_pos must be larger than t_neg, got (t_neg, t_pos) = ({t_neg:g}, {t_pos:g}); "
            "the first value is the target of the wrong classes, the second that of the right one."
        )
    return t_neg, t_pos


def check_targets(boost: Boost, targets: tuple[float, float]) -> tuple[float, float]:
    """``(t_neg, t_pos)`` as floats, if the boost can be trained towards them.

    Raises:
        ValueError: not two finite numbers, ``t_pos <= t_neg``, or a value that the boost can never reach.
    """
    t_neg, t_pos = target_pair(targets)
    boost.check_target("t_neg", t_neg)
    boost.check_target("t_pos", t_pos)
    return t_neg, t_pos


IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton", "compile")


@dataclass(frozen=True)
class LossSpec:
    """Which boosted loss is computed and how: options that are validated once, and hold for every call.

    Args:
        boost: the boost ``g``.
        targets: ``(t_neg, t_pos)``.
        max_delta: bound of ``|g(x) - t|``; None, or infinity, for no bound.
        impl: one of ``IMPLEMENTATIONS``, see `gbseg.losses.functional.fused_boosted_loss`.
        keep_gradient: whether the forward writes the gradient and keeps it for the backward.

    Raises:
        TypeError: ``boost`` is not a `gbseg.boosting.Boost`.
        ValueError: the boost can never reach the targets, ``max_delta`` is not positive, or there is no such implementation.
    """

    boost: Boost
    targets: tuple[float, float]
    max_delta: float | None = None
    impl: str = "auto"
    keep_gradient: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.boost, Boost):
            raise TypeError(
                f"boost must be a gbseg.boosting.Boost (a loss has it as loss.boost), got {type(self.boost).__name__}."
            )
        object.__setattr__(self, "targets", check_targets(self.boost, self.targets))
        if self.impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl must be one of {IMPLEMENTATIONS}, got {self.impl!r}.")
        if self.max_delta is not None and not self.max_delta > 0:
            raise ValueError(f"max_delta bounds |g(x) - t| and must be > 0 (or None for no bound), got {self.max_delta!r}.")
        if self.max_delta == math.inf:
            # the kernels have a faster path where there is no bound
            object.__setattr__(self, "max_delta", None)


@dataclass(frozen=True)
class LossInputs:
    """What a boosted loss is computed from beside the logits, at one call.

    Args:
        label: ``(N, *)`` integer labels, each a class or ignored, or ``(N, C, *)`` soft labels.
        ignore_index: pixels with this label have no loss (integer labels only).
        class_weight: (C,) factors of the outputs.
        weight: ``(N, *)`` factors of the pixels.
        avg_factor: the divisor of 'mean'.
        reduction: 'none', 'sum' or 'mean'.
        loss_weight: factor of the loss.
    """

    label: Tensor
    ignore_index: int | None
    class_weight: Tensor | None
    weight: Tensor | None
    avg_factor: float | Tensor | None
    reduction: str = "mean"
    loss_weight: float = 1.0

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among them; autograd watches them, so that changing one between forward and backward is an error."""
        candidates = (self.label, self.class_weight, self.weight, self.avg_factor)
        return [value for value in candidates if isinstance(value, Tensor)]

    @property
    def requires_grad(self) -> bool:
        """Whether a tensor other than the logits requires a gradient, which only the reference computes."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors)

    @property
    def is_soft(self) -> bool:
        """Whether the labels are soft."""
        return self.label.is_floating_point()

    @property
    def valid_mask(self) -> Tensor | None:
        """``(N, *)`` whether a pixel is not ignored; None where no pixel can be ignored."""
        if self.ignore_index is None or self.is_soft:
            return None
        return (self.label != self.ignore_index).contiguous()

    def scale(self, valid_mask: Tensor | None) -> float | Tensor:
        """The factor of the sum over the pixels; a tensor where reading its value would synchronise with a device."""
        if self.reduction != "mean":
            return self.loss_weight
        divisor: float | Tensor
        if self.avg_factor is not None:
            divisor = self.avg_factor
        elif valid_mask is not None:
            divisor = torch.count_nonzero(valid_mask).clamp(min=1)
        else:
            divisor = max(self.label.numel() // (max(self.label.shape[1], 1) if self.is_soft else 1), 1)
        if not isinstance(divisor, Tensor):
            return self.loss_weight / divisor
        scale = self.loss_weight / divisor.detach().reshape(()).double()
        return scale.item() if scale.device.type == "cpu" else scale


def link(logits: Tensor, boost: Boost, targets: tuple[float, float], dim: int = 1) -> Tensor:
    """Class probabilities of logits that were trained with ``boost`` and ``targets``.

    At the optimum ``g(x_j) = t_neg + (t_pos - t_neg) * P(j)``, so ``p_j = max(0, (g(x_j) - t_neg) / (t_pos - t_neg))``,
    normalised to sum to one. For the exponential boost with ``t_neg = 0`` this is ``softmax(x)``. Where every class is at
    or below ``t_neg`` the sum is zero, and the link is ``softmax(x)`` instead. Finite logits never give a NaN.

    Args:
        logits: (..., C, ...) with the classes along ``dim``; float16 and bfloat16 are computed in float32.
        boost: the loss's boost.
        targets: the loss's ``(t_neg, t_pos)``.
        dim: the dimension of the classes.

    Returns:
        Probabilities of the shape of ``logits``, float32 or float64.
    """
    x = logits if logits.dtype == torch.float64 else logits.float()
    t_neg, _ = targets
    if isinstance(boost, ExponentialBoost) and t_neg == 0:
        return torch.softmax(x, dim)
    share = boost.scaled_excess(x, t_neg, dim).clamp(min=0)
    # only the proportions matter; the largest share as unit keeps small ones from underflow
    largest = share.amax(dim, keepdim=True)
    share = share / torch.where(largest > 0, largest, 1.0)
    total = share.sum(dim, keepdim=True)
    return torch.where(total > 0, share / total.clamp(min=1), torch.softmax(x, dim))


def prior_logits(frequencies: Tensor, boost: Boost, targets: tuple[float, float]) -> Tensor:
    """The logits ``g^-1(t_neg + (t_pos - t_neg) * p_j)`` at which the link gives the class frequencies ``p_j``.

    Args:
        frequencies: (C,), not negative, summing to one.
        boost: the loss's boost.
        targets: the loss's ``(t_neg, t_pos)``.

    Returns:
        (C,) logits, which a head can start its output bias with.

    Raises:
        ValueError: not a vector of frequencies, or a frequency whose logit is infinite.
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
