"""Weighted sums of rows of a table, and their transpose: what bilinear gathering and its gradient are.

Bag ``q`` sums the rows ``index[q]`` with the factors ``weights[q]``; the transpose adds bag ``q``, with the same factors, to
those rows. Both walk over what they write and add in a fixed order, so neither needs atomic additions, and both give the same
bits every time, whatever `torch.use_deterministic_algorithms` says. Sums are in float32 (float64 for float64).

Shapes: R rows of a table, D columns, Q bags of K rows.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["keeps_half", "row_sums", "spread"]

_logger = logging.getLogger(__name__)


@cache
def _say(reason: str) -> None:
    _logger.debug(reason)


@cache
def _kernels() -> ModuleType | None:
    """The Triton kernel, imported when it may be wanted."""
    try:
        from gbseg.pixelnet import row_sums_triton
    except ImportError:
        return None
    return row_sums_triton


def _kernel_takes(table: Tensor) -> bool:
    if table.device.type != "cuda" or table.dtype == torch.float64 or torch.compiler.is_compiling():
        return False
    if _kernels() is None:
        _say("hypercolumns are gathered by F.embedding_bag: the package triton cannot be imported.")
        return False
    return True


def keeps_half(device: torch.device) -> bool:
    """Whether a table in half precision is read as it is; else it has to be float32 already."""
    return device.type == "cuda" and not torch.compiler.is_compiling() and _kernels() is not None


def row_sums(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sums of rows: (R, D), (Q, K), (Q, K) to (Q, D), float32 or float64."""
    if _kernel_takes(table):
        return _kernels().sums(table, index.reshape(-1), weights.reshape(-1), None, index.shape[1])
    if table.dtype not in (torch.float32, torch.float64):
        if index.numel() < len(table):
            # embedding_bag wants one dtype, and weights of bfloat16 would be off by up to 0.4 %; of a large table only the
            # rows that are read are converted
            return (F.embedding(index, table).float() * weights.unsqueeze(-1)).sum(1)
        table = table.float()
    return F.embedding_bag(index, table, per_sample_weights=weights.to(table.dtype), mode="sum")


def spread(values: Tensor, index: Tensor, weights: Tensor, rows: int) -> Tensor:
    """The transpose of `row_sums`: (Q, D), (Q, K), (Q, K) to (R, D), float32 or float64."""
    flat = index.reshape(-1)
    # row by row of the table: which bags it is in, in their order
    order = flat.argsort(stable=True)
    starts = torch.searchsorted(flat[order], torch.arange(rows + 1, device=flat.device))
    bag, weight = order // index.shape[1], weights.reshape(-1)[order]
    if _kernel_takes(values):
        return _kernels().sums(values.contiguous(), bag, weight, starts, 0)
    full = values if values.dtype == torch.float64 else values.float()
    return F.embedding_bag(
        bag, full, offsets=starts, per_sample_weights=weight.to(full.dtype), mode="sum", include_last_offset=True
    )
