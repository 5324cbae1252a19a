"""Prediction of large images piece by piece.

Two grids: the network's, of n positions along a side, on which logits are computed in overlapping tiles, and the image's,
of N pixels, to which they are enlarged. Every function below speaks of one side; the two sides are independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Axis", "Span", "spans"]

ALIGN = 32  # tiles start at multiples of it: a pooling of stride 32 then sees the same windows as in the whole image


@dataclass(frozen=True)
class Span:
    """A tile ``start:stop`` of the network's grid, of which ``first:last`` is kept."""

    start: int
    stop: int
    first: int
    last: int


def spans(extent: int, tile: int, overlap: int) -> list[Span]:
    """Tiles of at most ``tile`` positions that cover ``0:extent``; neighbours share at least ``overlap``.

    Every position is kept from one tile, one in which it lies at least ``overlap // 2`` from borders inside the image (up to
    the rounding of that to multiples of `ALIGN`).

    Args:
        extent: n.
        tile: a multiple of `ALIGN`.
        overlap: a multiple of `ALIGN`, smaller than ``tile``.

    Raises:
        ValueError: tile or overlap is not such a number.
    """
    if tile < ALIGN or tile % ALIGN or overlap < 0 or overlap % ALIGN or overlap >= tile:
        raise ValueError(f"tile and overlap are multiples of {ALIGN}, 0 <= overlap < tile, got tile={tile}, overlap={overlap}.")
    starts = [0]
    while starts[-1] + tile < extent:
        starts.append(starts[-1] + tile - overlap)
    # tiles meet in the middle of what they share
    seams = [0, *(start + overlap // 2 for start in starts[1:]), extent]
    return [
        Span(start, min(start + tile, extent), first, last)
        for start, first, last in zip(starts, seams[:-1], seams[1:], strict=True)
    ]


class Axis:
    """How N pixels read n positions along one side.

    Args:
        extent: n.
        enlarged: N.
        nearest: read the position under a pixel's centre, ``floor((i + 0.5) * n / N)``; else blend two, at
            ``(i + 0.5) * n / N - 0.5`` clamped to the grid.
        align_corners: blend at ``i * (n - 1) / (N - 1)`` instead.
    """

    def __init__(self, extent: int, enlarged: int, nearest: bool, align_corners: bool = False) -> None:
        self.same = extent == enlarged
        # the same float32 arithmetic as the prediction of a whole image, whose labels are to be reproduced
        ramp = torch.arange(extent, dtype=torch.float32).view(1, 1, extent, 1)
        self.nearest = F.interpolate(ramp, (enlarged, 1), mode="nearest-exact").flatten().long()
        self.lower, self.weight = self.nearest, None
        if not nearest and not self.same:
            pixel = torch.arange(enlarged, dtype=torch.float32)
            if align_corners:
                position = pixel * ((extent - 1) / max(enlarged - 1, 1))
            else:
                position = ((pixel + 0.5) * (extent / enlarged) - 0.5).clamp(min=0)
            self.lower = position.long().clamp(max=extent - 1)
            self.weight = position - self.lower

    def pixels(self, span: Span) -> range:
        """The pixels that a tile's kept part is nearest to."""
        bounds = torch.tensor([span.first, span.last])
        return range(*torch.searchsorted(self.nearest, bounds).tolist())

    def read(self, x: Tensor, span: Span, pixels: range, dim: int) -> Tensor:
        """Enlarge a tile ``x`` along ``dim`` for some ``pixels``."""
        if self.same:
            return x.narrow(dim, pixels.start - span.start, len(pixels))
        part = slice(pixels.start, pixels.stop)
        last = span.stop - span.start - 1
        lower = (self.lower[part] - span.start).clamp(0, last).to(x.device)
        found = x.index_select(dim, lower)
        if self.weight is None:
            return found
        shape = [-1 if d == dim else 1 for d in range(x.ndim)]
        weight = self.weight[part].view(shape).to(x)
        return found * (1 - weight) + x.index_select(dim, (lower + 1).clamp(max=last)) * weight
