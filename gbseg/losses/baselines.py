"""The losses that boosting is compared with: the softmax and its controls, and other losses of the paper and of the field.

They are called like the boosted losses. Shapes: N rows or images, C classes, ``*`` any trailing dimensions. Formulas: ``x``
logits, ``y`` the label, ``t`` target values (``t_pos`` for the label's class, ``t_neg`` for the others), sums over the classes.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gbseg.boosting import target_pair
from gbseg.losses.links import normalised_sigmoids, softmax
from gbseg.losses.modules import GuardedLoss
from gbseg.losses.reference import mask_ignored, reduce_loss, target_values

__all__ = ["L1Loss", "SigmoidBCELoss", "SigmoidMSELoss", "SoftmaxLoss", "TanhMSELoss", "WestonWatkinsLoss"]


class _Baseline(GuardedLoss):
    """A loss of pixels.

    Raises:
        ValueError: ``class_weight`` is of outputs, which baselines do not take.
    """

    LOSS_NAME: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"loss_name": self.LOSS_NAME, **options})
        if self.class_weight is not None and not self.weighs_labels:
            raise ValueError(
                f"{type(self).__name__} takes no class_weight of outputs: it is a baseline, compared as it is. Weights of "
                "labels, F.cross_entropy's, need class_weight_mode='labels'."
            )

    @abstractmethod
    def pixels(self, x: Tensor, label: Tensor) -> Tensor:
        """``(N, *)`` losses of float32 or float64 logits ``(N, C, *)`` and labels ``(N, *)`` or ``(N, C, *)``."""

    def compute(
        self,
        pred: Tensor,
        target: Tensor,
        ignore_index: int | None,
        weight: Tensor | None,
        avg_factor: float | Tensor | None,
        reduction: str,
    ) -> Tensor:
        """``pixels``, weighted and reduced like the boosted losses."""
        x, label, valid_mask = mask_ignored(pred, target, ignore_index)
        if self.label_smoothing and not self.weighs_labels:
            label = self.smoothed(label, x.shape[1], x.dtype)
        return self.loss_weight * reduce_loss(self.pixels(x, label), valid_mask, weight, avg_factor, reduction)

    def probabilities(self, logits: Tensor, dim: int = 1) -> Tensor:
        """``softmax(x)``; of a margin or an absolute error, which have no link to probabilities, only a ranking."""
        return softmax(logits, dim)


class SoftmaxLoss(_Baseline):
    """Softmax with cross-entropy, and the controls that separate what exponential boosting adds to it.

    ``L = scale * [-ln softmax(x)_y + penalty * (z - ln z - 1)]`` with ``z = alpha * sum_j exp(x_j) / t_pos``.

    * ``scale = 1, penalty = 0``: the softmax.
    * ``scale = t_pos, penalty = 0``: larger steps alone.
    * ``scale = 1, penalty = 1``: the normaliser held at ``t_pos / alpha``, at the softmax's scale.
    * ``scale = t_pos, penalty = 1``: exp-GB with targets ``(0, t_pos)``, exactly (labels, or soft labels that sum to one).

    Args:
        scale: factor of the loss, > 0.
        penalty: factor of the normaliser's penalty, >= 0.
        alpha: ``alpha`` of the exponential boost that the penalty is compared with, > 0.
        t_pos: the larger target of that boost, > 0.
        options: ``loss_weight``, ``reduction``, ``ignore_index``, ``label_smoothing``, ``loss_name``, ``sync_divisor``, and
            ``class_weight`` with ``class_weight_mode='labels'``.

    Raises:
        ValueError: a factor out of its range.
    """

    LOSS_NAME = "loss_softmax"

    def __init__(
        self, scale: float = 1.0, penalty: float = 0.0, alpha: float = 0.1, t_pos: float = 16.0, **options: Any
    ) -> None:
        super().__init__(**options)
        for name, value in (("scale", scale), ("alpha", alpha), ("t_pos", t_pos)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"SoftmaxLoss: {name} must be > 0, got {value!r}.")
        if not (math.isfinite(penalty) and penalty >= 0):
            raise ValueError(f"SoftmaxLoss: penalty must be >= 0, got {penalty!r}.")
        self.scale, self.penalty = float(scale), float(penalty)
        self.log_level = math.log(t_pos / alpha)

    def pixels(self, x: Tensor, label: Tensor) -> Tensor:
        """``(N, *)`` losses of the formula above."""
        normaliser = torch.logsumexp(x, 1)
        if label.is_floating_point():
            loss = (label.to(x.dtype) * (normaliser.unsqueeze(1) - x)).sum(1)
        else:
            loss = normaliser - x.gather(1, label.unsqueeze(1)).squeeze(1)
        if self.penalty:
            log_z = normaliser - self.log_level
            loss = loss + self.penalty * (torch.expm1(log_z) - log_z)
        return self.scale * loss


class _SquaredLoss(_Baseline):
    """Half the squared error of squashed outputs (paper, section 1.3 and Table 1)."""

    LIMITS = (0.0, 1.0)
    squash: Callable[[Tensor], Tensor]  # the output activation

    def __init__(self, targets: tuple[float, float], **options: Any) -> None:
        super().__init__(**options)
        (low, high), (t_neg, t_pos) = self.LIMITS, target_pair(targets)
        if not low <= t_neg < t_pos <= high:
            limits = f"[{low:g}, {high:g}], which its outputs reach"
            raise ValueError(f"{type(self).__name__}: targets (t_neg, t_pos) must be in {limits}, got {targets!r}.")
        self.targets = t_neg, t_pos

    def pixels(self, x: Tensor, label: Tensor) -> Tensor:
        """``1/2 sum_j (squash(x_j) - t_j)^2``."""
        return 0.5 * (self.squash(x) - target_values(label, x.shape[1], self.targets, x.dtype)).square().sum(1)

    def probabilities(self, logits: Tensor, dim: int = 1) -> Tensor:
        """The share of the targets' span that an output reaches, ``(squash(x) - t_neg) / (t_pos - t_neg)``, normalised."""
        x = logits if logits.dtype == torch.float64 else logits.float()
        share = (self.squash(x) - self.targets[0]).clamp(min=0)
        total = share.sum(dim, keepdim=True)
        return torch.where(total > 0, share / torch.where(total > 0, total, 1.0), torch.softmax(x, dim))


