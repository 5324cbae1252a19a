"""The boosted loss in one pass on a GPU, as a Triton kernel: each logit is read once and its gradient written once.

A program takes some pixels and loops over their classes. The label's class is left out of the loop and computed after it, so
that all others have one target and no branch. Shapes: N images or rows, C classes, P pixels of an image.
"""

import itertools
import math
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from gbseg.boosting import Boost, CubicBoost, ExponentialBoost, LinearBoost, LossInputs, LossSpec, MirroredExponentialBoost

__all__ = ["DTYPES", "INTERPRETED", "KINDS", "loss_and_gradient", "rescale_"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Triton's interpreter runs on a CPU, for tests
INTERPRETED = bool(triton.knobs.runtime.interpret)

_EXP, _CUBIC, _LINEAR, _MIRRORED = (tl.constexpr(kind) for kind in range(4))
KINDS: dict[type[Boost], int] = {ExponentialBoost: 0, CubicBoost: 1, LinearBoost: 2, MirroredExponentialBoost: 3}


@triton.jit
def _exp(x):
    """``exp(x)``; the hardware has ``exp2``, and a rounded ``x * log2(e)`` would cost a relative error of ``6e-8 |x|``."""
    power = x * 1.4426950408889634
    rest = tl.fma(x, 1.4426950408889634, -power) + x * 1.925963033500967e-08
    # NaN where x is infinite
    rest = tl.where(tl.abs(rest) < 1, rest, 0.0)
    return tl.exp2(power) * (1 + rest * 0.6931471805599453)


@triton.jit
def _expm1(u):
    """``exp(u) - 1`` and ``exp(u) - 1 - u``; near 0 by their series, where the differences would cancel."""
    series = 1 / 6 + u * (1 / 24 + u * (1 / 120 + u * (1 / 720 + u * (1 / 5040 + u * (1 / 40320 + u / 362880)))))
    excess = u * u * (0.5 + u * series)
    small = tl.abs(u) < 0.5
    expm1 = _exp(u) - 1
    return tl.where(small, u + excess, expm1), tl.where(small, excess, expm1 - u)


@triton.jit
def _optimum(t, alpha, beta, KIND: tl.constexpr):
    """``g^-1(t)``."""
    if KIND == _EXP:
        return tl.log(tl.maximum(t, 0.0) / alpha)
    if KIND == _CUBIC:
        cube = (t - beta) / alpha
        size = tl.abs(cube)
        root = tl.exp(tl.log(tl.maximum(size, 1e-38)) / 3)
        # a Newton step removes the rounding of exp and log
        root = root - (root * root * root - size) / (3 * root * root)
        root = tl.where(size > 0, root, 0.0)
        return tl.where(cube < 0, -root, root)
    if KIND == _LINEAR:
        return t
    s = t - beta
    size = tl.maximum(tl.log(tl.maximum(tl.abs(s), 1e-38) / alpha) + 1, 0.0)
    return tl.where(s < 0, -size, tl.where(s > 0, size, 0.0))


@triton.jit
def _unbounded(x, t, x0, x0_rest, alpha, beta, KIND: tl.constexpr, ZERO: tl.constexpr):
    """Loss and gradient at a logit, see `gbseg.boosting`; ``x0 + x0_rest`` is ``g^-1(t)``."""
    if KIND == _EXP:
        value = alpha * _exp(x)
        if ZERO:
            return value, value
        t = t + tl.zeros_like(x)
        u = (x - x0) - x0_rest
        near = (t > 0) & (u <= 1)
        expm1, excess = _expm1(tl.where(near, u, 0.0))
        far = value - tl.where(t > 0, t * (1 + u), 0.0)
        return tl.where(near, t * excess, far), tl.where(near, t * expm1, value - t)
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
    expm1, excess = _expm1(tl.where(same, reach - 1 - log_size, 0.0))
    far = alpha * _exp(reach - 1) - s * x + size * log_size
    loss = tl.where(in_jump, step * within + step * reach - s * x, tl.where(same, size * excess, far))
    sign = tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))
    delta = alpha * sign * _exp(reach - 1) - s
    return loss, tl.where(in_jump, delta, tl.where(same, sign * size * expm1, delta))


@triton.jit
def _loss_and_delta(x, t, x0, x0_rest, alpha, beta, max_delta, KIND: tl.constexpr, ZERO: tl.constexpr, BOUND: tl.constexpr):
    """``_unbounded``, or with the gradient clamped to [-max_delta, max_delta] and the loss that belongs to it."""
    if not BOUND:
        return _unbounded(x, t, x0, x0_rest, alpha, beta, KIND, ZERO)
    t = t + tl.zeros_like(x)
    low, high = _optimum(t - max_delta, alpha, beta, KIND), _optimum(t + max_delta, alpha, beta, KIND)
    inside = tl.where(x > high, high, tl.where(x < low, low, x))
    loss, delta = _unbounded(inside, t, x0, x0_rest, alpha, beta, KIND, ZERO)
    beyond = tl.where(x > high, x - high, tl.where(x < low, low - x, 0.0))
    delta = tl.where(x > high, max_delta, tl.where(x < low, -max_delta, delta))
    # not by minimum and maximum, which lose a NaN
    return loss + max_delta * beyond, tl.where(delta > max_delta, max_delta, tl.where(delta < -max_delta, -max_delta, delta))


