"""ReLU and dropout of a wide hidden layer in one step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["relu_dropout"]


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        # four draws of 16 bits out of one of 64: a bernoulli_ for every unit takes an eighth of PixelNet's training step
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        draws = bits.view(torch.int16)[: x.numel()].view(x.shape)
        # not x > 0: what is NaN stays NaN
        off = (draws < round(p * 2**16) - 2**15) | (x <= 0)
        ctx.scale = 1 / (1 - p)
        ctx.save_for_backward(off)
        return x.masked_fill(off, 0.0).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (off,) = ctx.saved_tensors
        return upstream.masked_fill(off, 0.0).mul_(ctx.scale), None


def relu_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``F.dropout(F.relu(x), p)``, on a CPU with draws that are cheap; may overwrite ``x``.

    There ``p`` is rounded to a multiple of 2^-16. Draws come from torch's global generator.

    Args:
        x: of any shape.
        p: the probability of a zero.
        training: False: nothing is dropped.
    """
    if training and 0 < round(p * 2**16) < 2**16 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _ReluDropout.apply(x, p)
    # in place where nobody can have kept what is overwritten
    return F.dropout(torch.relu(x) if x.requires_grad else torch.relu_(x), p, training)
