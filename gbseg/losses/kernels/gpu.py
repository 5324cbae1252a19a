"""The boosted loss in one pass on a GPU, as a Triton kernel: each logit is read once and its derivative written once.

A program takes some pixels and walks over their classes. The logit of the label is left out of that walk and done at its end,
so that all others have one target and no branch. Shapes: N images or rows, C classes, P pixels of an image.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gbseg.boosting import Boost, CubicBoost, ExponentialBoost, LinearBoost, MirroredExponentialBoost
from gbseg.losses.spec import Problem

__all__ = ["DTYPES", "INTERPRETED", "KINDS", "one_pass", "rescale_"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# on a CPU, without a compiler: for tests
INTERPRETED = bool(triton.knobs.runtime.interpret)

_EXP, _CUBIC, _LINEAR, _MIRRORED = (tl.constexpr(kind) for kind in range(4))
KINDS: dict[type[Boost], int] = {ExponentialBoost: 0, CubicBoost: 1, LinearBoost: 2, MirroredExponentialBoost: 3}


@triton.jit
def _exp(x):  # noqa: ANN001, ANN202
    """``exp(x)``; the hardware's is that of 2, and x times log2(e) rounded would be off by |x| times 6e-8."""
    power = x * 1.4426950408889634
    rest = tl.fma(x, 1.4426950408889634, -power) + x * 1.925963033500967e-08
    # not a number where x is infinite
    rest = tl.where(tl.abs(rest) < 1, rest, 0.0)
    return tl.exp2(power) * (1 + rest * 0.6931471805599453)


@triton.jit
def _expm1(u):  # noqa: ANN001, ANN202
    """``exp(u) - 1`` and ``exp(u) - 1 - u``; near 0 by their series, where the differences would be all rounding."""
    series = 1 / 6 + u * (1 / 24 + u * (1 / 120 + u * (1 / 720 + u * (1 / 5040 + u * (1 / 40320 + u / 362880)))))
    excess = u * u * (0.5 + u * series)
    small = tl.abs(u) < 0.5
    whole = _exp(u) - 1
    return tl.where(small, u + excess, whole), tl.where(small, excess, whole - u)


@triton.jit
def _optimum(t, alpha, beta, KIND: tl.constexpr):  # noqa: ANN001, ANN202
    """``g^-1(t)``."""
    if KIND == _EXP:
        return tl.log(tl.maximum(t, 0.0) / alpha)
    if KIND == _CUBIC:
        cube = (t - beta) / alpha
        size = tl.abs(cube)
        root = tl.exp(tl.log(tl.maximum(size, 1e-38)) / 3)
        # one step of Newton's takes the rounding of exp and log away
        root = root - (root * root * root - size) / (3 * root * root)
        root = tl.where(size > 0, root, 0.0)
        return tl.where(cube < 0, -root, root)
    if KIND == _LINEAR:
        return t
    s = t - beta
    size = tl.maximum(tl.log(tl.maximum(tl.abs(s), 1e-38) / alpha) + 1, 0.0)
    return tl.where(s < 0, -size, tl.where(s > 0, size, 0.0))


