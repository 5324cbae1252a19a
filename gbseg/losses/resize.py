"""Upsampling and boosted loss at once, class by class: the large logits of a segmentation network are never held.

A decode head enlarges its logits 4 to 32 times before the loss. As every class of a boosted loss stands alone, one plane of it
can be enlarged, turned into loss and gradient, and its gradient brought back to the small logits, before the next is begun.

Shapes: N images, C classes, h x w the logits, H x W the labels.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gbseg.boosting import Boost
from gbseg.losses.kernels.cpu import terms_and_slopes
from gbseg.losses.labels import require_labels
from gbseg.losses.reference import boosted_loss
from gbseg.losses.spec import Problem, traced

__all__ = ["boosted_resize_loss", "enlarge", "resize_loss", "resized_accuracy"]


def enlarge(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """(N, C, h, w) bilinearly as (N, C, H, W), in float32 (float64 stays)."""
    x = logits if logits.dtype == torch.float64 else logits.float()
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def _transposed(few: int, many: int, align_corners: bool, **facts: Any) -> Tensor:
    """The matrix (few, many) whose transpose enlarges a line: two products bring a plane back, faster than scattering it."""
    return F.interpolate(torch.eye(few, **facts)[None], many, mode="linear", align_corners=align_corners)[0]


def _by_products(rows: Tensor, columns: Tensor, plane: Tensor) -> Tensor:
    with torch.autocast(plane.device.type, enabled=False):
        return rows @ plane @ columns.T


def _by_scattering(size: tuple[int, int], shape: tuple[int, ...], align_corners: bool, plane: Tensor) -> Tensor:
    return torch.ops.aten.upsample_bilinear2d_backward(plane[None, None], size, shape, align_corners)[0, 0]


def _places(problem: Problem, label: Tensor, classes: int) -> tuple[Tensor | None, list[Tensor] | None]:
    """What is ignored in an image, and where the labels of each class stand.

    On a CPU both are flat indices; on a device, where those would have to be waited for, a mask and None.
    """
    if label.device.type != "cpu":
        return None if problem.ignore_index is None else label == problem.ignore_index, None
    if problem.ignore_index is not None:
        label = torch.where(label == problem.ignore_index, -1, label)
    flat = label.reshape(-1) + 1
    ignored, *places = flat.argsort().split(torch.bincount(flat, minlength=classes + 1).tolist())
    return ignored, places


def _without(x: Tensor, ignored: Tensor | None) -> Tensor:
    """A plane with zeros where pixels are ignored, whatever logits, weights and upstream gradients are there."""
    if ignored is None:
        return x
    if ignored.dtype == torch.bool:
        return torch.where(ignored, 0.0, x)
    x.view(-1).index_fill_(0, ignored, 0.0)
    return x


def _class_by_class(
    problem: Problem, logits: Tensor, align_corners: bool, derive: bool, upstream: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The loss and, if wanted, its derivative in the small logits times ``upstream``."""
    boost, (t_neg, t_pos), bound = problem.boost, problem.targets, problem.max_delta
    count, classes = logits.shape[:2]
    size = tuple(problem.label.shape[1:])
    facts = dict(dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32, device=logits.device)
    scale = problem.scale(problem.counted)
    each = torch.zeros((count, *size), **facts) if problem.reduction == "none" else None
    gradient = torch.zeros_like(logits, dtype=facts["dtype"]) if derive else None
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    by_pixel = upstream is not None and upstream.ndim > 0
    if logits.device.type == "cpu":
        matrices = [_transposed(*lengths, align_corners, **facts) for lengths in zip(logits.shape[2:], size, strict=True)]
        back = partial(_by_products, *matrices)
    else:
        # a product may be rounded to TF32 there
        whole = (size, (1, 1, *logits.shape[2:]), align_corners)
        back = partial(_by_scattering, *whole)
    for first, one in itertools.product(range(count), range(classes)):
        if one == 0:
            # of an image, once for all its classes
            label = problem.label[first]
            weight = None if problem.weight is None else problem.weight[first].to(**facts)
            slope = weight if not by_pixel else upstream[first] if weight is None else weight * upstream[first]
            ignored, places = _places(problem, label, classes)
        x = enlarge(logits[first : first + 1, one : one + 1], size, align_corners)[0, 0]
        times = 1.0 if problem.class_weight is None else problem.class_weight[one]
        here = None if places is None else places[one]
        t: Tensor | float = t_neg
        if here is None:
            t = torch.full_like(x, t_neg).masked_fill_(label == one, t_pos)
        else:
            right, right_slopes = terms_and_slopes(boost, x.view(-1).index_select(0, here), t_pos, bound)
        terms, slopes = terms_and_slopes(boost, x, t, bound)
        if here is not None:
            terms.view(-1).index_copy_(0, here, right)
        weighted = _without(terms if weight is None else terms * weight, ignored)
        if each is None:
            total += weighted.sum() * times
        else:
            each[first] += weighted * times
        if gradient is not None:
            # after the terms are summed, for they may be the slopes
            if here is not None:
                slopes.view(-1).index_copy_(0, here, right_slopes)
            slopes = _without(slopes if slope is None else slopes * slope, ignored)
            gradient[first, one] = back(slopes) * times
    if gradient is not None:
        gradient = (gradient * (scale if upstream is None or by_pixel else scale * upstream)).to(logits.dtype)
    return (scale * total).to(**facts) if each is None else each.mul_(scale), gradient


