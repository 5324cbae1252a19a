"""Upsampling and boosted loss in one, class by class: the large logits of a segmentation network are never held.

A decode head upsamples its logits 4 to 32 times before the loss. The classes of a boosted loss do not depend on each other, so
one class of an image can be upsampled, turned into loss and gradient, and its gradient brought back to the small logits, before
the next one starts.

Shapes: N images, C classes, h x w the logits, H x W the labels.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gbseg._moved import add_moved_names
from gbseg.boosting import Boost, LossInputs, LossSpec
from gbseg.losses.functional import BoostedLossFunction, check_reduction, guard_labels, is_traced, without_tracer_warnings
from gbseg.losses.kernels.cpu import loss_terms_and_gradient
from gbseg.losses.reference import reference_loss

__all__ = ["boosted_resize_loss", "resize_loss", "resized_accuracy", "upsample"]


def upsample(logits: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """(N, C, h, w) bilinearly as (N, C, H, W), in float32 (float64 stays)."""
    x = logits if logits.dtype == torch.float64 else logits.float()
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def _upsample_matrix(small: int, large: int, align_corners: bool, like: Tensor) -> Tensor:
    """The matrix (h, H) whose transpose upsamples a line of h numbers to H."""
    identity = torch.eye(small, dtype=like.dtype, device=like.device)
    return F.interpolate(identity[None], large, mode="linear", align_corners=align_corners)[0]


def _upsample_backward(plane: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """The gradient (h, w) of the small plane, from that (H, W) of the upsampled one."""
    shape = (1, 1, *size)
    return torch.ops.aten.upsample_bilinear2d_backward(plane[None, None], plane.shape, shape, align_corners)[0, 0]


def _upsample_backward_by_products(plane: Tensor, row_matrix: Tensor, column_matrix: Tensor) -> Tensor:
    """``_upsample_backward`` as two matrix products, which are faster on a CPU."""
    with torch.autocast(plane.device.type, enabled=False):
        return row_matrix @ plane @ column_matrix.T


def _ignored_and_class_pixels(
    label: Tensor, ignore_index: int | None, num_classes: int
) -> tuple[Tensor | None, list[Tensor] | None]:
    """The ignored pixels of an image, and the pixels of each class.

    On a CPU both are flat indices; on a device, where their number would have to be waited for, a mask and None.
    """
    if label.device.type != "cpu":
        return None if ignore_index is None else label == ignore_index, None
    if ignore_index is not None:
        label = torch.where(label == ignore_index, -1, label)
    flat = label.reshape(-1) + 1
    ignored, *class_pixels = flat.argsort().split(torch.bincount(flat, minlength=num_classes + 1).tolist())
    return ignored, class_pixels


def _zero_ignored(x: Tensor, ignored: Tensor | None) -> Tensor:
    """A plane with zeros at ignored pixels, whatever logits, weights and grad_outputs are there."""
    if ignored is None:
        return x
    if ignored.dtype == torch.bool:
        return torch.where(ignored, 0.0, x)
    x.view(-1).index_fill_(0, ignored, 0.0)
    return x


def _loss_and_gradient(
    spec: LossSpec, inputs: LossInputs, align_corners: bool, logits: Tensor, needs_grad: bool, grad_output: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The loss and, if ``needs_grad``, its gradient (N, C, h, w) times ``grad_output`` (None: 1), class by class."""
    boost, (t_neg, t_pos), max_delta = spec.boost, spec.targets, spec.max_delta
    count, classes, *small_size = logits.shape
    size = inputs.label.shape[1:]
    like = torch.empty(0, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32, device=logits.device)
    scale = inputs.scale(inputs.valid_mask)
    pixel_losses = like.new_zeros(count, *size) if inputs.reduction == "none" else None
    gradient = torch.zeros_like(logits, dtype=like.dtype) if needs_grad else None
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    pixel_grad = grad_output if grad_output is not None and grad_output.ndim else None
    # matrix products may be rounded to TF32 on a device, where the other way has no deterministic algorithm
    by_products = logits.device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
    if by_products:
        matrices = [_upsample_matrix(*sizes, align_corners, like) for sizes in zip(small_size, size, strict=True)]
    for image in range(count):
        label = inputs.label[image]
        weight = None if inputs.weight is None else inputs.weight[image].to(like)
        grad_weight = weight
        if pixel_grad is not None:
            grad_weight = pixel_grad[image] if weight is None else weight * pixel_grad[image]
        ignored, class_pixels = _ignored_and_class_pixels(label, inputs.ignore_index, classes)
        for index in range(classes):
            x = upsample(logits[image, index][None, None], size, align_corners)[0, 0]
            factor = 1.0 if inputs.class_weight is None else inputs.class_weight[index]
            if class_pixels is None:
                t = torch.full_like(x, t_neg).masked_fill_(label == index, t_pos)
                loss_terms, grad = loss_terms_and_gradient(boost, x, t, max_delta)
            else:
                label_x = x.view(-1).index_select(0, class_pixels[index])
                label_terms, label_grad = loss_terms_and_gradient(boost, label_x, t_pos, max_delta)
                loss_terms, grad = loss_terms_and_gradient(boost, x, t_neg, max_delta)
                loss_terms.view(-1).index_copy_(0, class_pixels[index], label_terms)
            weighted = _zero_ignored(loss_terms if weight is None else loss_terms * weight, ignored)
            if pixel_losses is None:
                total += weighted.sum() * factor
            else:
                pixel_losses[image] += weighted * factor
            if gradient is None:
                continue
            # after the loss terms are summed, since they may be one tensor with the gradient
            if class_pixels is not None:
                grad.view(-1).index_copy_(0, class_pixels[index], label_grad)
            grad = _zero_ignored(grad if grad_weight is None else grad * grad_weight, ignored)
            if by_products:
                small_grad = _upsample_backward_by_products(grad, *matrices)
            else:
                small_grad = _upsample_backward(grad, tuple(small_size), align_corners)
            gradient[image, index] = small_grad * factor
    if gradient is not None:
        grad_scale = scale if grad_output is None or pixel_grad is not None else scale * grad_output
        gradient = (gradient * grad_scale).to(logits.dtype)
    return (scale * total).to(like) if pixel_losses is None else pixel_losses.mul_(scale), gradient


