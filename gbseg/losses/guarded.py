"""What every loss of gbseg shares: one signature for all callers, and a guard of shapes, settings and labels.

Shapes: N images or rows, C classes, * any trailing dimensions.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gbseg.losses.labels import LabelRecord, default_ignore_index, find_bad_labels, require_labels, require_soft_labels

__all__ = ["GuardedLoss"]

_REDUCTIONS = ("none", "sum", "mean")


class GuardedLoss(nn.Module):
    """A loss between logits (N, C, *) and labels, called alike by mmseg, mmpretrain, mmdet and plain PyTorch.

    Args:
        class_weight: C factors, see the loss.
        loss_weight: factor of the whole loss.
        reduction: 'none', 'sum' or 'mean'.
        loss_name: the key under which MMSegmentation logs the loss; it starts with ``loss_``.

    Raises:
        ValueError: a setting makes no sense (each message says which and why).
    """

    record: Tensor
    class_weight: Tensor | None

    def __init__(
        self,
        *,
        class_weight: Sequence[float] | Tensor | None = None,
        loss_weight: float = 1.0,
        reduction: str = "mean",
        loss_name: str = "loss_guarded",
    ) -> None:
        super().__init__()
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}.")
        if not math.isfinite(loss_weight):
            raise ValueError(f"loss_weight must be a finite number, got {loss_weight!r}.")
        if not loss_name.startswith("loss_"):
            raise ValueError(f"loss_name must start with 'loss_' or mmengine leaves it out of the sum, got {loss_name!r}.")
        if class_weight is not None:
            class_weight = torch.as_tensor(class_weight).clone()
            class_weight = class_weight if class_weight.is_floating_point() else class_weight.float()
            if class_weight.ndim != 1 or not bool(torch.isfinite(class_weight).all() and (class_weight >= 0).all()):
                raise ValueError(f"class_weight is one finite number >= 0 a class, got {class_weight.tolist()}.")
        self.loss_weight = float(loss_weight)
        self.reduction = reduction
        self._loss_name = loss_name
        # neither belongs into a checkpoint: the losses must load the weights of a model that had another loss
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.register_buffer("record", LabelRecord.empty(), persistent=False)

    @property
    def loss_name(self) -> str:
        """The key of this loss in MMSegmentation's log."""
        return self._loss_name

    @abstractmethod
    def compute(
        self,
        pred: Tensor,
        target: Tensor,
        ignore_index: int | None,
        weight: Tensor | None,
        avg_factor: float | Tensor | None,
        reduction: str,
    ) -> Tensor:
        """The reduced loss times ``loss_weight``; the labels are known to be classes or ignored."""

    @abstractmethod
    def probabilities(self, logits: Tensor, dim: int = 1) -> Tensor:
        """Class probabilities that the logits stand for, summing to one along ``dim``. Labels are the *logits*' argmax."""

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int | None = None,
        **kwargs: object,
    ) -> Tensor:
        """The loss of ``pred`` against ``target``; one signature for mmseg, mmpretrain, mmdet and plain PyTorch.

        Args:
            pred: (N, C, *) logits of any floating dtype.
            target: (N, *) integer labels, or (N, C, *) floating soft labels (constants: they get no gradient).
            weight: (N, *) pixel weights.
            avg_factor: replaces the divisor of 'mean'; ignored for 'none' and refused for 'sum'.
            reduction_override: used instead of ``reduction``.
            ignore_index: the label that counts nowhere; None is 255 where C <= 255, else nothing.
            kwargs: arguments of other losses; a warning names those that are not None.

        Returns:
            A scalar, or (N, *) for 'none'; float32 or float64.

        Raises:
            BadLabelError: a label is outside 0..C-1 and not ignored. Raised before anything is computed on the CPU; on a
                device, and under ``torch.compile``, the loss and its gradient are NaN and `bad_label_report` says why
                (soft labels that are negative or not finite are treated alike, without a report).
            ValueError: shapes, dtypes or settings that do not fit.
        """
        target, ignore_index, reduction, poison = self._checked(
            pred, target, weight, avg_factor, reduction_override, ignore_index, kwargs
        )
        loss = self.compute(pred, target, ignore_index, weight, avg_factor, reduction)
        return loss if poison is None else loss * poison

    def _checked(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None,
        avg_factor: float | Tensor | None,
        reduction_override: str | None,
        ignore_index: int | None,
        kwargs: dict[str, object],
        size: tuple[int, ...] | None = None,
    ) -> tuple[Tensor, int | None, str, Tensor | None]:
        """Refuse what `forward` refuses; ``size`` is that of the pixels where it is not that of ``pred``.

        Returns the labels, the ignored index, the reduction, and NaN where a device holds bad labels: a factor of the loss and
        not a summand, so that the gradient is NaN too and no optimizer steps on labels that mean nothing.
        """
        reduction = self._check_call(pred, target, weight, avg_factor, reduction_override, kwargs, size)
        num_classes = pred.shape[1]
        poison = None
        on_host = target.device.type == "cpu" and not torch.compiler.is_compiling()
        self._follow(pred.device)
        if target.is_floating_point():
            if on_host:
                require_soft_labels(target)
            else:
                poison = torch.where((torch.isfinite(target) & (target >= 0)).all(), 1.0, torch.nan)
            return target, ignore_index, reduction, poison
        target = target.long()
        if ignore_index is None:
            ignore_index = default_ignore_index(num_classes)
        if on_host:
            require_labels(target, num_classes, ignore_index)
        else:
            bad = find_bad_labels(target, num_classes, ignore_index)
            LabelRecord.update(self.record, target, bad, num_classes, ignore_index)
            poison = torch.where(bad.any(), torch.nan, 1.0)
            target = torch.where(bad, 0, target)
        return target, ignore_index, reduction, poison

    def bad_label_report(self) -> str | None:
        """What was wrong with the labels that a device has seen since the start; None if nothing. Synchronises."""
        return LabelRecord.describe(self.record)

    def _follow(self, device: torch.device) -> None:
        """Move the buffers to ``device`` once, for a loss that was never moved with its model."""
        if self.record.device != device:
            # a tensor made in inference mode could not be updated in training
            with torch.inference_mode(False):
                self.record = LabelRecord.empty(device)
                if self.class_weight is not None:
                    self.class_weight = self.class_weight.to(device)

    def _check_call(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None,
        avg_factor: float | Tensor | None,
        reduction_override: str | None,
        kwargs: dict[str, object],
        size: tuple[int, ...] | None = None,
    ) -> str:
        """Refuse what does not fit together; returns the reduction of this call."""
        name = type(self).__name__
        reduction = reduction_override or self.reduction
        if reduction not in _REDUCTIONS:
            raise ValueError(f"{name}: reduction_override must be one of {_REDUCTIONS}, got {reduction_override!r}.")
        if pred.ndim < 2 or not pred.is_floating_point():
            raise ValueError(f"{name}: pred must be floating logits (N, C, *), got {pred.dtype} {tuple(pred.shape)}.")
        pixels = (pred.shape[0], *(pred.shape[2:] if size is None else size))
        if target.is_floating_point():
            if target.shape != pred.shape:
                raise ValueError(
                    f"{name}: floating targets are soft labels of pred's shape {tuple(pred.shape)}, got "
                    f"{tuple(target.shape)}. If they are class numbers, pass them as integers: target.long()."
                )
            if target.requires_grad:
                raise ValueError(f"{name}: soft labels are constants here and get no gradient; pass target.detach().")
        elif target.shape != pixels:
            hint = " If they are one-hot, pass them as floats." if target.shape == pred.shape else ""
            raise ValueError(
                f"{name}: pred {tuple(pred.shape)} needs labels of shape {tuple(pixels)}, got {tuple(target.shape)}.{hint}"
            )
        if pred.device != target.device:
            raise ValueError(f"{name}: pred is on {pred.device} and target on {target.device}.")
        if weight is not None and weight.shape != pixels:
            raise ValueError(f"{name}: weight must have the shape of the pixels {tuple(pixels)}, got {tuple(weight.shape)}.")
        if self.class_weight is not None and len(self.class_weight) != pred.shape[1]:
            raise ValueError(f"{name}: class_weight has {len(self.class_weight)} values, pred has {pred.shape[1]} classes.")
        if avg_factor is not None:
            if reduction == "sum":
                raise ValueError(f"{name}: avg_factor divides a mean; with reduction='sum' it has no meaning.")
            if isinstance(avg_factor, Tensor) and avg_factor.numel() != 1:
                raise ValueError(f"{name}: avg_factor is one number, got a tensor of shape {tuple(avg_factor.shape)}.")
            if not isinstance(avg_factor, Tensor) and not avg_factor > 0:
                raise ValueError(f"{name}: avg_factor divides the loss and must be > 0, got {avg_factor!r}.")
        unknown = sorted(key for key, value in kwargs.items() if value is not None)
        if unknown:
            warnings.warn(f"{name} has no use for {', '.join(unknown)} and ignores it.", stacklevel=3)
        return reduction