@triton.jit
def _free(x, t, x0, x0_rest, alpha, beta, KIND: tl.constexpr, ZERO: tl.constexpr):  # noqa: ANN001, ANN202
    """Loss and derivative at a logit, see `gbseg.boosting`; ``x0 + x0_rest`` is the logit at which the boost gives t."""
    if KIND == _EXP:
        value = alpha * _exp(x)
        if ZERO:
            return value, value
        t = t + tl.zeros_like(x)
        u = (x - x0) - x0_rest
        near = (t > 0) & (u <= 1)
        slope, excess = _expm1(tl.where(near, u, 0.0))
        far = value - tl.where(t > 0, t * (1 + u), 0.0)
        return tl.where(near, t * excess, far), tl.where(near, t * slope, value - t)
    if KIND == _CUBIC:
        away = (x - x0) - x0_rest
        loss = alpha / 4 * away * away * (x * x + 2 * x * x0 + 3 * x0 * x0)
        return loss, alpha * away * (x * x + x * x0 + x0 * x0)
    if KIND == _LINEAR:
        away = x - t
        return away * away / 2, away
    step = alpha * 0.36787944117144233
    s = t - beta
    size = tl.maximum(tl.abs(s), step)
    in_jump = tl.abs(s) <= step
    reach = tl.abs(x)
    _, within = _expm1(reach)
    log_size = tl.log(size / alpha)
    same = x * s > 0
    slope, excess = _expm1(tl.where(same, reach - 1 - log_size, 0.0))
    far = alpha * _exp(reach - 1) - s * x + size * log_size
    loss = tl.where(in_jump, step * within + step * reach - s * x, tl.where(same, size * excess, far))
    sign = tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))
    delta = alpha * sign * _exp(reach - 1) - s
    return loss, tl.where(in_jump, delta, tl.where(same, sign * size * slope, delta))


@triton.jit
def _terms(x, t, x0, x0_rest, alpha, beta, bound, KIND: tl.constexpr, ZERO: tl.constexpr, BOUND: tl.constexpr):  # noqa: ANN001, ANN202
    """`_free`, or with the derivative clamped to [-bound, bound] and the loss that belongs to it."""
    if not BOUND:
        return _free(x, t, x0, x0_rest, alpha, beta, KIND, ZERO)
    t = t + tl.zeros_like(x)
    low, high = _optimum(t - bound, alpha, beta, KIND), _optimum(t + bound, alpha, beta, KIND)
    inside = tl.where(x > high, high, tl.where(x < low, low, x))
    loss, delta = _free(inside, t, x0, x0_rest, alpha, beta, KIND, ZERO)
    beyond = tl.where(x > high, x - high, tl.where(x < low, low - x, 0.0))
    delta = tl.where(x > high, bound, tl.where(x < low, -bound, delta))
    # not by minimum and maximum, in which a NaN is lost
    return loss + bound * beyond, tl.where(delta > bound, bound, tl.where(delta < -bound, -bound, delta))


