"""The boosted loss in one pass on a CPU: no one-hot tensor, no float copy, nothing of the logits' size but the gradient.

Every class stands alone, so a block needs nothing of any other: it is read once, its loss is summed and its gradient written
while it is in the cache.

Shapes: N images or rows, C classes, * any trailing dimensions (P numbers together), n and p those of a block.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from gbseg.boosting import Boost, ExponentialBoost
from gbseg.losses.problem import Problem
from gbseg.losses.reference import bounded_divergence

__all__ = ["one_pass", "rescale_", "scale_of", "terms_and_slopes"]

# numbers of a block: a few of them lie in a core's cache beside each other
_BLOCK = 1 << 19


def _flat(x: Tensor) -> Tensor:
    """All numbers from the first to the last of a block (n, C, p) as one row, whatever the strides."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((span,), (1,))


def _places(x: Tensor, label: Tensor) -> Tensor:
    """Where the logits of the labels (n, p) stand in `_flat`, as one row; a fifth of the time of gather along classes."""
    image, other, pixel = x.stride()
    first = torch.arange(x.shape[0]).unsqueeze(1) * image + torch.arange(x.shape[2]) * pixel
    return (label * other).add_(first).view(-1)


def terms_and_slopes(boost: Boost, x: Tensor, t: Tensor | float, max_delta: float | None) -> tuple[Tensor, Tensor]:
    """The terms of the loss and their derivatives at target values; both may be one tensor."""
    if isinstance(boost, ExponentialBoost) and isinstance(t, float) and max_delta is None:
        if t == 0:
            value = torch.exp(x).mul_(boost.alpha)
            return value, value
        optimum = math.log(t / boost.alpha)
        # in two parts, the first of which x can be subtracted from without an error where they are close
        near = torch.tensor(optimum, dtype=x.dtype).item()
        u = (x - near).sub_(optimum - near)
        if not u.numel() or bool(u.amax() <= 1):
            # `ExponentialBoost.divergence` where only one of its branches is taken
            slope = torch.expm1(u)
            return torch.sub(slope, u, out=u).mul_(t), slope.mul_(t)
    t = torch.as_tensor(t, dtype=x.dtype)
    delta = boost.delta(x, t)
    return bounded_divergence(boost, x, t, max_delta), delta if max_delta is None else delta.clamp_(-max_delta, max_delta)


def _block(problem: Problem, x: Tensor, label: Tensor, factor: Tensor | float, gradient: Tensor | None) -> Tensor:
    """Losses (n, p) of logits (n, C, p); their derivatives times ``factor`` (n, p) are written into ``gradient``."""
    t_neg, t_pos = problem.targets
    outputs = None if problem.class_weight is None else problem.class_weight.to(x).unsqueeze(1)
    pixels = factor if isinstance(factor, float) else factor.unsqueeze(1)
    if problem.soft:
        terms, delta = terms_and_slopes(problem.boost, x, t_neg + (t_pos - t_neg) * label.to(x.dtype), problem.max_delta)
    else:
        right, right_delta = terms_and_slopes(
            problem.boost, _flat(x).index_select(0, _places(x, label)), t_pos, problem.max_delta
        )
        terms, delta = terms_and_slopes(problem.boost, x, t_neg, problem.max_delta)
        _flat(terms).scatter_(0, _places(terms, label), right)
    # terms may be delta, whose value at the label is written last
    losses = terms.sum(1) if outputs is None else (terms * outputs).sum(1)
    if gradient is not None:
        torch.mul(delta, pixels if outputs is None else pixels * outputs, out=gradient)
        if not problem.soft:
            each = factor if outputs is None else factor * problem.class_weight.to(x)[label]
            right_delta *= each if isinstance(each, float) else each.view(-1)
            _flat(gradient).scatter_(0, _places(gradient, label), right_delta)
    return losses


def scale_of(problem: Problem) -> float:
    """What the sum over the pixels is multiplied by."""
    if problem.reduction != "mean":
        return problem.loss_weight
    if problem.avg_factor is not None:
        return problem.loss_weight / float(problem.avg_factor)
    if problem.soft or problem.ignore_index is None:
        return problem.loss_weight / max(problem.pixels, 1)
    return problem.loss_weight / max(int((problem.label != problem.ignore_index).sum()), 1)


def one_pass(problem: Problem, logits: Tensor, derive: bool, upstream: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The loss and, if wanted, its derivative in the logits times ``upstream``, the derivative of something in the loss."""
    count, classes = logits.shape[:2]
    size = math.prod(logits.shape[2:])
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    x_all = logits.detach().reshape(count, classes, size)
    label_all = problem.label.reshape(count, classes, size) if problem.soft else problem.label.reshape(count, size)
    weight_all = None if problem.weight is None else problem.weight.to(dtype).reshape(count, size)
    # with strides as the logits have them, if those leave no gaps
    gradient = torch.empty_like(x_all) if derive else None
    losses = torch.empty(count, size, dtype=dtype) if problem.reduction == "none" else None
    total, scale = 0.0, scale_of(problem)
    slope = 1.0 if upstream is None or upstream.ndim else float(upstream)
    images = max(1, _BLOCK // max(classes * size, 1))
    pixels = max(1, _BLOCK // max(classes, 1)) if images == 1 else size
    for first, start in itertools.product(range(0, count, images), range(0, size, max(pixels, 1))):
        block = (slice(first, first + images), slice(start, start + pixels))
        whole = (block[0], slice(None), block[1])
        x = x_all[whole].to(dtype)
        label = label_all[whole] if problem.soft else label_all[block]
        factor = None if weight_all is None else weight_all[block]
        counted = None
        if problem.ignore_index is not None and not problem.soft:
            counted = label != problem.ignore_index
            if bool(counted.all()):
                counted = None
            else:
                label = torch.where(counted, label, 0)
                factor = counted.to(dtype) if factor is None else torch.where(counted, factor, 0.0)
        each = scale * slope if factor is None else scale * slope * factor
        if upstream is not None and upstream.ndim:
            each = each * upstream.reshape(count, size)[block]
        place = out = None if gradient is None else gradient[whole]
        if out is not None and out.dtype != dtype:
            place = torch.empty_like(x)
        value = _block(problem, x, label, each, place)
        if counted is not None and not bool(torch.isfinite(value).all()):
            # 0 times an infinity is NaN, and as in the reference an ignored pixel's logits may be anything
            value = _block(problem, torch.where(counted.unsqueeze(1), x, 0.0), label, each, place)
        if factor is not None:
            value = value * factor
        if losses is None:
            total += float(value.sum(dtype=torch.float64))
        else:
            losses[block] = value * scale
        if place is not out:
            out.copy_(place)
    loss = torch.tensor(scale * total, dtype=dtype) if losses is None else losses.view(count, *logits.shape[2:])
    return loss, None if gradient is None else gradient.view(logits.shape)


def rescale_(gradient: Tensor, upstream: Tensor) -> None:
    """Multiply by a number, unless that is 1."""
    if upstream != 1:
        gradient.mul_(upstream)
