"""The boosted loss in one pass over the logits: no one-hot tensor, no float copy, nothing of the logits' size but the gradient.

Every class stands alone, so a block of pixels needs nothing of any other: it is read once, its loss is summed and its gradient
written while it is in the cache. `gbseg.losses.reference` is what this is held to.

Shapes: N images or rows, C classes, * any trailing dimensions (P numbers together), n and p those of a block.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gbseg.boosting import Boost, ExponentialBoost
from gbseg.losses.reference import boosted_loss, bounded_divergence

__all__ = ["fused_boosted_loss"]

# numbers of a block: a few of them lie in a core's cache beside each other
_BLOCK = 1 << 20


@dataclass(frozen=True)
class _Problem:
    """All but the logits, as `boosted_loss` takes it, and a factor of the whole."""

    label: Tensor
    boost: Boost
    targets: tuple[float, float]
    ignore_index: int | None
    class_weight: Tensor | None
    weight: Tensor | None
    avg_factor: float | Tensor | None
    reduction: str
    max_delta: float | None
    loss_weight: float

    def reference(self, logits: Tensor) -> Tensor:
        """The same by the definition, which can be differentiated twice."""
        value = boosted_loss(
            logits,
            self.label,
            self.boost,
            self.targets,
            ignore_index=self.ignore_index,
            class_weight=self.class_weight,
            weight=self.weight,
            avg_factor=self.avg_factor,
            reduction=self.reduction,
            max_delta=self.max_delta,
        )
        return self.loss_weight * value

    @property
    def soft(self) -> bool:
        return self.label.is_floating_point()

    def scale(self) -> float:
        """What the sum over the pixels is multiplied by."""
        if self.reduction != "mean":
            return self.loss_weight
        if self.avg_factor is not None:
            return self.loss_weight / float(self.avg_factor)
        if self.soft:
            pixels = self.label.numel() // max(self.label.shape[1], 1)
        elif self.ignore_index is None:
            pixels = self.label.numel()
        else:
            pixels = int((self.label != self.ignore_index).sum())
        return self.loss_weight / max(pixels, 1)


def _flat(x: Tensor) -> Tensor:
    """All numbers from the first to the last of a block (n, C, p) as one row, whatever the strides."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((span,), (1,))


def _places(x: Tensor, label: Tensor) -> Tensor:
    """Where the logits of the labels (n, p) stand in `_flat`, as one row; a fifth of the time of gather along classes."""
    image, other, pixel = x.stride()
    first = torch.arange(x.shape[0]).unsqueeze(1) * image + torch.arange(x.shape[2]) * pixel
    return (label * other).add_(first).view(-1)


def _terms(boost: Boost, x: Tensor, t: Tensor | float, max_delta: float | None) -> tuple[Tensor, Tensor]:
    """The terms of the loss and their derivatives at target values; both may be one tensor."""
    if isinstance(boost, ExponentialBoost) and isinstance(t, float) and max_delta is None:
        if t == 0:
            value = torch.exp(x).mul_(boost.alpha)
            return value, value
        optimum = math.log(t / boost.alpha)
        # in two parts, the first of which x can be subtracted from without an error where they are close
        near = torch.tensor(optimum, dtype=x.dtype).item()
        u = (x - near).sub_(optimum - near)
        if bool(u.amax() <= 1):
            # `ExponentialBoost.divergence` where only one of its branches is taken
            slope = torch.expm1(u)
            return torch.sub(slope, u, out=u).mul_(t), slope.mul_(t)
    t = torch.as_tensor(t, dtype=x.dtype)
    delta = boost.delta(x, t)
    return bounded_divergence(boost, x, t, max_delta), delta if max_delta is None else delta.clamp_(-max_delta, max_delta)


def _block(problem: _Problem, x: Tensor, label: Tensor, factor: Tensor | float, gradient: Tensor | None) -> Tensor:
    """Losses (n, p) of logits (n, C, p); their derivatives times ``factor`` (n, p) are written into ``gradient``."""
    t_neg, t_pos = problem.targets
    outputs = None if problem.class_weight is None else problem.class_weight.to(x).unsqueeze(1)
    pixels = factor if isinstance(factor, float) else factor.unsqueeze(1)
    if problem.soft:
        terms, delta = _terms(problem.boost, x, t_neg + (t_pos - t_neg) * label.to(x.dtype), problem.max_delta)
    else:
        right, right_delta = _terms(problem.boost, _flat(x).index_select(0, _places(x, label)), t_pos, problem.max_delta)
        terms, delta = _terms(problem.boost, x, t_neg, problem.max_delta)
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


def _one_pass(problem: _Problem, logits: Tensor, derive: bool, upstream: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
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
    total, scale = 0.0, problem.scale()
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


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, problem: _Problem, keep: bool) -> Tensor:
        ctx.problem = problem
        ctx.save_for_backward(logits)
        # without a reduction the backward multiplies pixel by pixel, and float16 would lose what a gradient scaler saves
        keep = keep and ctx.needs_input_grad[0] and problem.reduction != "none" and logits.dtype != torch.float16
        loss, ctx.gradient = _one_pass(problem, logits, keep)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (logits,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            # to be differentiated again
            (gradient,) = torch.autograd.grad(ctx.problem.reference(logits), logits, upstream, create_graph=True)
            return gradient, None, None
        # given away, so that nothing has to be copied; a second backward computes it again
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None or (gradient.dtype == torch.bfloat16 and upstream != 1):
            # rounded once
            _, gradient = _one_pass(ctx.problem, logits, True, upstream)
        elif upstream != 1:
            gradient.mul_(upstream)
        return gradient, None, None


def fused_boosted_loss(
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
    loss_weight: float = 1.0,
    keep_gradient: bool = True,
) -> Tensor:
    """`gbseg.losses.reference.boosted_loss` times ``loss_weight``, on a CPU, in one pass.

    Beside the gradient, which is written in the forward, it needs the memory of a few blocks. A second derivative is the
    reference's.

    Args:
        logits: (N, C, *) of any floating dtype and layout; never written to.
        label: (N, *) integers, checked by the caller; or (N, C, *) soft labels.
        boost: see `boosted_loss`, as the others.
        targets: see there.
        ignore_index: see there.
        class_weight: see there.
        weight: see there.
        avg_factor: see there.
        reduction: see there.
        max_delta: see there.
        loss_weight: factor of the loss.
        keep_gradient: write the gradient in the forward and keep it until the backward. False: keep nothing but the logits
            that the caller has, and read them again.

    Returns:
        The loss in float32 or float64.
    """
    bound = None if max_delta == math.inf else max_delta
    problem = _Problem(label, boost, targets, ignore_index, class_weight, weight, avg_factor, reduction, bound, loss_weight)
    return _Fused.apply(logits, problem, keep_gradient)
