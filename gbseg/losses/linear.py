"""The last layer of a classifier and its boosted loss in one, in blocks of classes: its logits are never held all at once.

A softmax over very many classes needs every logit before the first derivative and, where processes share the classes, a
maximum and a sum over all of them for every row. The classes of a boosted loss do not depend on each other: each block of
logits is computed, turned into loss and gradients and dropped, and processes that share the classes add up one number and the
gradients of the features.

Shapes: N rows, D features, C classes (of this process), B classes of a block.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from gbseg.boosting import Boost, LossInputs, LossSpec
from gbseg.losses.functional import check_reduction, guard_labels, is_traced, without_tracer_warnings
from gbseg.losses.kernels.cpu import loss_terms_and_gradient
from gbseg.losses.reference import reference_loss

__all__ = ["boosted_linear_loss"]

# logits of a block
_BLOCK = 1 << 20


def _by_blocks(
    spec: LossSpec,
    inputs: LossInputs,
    first_class: int,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    needs_grad: tuple[bool, bool, bool],
    grad_output: Tensor | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """(N,) losses of this process's classes, and the gradients of features (not yet in their dtype), weight and bias.

    The gradients are those of the sum of the losses, or with ``grad_output`` (N,) or a number as their factor.
    """
    boost, (t_neg, t_pos), max_delta = spec.boost, spec.targets, spec.max_delta
    rows, classes = len(features), len(weight)
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    grad_features = torch.zeros_like(features, dtype=dtype) if needs_grad[0] else None
    grad_weight = torch.empty_like(weight) if needs_grad[1] else None
    grad_bias = torch.empty_like(bias) if bias is not None and needs_grad[2] else None
    valid_mask = inputs.valid_mask
    factor = torch.ones((rows, 1), dtype=dtype, device=features.device) * inputs.scale(valid_mask)
    if inputs.weight is not None:
        factor = factor * inputs.weight.to(factor).unsqueeze(1)
    if valid_mask is not None:
        valid_mask = valid_mask.unsqueeze(1)
        factor = torch.where(valid_mask, factor, 0.0)
    grad_factor = factor
    if grad_output is not None:
        grad_factor = factor * (grad_output.unsqueeze(1) if grad_output.ndim else grad_output)
        # the grad_output of an ignored row may be anything
        grad_factor = grad_factor if valid_mask is None else torch.where(valid_mask, grad_factor, 0.0)
    losses = torch.zeros(rows, dtype=dtype, device=features.device)
    step = max(1, _BLOCK // max(rows, 1))
    for start in range(0, classes, step):
        block = slice(start, min(start + step, classes))
        x = F.linear(features, weight[block], None if bias is None else bias[block]).to(dtype)
        if valid_mask is not None:
            x = torch.where(valid_mask, x, 0.0)
        index = (inputs.label - first_class - start).unsqueeze(1)
        in_block = (index >= 0) & (index < x.shape[1])
        index = torch.where(in_block, index, 0)
        label_x = x.gather(1, index)
        label_terms, label_grad = loss_terms_and_gradient(boost, label_x, torch.full_like(label_x, t_pos), max_delta)
        # a number as the target makes exp-GB read a maximum, for which a device would have to be waited for
        t = t_neg if x.device.type == "cpu" else torch.full_like(x, t_neg)
        loss_terms, grad = loss_terms_and_gradient(boost, x, t, max_delta)
        label_terms = torch.where(in_block, label_terms, loss_terms.gather(1, index))
        label_grad = torch.where(in_block, label_grad, grad.gather(1, index))
        loss_terms.scatter_(1, index, label_terms)
        class_weight = None
        if inputs.class_weight is not None:
            class_weight = inputs.class_weight[first_class + start : first_class + block.stop].to(x)
        losses += (loss_terms if class_weight is None else loss_terms * class_weight).sum(1)
        # after the loss terms are summed, since they may be one tensor with the gradient
        grad.scatter_(1, index, label_grad)
        grad = grad * (grad_factor if class_weight is None else grad_factor * class_weight)
        if grad_features is not None:
            grad_features += (grad.to(weight.dtype) @ weight[block]).to(dtype)
        if grad_weight is not None:
            grad_weight[block] = grad.to(features.dtype).T @ features
        if grad_bias is not None:
            grad_bias[block] = grad.sum(0)
    losses = losses * factor.squeeze(1)
    losses = losses if valid_mask is None else torch.where(valid_mask.squeeze(1), losses, 0.0)
    return losses, [grad_features, grad_weight, grad_bias]


class _BoostedLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        spec: LossSpec,
        inputs: LossInputs,
        first_class: int,
        group: Any,
        keep_gradient: bool,
    ) -> Tensor:
        ctx.spec, ctx.inputs, ctx.first_class, ctx.group = spec, inputs, first_class, group
        ctx.save_for_backward(features, weight, bias, *inputs.tensors)
        # without a reduction the rows have a factor each in the backward, and float16 would underflow before the gradient
        # scaler's factor, which comes with grad_output, is multiplied in
        keep = keep_gradient and inputs.reduction != "none" and features.dtype != torch.float16
        needs_grad = ctx.needs_input_grad[:3] if keep else (False, False, False)
        losses, gradients = _by_blocks(spec, inputs, first_class, features, weight, bias, needs_grad)
        ctx.gradients = gradients if keep else None
        loss = losses if inputs.reduction == "none" else losses.sum(dtype=torch.float64).to(losses.dtype)
        if group is not None:
            dist.all_reduce(loss, group=group)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias = ctx.saved_tensors[:3]
        needs_grad = ctx.needs_input_grad[:3]
        gradients: list[Tensor | None]
        with torch.autocast(grad_output.device.type, enabled=False):
            second = torch.is_grad_enabled()
            if second or is_traced(grad_output) or torch._C._functorch.is_legacy_batchedtensor(grad_output):
                # create_graph=True: only the reference can be differentiated again; or a batch of grad_outputs
                if ctx.group is not None:
                    raise NotImplementedError("boosted_linear_loss has no second derivative where processes share the classes.")
                with torch.enable_grad():
                    # of views: where features depend on the weight, that path is in the caller's graph, not in this gradient
                    views: list[Any] = [None if x is None else x.view_as(x) for x in (features, weight, bias)]
                    loss = reference_loss(ctx.spec, ctx.inputs, F.linear(*views))
                needed = [view for view, needed in zip(views, needs_grad, strict=True) if needed]
                computed = iter(torch.autograd.grad(loss, needed, grad_output, create_graph=second))
                gradients = [next(computed) if needed else None for needed in needs_grad]
            elif ctx.gradients is None:
                options = (ctx.spec, ctx.inputs, ctx.first_class)
                _, gradients = _by_blocks(*options, features, weight, bias, needs_grad, grad_output)
            else:
                # handed over without a copy; a second backward computes them again
                gradients = [None if gradient is None else gradient.mul_(grad_output) for gradient in ctx.gradients]
                ctx.gradients = None
        if gradients[0] is not None:
            if ctx.group is not None:
                dist.all_reduce(gradients[0], group=ctx.group)
            gradients[0] = gradients[0].to(features.dtype)
        return *gradients, None, None, None, None, None


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
    """The boosted loss of ``F.linear(features, weight, bias)``, in blocks of classes and without the (N, C) logits.

    Processes can share the classes: each passes its rows of the layer, the number of its first class, and the same features and
    labels. All get the loss over all classes and its gradient in the features; nothing else is sent.

    Args:
        features: (N, D).
        weight: (C, D), the layer's rows of this process's classes.
        bias: (C,), or None.
        label: (N,) integers among the classes of all processes, see `gbseg.losses.functional.guard_labels`; where processes
            share the classes, they are not checked.
        boost: the boost ``g``.
        targets: ``(t_neg, t_pos)``, the target values of the wrong classes and of the label's class.
        ignore_index: rows with this label have no loss and no gradient.
        class_weight: one factor for each class of all processes.
        row_weight: (N,) factors of the rows.
        avg_factor: the divisor of 'mean', instead of the number of rows that are not ignored.
        reduction: 'none' gives (N,), 'sum' and 'mean' a scalar.
        max_delta: bound of the gradient ``|g(x) - t|`` at each logit.
        loss_weight: factor of the loss.
        first_class: the number of this process's first class.
        group: the process group that shares the classes; None: this process has all of them.

    Returns:
        The loss in float32 or float64.

    Raises:
        BadLabelError: a label is neither a class nor ignored.
        TypeError: ``boost`` is not a `gbseg.boosting.Boost`.
        ValueError: soft labels, or labels of another shape; an option out of its range (see
            `gbseg.boosting.LossSpec`), or no such reduction; where processes share the classes, also weights that
            require a gradient, and tracing.
        NotImplementedError: a second derivative where processes share the classes.
    """
    with without_tracer_warnings():
        fits = not label.is_floating_point() and label.shape == features.shape[:1]
    if not fits:
        raise ValueError(
            f"boosted_linear_loss takes integer labels (N,) for features {tuple(features.shape)}, got {label.dtype} "
            f"{tuple(label.shape)}."
        )
    check_reduction(reduction, avg_factor)
    spec = LossSpec(boost, targets, max_delta)
    label, poison = label.long(), None
    if group is None and not first_class:
        label, poison = guard_labels(label, weight.shape[0], ignore_index)
    inputs = LossInputs(label, ignore_index, class_weight, row_weight, avg_factor, reduction, loss_weight)
    if inputs.requires_grad or is_traced(features, weight, bias, *inputs.tensors):
        if group is not None:
            raise ValueError("where processes share the classes, row and class weights get no gradient, and nothing is traced.")
        loss = reference_loss(spec, inputs, F.linear(features, weight, bias))
        return loss if poison is None else loss * poison
    device_type = features.device.type
    if torch.is_autocast_enabled(device_type) and features.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
        features, weight, bias = features.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(device_type, enabled=False):
        options = spec, inputs, first_class, group, torch.is_grad_enabled()
        loss = _BoostedLinearFunction.apply(features, weight, bias, *options)
    return loss if poison is None else loss * poison
