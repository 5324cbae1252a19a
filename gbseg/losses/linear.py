"""The last layer of a classifier and its boosted loss at once, in blocks of classes: the logits of all of them are never held.

A softmax over very many classes needs every logit before the first derivative, and, where processes share the classes, a
maximum and a sum over all of them for every row. Boosted classes stand alone: each block is multiplied, turned into loss and
derivatives and forgotten, and processes that share the classes add up one number and the derivatives of the features.

Shapes: N rows, D features, C classes (of this process), B classes of a block.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from gbseg.boosting import Boost
from gbseg.losses.kernels.cpu import terms_and_slopes
from gbseg.losses.labels import require_labels
from gbseg.losses.reference import boosted_loss
from gbseg.losses.spec import Problem, traced

__all__ = ["boosted_linear_loss"]

# logits of a block
_BLOCK = 1 << 20


class _Blocks:
    """The derivatives of a linear layer with its loss, written block by block."""

    def __init__(self, features: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, bool, bool]) -> None:
        wide = torch.float64 if features.dtype == torch.float64 else torch.float32
        self.features = torch.zeros_like(features, dtype=wide) if wanted[0] else None
        self.weight = torch.empty_like(weight) if wanted[1] else None
        self.bias = torch.empty_like(bias) if bias is not None and wanted[2] else None

    def add(self, slopes: Tensor, features: Tensor, weight: Tensor, block: slice) -> None:
        """Of a block of classes, with derivatives (N, B) in its logits."""
        if self.features is not None:
            self.features += (slopes.to(weight.dtype) @ weight[block]).to(self.features.dtype)
        if self.weight is not None:
            self.weight[block] = slopes.to(features.dtype).T @ features
        if self.bias is not None:
            self.bias[block] = slopes.sum(0)


def _block_by_block(
    problem: Problem, features: Tensor, weight: Tensor, bias: Tensor | None, first: int, found: _Blocks, upstream: Tensor | None
) -> Tensor:
    """(N,) losses of this process's classes; derivatives times ``upstream`` (N,) or a number are added to ``found``."""
    boost, (t_neg, t_pos), bound = problem.boost, problem.targets, problem.max_delta
    rows, classes = len(features), len(weight)
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    counted = problem.counted
    factor = torch.ones((rows, 1), dtype=wide, device=features.device) * problem.scale(counted)
    if problem.weight is not None:
        factor = factor * problem.weight.to(factor).unsqueeze(1)
    if counted is not None:
        factor = torch.where(counted.unsqueeze(1), factor, 0.0)
    losses = torch.zeros(rows, dtype=wide, device=features.device)
    slope = factor if upstream is None else factor * (upstream.unsqueeze(1) if upstream.ndim else upstream)
    if counted is not None:
        # what is upstream of an ignored row may be anything
        slope = torch.where(counted.unsqueeze(1), slope, 0.0)
    step = max(1, _BLOCK // max(rows, 1))
    for start in range(0, classes, step):
        block = slice(start, min(start + step, classes))
        x = F.linear(features, weight[block], None if bias is None else bias[block]).to(wide)
        if counted is not None:
            x = torch.where(counted.unsqueeze(1), x, 0.0)
        place = problem.label - first - start
        here = (place >= 0) & (place < x.shape[1])
        place = torch.where(here, place, 0).unsqueeze(1)
        right = x.gather(1, place)
        right_terms, right_slopes = terms_and_slopes(boost, right, torch.full_like(right, t_pos), bound)
        terms, slopes = terms_and_slopes(boost, x, t_neg if x.device.type == "cpu" else torch.full_like(x, t_neg), bound)
        here = here.unsqueeze(1)
        right_terms = torch.where(here, right_terms, terms.gather(1, place))
        right_slopes = torch.where(here, right_slopes, slopes.gather(1, place))
        terms.scatter_(1, place, right_terms)
        outputs = None if problem.class_weight is None else problem.class_weight[first + start : first + block.stop].to(x)
        losses += (terms if outputs is None else terms * outputs).sum(1)
        # after the terms are summed, for they may be the slopes
        slopes.scatter_(1, place, right_slopes)
        found.add(slopes * (slope if outputs is None else slope * outputs), features, weight, block)
    losses = losses * factor.squeeze(1)
    return losses if counted is None else torch.where(counted, losses, 0.0)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        problem: Problem,
        first: int,
        group: Any,
        derive: bool,
    ) -> Tensor:
        ctx.problem, ctx.first, ctx.group = problem, first, group
        ctx.save_for_backward(features, weight, bias, *problem.tensors)
        # without a reduction the rows have a factor each in the backward, and float16 would lose what a gradient scaler saves
        derive = derive and problem.reduction != "none" and features.dtype != torch.float16
        blocks = _Blocks(features, weight, bias, ctx.needs_input_grad[:3] if derive else (False,) * 3)
        ctx.blocks = blocks if derive else None
        losses = _block_by_block(problem, features, weight, bias, first, blocks, None)
        loss = losses if problem.reduction == "none" else losses.sum(dtype=torch.float64).to(losses.dtype)
        if group is not None:
            dist.all_reduce(loss, group=group)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(upstream.device.type, enabled=False):
            return _Linear._derivatives(ctx, upstream)

    @staticmethod
    def _derivatives(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias = ctx.saved_tensors[:3]
        if torch.is_grad_enabled():
            if ctx.group is not None:
                raise NotImplementedError("boosted_linear_loss has no second derivative where processes share the classes.")
            # of views: where the features come from the weight, that way is the caller's graph and not this one
            views = [None if one is None else one.view_as(one) for one in (features, weight, bias)]
            inputs = [one for one, wanted in zip(views, ctx.needs_input_grad, strict=False) if wanted]
            loss = ctx.problem.by(boosted_loss, F.linear(*views))
            found = iter(torch.autograd.grad(loss, inputs, upstream, create_graph=True))
            return (*(next(found) if wanted else None for wanted in ctx.needs_input_grad[:3]), *(None,) * 4)
        blocks, ctx.blocks = ctx.blocks, None
        times: Tensor | None = upstream
        if blocks is None:
            blocks, times = _Blocks(features, weight, bias, ctx.needs_input_grad[:3]), None
            _block_by_block(ctx.problem, features, weight, bias, ctx.first, blocks, upstream)
        gradients = [blocks.features, blocks.weight, blocks.bias]
        if times is not None:
            gradients = [None if one is None else one.mul_(times) for one in gradients]
        if gradients[0] is not None:
            if ctx.group is not None:
                dist.all_reduce(gradients[0], group=ctx.group)
            gradients[0] = gradients[0].to(features.dtype)
        return (*gradients, *(None,) * 4)


def boosted_linear_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    label: Tensor,
    boost: Boost,
    targets: tuple[float, float],
    *,
    ignore_index: int | None = None,
    class_weight: Tensor | None = None,
    row_weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
    max_delta: float | None = None,
    loss_weight: float = 1.0,
    first_class: int = 0,
    group: Any = None,
) -> Tensor:
    """`boosted_loss` of ``F.linear(features, weight, bias)``, in blocks of classes and without the (N, C) logits.

    Processes can share the classes: each passes its rows of the layer, the number of its first class and the same features and
    labels. All get the whole loss and the whole derivative in the features; nothing else is sent.

    Args:
        features: (N, D).
        weight: (C, D) of the layer, of this process's classes.
        bias: (C,), or None.
        label: (N,) integers among the classes of all processes. Checked on a CPU where no processes share them; elsewhere the
            caller's business.
        boost: see `gbseg.losses.reference.boosted_loss`, as the others.
        targets: see there.
        ignore_index: see there.
        class_weight: one factor for each class of all processes.
        row_weight: (N,) factors of the rows.
        avg_factor: see there.
        reduction: see there.
        max_delta: see there.
        loss_weight: factor of the loss.
        first_class: the number of this process's first class.
        group: the processes that share the classes; None: this one has them all.

    Returns:
        The loss in float32 or float64.

    Raises:
        BadLabelError: a label is no class.
        ValueError: soft labels, or of another shape; settings that make no sense; weights want a gradient, or something is
            traced, where processes share the classes.
        NotImplementedError: a second derivative is asked for there.
    """
    if label.is_floating_point() or label.shape != features.shape[:1]:
        raise ValueError(
            f"boosted_linear_loss takes integer labels (N,) for features {tuple(features.shape)}, got {label.dtype} "
            f"{tuple(label.shape)}."
        )
    if label.device.type == "cpu" and group is None and not first_class and not traced(label):
        require_labels(label, len(weight), ignore_index)
    label = label.long()
    problem = Problem(
        label, boost, targets, ignore_index, class_weight, row_weight, avg_factor, reduction, max_delta, loss_weight
    )
    if problem.learned or traced(features, weight, bias, *problem.tensors):
        if group is not None:
            raise ValueError("where processes share the classes, row and class weights get no gradient, and nothing is traced.")
        return problem.by(boosted_loss, F.linear(features, weight, bias))
    kind = features.device.type
    if torch.is_autocast_enabled(kind) and features.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        features, weight, bias = (None if one is None else one.to(dtype) for one in (features, weight, bias))
    with torch.autocast(kind, enabled=False):
        return _Linear.apply(features, weight, bias, problem, first_class, group, torch.is_grad_enabled())
