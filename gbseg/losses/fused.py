"""The boosted loss in one pass over the logits: no one-hot tensor, no float copy, nothing of the logits' size but the gradient.

Every class stands alone, so a block of pixels needs nothing of any other: it is read once, its loss is summed and its gradient
written while it is in the cache. `gbseg.losses.reference` is what this is held to.

Shapes: N images or rows, C classes, * any trailing dimensions, B pixels of a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gbseg.boosting import Boost, ExponentialBoost
from gbseg.losses.reference import boosted_loss, bounded_divergence

__all__ = ["fused_boosted_loss"]

# numbers of a block: a few of them lie in a core's cache beside each other
_BLOCK = 1 << 17


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


def _rows(x: Tensor) -> list[Tensor]:
    """(N, C, *) as views (P, C), one an image or one in all; a copy only where no view has that shape."""
    if x.ndim == 2:
        return [x]
    last = x.movedim(1, -1)
    if last.is_contiguous():
        return [last.reshape(-1, x.shape[1])]
    return [image.reshape(image.shape[0], -1).T for image in x]


def _pixels(x: Tensor | None, parts: int) -> list[Tensor | None]:
    """(N, *) cut as `_rows` cuts the logits."""
    return [None] * parts if x is None else list(x.reshape(parts, x.numel() // max(parts, 1)))


def _clamped(delta: Tensor, max_delta: float | None) -> Tensor:
    return delta if max_delta is None else delta.clamp_(-max_delta, max_delta)


def _flat(x: Tensor) -> Tensor:
    """All numbers from the first to the last of (B, C) as one row, whatever the strides."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((span,), (1,))


def _one_block(
    problem: _Problem, x: Tensor, label: Tensor, factor: Tensor | float, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Losses (B,) of logits (B, C), and their deltas (B, C) times ``factor``; the latter in ``out`` where that is given."""
    boost, (t_neg, t_pos), bound = problem.boost, problem.targets, problem.max_delta
    if problem.soft:
        t = t_neg + (t_pos - t_neg) * label.to(x.dtype)
        terms, delta = bounded_divergence(boost, x, t, bound), _clamped(boost.delta(x, t), bound)
    else:
        # one number a pixel of a flat view: a fifth of the time of gather and scatter with a class dimension
        pixels = torch.arange(len(x))
        place = label * x.stride(1) + pixels * x.stride(0)
        right = _flat(x).index_select(0, place)
        neg, pos = (x.new_tensor(value) for value in (t_neg, t_pos))
        right_loss = bounded_divergence(boost, right, pos, bound)
        right_delta = _clamped(boost.delta(right, pos), bound)
        if isinstance(boost, ExponentialBoost) and t_neg == 0 and bound is None and problem.class_weight is None:
            # the loss of a wrong class is its own delta, alpha * exp(x)
            delta = torch.exp(x, out=out)
            place = label * delta.stride(1) + pixels * delta.stride(0)
            flat = _flat(delta)
            flat.index_fill_(0, place, 0.0)
            losses = delta.sum(1).mul_(boost.alpha).add_(right_loss)
            delta.mul_(boost.alpha * factor if isinstance(factor, float) else (boost.alpha * factor).unsqueeze(1))
            flat.scatter_(0, place, right_delta * factor)
            return losses, delta
        terms, delta = bounded_divergence(boost, x, neg, bound), _clamped(boost.delta(x, neg), bound)
        place = label.unsqueeze(1)
        terms.scatter_(1, place, right_loss.unsqueeze(1))
        delta.scatter_(1, place, right_delta.unsqueeze(1))
    if problem.class_weight is not None:
        each = problem.class_weight.to(x)
        terms, delta = terms.mul_(each), delta.mul_(each)
    return terms.sum(1), delta.mul_(factor if isinstance(factor, float) else factor.unsqueeze(1))


def _forward(problem: _Problem, logits: Tensor, gradient: Tensor | None) -> Tensor:
    """The loss; where ``gradient`` is given, its derivative in the logits is written there."""
    exact = logits.dtype == torch.float64
    dtype = torch.float64 if exact else torch.float32
    scale = problem.scale()
    rows = _rows(logits)
    grads = [None] * len(rows) if gradient is None else _rows(gradient)
    labels = _rows(problem.label) if problem.soft else _pixels(problem.label, len(rows))
    weights = _pixels(problem.weight, len(rows))
    losses = torch.empty([len(rows), rows[0].shape[0] if rows else 0], dtype=dtype) if problem.reduction == "none" else None
    total = 0.0
    step = max(1, _BLOCK // max(logits.shape[1], 1))
    for part, (x_all, label_all, weight_all, grad_all) in enumerate(zip(rows, labels, weights, grads, strict=True)):
        for start in range(0, x_all.shape[0], step):
            block = slice(start, start + step)
            x, label = x_all[block], label_all[block]
            out = None if grad_all is None else grad_all[block]
            factor = None if weight_all is None else weight_all[block].to(dtype)
            counted = None
            if problem.ignore_index is not None and not problem.soft:
                counted = label != problem.ignore_index
                if not bool(counted.all()):
                    label = torch.where(counted, label, 0)
                    factor = counted.to(dtype) if factor is None else torch.where(counted, factor, 0.0)
            x = x.to(dtype)
            each = scale if factor is None else scale * factor
            place = out if out is not None and out.dtype == dtype else None
            value, delta = _one_block(problem, x, label, each, place)
            if counted is not None and not bool(torch.isfinite(value).all()):
                # 0 times an infinity: as the reference, what an ignored pixel's logits are does not matter
                x = torch.where(counted.unsqueeze(1), x, 0.0)
                value, delta = _one_block(problem, x, label, each, place)
            if losses is None:
                total += float((value if factor is None else value * factor).sum(dtype=torch.float64))
            else:
                losses[part, block] = value * each
            if out is not None and delta.data_ptr() != out.data_ptr():
                out.copy_(delta)
    if losses is not None:
        return losses.view(logits.shape[0], *logits.shape[2:])
    return torch.tensor(scale * total, dtype=dtype)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, problem: _Problem) -> Tensor:
        ctx.problem = problem
        ctx.gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(logits)
        return _forward(problem, logits, ctx.gradient)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            x = logits if logits.requires_grad else logits.requires_grad_()
            (gradient,) = torch.autograd.grad(ctx.problem.reference(x), x, upstream, create_graph=True)
            return gradient, None
        # given away, so that nothing has to be copied; a second backward computes it again
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            gradient = torch.empty_like(logits)
            _forward(ctx.problem, logits, gradient)
        if upstream.ndim:
            gradient.mul_(upstream.unsqueeze(1))
        elif float(upstream) != 1:
            gradient.mul_(upstream)
        return gradient, None


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

    Returns:
        The loss in float32 or float64.
    """
    bound = None if max_delta == math.inf else max_delta
    problem = _Problem(label, boost, targets, ignore_index, class_weight, weight, avg_factor, reduction, bound, loss_weight)
    return _Fused.apply(logits, problem)
