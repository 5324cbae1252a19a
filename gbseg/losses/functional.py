"""The boosted loss by the fastest implementation for its logits: the check of its labels, the choice of kernels, autograd.

`gbseg.losses.reference` defines the loss; every other implementation is tested against it. Shapes: N images or rows, C classes,
``*`` any trailing dimensions.
"""

import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from gbseg.boosting import IMPLEMENTATIONS, Boost, LossInputs, LossSpec
from gbseg.losses.kernels import cpu
from gbseg.losses.labels import LabelRecord, bad_label_error
from gbseg.losses.reference import reference_loss

__all__ = ["IMPLEMENTATIONS", "REDUCTIONS", "find_bad_labels", "fused_boosted_loss", "guard_labels", "require_labels"]

REDUCTIONS = ("none", "sum", "mean")

_logger = logging.getLogger(__name__)


_TRACING_MODES = tuple(torch._C._TorchDispatchModeKey.__members__.values())  # fake tensors, make_fx and AOTAutograd


def check_reduction(reduction: str, avg_factor: float | Tensor | None = None) -> None:
    """Raise a ValueError unless it is one of ``REDUCTIONS``, and ``avg_factor`` a positive number as far as it can be read."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}.")
    if isinstance(avg_factor, Tensor):
        if avg_factor.numel() != 1:
            raise ValueError(f"avg_factor is one number, got a tensor of shape {tuple(avg_factor.shape)}.")
        if not is_readable(avg_factor):
            return
    if avg_factor is not None and not avg_factor > 0:
        raise ValueError(f"avg_factor divides the loss and must be > 0, got {avg_factor!r}.")


def is_traced(*tensors: Tensor | None) -> bool:
    """Whether a tracer, a function transform, a forward-mode derivative or a subclass of Tensor must see every operation."""
    if is_recorded() or torch._C._are_functorch_transforms_active():
        return True
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, nn.Parameter) or forward_ad.unpack_dual(tensor).tangent is not None:
            return True
    return False


def is_recorded() -> bool:
    """Whether operations are compiled, exported or traced, for values that are not those of now."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 and any(map(torch._C._get_dispatch_mode, _TRACING_MODES))


def is_readable(tensor: Tensor) -> bool:
    """Whether the host can read the values: they are on a CPU, and neither traced, fake, nor a batch of ``vmap``."""
    if tensor.device.type != "cpu" or is_recorded():
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return False
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return not isinstance(tensor, FakeTensor)


def without_tracer_warnings() -> AbstractContextManager:
    """For decisions on sizes that hold for any: ``torch.jit.trace`` warns that it records them for these sizes."""
    if torch.jit.is_tracing():
        return warnings.catch_warnings(action="ignore", category=torch.jit.TracerWarning)
    return nullcontext()


def default_ignore_index(num_classes: int) -> int | None:
    """255 where it cannot be a class, else None (class 255 of ImageNet must be trained)."""
    return 255 if num_classes <= 255 else None


