"""The losses that configs name: the boosted loss with any boost, and its three usual settings.

Shapes: N images or rows, C classes, * any trailing dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

from torch import Tensor

from gbseg.boosting import Boost, CubicBoost, ExponentialBoost, LinearBoost, build_boost, check_targets, link, prior_logits
from gbseg.losses.functional import IMPLEMENTATIONS, fused_boosted_loss
from gbseg.losses.guarded import GuardedLoss
from gbseg.losses.resize import enlarge, resize_loss
from gbseg.losses.spec import Problem

__all__ = ["BoostedLoss", "ExpGBLoss", "LinearLoss", "Pow3GBLoss"]


class LossOptions(TypedDict, total=False):
    """The options that every boosted loss shares; see `BoostedLoss`."""

    class_weight: Sequence[float] | Tensor | None
    loss_weight: float
    reduction: str
    max_delta: float | None
    impl: str
    keep_gradient: bool
    loss_name: str


class BoostedLoss(GuardedLoss):
    """The loss whose gradient at every output is ``g(x_j) - t_j`` (paper, section 2).

    ``L = loss_weight * reduce(sum_j class_weight_j * [G(x_j) - t_j x_j + G*(t_j)])``, computed in float32 (float64 stays
    float64). Labels become ``t_pos`` for the right class and ``t_neg`` for the others; soft labels ``p`` become
    ``t_neg + (t_pos - t_neg) p``. 'mean' divides by the number of pixels that are not ignored.

    Args:
        boost: one of `gbseg.boosting`, or ``dict(type='CubicBoost', alpha=..., beta=...)``.
        targets: ``(t_neg, t_pos)``.
        class_weight: C factors. They multiply *output* j's term at every pixel, so the link stays valid; the ``weight`` of
            ``F.cross_entropy`` multiplies the pixels whose label is j, and changes the divisor as well.
        loss_weight: factor of the whole loss.
        reduction: 'none', 'sum' or 'mean'.
        max_delta: clamps ``g(x) - t`` to ``[-max_delta, max_delta]``; the loss is the matching Huber-like potential. Where
            the bound is reached, the minimum moves from the mean of the targets towards their median, so the link and
            `prior_logits` are then no longer exact.
        impl: 'auto', 'reference', 'cpu', 'triton' or 'compile'; see `gbseg.losses.functional.fused_boosted_loss`.
        keep_gradient: the forward writes the gradient, which is kept for the backward. False keeps nothing of the logits' size
            between the two and reads the logits twice.
        loss_name: the key under which MMSegmentation logs the loss; it starts with ``loss_``.

    Raises:
        ValueError: a setting makes no sense (each message says which and why).
    """

    def __init__(
        self,
        boost: Boost | dict,
        targets: tuple[float, float] = (0.0, 1.0),
        *,
        class_weight: Sequence[float] | Tensor | None = None,
        loss_weight: float = 1.0,
        reduction: str = "mean",
        max_delta: float | None = None,
        impl: str = "auto",
        keep_gradient: bool = True,
        loss_name: str = "loss_boosted",
    ) -> None:
        super().__init__(class_weight=class_weight, loss_weight=loss_weight, reduction=reduction, loss_name=loss_name)
        self.boost = build_boost(boost)
        self.targets = check_targets(self.boost, targets)
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl must be one of {IMPLEMENTATIONS}, got {impl!r}.")
        if max_delta is not None and not max_delta > 0:
            raise ValueError(f"max_delta bounds |g(x) - t| and must be > 0 (or None for no bound), got {max_delta!r}.")
        self.max_delta = max_delta
        self.impl = impl
        self.keep_gradient = keep_gradient

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return f"{self.boost}, targets={self.targets}, reduction={self.reduction!r}, max_delta={self.max_delta}"

    def compute(
        self,
        pred: Tensor,
        target: Tensor,
        ignore_index: int | None,
        weight: Tensor | None,
        avg_factor: float | Tensor | None,
        reduction: str,
    ) -> Tensor:
        """See `gbseg.losses.reference.boosted_loss`; by the fastest implementation."""
        return fused_boosted_loss(
            pred,
            target,
            self.boost,
            self.targets,
            ignore_index=ignore_index,
            class_weight=self.class_weight,
            weight=weight,
            avg_factor=avg_factor,
            reduction=reduction,
            max_delta=self.max_delta,
            loss_weight=self.loss_weight,
            keep_gradient=self.keep_gradient,
            impl=self.impl,
        )

    def resized(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int | None = None,
        align_corners: bool = False,
    ) -> Tensor:
        """The loss of ``pred`` after bilinear enlargement to the labels' size, which is never held:
        `gbseg.losses.boosted_resize_loss`.

        With ``impl`` 'reference' or 'compile' it is enlarged and handed to that.

        Args:
            pred: (N, C, h, w) logits.
            target: (N, H, W) integer labels.
            weight: (N, H, W), see `forward`, as the others.
            avg_factor: see there.
            reduction_override: see there.
            ignore_index: see there.
            align_corners: see `torch.nn.functional.interpolate`.

        Returns:
            See there.

        Raises:
            BadLabelError: see there.
            ValueError: see there; or soft labels, which need no enlargement to save memory.
        """
        if pred.ndim != 4 or target.ndim != 3 or target.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}.resized takes logits (N, C, h, w) and integer labels (N, H, W), got "
                f"{tuple(pred.shape)} and {target.dtype} {tuple(target.shape)}."
            )
        target, ignore_index, reduction, poison = self._checked(
            pred, target, weight, avg_factor, reduction_override, ignore_index, {}, tuple(target.shape[1:])
        )
        if self.impl in ("reference", "compile"):
            large = enlarge(pred, tuple(target.shape[1:]), align_corners)
            loss = self.compute(large, target, ignore_index, weight, avg_factor, reduction)
        else:
            problem = Problem(
                target,
                self.boost,
                self.targets,
                ignore_index,
                self.class_weight,
                weight,
                avg_factor,
                reduction,
                self.max_delta,
                self.loss_weight,
            )
            loss = resize_loss(problem, pred, align_corners)
        return loss if poison is None else loss * poison

    def probabilities(self, logits: Tensor, dim: int = 1) -> Tensor:
        """Class probabilities by the loss's link; see `gbseg.boosting.link`. Labels are the argmax of the *logits*."""
        return link(logits, self.boost, self.targets, dim)

    def prior_logits(self, frequencies: Tensor) -> Tensor:
        """The (C,) logits at which `probabilities` are ``frequencies``; see `gbseg.boosting.prior_logits`."""
        return prior_logits(frequencies, self.boost, self.targets)