@triton.jit
def _kernel(
    logits,
    label,
    class_weight,
    weight,
    scale,
    gradient,
    losses,
    num_classes,
    size,
    x_n,
    x_c,
    x_p,
    g_n,
    g_c,
    g_p,
    l_n,
    l_c,
    l_p,
    alpha,
    beta,
    t_neg,
    t_pos,
    x_neg,
    x_neg_rest,
    x_pos,
    x_pos_rest,
    max_delta,
    ignore_index,
    KIND: tl.constexpr,
    ZERO: tl.constexpr,
    BOUND: tl.constexpr,
    SOFT: tl.constexpr,
    IGNORE: tl.constexpr,
    CLASS_WEIGHT: tl.constexpr,
    WEIGHT: tl.constexpr,
    GRAD: tl.constexpr,
    UNREDUCED: tl.constexpr,
    PIXELS: tl.constexpr,
    CLASSES: tl.constexpr,
) -> None:
    parts = tl.cdiv(size, PIXELS)
    image = (tl.program_id(0) // parts).to(tl.int64)
    pixel = (tl.program_id(0) % parts).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < size
    valid = inside
    target = tl.zeros([PIXELS], tl.int64)
    if not SOFT:
        target = tl.load(label + image * l_n + pixel * l_p, mask=inside, other=0).to(tl.int64)
        if IGNORE:
            valid = inside & (target != ignore_index)
            target = tl.where(valid, target, 0)
    grad_scale = tl.load(scale)
    factor = tl.where(valid, 1.0, 0.0)
    if WEIGHT:
        factor = factor * tl.load(weight + image * size + pixel, mask=valid, other=0.0)
    total = tl.zeros([PIXELS], tl.float32)
    for first in range(0, num_classes, CLASSES):
        index = first + tl.arange(0, CLASSES)
        column = index[None, :].to(tl.int64)
        mask = valid[:, None] & (index < num_classes)[None, :]
        x = tl.load(logits + image * x_n + column * x_c + pixel[:, None] * x_p, mask=mask, other=0.0)
        x = x.to(tl.float32)
        if SOFT:
            share = tl.load(label + image * l_n + column * l_c + pixel[:, None] * l_p, mask=mask, other=0.0)
            t = t_neg + (t_pos - t_neg) * share.to(tl.float32)
            x0 = _optimum(t, alpha, beta, KIND)
            loss, delta = _loss_and_delta(x, t, x0, 0.0, alpha, beta, max_delta, KIND, False, BOUND)
        else:
            mask = mask & (index[None, :] != target[:, None])
            loss, delta = _loss_and_delta(x, t_neg, x_neg, x_neg_rest, alpha, beta, max_delta, KIND, ZERO, BOUND)
        if CLASS_WEIGHT:
            output_weight = tl.load(class_weight + index, mask=index < num_classes, other=0.0)[None, :]
            loss, delta = loss * output_weight, delta * output_weight
        total += tl.sum(tl.where(mask, loss, 0.0), axis=1)
        if GRAD:
            pointer = gradient + image * g_n + column * g_c + pixel[:, None] * g_p
            # ignored pixels get zeros in every class; the label's class of the others is written below
            written = inside[:, None] & (index < num_classes)[None, :]
            if not SOFT:
                written = written & ((index[None, :] != target[:, None]) | (valid[:, None] == 0))
            value = tl.where(valid[:, None], delta * (grad_scale * factor)[:, None], 0.0)
            tl.store(pointer, value.to(gradient.dtype.element_ty), mask=written)
    if not SOFT:
        x = tl.load(logits + image * x_n + target * x_c + pixel * x_p, mask=valid, other=0.0).to(tl.float32)
        loss, delta = _loss_and_delta(x, t_pos, x_pos, x_pos_rest, alpha, beta, max_delta, KIND, False, BOUND)
        if CLASS_WEIGHT:
            output_weight = tl.load(class_weight + target, mask=valid, other=0.0)
            loss, delta = loss * output_weight, delta * output_weight
        total += tl.where(valid, loss, 0.0)
        if GRAD:
            value = (delta * grad_scale * factor).to(gradient.dtype.element_ty)
            tl.store(gradient + image * g_n + target * g_c + pixel * g_p, value, mask=valid)
    total = tl.where(valid, total * factor, 0.0)
    if UNREDUCED:
        tl.store(losses + image * size + pixel, total * grad_scale, mask=inside)
    else:
        tl.store(losses + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def _rescale(x, factor, count, SIZE: tl.constexpr):
    times = tl.load(factor).to(tl.float32)
    if times != 1.0:
        offset = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
        value = tl.load(x + offset, mask=offset < count, other=0.0).to(tl.float32)
        tl.store(x + offset, (value * times).to(x.dtype.element_ty), mask=offset < count)


def _device_of(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which may not be the tensor's."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()


def rescale_(gradient: Tensor, grad_output: Tensor) -> None:
    """Multiply a dense gradient in place by a number on its device; where that is 1, nothing of the gradient is read."""
    if gradient.numel():
        size = 4096
        with _device_of(gradient):
            _rescale[(triton.cdiv(gradient.numel(), size),)](gradient, grad_output, gradient.numel(), SIZE=size)


def _split(value: Tensor) -> tuple[float, float]:
    """A float64 number as a float32 number and the rest."""
    first = float(value.float())
    return (first, float(value) - first) if math.isfinite(first) else (first, 0.0)


def _boost_arguments(spec: LossSpec) -> list[float]:
    """The kernel's arguments from ``alpha`` to ``max_delta``."""
    alpha, beta = float(getattr(spec.boost, "alpha", 1.0)), float(getattr(spec.boost, "beta", 0.0))
    x_neg, x_pos = (_split(spec.boost.inverse(torch.tensor(t, dtype=torch.float64))) for t in spec.targets)
    return [alpha, beta, *spec.targets, *x_neg, *x_pos, float(spec.max_delta or 0.0)]


def loss_and_gradient(
    spec: LossSpec, inputs: LossInputs, logits: Tensor, needs_grad: bool, grad_output: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The loss of logits ``(N, C, *)`` in ``DTYPES`` and, if ``needs_grad``, its gradient in them times ``grad_output``."""
    shape, device = logits.shape, logits.device
    count, classes, size = shape[0], shape[1], math.prod(shape[2:])
    x = logits.detach().reshape(count, classes, size)
    gradient = torch.empty_like(x) if needs_grad else None
    label = inputs.label.reshape((count, classes, size) if inputs.is_soft else (count, 1, size))
    weight = None if inputs.weight is None else inputs.weight.reshape(count, size).to(device, torch.float32)
    scale = torch.ones((), dtype=torch.float32, device=device) * inputs.scale(inputs.valid_mask)
    if grad_output is not None and grad_output.ndim:
        pixel_grad = grad_output.reshape(count, size).to(torch.float32)
        weight = pixel_grad if weight is None else weight * pixel_grad
    elif grad_output is not None:
        scale = scale * grad_output
    class_weight = None if inputs.class_weight is None else inputs.class_weight.to(device, torch.float32).contiguous()
    tensors = (x, x if gradient is None else gradient, label)
    # all images as one: a classifier's rows are its pixels
    images, pixels = 1, count * size
    strides = [merged for tensor in tensors if (merged := _merged_strides(tensor, size)) is not None]
    if len(strides) < len(tensors):
        images, pixels, strides = count, size, [tensor.stride() for tensor in tensors]
    if strides[0][2] == 1 or classes == 1:
        tile = (1024, 1)
    else:
        wide = min(triton.next_power_of_2(classes), 1024)
        tile = (max(1, 2048 // wide), wide)
    programs = images * triton.cdiv(pixels, tile[0])
    unreduced = inputs.reduction == "none"
    losses = torch.empty(count * size if unreduced else programs, dtype=torch.float32, device=device)
    if programs and classes:
        with _device_of(x):
            _kernel[(programs,)](
                x,
                label,
                x if class_weight is None else class_weight,
                x if weight is None else weight.contiguous(),
                scale,
                x if gradient is None else gradient,
                losses,
                classes,
                pixels,
                *itertools.chain(*strides),
                *_boost_arguments(spec),
                -1 if inputs.ignore_index is None else inputs.ignore_index,
                KIND=KINDS[type(spec.boost)],
                # without a target at the wrong classes, only the exponential is computed there
                ZERO=spec.targets[0] == 0,
                BOUND=spec.max_delta is not None,
                SOFT=inputs.is_soft,
                IGNORE=inputs.ignore_index is not None and not inputs.is_soft,
                CLASS_WEIGHT=class_weight is not None,
                WEIGHT=weight is not None,
                GRAD=needs_grad,
                UNREDUCED=unreduced,
                PIXELS=tile[0],
                CLASSES=tile[1],
            )
    else:
        losses.zero_()
    loss = losses.view(count, *shape[2:]) if unreduced else (losses.sum(dtype=torch.float64) * scale).float()
    return loss, None if gradient is None else gradient.view(shape)


def _merged_strides(x: Tensor, size: int) -> tuple[int, ...] | None:
    """Strides of (N, C, P) seen as (1, C, N * P); None where the pixels of all images are not equally far apart."""
    image_stride, class_stride, pixel_stride = x.stride()
    if x.shape[0] <= 1:
        return 0, class_stride, pixel_stride
    if size == 1:
        return 0, class_stride, image_stride
    return (0, class_stride, pixel_stride) if image_stride == size * pixel_stride else None