def find_bad_labels(label: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Where ``label`` ``(N, *)`` is outside 0..C-1 and not ignored; a bool tensor of its shape."""
    # small integer types would wrap: 255 is -1 as int8, and uint8 does not hold 1000 classes
    label = label.long()
    bad = (label < 0) | (label >= num_classes)
    return bad if ignore_index is None else bad & (label != ignore_index)


def require_labels(label: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Read the labels on the host and refuse values that are neither a class nor ignored.

    Raises:
        BadLabelError: names the values, their number, the first positions, and the usual cause.
    """
    bad = find_bad_labels(label, num_classes, ignore_index)
    if bool(bad.any()):
        raise bad_label_error(label, bad, num_classes, ignore_index)


def guard_labels(
    label: Tensor, num_classes: int, ignore_index: int | None, record: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """`require_labels` where the host can read them; elsewhere bad ones make the loss NaN.

    Returns:
        The labels as int64, each a class or ignored; and None, or the factor of the loss, which is NaN if there was a bad one:
        a factor and not a summand, so that the gradient is NaN as well and no optimizer steps on it.

    Raises:
        BadLabelError: a label that the host can read is neither a class nor ignored.
    """
    label = label.long()
    if is_readable(label):
        require_labels(label, num_classes, ignore_index)
        return label, None
    bad = find_bad_labels(label, num_classes, ignore_index)
    if record is not None:
        LabelRecord.update(record, label, bad, num_classes, ignore_index)
    return torch.where(bad, 0, label), torch.where(bad.any(), torch.nan, 1.0)


@cache
def _log_once(message: str) -> None:
    _logger.debug(message)


@cache
def _triton_kernels() -> ModuleType | None:
    """The Triton kernels, imported when they may be used: the import takes longer than that of all losses."""
    try:
        from gbseg.losses.kernels import gpu
    except ImportError:
        # PyTorch for a CPU, or for a system that Triton does not support
        return None
    return gpu


def _choose_kernels(spec: LossSpec, inputs: LossInputs, logits: Tensor) -> ModuleType | None:
    """The kernels for these logits; None: the reference. 'auto' logs once, at level debug, what it falls back to.

    Raises:
        ValueError: the implementation that ``impl`` names cannot compute this loss.
    """
    impl, boost = spec.impl, spec.boost
    if impl == "reference":
        return None
    if impl == "auto":
        if inputs.requires_grad or is_traced(logits, *inputs.tensors):
            return None
        if logits.device.type == "cpu":
            return cpu
        triton = _triton_kernels() if logits.device.type == "cuda" else None
        if triton is not None and logits.dtype in triton.DTYPES and type(boost) in triton.KINDS:
            return triton
        loss = f"{type(boost).__name__} of {logits.dtype} logits on {logits.device.type}"
        _log_once(f"the loss with {loss} is the reference's: there is no kernel for it here.")
        return None
    if inputs.requires_grad:
        raise ValueError(f"impl={impl!r} gives a gradient to logits alone, not to weights or labels; use impl='auto'.")
    if impl == "cpu":
        if logits.device.type != "cpu":
            raise ValueError(f"impl='cpu' takes logits on a CPU, got them on {logits.device}; impl='auto' finds one for them.")
        return cpu
    triton = _triton_kernels()
    if triton is None:
        raise ValueError("impl='triton' needs the package triton, which cannot be imported here.")
    if logits.dtype not in triton.DTYPES:
        raise ValueError(f"impl='triton' takes float32, bfloat16 and float16, got {logits.dtype}; use impl='reference'.")
    if type(boost) not in triton.KINDS:
        raise ValueError(f"impl='triton' has no kernel for {type(boost).__name__}; use impl='auto' or 'reference'.")
    if logits.device.type == "cpu" and not triton.INTERPRETED:
        raise ValueError("impl='triton' takes logits on a GPU, got them on a CPU (where only TRITON_INTERPRET=1 runs it).")
    return triton


class BoostedLossFunction(torch.autograd.Function):
    """Joins kernels to autograd: they compute the gradient with the loss in forward or, where it was not kept, in backward.

    ``compute(logits, needs_grad, grad_output=None)`` gives the loss and, if asked for, the gradient times ``grad_output``;
    ``rescale_`` multiplies a gradient in place; ``reference(logits)`` is the same loss for second derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        inputs: LossInputs,
        compute: Callable[..., tuple[Tensor, Tensor | None]],
        rescale_: Callable[[Tensor, Tensor], object],
        reference: Callable[[Tensor], Tensor],
        keep_gradient: bool,
    ) -> Tensor:
        """The loss; its gradient is written and kept if ``keep_gradient``."""
        ctx.inputs, ctx.compute, ctx.rescale_, ctx.reference = inputs, compute, rescale_, reference
        ctx.save_for_backward(logits, *inputs.tensors)
        # without a reduction the backward multiplies pixel by pixel, and float16 would underflow before the gradient scaler's
        # factor, which comes with grad_output, is multiplied in
        keep = keep_gradient and inputs.reduction != "none" and logits.dtype != torch.float16
        loss, ctx.gradient = compute(logits, keep and ctx.needs_input_grad[0])
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient in the logits, times ``grad_output``."""
        # an access to saved tensors raises an error if one of them was changed
        logits = ctx.saved_tensors[0]
        if torch.is_grad_enabled():
            # create_graph=True: only the reference can be differentiated again
            (gradient,) = torch.autograd.grad(ctx.reference(logits), logits, grad_output, create_graph=True)
        elif is_traced(grad_output) or torch._C._functorch.is_legacy_batchedtensor(grad_output):
            # a batch of grad_outputs, whose values cannot be read
            factor = grad_output.unsqueeze(1) if ctx.inputs.reduction == "none" else grad_output
            gradient = (ctx.compute(logits, True)[1] * factor).to(logits.dtype)
        elif ctx.gradient is None:
            gradient = ctx.compute(logits, True, grad_output)[1]
        else:
            # handed over without a copy; a second backward computes it again
            gradient, ctx.gradient = ctx.gradient, None
            ctx.rescale_(gradient, grad_output)
        return gradient, None, None, None, None, None


@cache
def _compiled_reference() -> Callable[..., Tensor]:
    return torch.compile(reference_loss, dynamic=False)


def loss_from_spec(spec: LossSpec, inputs: LossInputs, logits: Tensor) -> Tensor:
    """`fused_boosted_loss` of options that are validated already."""
    if spec.impl == "compile":
        return _compiled_reference()(spec, inputs, logits)
    kernels = _choose_kernels(spec, inputs, logits)
    if kernels is None:
        return reference_loss(spec, inputs, logits)
    compute, reference = partial(kernels.loss_and_gradient, spec, inputs), partial(reference_loss, spec, inputs)
    keep_gradient = spec.keep_gradient and torch.is_grad_enabled()
    return BoostedLossFunction.apply(logits, inputs, compute, kernels.rescale_, reference, keep_gradient)


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
    impl: str = "auto",
) -> Tensor:
    """`gbseg.losses.reference.boosted_loss` times ``loss_weight``; loss and gradient are computed in one pass over the logits.

    Beside the gradient, which is written in the forward, 'cpu' and 'triton' need the memory of a few blocks. A ``grad_output``
    other than 1 multiplies the gradient in the backward, which rounds bfloat16 once more. Second derivatives are the
    reference's.

    Args:
        logits: ``(N, C, *)`` of any floating dtype and layout; never written to.
        label: ``(N, *)`` integers, checked by the caller (see `require_labels`); or ``(N, C, *)`` soft labels.
        boost: the boost ``g``.
        targets: ``(t_neg, t_pos)``, the target values of the wrong classes and of the label's class.
        ignore_index: pixels with this label have no loss and no gradient (integer labels only).
        class_weight: (C,) factors of the outputs.
        weight: ``(N, *)`` factors of the pixels.
        avg_factor: the divisor of 'mean', instead of the number of pixels that are not ignored.
        reduction: 'none' gives ``(N, *)``, 'sum' and 'mean' a scalar.
        max_delta: bound of the gradient ``|g(x) - t|`` at each output.
        loss_weight: factor of the loss.
        keep_gradient: write the gradient in the forward and keep it until the backward. False: keep nothing but the logits,
            which the caller holds anyway, and read them again.
        impl: 'cpu', 'triton', 'compile' (the reference under ``torch.compile``), 'reference', or 'auto'. 'auto' takes the first
            of 'cpu' and 'triton' that supports the logits; else the reference: for weights and soft labels that require a
            gradient, under ``torch.compile`` or ``torch.func``, and for boosts and dtypes without a kernel.

    Returns:
        The loss in float32 or float64.

    Raises:
        TypeError: ``boost`` is not a `gbseg.boosting.Boost`.
        ValueError: an option is out of its range (see `gbseg.boosting.LossSpec`); no such reduction; ``impl`` names an
            implementation that does not support these logits, or weights or labels that require a gradient.
    """
    check_reduction(reduction, avg_factor)
    inputs = LossInputs(label, ignore_index, class_weight, weight, avg_factor, reduction, loss_weight)
    return loss_from_spec(LossSpec(boost, targets, max_delta, impl, keep_gradient), inputs, logits)
