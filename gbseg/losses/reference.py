"""The definition of the boosted loss: readable, any layout, plain PyTorch. Faster implementations are tested against it.

Shapes: N images or rows, C classes, ``*`` any trailing dimensions (none for a classifier, H x W for a segmentation).
"""

import math

import torch
from torch import Tensor

from gbseg._moved import add_moved_names
from gbseg.boosting import Boost, LossInputs, LossSpec

__all__ = ["boosted_loss", "bounded_divergence", "mask_ignored", "reduce_loss", "reference_loss", "target_values"]


def target_values(label: Tensor, num_classes: int, targets: tuple[float, float], dtype: torch.dtype) -> Tensor:
    """Labels as target values.

    Args:
        label: ``(N, *)`` integers in 0..C-1 (one-hot: ``t_pos`` for the label's class and ``t_neg`` for the others), or
            ``(N, C, *)`` soft labels ``p`` (``t_neg + (t_pos - t_neg) * p``).
        num_classes: C.
        targets: ``(t_neg, t_pos)``.
        dtype: dtype of the result.

    Returns:
        ``(N, C, *)`` target values.
    """
    t_neg, t_pos = targets
    if label.is_floating_point():
        return t_neg + (t_pos - t_neg) * label.to(dtype)
    shape = (label.shape[0], num_classes, *label.shape[1:])
    values = torch.full(shape, t_neg, dtype=dtype, device=label.device)
    return values.scatter(1, label.long().unsqueeze(1), t_pos)


def bounded_divergence(boost: Boost, x: Tensor, t: Tensor, max_delta: float | None) -> Tensor:
    """``L(x, t)`` elementwise, with the gradient ``g(x) - t`` clamped to ``[-max_delta, max_delta]``.

    Beyond the logits ``x_lo = g^-1(t - m)`` and ``x_hi = g^-1(t + m)`` the loss is linear with slope ``m = max_delta``, as
    Huber's loss is: ``L(clamp(x, x_lo, x_hi), t) + m * (relu(x - x_hi) + relu(x_lo - x))``.
    """
    if max_delta is None or max_delta == math.inf:
        return boost.divergence(x, t)
    x_lo, x_hi = boost.inverse(t - max_delta), boost.inverse(t + max_delta)
    # not torch.minimum, which halves the gradient where both are equal
    inside = torch.where(x > x_hi, x_hi, torch.where(x < x_lo, x_lo, x))
    # not relu(x_lo - x), which is NaN where both are minus infinity
    beyond = torch.where(x > x_hi, x - x_hi, torch.where(x < x_lo, x_lo - x, 0.0))
    return boost.divergence(inside, t) + max_delta * beyond


def boosted_loss(
    logits: Tensor,
    label: Tensor,
    boost: Boost,
    targets: tuple[float, float],
    *,
    ignore_index: int | None = None,
    class_weight: Tensor | None = None,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
    max_delta: float | None = None,
) -> Tensor:
    """``sum_j class_weight_j * L(x_j, t_j)`` at every pixel, times the pixel's weight, then reduced.

    'mean' divides the sum by the number of pixels that are not ignored (soft labels: N times the trailing dimensions),
    or by ``avg_factor``. Weights do not change the divisor. Where every pixel is ignored, the loss and its gradient are 0.

    Args:
        logits: ``(N, C, *)`` of any floating dtype; computed in float32, float64 stays float64.
        label: ``(N, *)`` integers, checked by the caller; or ``(N, C, *)`` soft labels.
        boost: the boost ``g``.
        targets: ``(t_neg, t_pos)``, the target values of the wrong classes and of the label's class.
        ignore_index: pixels with this label have no loss and no gradient (integer labels only).
        class_weight: (C,) factors of the outputs.
        weight: ``(N, *)`` factors of the pixels.
        avg_factor: the divisor of 'mean'.
        reduction: 'none' gives ``(N, *)``, 'sum' and 'mean' a scalar.
        max_delta: bound of the gradient at each output, see `bounded_divergence`.

    Returns:
        The loss in float32 or float64.

    Raises:
        TypeError: ``boost`` is not a `gbseg.boosting.Boost`.
        ValueError: an option is out of its range, see `gbseg.boosting.LossSpec`.
    """
    inputs = LossInputs(label, ignore_index, class_weight, weight, avg_factor, reduction)
    return reference_loss(LossSpec(boost, targets, max_delta), inputs, logits)


def reference_loss(spec: LossSpec, inputs: LossInputs, logits: Tensor) -> Tensor:
    """`boosted_loss` of options that are validated already, times ``loss_weight``."""
    x, label, valid_mask = mask_ignored(logits, inputs.label, inputs.ignore_index)
    # every boost is defined at t_neg, so an ignored pixel can take the label 0
    t = target_values(label, logits.shape[1], spec.targets, x.dtype)
    loss_terms = bounded_divergence(spec.boost, x, t, spec.max_delta)
    if inputs.class_weight is not None:
        loss_terms = loss_terms * inputs.class_weight.to(x).view(1, -1, *[1] * (x.ndim - 2))
    loss = reduce_loss(loss_terms.sum(1), valid_mask, inputs.weight, inputs.avg_factor, inputs.reduction)
    return inputs.loss_weight * loss


def mask_ignored(logits: Tensor, label: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits in float32 (float64 stays), labels that are all classes, and the ``(N, *)`` mask of pixels that are not ignored.

    The mask is None where no pixel can be ignored. Ignored pixels get logits 0 and label 0.
    """
    # exp leaves float16 at x = 11.09; no autocast region changes the dtype of what follows
    x = logits if logits.dtype == torch.float64 else logits.float()
    if label.is_floating_point() or ignore_index is None:
        return x, label, None
    valid_mask = label != ignore_index
    # before the loss and not only after it: the zero gradient of an ignored pixel times an infinite one is NaN
    return torch.where(valid_mask.unsqueeze(1), x, 0.0), torch.where(valid_mask, label, 0), valid_mask


def reduce_loss(
    pixels: Tensor, valid_mask: Tensor | None, weight: Tensor | None, avg_factor: float | Tensor | None, reduction: str
) -> Tensor:
    """Weight and reduce the ``(N, *)`` losses of pixels, which are 0 outside the ``valid_mask``; see `boosted_loss`."""
    if weight is not None:
        pixels = pixels * weight.to(pixels)
    if valid_mask is not None:
        pixels = torch.where(valid_mask, pixels, 0.0)
    if reduction == "none":
        return pixels
    total = pixels.sum()
    if reduction == "sum":
        return total
    if avg_factor is not None:
        return total / (avg_factor.reshape(()) if isinstance(avg_factor, Tensor) else avg_factor)
    if valid_mask is not None:
        return total / valid_mask.sum().clamp(min=1)
    # a trace takes no decision on a size, or it would be right for this size only
    return total / (pixels.numel() if torch.jit.is_tracing() else max(pixels.numel(), 1))


add_moved_names(__name__)
