"""The boosted loss, as it is defined: readable, any layout, plain PyTorch. Everything faster is held to this.

Shapes: N images or rows, C classes, * any trailing dimensions (none for a classifier, H x W for a segmentation).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gbseg.boosting import Boost

__all__ = ["boosted_loss", "bounded_divergence", "masked", "reduced", "target_values"]


def target_values(label: Tensor, num_classes: int, targets: tuple[float, float], dtype: torch.dtype) -> Tensor:
    """Labels as target values.

    Args:
        label: (N, *) integers in 0..C-1 (one-hot: ``t_pos`` for the label's class and ``t_neg`` for the others), or
            (N, C, *) soft labels ``p`` (``t_neg + (t_pos - t_neg) * p``).
        num_classes: C.
        targets: ``(t_neg, t_pos)``.
        dtype: of the result.

    Returns:
        (N, C, *) target values.
    """
    t_neg, t_pos = targets
    if label.is_floating_point():
        return t_neg + (t_pos - t_neg) * label.to(dtype)
    shape = (label.shape[0], num_classes, *label.shape[1:])
    values = torch.full(shape, t_neg, dtype=dtype, device=label.device)
    return values.scatter(1, label.long().unsqueeze(1), t_pos)


def bounded_divergence(boost: Boost, x: Tensor, t: Tensor, max_delta: float | None) -> Tensor:
    """``L(x, t)`` elementwise, with the gradient ``g(x) - t`` clamped to ``[-max_delta, max_delta]``.

    Beyond the logits ``x_lo = g^-1(t - m)`` and ``x_hi = g^-1(t + m)`` the loss goes on as a straight line of slope
    ``m = max_delta``, as Huber's does: ``L(clamp(x, x_lo, x_hi), t) + m * (relu(x - x_hi) + relu(x_lo - x))``.
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
    or by ``avg_factor``. Weights do not change the divisor. With nothing to learn from the loss is 0, and so is its gradient.

    Args:
        logits: (N, C, *) of any floating dtype; computed in float32, float64 stays float64.
        label: (N, *) integers, checked by the caller; or (N, C, *) soft labels.
        boost: the boost ``g``.
        targets: ``(t_neg, t_pos)``.
        ignore_index: pixels with this label count nowhere (integer labels only).
        class_weight: (C,) factors of the outputs.
        weight: (N, *) factors of the pixels.
        avg_factor: the divisor of 'mean'.
        reduction: 'none' gives (N, *), 'sum' and 'mean' a scalar.
        max_delta: bound of the gradient at each output, see `bounded_divergence`.

    Returns:
        The loss in float32 or float64.
    """
    x, label, counted = masked(logits, label, ignore_index)
    # no boost of DESIGN is undefined at t_neg, so an ignored pixel can stand in as class 0
    t = target_values(label, logits.shape[1], targets, x.dtype)
    terms = bounded_divergence(boost, x, t, max_delta)
    if class_weight is not None:
        terms = terms * class_weight.to(x).view(1, -1, *[1] * (x.ndim - 2))
    return reduced(terms.sum(1), counted, weight, avg_factor, reduction)


def masked(logits: Tensor, label: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits in float32 (float64 stays), labels of which every one is a class, and the (N, *) pixels that count.

    The last is None where all do. Ignored pixels have logits 0 and label 0.
    """
    # exp leaves float16 at x = 11.09; no autocast region changes the dtype of what follows
    x = logits if logits.dtype == torch.float64 else logits.float()
    if label.is_floating_point() or ignore_index is None:
        return x, label, None
    counted = label != ignore_index
    # masked before the loss and not only after it: the zero gradient of an ignored pixel times an infinite one is NaN
    return torch.where(counted.unsqueeze(1), x, 0.0), torch.where(counted, label, 0), counted


def reduced(
    pixels: Tensor, counted: Tensor | None, weight: Tensor | None, avg_factor: float | Tensor | None, reduction: str
) -> Tensor:
    """Weight and reduce the (N, *) losses of pixels, of which those not ``counted`` are 0; see `boosted_loss`."""
    if weight is not None:
        pixels = pixels * weight.to(pixels)
    if counted is not None:
        pixels = torch.where(counted, pixels, 0.0)
    if reduction == "none":
        return pixels
    total = pixels.sum()
    if reduction == "sum":
        return total
    if avg_factor is not None:
        return total / (avg_factor.reshape(()) if isinstance(avg_factor, Tensor) else avg_factor)
    if counted is not None:
        return total / counted.sum().clamp(min=1)
    return total / max(pixels.numel(), 1)
