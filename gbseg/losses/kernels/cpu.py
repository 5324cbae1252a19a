"""The boosted loss in one pass on a CPU: no one-hot tensor, no float copy, nothing of the logits' size but the gradient.

The loss is a sum over classes without a normaliser, so a block of logits can be computed alone: it is read once, and its loss
is summed and its gradient written while it is in the cache.

Shapes: N images or rows, C classes, ``*`` any trailing dimensions (P pixels together), n and p those of a block.
"""

import ctypes
import itertools
import math
import sys
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from gbseg.boosting import Boost, ExponentialBoost, LossInputs, LossSpec
from gbseg.losses.reference import bounded_divergence

__all__ = ["loss_and_gradient", "loss_terms_and_gradient", "rescale_"]

# logits of a block, which fits into the cores' caches; fewer where loss terms and gradient are two tensors with temporaries
_BLOCK, _BLOCK_WITH_TEMPORARIES = 1 << 20, 1 << 17
# from this size on, memory for a gradient may come fresh from the system at every step; the pages to ask for
_LARGE, _PAGE, _MADV_HUGEPAGE = 1 << 23, 1 << 21, 14


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system call ``madvise`` where huge pages can be asked for."""
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def _empty_like(x: Tensor) -> Tensor:
    """``torch.empty_like``, in huge pages where the system grants them.

    33 MiB are 8,453 pages of 4 KiB, and the first touch of each of them takes as long as all arithmetic of the loss.
    """
    result = torch.empty_like(x)
    if result.nbytes >= _LARGE and (madvise := _madvise()) is not None:
        start = -(-result.data_ptr() // _PAGE) * _PAGE
        # advice that is not taken changes nothing
        madvise(start, (result.data_ptr() + result.nbytes - start) // _PAGE * _PAGE, _MADV_HUGEPAGE)
    return result


def _flat(x: Tensor) -> Tensor:
    """All numbers from the first to the last of a block (n, C, p) as one row, whatever the strides."""
    span = 1 + sum([(size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)])
    return x.as_strided((span,), (1,))


def _label_indices(x: Tensor, label: Tensor, offsets: Tensor) -> Tensor:
    """The indices in ``_flat`` of the logits of the labels (n, p), as one row; ``offsets`` are 0, 1, ... of at least p pixels.

    These and a gather from a row take a fifth of the time of a gather along classes.
    """
    image_stride, class_stride, pixel_stride = x.stride()
    offsets = offsets[: x.shape[2]]
    index = torch.add(offsets if pixel_stride == 1 else offsets * pixel_stride, label, alpha=class_stride)
    if x.shape[0] > 1:
        index += (torch.arange(x.shape[0], device=x.device) * image_stride).unsqueeze(1)
    return index.reshape(-1)


def loss_terms_and_gradient(boost: Boost, x: Tensor, t: Tensor | float, max_delta: float | None) -> tuple[Tensor, Tensor]:
    """The loss ``L(x, t)`` and its gradient elementwise; both may be one tensor."""
    if type(boost) is ExponentialBoost and isinstance(t, float) and max_delta is None:
        if t == 0:
            value = torch.exp(x).mul_(boost.alpha)
            return value, value
        optimum = math.log(t / boost.alpha)
        # in two parts: x minus the first is exact where they are close
        near = torch.tensor(optimum, dtype=x.dtype).item()
        u = (x - near).sub_(optimum - near)
        if not u.numel() or bool(u.amax() <= 1):
            # ExponentialBoost.divergence where only one of its branches is taken
            gradient = torch.expm1(u)
            return torch.sub(gradient, u, out=u).mul_(t), gradient.mul_(t)
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    gradient = boost.delta(x, t)
    if max_delta is None:
        return boost.divergence(x, t), gradient
    return bounded_divergence(boost, x, t, max_delta), gradient.clamp_(-max_delta, max_delta)


def _exp_alpha(spec: LossSpec, inputs: LossInputs) -> float | None:
    """``alpha`` where loss and gradient of the wrong classes are both ``alpha * exp(x)``; else None."""
    if type(spec.boost) is not ExponentialBoost or spec.targets[0] != 0 or spec.max_delta is not None or inputs.is_soft:
        return None
    return spec.boost.alpha


def _block(
    spec: LossSpec, inputs: LossInputs, x: Tensor, label: Tensor, factor: Tensor | float, out: Tensor | None, offsets: Tensor
) -> Tensor:
    """Losses (n, p) of logits (n, C, p); their gradients times ``factor`` (n, p) are written into ``out``."""
    boost, (t_neg, t_pos), max_delta = spec.boost, spec.targets, spec.max_delta
    class_weight = None if inputs.class_weight is None else inputs.class_weight.to(x)
    unit = 1.0
    if inputs.is_soft:
        loss_terms, grad = loss_terms_and_gradient(boost, x, t_neg + (t_pos - t_neg) * label.to(x.dtype), max_delta)
    else:
        # first all classes as wrong ones
        alpha = _exp_alpha(spec, inputs)
        if alpha is not None:
            # alpha is a factor of later products, which saves a pass over the block
            loss_terms = grad = torch.exp(x, out=out)
            unit = alpha
        else:
            loss_terms, grad = loss_terms_and_gradient(boost, x, t_neg, max_delta)
        # then the label's class, after the pass over x that brings it into the cache
        index = _label_indices(x, label, offsets)
        label_terms, label_grad = loss_terms_and_gradient(boost, _flat(x).gather(0, index), t_pos, max_delta)
        if loss_terms.stride() != x.stride():
            index = _label_indices(loss_terms, label, offsets)
        _flat(loss_terms).index_fill_(0, index, 0.0)
        if class_weight is not None:
            label_weight = class_weight[label.reshape(-1)]
            label_terms, label_grad = label_terms * label_weight, label_grad * label_weight
    losses = loss_terms.sum(1) if class_weight is None else (loss_terms * class_weight.unsqueeze(1)).sum(1)
    if not inputs.is_soft:
        losses = losses.mul_(unit).add_(label_terms.view(losses.shape))
    if out is None:
        return losses
    times = unit * factor if isinstance(factor, float) else (unit * factor).unsqueeze(1)
    torch.mul(grad, times if class_weight is None else times * class_weight.unsqueeze(1), out=out)
    if not inputs.is_soft:
        label_grad *= factor if isinstance(factor, float) else factor.reshape(-1)
        if out.stride() != loss_terms.stride():
            index = _label_indices(out, label, offsets)
        _flat(out).index_copy_(0, index, label_grad)
    return losses


def loss_and_gradient(
    spec: LossSpec, inputs: LossInputs, logits: Tensor, needs_grad: bool, grad_output: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The loss of logits ``(N, C, *)`` and, if ``needs_grad``, its gradient in them times ``grad_output`` (None: 1)."""
    count, classes = logits.shape[:2]
    size = math.prod(logits.shape[2:])
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    all_x = logits.detach().reshape(count, classes, size)
    all_labels = inputs.label.reshape(count, classes, size) if inputs.is_soft else inputs.label.reshape(count, size)
    all_weights = None if inputs.weight is None else inputs.weight.to(dtype).reshape(count, size)
    all_valid = inputs.valid_mask
    if all_valid is not None and int(torch.count_nonzero(all_valid)) == all_valid.numel():
        all_valid = None
    scale = float(inputs.scale(all_valid))
    # with strides as the logits have them, if those leave no gaps
    gradient = _empty_like(all_x) if needs_grad else None
    pixel_losses = torch.empty(count, size, dtype=dtype, device=all_x.device) if inputs.reduction == "none" else None
    total = 0.0
    grad_scale = scale if grad_output is None or grad_output.ndim else scale * float(grad_output)
    block_size = min(_BLOCK, _BLOCK_WITH_TEMPORARIES) if _exp_alpha(spec, inputs) is None else _BLOCK
    images = max(1, block_size // max(classes * size, 1))
    # an image is cut into equal parts, so that none is a small rest with the same overhead
    parts = math.ceil(size * classes / block_size) if images == 1 else 1
    pixels = max(1, math.ceil(size / max(parts, 1)))
    offsets = torch.arange(pixels, device=all_x.device)
    for first, start in itertools.product(range(0, count, images), range(0, size, pixels)):
        block = (slice(first, first + images), slice(start, start + pixels))
        class_block = (block[0], slice(None), block[1])
        x = all_x[class_block].to(dtype)
        label = all_labels[class_block] if inputs.is_soft else all_labels[block].long()
        weight = None if all_weights is None else all_weights[block]
        valid = None
        if all_valid is not None:
            valid = all_valid.view(count, size)[block]
            label = label * valid
            weight = valid.to(dtype) if weight is None else torch.where(valid, weight, 0.0)
        factor = grad_scale if weight is None else grad_scale * weight
        if grad_output is not None and grad_output.ndim:
            factor = factor * grad_output.reshape(count, size)[block]
            # the grad_output of an ignored pixel may be anything, as its logits may
            factor = factor if valid is None else torch.where(valid, factor, 0.0)
        out = block_gradient = None if gradient is None else gradient[class_block]
        if out is not None and out.dtype != dtype:
            out = torch.empty_like(x)
        losses = _block(spec, inputs, x, label, factor, out, offsets)
        losses = losses if weight is None else losses.mul_(weight)
        block_sum = float(losses.sum())
        if valid is not None and weight is not None and not math.isfinite(block_sum):
            # an ignored pixel's logits may be anything, and 0 times infinity is NaN
            x = torch.where(valid.unsqueeze(1), all_x[class_block].to(dtype), 0.0)
            losses = _block(spec, inputs, x, label, factor, out, offsets).mul_(weight)
            block_sum = float(losses.sum())
        total += block_sum
        if pixel_losses is not None:
            torch.mul(losses, scale, out=pixel_losses[block])
        if block_gradient is not None and out is not None and out is not block_gradient:
            block_gradient.copy_(out)
    if pixel_losses is None:
        loss = torch.tensor(scale * total, dtype=dtype, device=all_x.device)
    else:
        loss = pixel_losses.view(count, *logits.shape[2:])
    return loss, None if gradient is None else gradient.view(logits.shape)


def rescale_(gradient: Tensor, grad_output: Tensor) -> None:
    """Multiply the gradient by a number in place, unless that is 1."""
    if grad_output != 1:
        gradient.mul_(grad_output)