def resize_loss(spec: LossSpec, inputs: LossInputs, logits: Tensor, align_corners: bool) -> Tensor:
    """`boosted_resize_loss` of options that are validated already, and integer labels (N, H, W), each a class or ignored."""

    def reference(logits: Tensor) -> Tensor:
        return reference_loss(spec, inputs, upsample(logits, inputs.label.shape[1:], align_corners))

    if inputs.requires_grad or is_traced(logits, *inputs.tensors):
        return reference(logits)
    compute = partial(_loss_and_gradient, spec, inputs, align_corners)
    # the gradient is as small as the logits, so it is always kept
    return BoostedLossFunction.apply(logits, inputs, compute, Tensor.mul_, reference, torch.is_grad_enabled())


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
    """The boosted loss of ``F.interpolate(logits, (H, W), mode='bilinear')``, without holding the upsampled logits.

    Beside the gradient, which has the small logits' size, it takes a few planes (H, W). Half precision is upsampled in float32.
    Where weights require a gradient, and under ``torch.compile`` and ``torch.func``, the upsampled logits are held after all.

    Args:
        logits: (N, C, h, w).
        label: (N, H, W) integers, see `gbseg.losses.functional.guard_labels`.
        boost: the boost ``g``.
        targets: ``(t_neg, t_pos)``, the target values of the wrong classes and of the label's class.
        align_corners: see ``torch.nn.functional.interpolate``.
        ignore_index: pixels with this label have no loss and no gradient.
        class_weight: (C,) factors of the outputs.
        weight: (N, H, W) factors of the pixels.
        avg_factor: the divisor of 'mean', instead of the number of pixels that are not ignored.
        reduction: 'none' gives (N, H, W), 'sum' and 'mean' a scalar.
        max_delta: bound of the gradient ``|g(x) - t|`` at each output.
        loss_weight: factor of the loss.

    Returns:
        The loss in float32 or float64.

    Raises:
        BadLabelError: a label is neither a class nor ignored.
        TypeError: ``boost`` is not a `gbseg.boosting.Boost`.
        ValueError: soft labels, or labels of another shape; an option out of its range (see
            `gbseg.boosting.LossSpec`), or no such reduction.
    """
    with without_tracer_warnings():
        fits = bool(not label.is_floating_point() and label.ndim == 3 and label.shape[0] == logits.shape[0])
    if not fits:
        raise ValueError(
            f"boosted_resize_loss takes integer labels (N, H, W) for logits {tuple(logits.shape)}, got {label.dtype} "
            f"{tuple(label.shape)}."
        )
    check_reduction(reduction, avg_factor)
    label, poison = guard_labels(label, logits.shape[1], ignore_index)
    inputs = LossInputs(label, ignore_index, class_weight, weight, avg_factor, reduction, loss_weight)
    loss = resize_loss(LossSpec(boost, targets, max_delta), inputs, logits, align_corners)
    return loss if poison is None else loss * poison


@torch.no_grad()
def resized_accuracy(logits: Tensor, label: Tensor, ignore_index: int | None, align_corners: bool = False) -> Tensor:
    """The percentage of pixels (N, H, W), ignored ones left out, whose label is the argmax of upsampled logits (N, C, h, w)."""
    correct = torch.zeros((), dtype=torch.int64, device=logits.device)
    for image, image_label in zip(logits, label, strict=True):
        best: Tensor | None = None
        hit = torch.zeros_like(image_label, dtype=torch.bool)
        for index, small in enumerate(image):
            plane = upsample(small[None, None], label.shape[1:], align_corners)[0, 0]
            # an ignored pixel's label is no class, so it is never a hit
            is_label = image_label == index
            # of equal logits the first is the argmax
            hit = is_label if best is None else torch.where(plane > best, is_label, hit)
            best = plane if best is None else torch.maximum(best, plane)
        correct += hit.sum()
    valid = label.numel() if ignore_index is None else (label != ignore_index).sum().clamp(min=1)
    return 100 * correct / valid


add_moved_names(__name__)