class _Resized(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, problem: Problem, align_corners: bool, derive: bool) -> Tensor:
        ctx.problem, ctx.align_corners = problem, align_corners
        ctx.save_for_backward(logits, *problem.tensors)
        keep = derive and ctx.needs_input_grad[0] and problem.reduction != "none" and logits.dtype != torch.float16
        loss, ctx.gradient = _class_by_class(problem, logits, align_corners, keep)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        logits = ctx.saved_tensors[0]
        problem = ctx.problem
        if torch.is_grad_enabled():
            large = enlarge(logits, tuple(problem.label.shape[1:]), ctx.align_corners)
            (gradient,) = torch.autograd.grad(problem.by(boosted_loss, large), logits, upstream, create_graph=True)
            return gradient, None, None, None
        if ctx.gradient is not None:
            # as small as the logits: a product costs nothing
            return (ctx.gradient * upstream).to(logits.dtype), None, None, None
        return _class_by_class(problem, logits, ctx.align_corners, True, upstream)[1], None, None, None


def resize_loss(problem: Problem, logits: Tensor, align_corners: bool) -> Tensor:
    """`boosted_resize_loss` of labels (N, H, W), int64, that are known to be classes or ignored."""
    if problem.learned or traced(logits, *problem.tensors):
        return problem.by(boosted_loss, enlarge(logits, tuple(problem.label.shape[1:]), align_corners))
    return _Resized.apply(logits, problem, align_corners, torch.is_grad_enabled())


def boosted_resize_loss(
    logits: Tensor,
    label: Tensor,
    boost: Boost,
    targets: tuple[float, float],
    *,
    align_corners: bool = False,
    ignore_index: int | None = None,
    class_weight: Tensor | None = None,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
    max_delta: float | None = None,
    loss_weight: float = 1.0,
) -> Tensor:
    """`boosted_loss` of logits after ``F.interpolate(logits, (H, W), mode='bilinear')``, never holding those.

    Beside the gradient, which is of the small logits' size, it takes a few planes of one class. Half precision is enlarged in
    float32. Where weights want a gradient, and under `torch.compile` and `torch.func`, the large logits are held after all.

    Args:
        logits: (N, C, h, w).
        label: (N, H, W) integers, checked on a CPU; elsewhere the caller's business (`BoostedLoss.resized` marks bad ones).
        boost: see `gbseg.losses.reference.boosted_loss`, as the others.
        targets: see there.
        align_corners: see `torch.nn.functional.interpolate`.
        ignore_index: see there.
        class_weight: see there.
        weight: (N, H, W), see there.
        avg_factor: see there.
        reduction: see there; 'none' gives (N, H, W).
        max_delta: see there.
        loss_weight: factor of the loss.

    Returns:
        The loss in float32 or float64.

    Raises:
        BadLabelError: a label is no class and not ignored.
        ValueError: soft labels, or of another shape; settings that make no sense.
    """
    if label.is_floating_point() or label.ndim != 3 or len(label) != len(logits):
        raise ValueError(
            f"boosted_resize_loss takes integer labels (N, H, W) for logits {tuple(logits.shape)}, got {label.dtype} "
            f"{tuple(label.shape)}."
        )
    if label.device.type == "cpu" and not traced(label):
        require_labels(label, logits.shape[1], ignore_index)
    label = label.long()
    problem = Problem(label, boost, targets, ignore_index, class_weight, weight, avg_factor, reduction, max_delta, loss_weight)
    return resize_loss(problem, logits, align_corners)


@torch.no_grad()
def resized_accuracy(logits: Tensor, label: Tensor, ignore_index: int | None, align_corners: bool = False) -> Tensor:
    """The percentage of pixels (N, H, W) that are not ignored whose label is the argmax of the enlarged logits (N, C, h, w)."""
    size = tuple(label.shape[1:])
    right = torch.zeros((), dtype=torch.int64, device=logits.device)
    for image, labels in zip(logits, label, strict=True):
        best = hit = None
        for one, small in enumerate(image):
            plane = enlarge(small[None, None], size, align_corners)[0, 0]
            mine = labels == one
            if best is None:
                best, hit = plane, mine
            else:
                # the first of equal ones is the argmax
                hit = torch.where(plane > best, mine, hit)
                best = torch.maximum(best, plane)
        if hit is not None:
            # an ignored pixel's label is no class, so it never hits
            right += hit.sum()
    counted = label.numel() if ignore_index is None else (label != ignore_index).sum().clamp(min=1)
    return 100 * right / counted
