"""Prediction of large images in tiles.

There are two grids: the network's, with n positions along a side, on which logits are computed in overlapping tiles, and the
image's, with N pixels, to which they are upsampled. Every function treats one side; the two sides are independent.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Axis", "Span", "spans"]

ALIGN = 32  # tiles start at multiples of it: a pooling of stride 32 then has the same windows as in the full image


@dataclass(frozen=True)
class Span:
    """A tile ``start:stop`` of the network's grid; of it ``first:last`` is kept."""

    start: int
    stop: int
    first: int
    last: int


def spans(extent: int, tile: int, overlap: int) -> list[Span]:
    """Tiles of at most ``tile`` positions that cover ``0:extent``; neighbours share at least ``overlap``.

    Every position is kept from exactly one tile, in which it is at least ``overlap // 2`` from borders inside the image.

    Args:
        extent: n.
        tile: a multiple of ``ALIGN``.
        overlap: a multiple of ``ALIGN``, smaller than ``tile``.

    Raises:
        ValueError: tile or overlap is not such a multiple.
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
        upsampled: N.
        nearest: read the position under a pixel's centre, ``floor((i + 0.5) * n / N)``; otherwise interpolate linearly at
            ``(i + 0.5) * n / N - 0.5``, clamped to the grid.
        align_corners: interpolate at ``i * (n - 1) / (N - 1)`` instead.
    """

    def __init__(self, extent: int, upsampled: int, nearest: bool, align_corners: bool = False) -> None:
        self.same = extent == upsampled
        # the float32 arithmetic of a prediction without tiles, whose labels are to be reproduced
        ramp = torch.arange(extent, dtype=torch.float32).view(1, 1, extent, 1)
        self.nearest = F.interpolate(ramp, (upsampled, 1), mode="nearest-exact").flatten().long()
        self.lower, self.weight = self.nearest, None
        if not nearest and not self.same:
            pixel = torch.arange(upsampled, dtype=torch.float32)
            if align_corners:
                position = pixel * ((extent - 1) / max(upsampled - 1, 1))
            else:
                position = ((pixel + 0.5) * (extent / upsampled) - 0.5).clamp(min=0)
            self.lower = position.long().clamp(max=extent - 1)
            self.weight = position - self.lower

    def pixels(self, span: Span) -> range:
        """The pixels whose nearest position is in the kept part of a tile."""
        bounds = torch.tensor([span.first, span.last])
        return range(*torch.searchsorted(self.nearest, bounds).tolist())

    def read(self, x: Tensor, span: Span, pixels: range, dim: int) -> Tensor:
        """Upsample a tile ``x`` along ``dim`` at some ``pixels``."""
        if self.same:
            return x.narrow(dim, pixels.start - span.start, len(pixels))
        part = slice(pixels.start, pixels.stop)
        last = span.stop - span.start - 1
        lower = (self.lower[part] - span.start).clamp(0, last).to(x.device)
        values = x.index_select(dim, lower)
        if self.weight is None:
            return values
        shape = [-1 if d == dim else 1 for d in range(x.ndim)]
        weight = self.weight[part].view(shape).to(x)
        return values * (1 - weight) + x.index_select(dim, (lower + 1).clamp(max=last)) * weight
