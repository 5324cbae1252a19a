"""The boosted loss in one pass on a CPU: no one-hot tensor, no float copy, nothing of the logits' size but the gradient.

Every class stands alone, so a block needs nothing of any other: it is read once, its loss is summed and its gradient written
while it is in the cache.

Shapes: N images or rows, C classes, * any trailing dimensions (P numbers together), n and p those of a block.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from gbseg.boosting import Boost, ExponentialBoost
from gbseg.losses.reference import bounded_divergence
from gbseg.losses.spec import Problem

__all__ = ["one_pass", "rescale_", "terms_and_slopes"]

# numbers of a block: it lies in the cores' caches, where terms and slopes are not one with its temporaries
_BLOCK, _BLOCK_OF_TWO = 1 << 20, 1 << 17
# from where on memory for a gradient may be fresh from the system at every step, and the pages that it then comes in
_LARGE, _PAGE, _MADV_HUGEPAGE = 1 << 23, 1 << 21, 14


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's advice about memory, where it has one on large pages."""
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def _empty_like(x: Tensor) -> Tensor:
    """`torch.empty_like` in large pages, if the system likes to give them.

    Of 33 MiB that come in 8,453 pages of 4 KiB, the first touch of each takes as long as all arithmetic of the loss.
    """
    found = torch.empty_like(x)
    if found.nbytes >= _LARGE and (madvise := _madvise()) is not None:
        start = -(-found.data_ptr() // _PAGE) * _PAGE
        whole = (found.data_ptr() + found.nbytes - start) // _PAGE * _PAGE
        # advice that is not taken changes nothing
        madvise(start, whole, _MADV_HUGEPAGE)
    return found


def _flat(x: Tensor) -> Tensor:
    """All numbers from the first to the last of a block (n, C, p) as one row, whatever the strides."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((span,), (1,))


def _places(x: Tensor, label: Tensor, number: Tensor) -> Tensor:
    """Where the logits of the labels (n, p) stand in `_flat`, as one row; ``number`` counts from 0.

    That and a gather from a row take a fifth of the time of a gather along classes.
    """
    image, other, pixel = x.stride()
    number = number[: x.shape[2]]
    place = torch.add(number if pixel == 1 else number * pixel, label, alpha=other)
    if x.shape[0] > 1:
        place += (torch.arange(x.shape[0], device=x.device) * image).unsqueeze(1)
    return place.reshape(-1)


def terms_and_slopes(boost: Boost, x: Tensor, t: Tensor | float, max_delta: float | None) -> tuple[Tensor, Tensor]:
    """The terms of the loss and their derivatives at target values; both may be one tensor."""
    if type(boost) is ExponentialBoost and isinstance(t, float) and max_delta is None:
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
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    delta = boost.delta(x, t)
    return bounded_divergence(boost, x, t, max_delta), delta if max_delta is None else delta.clamp_(-max_delta, max_delta)


def _is_one(problem: Problem) -> bool:
    """Whether term and slope of the other classes are one number, ``alpha * exp(x)``."""
    plain = type(problem.boost) is ExponentialBoost and problem.targets[0] == 0
    return plain and problem.max_delta is None and not problem.soft


def _other_classes(problem: Problem, x: Tensor, place: Tensor | None) -> tuple[Tensor, Tensor, float]:
    """Terms and slopes of logits (n, C, p) that are nobody's label, both times the third; may overwrite ``place``."""
    if _is_one(problem):
        # and no pass over the block for alpha
        value = torch.exp(x, out=place)
        return value, value, problem.boost.alpha
    return *terms_and_slopes(problem.boost, x, problem.targets[0], problem.max_delta), 1.0


def _block(
    problem: Problem, x: Tensor, label: Tensor, factor: Tensor | float, gradient: Tensor | None, number: Tensor
) -> Tensor:
    """Losses (n, p) of logits (n, C, p); their derivatives times ``factor`` (n, p) are written into ``gradient``."""
    outputs = None if problem.class_weight is None else problem.class_weight.to(x)
    if problem.soft:
        t_neg, t_pos = problem.targets
        t = t_neg + (t_pos - t_neg) * label.to(x.dtype)
        terms, slopes = terms_and_slopes(problem.boost, x, t, problem.max_delta)
        unit, right_terms = 1.0, None
    else:
        terms, slopes, unit = _other_classes(problem, x, gradient)
        # after the walk over all of x, which brings it into the cache
        places = _places(x, label, number)
        right = _flat(x).gather(0, places)
        right_terms, right_slopes = terms_and_slopes(problem.boost, right, problem.targets[1], problem.max_delta)
        if terms.stride() != x.stride():
            places = _places(terms, label, number)
        _flat(terms).index_fill_(0, places, 0.0)
        if outputs is not None:
            each = outputs[label.reshape(-1)]
            right_terms, right_slopes = right_terms * each, right_slopes * each
    losses = terms.sum(1) if outputs is None else (terms * outputs.unsqueeze(1)).sum(1)
    if right_terms is not None:
        losses = losses.mul_(unit).add_(right_terms.view(losses.shape))
    if gradient is None:
        return losses
    times = unit * factor
    times = times if isinstance(times, float) else times.unsqueeze(1)
    torch.mul(slopes, times if outputs is None else times * outputs.unsqueeze(1), out=gradient)
    if right_terms is not None:
        right_slopes *= factor if isinstance(factor, float) else factor.reshape(-1)
        if gradient.stride() != terms.stride():
            places = _places(gradient, label, number)
        _flat(gradient).index_copy_(0, places, right_slopes)
    return losses


def one_pass(problem: Problem, logits: Tensor, derive: bool, upstream: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The loss and, if wanted, its derivative in the logits times ``upstream``, the derivative of something in the loss."""
    count, classes = logits.shape[:2]
    size = math.prod(logits.shape[2:])
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    x_all = logits.detach().reshape(count, classes, size)
    label_all = problem.label.reshape(count, classes, size) if problem.soft else problem.label.reshape(count, size)
    weight_all = None if problem.weight is None else problem.weight.to(dtype).reshape(count, size)
    counted_all = problem.counted
    if counted_all is not None and int(torch.count_nonzero(counted_all)) == counted_all.numel():
        counted_all = None
    scale = float(problem.scale(counted_all))
    # with strides as the logits have them, if those leave no gaps
    gradient = _empty_like(x_all) if derive else None
    losses = torch.empty(count, size, dtype=dtype, device=x_all.device) if problem.reduction == "none" else None
    total = 0.0
    slope = scale if upstream is None or upstream.ndim else scale * float(upstream)
    numbers = _BLOCK if _is_one(problem) else min(_BLOCK, _BLOCK_OF_TWO)
    images = max(1, numbers // max(classes * size, 1))
    # parts of an image are alike, so that none is a small rest with the same overhead
    parts = math.ceil(size * classes / numbers) if images == 1 else 1
    pixels = max(1, math.ceil(size / max(parts, 1)))
    number = torch.arange(pixels, device=x_all.device)
    for first, start in itertools.product(range(0, count, images), range(0, size, pixels)):
        block = (slice(first, first + images), slice(start, start + pixels))
        whole = (block[0], slice(None), block[1])
        x = x_all[whole].to(dtype)
        label = label_all[whole] if problem.soft else label_all[block].long()
        factor = None if weight_all is None else weight_all[block]
        counted = None
        if counted_all is not None:
            counted = counted_all.view(count, size)[block]
            label = label * counted
            factor = counted.to(dtype) if factor is None else torch.where(counted, factor, 0.0)
        each = slope if factor is None else slope * factor
        if upstream is not None and upstream.ndim:
            each = each * upstream.reshape(count, size)[block]
            # what is upstream of an ignored pixel may be anything, as its logits may
            each = each if counted is None else torch.where(counted, each, 0.0)
        place = out = None if gradient is None else gradient[whole]
        if out is not None and out.dtype != dtype:
            place = torch.empty_like(x)
        value = _block(problem, x, label, each, place, number)
        value = value if factor is None else value.mul_(factor)
        found = float(value.sum())
        if counted is not None and not math.isfinite(found):
            # 0 times an infinity is NaN, and as in the reference an ignored pixel's logits may be anything
            x = torch.where(counted.unsqueeze(1), x_all[whole].to(dtype), 0.0)
            value = _block(problem, x, label, each, place, number).mul_(factor)
            found = float(value.sum())
        total += found
        if losses is not None:
            torch.mul(value, scale, out=losses[block])
        if place is not out:
            out.copy_(place)
    loss = (
        torch.tensor(scale * total, dtype=dtype, device=x_all.device)
        if losses is None
        else losses.view(count, *logits.shape[2:])
    )
    return loss, None if gradient is None else gradient.view(logits.shape)


def rescale_(gradient: Tensor, upstream: Tensor) -> None:
    """Multiply by a number, unless that is 1."""
    if upstream != 1:
        gradient.mul_(upstream)