class ExpGBLoss(BoostedLoss):
    """exp-GB: the boosted loss with ``g(x) = alpha * exp(x)`` (paper, section 2.1).

    With ``t_neg = 0``, ``S = sum_j exp(x_j)`` and ``z = alpha * S / t_pos`` it is
    ``t_pos * [cross_entropy(x, y) + (z - ln z - 1)]``: softmax cross-entropy, ``t_pos`` times as strong, with a penalty that
    holds the normaliser at ``S = t_pos / alpha``. So a rate that suits cross-entropy under SGD wants dividing by ``t_pos``.

    Args:
        alpha: the paper's alpha.
        targets: ``(t_neg, t_pos)``, both >= 0.
        options: those of `BoostedLoss`.
    """

    def __init__(self, alpha: float = 0.1, targets: tuple[float, float] = (0.0, 16.0), **options: Unpack[LossOptions]) -> None:
        options.setdefault("loss_name", "loss_expgb")
        super().__init__(ExponentialBoost(alpha), targets, **options)


class Pow3GBLoss(BoostedLoss):
    """pow3-GB: the boosted loss with ``g(x) = alpha * x^3 + beta`` (paper, section 2.2).

    Args:
        alpha: the paper's alpha.
        beta: the paper's beta.
        targets: ``(t_neg, t_pos)``.
        options: those of `BoostedLoss`.
    """

    def __init__(
        self,
        alpha: float = 0.001,
        beta: float = 0.4,
        targets: tuple[float, float] = (0.0, 10.0),
        **options: Unpack[LossOptions],
    ) -> None:
        options.setdefault("loss_name", "loss_pow3gb")
        super().__init__(CubicBoost(alpha, beta), targets, **options)


class LinearLoss(BoostedLoss):
    """Half the squared error on linear outputs, ``g(x) = x`` (paper, section 1.3 and Table 1).

    Args:
        targets: ``(t_neg, t_pos)``.
        options: those of `BoostedLoss`.
    """

    def __init__(self, targets: tuple[float, float] = (0.0, 1.0), **options: Unpack[LossOptions]) -> None:
        options.setdefault("loss_name", "loss_linear")
        super().__init__(LinearBoost(), targets, **options)