class SigmoidMSELoss(_SquaredLoss):
    """``1/2 sum_j (sigmoid(x_j) - t_j)^2``, targets in [0, 1]."""

    LOSS_NAME = "loss_sigmoid_mse"
    squash = staticmethod(torch.sigmoid)

    def __init__(self, targets: tuple[float, float] = (0.0, 1.0), **options: Any) -> None:
        super().__init__(targets, **options)


class TanhMSELoss(_SquaredLoss):
    """``1/2 sum_j (tanh(x_j) - t_j)^2``, targets in [-1, 1]."""

    LOSS_NAME = "loss_tanh_mse"
    LIMITS = (-1.0, 1.0)
    squash = staticmethod(torch.tanh)

    def __init__(self, targets: tuple[float, float] = (-1.0, 1.0), **options: Any) -> None:
        super().__init__(targets, **options)


class SigmoidBCELoss(_Baseline):
    """``sum_j -t_j ln sigmoid(x_j) - (1 - t_j) ln(1 - sigmoid(x_j))``, targets 0 and 1: no normaliser, no larger targets."""

    LOSS_NAME = "loss_sigmoid_bce"

    def pixels(self, x: Tensor, label: Tensor) -> Tensor:
        """``(N, *)`` losses of the formula above."""
        t = target_values(label, x.shape[1], (0.0, 1.0), x.dtype)
        # as F.binary_cross_entropy_with_logits, which decides on sizes and so cannot be traced
        return ((1 - t) * x - F.logsigmoid(x)).sum(1)

    def probabilities(self, logits: Tensor, dim: int = 1) -> Tensor:
        """``sigmoid(x)``, normalised."""
        return normalised_sigmoids(logits, dim)


class WestonWatkinsLoss(_Baseline):
    """The multi-class hinge of Weston and Watkins (1999), ``sum_{j != y} max(0, margin + x_j - x_y)``. Labels only.

    Raises:
        ValueError: ``margin`` is not positive, the labels are soft, or ``label_smoothing`` would make them so.
    """

    LOSS_NAME = "loss_hinge"
    NO_SOFT_LABELS = "WestonWatkinsLoss compares the label's class with the others and takes no"

    def __init__(self, margin: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        if not margin > 0:
            raise ValueError(f"WestonWatkinsLoss: margin must be > 0, got {margin!r}.")
        if self.label_smoothing:
            raise ValueError(f"{self.NO_SOFT_LABELS} label_smoothing, got {self.label_smoothing!r}: leave it out.")
        self.margin = float(margin)

    def pixels(self, x: Tensor, label: Tensor) -> Tensor:
        """``(N, *)`` losses of the formula above."""
        if label.is_floating_point():
            raise ValueError(f"{self.NO_SOFT_LABELS} soft labels: pass their classes, target.argmax(1).")
        index = label.unsqueeze(1)
        excess = torch.relu(self.margin + x - x.gather(1, index))
        return excess.scatter(1, index, 0.0).sum(1)


class L1Loss(_Baseline):
    """``sum_j |x_j - t_j|`` on linear outputs: gradients of one size whatever the error; its optimum is the targets' median."""

    LOSS_NAME = "loss_l1"

    def __init__(self, targets: tuple[float, float] = (0.0, 1.0), **options: Any) -> None:
        super().__init__(**options)
        self.targets = target_pair(targets)

    def pixels(self, x: Tensor, label: Tensor) -> Tensor:
        """``(N, *)`` losses of the formula above."""
        return (x - target_values(label, x.shape[1], self.targets, x.dtype)).abs().sum(1)