@triton.jit
def _kernel(
    logits,  # noqa: ANN001
    label,  # noqa: ANN001
    outputs,  # noqa: ANN001
    weight,  # noqa: ANN001
    scale,  # noqa: ANN001
    gradient,  # noqa: ANN001
    losses,  # noqa: ANN001
    classes,  # noqa: ANN001
    size,  # noqa: ANN001
    x_n,  # noqa: ANN001
    x_c,  # noqa: ANN001
    x_p,  # noqa: ANN001
    g_n,  # noqa: ANN001
    g_c,  # noqa: ANN001
    g_p,  # noqa: ANN001
    l_n,  # noqa: ANN001
    l_c,  # noqa: ANN001
    l_p,  # noqa: ANN001
    alpha,  # noqa: ANN001
    beta,  # noqa: ANN001
    t_neg,  # noqa: ANN001
    t_pos,  # noqa: ANN001
    neg,  # noqa: ANN001
    neg_rest,  # noqa: ANN001
    pos,  # noqa: ANN001
    pos_rest,  # noqa: ANN001
    bound,  # noqa: ANN001
    ignored,  # noqa: ANN001
    KIND: tl.constexpr,
    ZERO: tl.constexpr,
    BOUND: tl.constexpr,
    SOFT: tl.constexpr,
    IGNORE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WEIGHT: tl.constexpr,
    DERIVE: tl.constexpr,
    EACH: tl.constexpr,
    PIXELS: tl.constexpr,
    CLASSES: tl.constexpr,
) -> None:
    parts = tl.cdiv(size, PIXELS)
    image = (tl.program_id(0) // parts).to(tl.int64)
    pixel = (tl.program_id(0) % parts).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < size
    counted = inside
    right = tl.zeros([PIXELS], tl.int64)
    if not SOFT:
        right = tl.load(label + image * l_n + pixel * l_p, mask=inside, other=0).to(tl.int64)
        if IGNORE:
            counted = inside & (right != ignored)
            right = tl.where(counted, right, 0)
    unit = tl.load(scale)
    factor = tl.where(counted, 1.0, 0.0)
    if WEIGHT:
        factor = factor * tl.load(weight + image * size + pixel, mask=counted, other=0.0)
    total = tl.zeros([PIXELS], tl.float32)
    for first in range(0, classes, CLASSES):
        one = first + tl.arange(0, CLASSES)
        there = counted[:, None] & (one < classes)[None, :]
        x = tl.load(logits + image * x_n + one[None, :].to(tl.int64) * x_c + pixel[:, None] * x_p, mask=there, other=0.0)
        x = x.to(tl.float32)
        if SOFT:
            share = tl.load(label + image * l_n + one[None, :].to(tl.int64) * l_c + pixel[:, None] * l_p, mask=there, other=0.0)
            t = t_neg + (t_pos - t_neg) * share.to(tl.float32)
            loss, delta = _terms(x, t, _optimum(t, alpha, beta, KIND), 0.0, alpha, beta, bound, KIND, False, BOUND)
        else:
            there = there & (one[None, :] != right[:, None])
            loss, delta = _terms(x, t_neg, neg, neg_rest, alpha, beta, bound, KIND, ZERO, BOUND)
        if OUTPUTS:
            times = tl.load(outputs + one, mask=one < classes, other=0.0)[None, :]
            loss, delta = loss * times, delta * times
        total += tl.sum(tl.where(there, loss, 0.0), axis=1)
        if DERIVE:
            place = gradient + image * g_n + one[None, :].to(tl.int64) * g_c + pixel[:, None] * g_p
            # pixels that do not count get their zeros; the label's place is written below
            written = inside[:, None] & (one < classes)[None, :]
            if not SOFT:
                written = written & ((one[None, :] != right[:, None]) | (counted[:, None] == 0))
            value = tl.where(counted[:, None], delta * (unit * factor)[:, None], 0.0)
            tl.store(place, value.to(gradient.dtype.element_ty), mask=written)
    if not SOFT:
        x = tl.load(logits + image * x_n + right * x_c + pixel * x_p, mask=counted, other=0.0).to(tl.float32)
        loss, delta = _terms(x, t_pos, pos, pos_rest, alpha, beta, bound, KIND, False, BOUND)
        if OUTPUTS:
            times = tl.load(outputs + right, mask=counted, other=0.0)
            loss, delta = loss * times, delta * times
        total += tl.where(counted, loss, 0.0)
        if DERIVE:
            value = (delta * unit * factor).to(gradient.dtype.element_ty)
            tl.store(gradient + image * g_n + right * g_c + pixel * g_p, value, mask=counted)
    total = tl.where(counted, total * factor, 0.0)
    if EACH:
        tl.store(losses + image * size + pixel, total * unit, mask=inside)
    else:
        tl.store(losses + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def _rescale(x, factor, count, SIZE: tl.constexpr):  # noqa: ANN001, ANN202
    times = tl.load(factor).to(tl.float32)
    if times != 1.0:
        place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
        value = tl.load(x + place, mask=place < count, other=0.0).to(tl.float32)
        tl.store(x + place, (value * times).to(x.dtype.element_ty), mask=place < count)


def _on(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()


def rescale_(gradient: Tensor, upstream: Tensor) -> None:
    """Multiply a dense tensor by a number that lies on its device; where that is 1, nothing of it is read."""
    if gradient.numel():
        size = 4096
        with _on(gradient):
            _rescale[(triton.cdiv(gradient.numel(), size),)](gradient, upstream, gradient.numel(), SIZE=size)


def _split(value: Tensor) -> tuple[float, float]:
    """A float64 number as a float32 number and the rest."""
    first = float(value.float())
    return (first, float(value) - first) if math.isfinite(first) else (first, 0.0)


def _settings(problem: Problem) -> dict[str, Any]:
    boost = problem.boost
    t_neg, t_pos = problem.targets
    neg, pos = (_split(boost.inverse(torch.tensor(t, dtype=torch.float64))) for t in (t_neg, t_pos))
    return dict(
        alpha=float(getattr(boost, "alpha", 1.0)),
        beta=float(getattr(boost, "beta", 0.0)),
        t_neg=t_neg,
        t_pos=t_pos,
        neg=neg[0],
        neg_rest=neg[1],
        pos=pos[0],
        pos_rest=pos[1],
        bound=float(problem.max_delta or 0.0),
        ignored=-1 if problem.ignore_index is None else problem.ignore_index,
        KIND=KINDS[type(boost)],
        # no target at the wrong classes, so nothing but the exponential is to be computed there
        ZERO=t_neg == 0,
        BOUND=problem.max_delta is not None,
        SOFT=problem.soft,
        IGNORE=problem.ignore_index is not None and not problem.soft,
    )


def one_pass(problem: Problem, logits: Tensor, derive: bool, upstream: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """See `gbseg.losses.kernels.cpu.one_pass`; logits in one of `DTYPES`."""
    shape = logits.shape
    count, classes, size = shape[0], shape[1], math.prod(shape[2:])
    x = logits.detach().reshape(count, classes, size)
    gradient = torch.empty_like(x) if derive else None
    label = problem.label.reshape((count, classes, size) if problem.soft else (count, 1, size))
    weight = None if problem.weight is None else problem.weight.reshape(count, size).to(logits.device, torch.float32)
    scale = torch.ones((), dtype=torch.float32, device=logits.device) * problem.scale(problem.counted)
    if upstream is not None and upstream.ndim:
        each = upstream.reshape(count, size).to(torch.float32)
        weight = each if weight is None else weight * each
    elif upstream is not None:
        scale = scale * upstream
    strides = [_merged(one, size) for one in (x, x if gradient is None else gradient, label)]
    if all(one is not None for one in strides):
        # all images as one: a classifier's rows are its pixels
        images, pixels = 1, count * size
    else:
        images, pixels = count, size
        strides = [one.stride() for one in (x, x if gradient is None else gradient, label)]
    if strides[0][2] == 1 or classes == 1:
        tile = (1024, 1)
    else:
        wide = min(triton.next_power_of_2(classes), 1024)
        tile = (max(1, 2048 // wide), wide)
    programs = images * triton.cdiv(pixels, tile[0])
    each = problem.reduction == "none"
    losses = torch.empty(count * size if each else programs, dtype=torch.float32, device=logits.device)
    outputs = None if problem.class_weight is None else problem.class_weight.to(logits.device, torch.float32).contiguous()
    if programs and classes:
        with _on(x):
            _kernel[(programs,)](
                x,
                label,
                x if outputs is None else outputs,
                x if weight is None else weight.contiguous(),
                scale,
                x if gradient is None else gradient,
                losses,
                classes,
                pixels,
                *strides[0],
                *strides[1],
                *strides[2],
                **_settings(problem),
                OUTPUTS=outputs is not None,
                WEIGHT=weight is not None,
                DERIVE=derive,
                EACH=each,
                PIXELS=tile[0],
                CLASSES=tile[1],
            )
    else:
        losses.zero_()
    loss = losses.view(count, *shape[2:]) if each else (losses.sum(dtype=torch.float64) * scale).float()
    return loss, None if gradient is None else gradient.view(shape)


def _merged(x: Tensor, size: int) -> tuple[int, int, int] | None:
    """Strides of (N, C, P) seen as (1, C, N * P); None where the pixels of all images are not equally far apart."""
    image, other, pixel = x.stride()
    if x.shape[0] <= 1:
        return 0, other, pixel
    if size == 1:
        return 0, other, image
    return (0, other, pixel) if image == size * pixel else None
