"""The boosted loss by the fastest way there is for the logits: one signature for all of them.

`gbseg.losses.reference` is what they are all held to. Shapes: N images or rows, C classes, * any trailing dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gbseg.boosting import Boost
from gbseg.losses.kernels import cpu
from gbseg.losses.reference import boosted_loss
from gbseg.losses.spec import Problem, traced

__all__ = ["IMPLEMENTATIONS", "fused_boosted_loss"]

IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton", "compile")

_logger = logging.getLogger(__name__)


@cache
def _say(reason: str) -> None:
    _logger.debug(reason)


@cache
def _kernels() -> ModuleType | None:
    """The Triton kernels; imported when they may be wanted, which takes longer than all of this package's losses."""
    try:
        from gbseg.losses.kernels import gpu
    except ImportError:
        # PyTorch for a CPU, or for a system that Triton is not made for
        return None
    return gpu


def _chosen(impl: str, logits: Tensor, problem: Problem) -> str:
    """The implementation for these logits: 'auto' takes the fastest and says once, at level debug, what it falls back to."""
    if problem.learned and impl in ("cpu", "triton"):
        raise ValueError(f"impl={impl!r} gives a gradient to logits alone, not to weights or labels; use impl='auto'.")
    if impl != "auto":
        return impl
    if problem.learned or traced(logits, *problem.tensors):
        return "reference"
    if logits.device.type == "cpu":
        return "cpu"
    kernels = _kernels() if logits.device.type == "cuda" else None
    if kernels is not None and logits.dtype in kernels.DTYPES and type(problem.boost) in kernels.KINDS:
        return "triton"
    what = f"{type(problem.boost).__name__} of {logits.dtype} logits on {logits.device.type}"
    _say(f"the loss with {what} is the reference's: there is no kernel for it here.")
    return "reference"


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, problem: Problem, backend: ModuleType, keep: bool) -> Tensor:
        ctx.problem, ctx.backend = problem, backend
        ctx.save_for_backward(logits, *problem.tensors)
        # without a reduction the backward multiplies pixel by pixel, and float16 would lose what a gradient scaler saves
        keep = keep and ctx.needs_input_grad[0] and problem.reduction != "none" and logits.dtype != torch.float16
        loss, ctx.gradient = backend.one_pass(problem, logits, keep)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        logits = ctx.saved_tensors[0]
        if torch.is_grad_enabled():
            # to be differentiated again
            (gradient,) = torch.autograd.grad(ctx.problem.by(boosted_loss, logits), logits, upstream, create_graph=True)
            return gradient, None, None, None
        if traced(upstream) or torch._C._functorch.is_legacy_batchedtensor(upstream):
            # many upstream gradients at once: nothing can be asked about their values
            _, gradient = ctx.backend.one_pass(ctx.problem, logits, True)
            each = upstream.unsqueeze(1) if ctx.problem.reduction == "none" else upstream
            return (gradient * each).to(logits.dtype), None, None, None
        # given away, so that nothing has to be copied; a second backward computes it again
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            _, gradient = ctx.backend.one_pass(ctx.problem, logits, True, upstream)
        else:
            ctx.backend.rescale_(gradient, upstream)
        return gradient, None, None, None


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(boosted_loss, dynamic=False)


def _backend(name: str, logits: Tensor) -> ModuleType:
    """The module of an implementation; raises ValueError where it does not take the logits."""
    if name == "cpu":
        if logits.device.type != "cpu":
            raise ValueError(f"impl='cpu' takes logits on a CPU, got them on {logits.device}; impl='auto' finds one for them.")
        return cpu
    kernels = _kernels()
    if kernels is None:
        raise ValueError("impl='triton' needs the package triton, which cannot be imported here.")
    if logits.dtype not in kernels.DTYPES:
        raise ValueError(f"impl='triton' takes float32, bfloat16 and float16, got {logits.dtype}; use impl='reference'.")
    if logits.device.type == "cpu" and not kernels.INTERPRETED:
        raise ValueError("impl='triton' takes logits on a GPU, got them on a CPU (where only TRITON_INTERPRET=1 runs it).")
    return kernels


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
    """`gbseg.losses.reference.boosted_loss` times ``loss_weight``, read and derived in one pass over the logits.

    Beside the gradient, which is written in the forward, 'cpu' and 'triton' need the memory of a few blocks. An upstream
    gradient that is not 1 multiplies it in the backward, which rounds bfloat16 once more. A second derivative is the
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
        impl: 'cpu', 'triton', 'compile' (the reference under `torch.compile`), 'reference', or 'auto', which takes the first
            of 'cpu' and 'triton' that can be, else the reference: for weights and soft labels that want a gradient, under
            `torch.compile` or `torch.func`, and for boosts and dtypes that no kernel is made for.

    Returns:
        The loss in float32 or float64.

    Raises:
        ValueError: there is no such implementation, or the one that is named does not take these logits, or something else
            wants a gradient.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {IMPLEMENTATIONS}, got {impl!r}.")
    problem = Problem(label, boost, targets, ignore_index, class_weight, weight, avg_factor, reduction, max_delta, loss_weight)
    chosen = _chosen(impl, logits, problem)
    if chosen == "reference":
        return problem.by(boosted_loss, logits)
    if chosen == "compile":
        return problem.by(_compiled(), logits)
    backend = _backend(chosen, logits)
    return _Fused.apply(logits, problem, backend, keep_gradient and torch.is_grad_enabled())
