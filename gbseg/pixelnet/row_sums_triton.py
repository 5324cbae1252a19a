"""Weighted sums of rows of a table on a GPU: each sum is computed in registers, in float32, and written once."""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["sums"]


@triton.jit
def _sums(
    table: tl.tensor,
    index: tl.tensor,
    weight: tl.tensor,
    starts: tl.tensor,
    out: tl.tensor,
    width: tl.tensor,
    EACH: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    in_row = column < width
    total = tl.zeros([WIDTH], tl.float32)
    if EACH > 0:
        for entry in range(EACH):
            row = tl.load(index + bag * EACH + entry)
            value = tl.load(table + row * width + column, mask=in_row, other=0.0).to(tl.float32)
            total += tl.load(weight + bag * EACH + entry) * value
    else:
        first = tl.load(starts + bag)
        for entry in range(tl.load(starts + bag + 1) - first):
            row = tl.load(index + first + entry)
            value = tl.load(table + row * width + column, mask=in_row, other=0.0).to(tl.float32)
            total += tl.load(weight + first + entry) * value
    tl.store(out + bag * width + column, total, mask=in_row)


def sums(table: Tensor, index: Tensor, weight: Tensor, starts: Tensor | None, each: int) -> Tensor:
    """Q weighted sums of rows of a table, (Q, D) in float32.

    Args:
        table: (R, D), float32 or in half precision.
        index: rows of the table, those of the first sum first.
        weight: one factor per entry of ``index``.
        starts: (Q + 1,), sum q has the entries ``starts[q]`` to ``starts[q + 1]``; None if every sum has ``each`` entries.
        each: the number of entries of every sum; 0 with ``starts``.
    """
    table = table.contiguous()
    bags = len(index) // max(each, 1) if starts is None else len(starts) - 1
    width = table.shape[1]
    out = torch.empty(bags, width, dtype=torch.float32, device=table.device)
    if out.numel():
        block = min(1024, triton.next_power_of_2(width))
        # Triton launches on the current device, which need not be the tensor's
        with torch.cuda.device_of(table) if table.is_cuda else nullcontext():
            _sums[(bags, triton.cdiv(width, block))](
                table,
                index,
                weight.to(torch.float32).contiguous(),
                index if starts is None else starts,
                out,
                width,
                EACH=each,
                WIDTH=block,
            )
    return out
