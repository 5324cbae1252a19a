"""Hypercolumns: what the feature maps of a trunk hold at single pixels.

Pixel ``x`` of an image reads a feature map of stride ``s`` at the map position ``(x + offset + 0.5)/s - 0.5``, clamped to
the map, bilinearly (half-pixel centres; ``offset`` is the padding in front of the image, 0 by default). Where the image is
a multiple of the stride, that is ``F.grid_sample(align_corners=False, padding_mode='border')``.

Shapes: N images, P points an image, C_l channels of level l (K their sum), h_l x w_l its map.
Points are (row, column) pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Level", "corners", "hypercolumn_linear_reference", "hypercolumns_reference", "map_of", "table_of"]


@dataclass(frozen=True)
class Level:
    """One feature map of a hypercolumn.

    Attributes:
        feature: (N, C_l, h_l, w_l).
        stride: pixels of the image per position of the map, (rows, columns).
        offset: pixels of padding that the trunk put in front of the image.
        origin: position (row, column) of ``feature`` inside the whole map, when it is a crop of it.
        size: (h_l, w_l) of the whole map, where positions are clamped; None when ``feature`` is the whole map.
    """

    feature: Tensor
    stride: tuple[float, float]
    offset: float = 0.0
    origin: tuple[int, int] = (0, 0)
    size: tuple[int, int] | None = None

    def positions(self, pixels: Tensor, axis: int) -> Tensor:
        """Map positions of pixel coordinates along ``axis`` (0 rows, 1 columns), clamped to the whole map."""
        extent = (self.size or tuple(self.feature.shape[2:]))[axis]
        # at least float32: bfloat16 holds no more than 256 positions
        dtype = torch.float64 if self.feature.dtype == torch.float64 else torch.float32
        position = (pixels.to(dtype) + (self.offset + 0.5)) / self.stride[axis] - 0.5
        return position.clamp(0, extent - 1)

    def crop(self, rows: tuple[int, int], columns: tuple[int, int]) -> Level:
        """The part of the map that the pixels of ``rows`` and ``columns`` (each first, last) read."""
        bounds = []
        for axis, pixels in enumerate((rows, columns)):
            ends = self.positions(torch.tensor(pixels), axis).tolist()
            # one position more on each side than exact arithmetic needs: the device that reads the crop may round otherwise
            bounds.append((max(int(ends[0]) - 1, 0), min(int(ends[1]) + 3, self.feature.shape[2 + axis])))
        (top, bottom), (left, right) = bounds
        return Level(
            self.feature[:, :, top:bottom, left:right],
            self.stride,
            self.offset,
            (top, left),
            tuple(self.feature.shape[2:]),
        )


def corners(level: Level, points: Tensor) -> tuple[Tensor, Tensor]:
    """The four positions around each point, as rows of the (N*h*w, C) table, and their weights; both (N*P, 4)."""
    height, width = level.feature.shape[2:]
    y, x = (level.positions(points[..., axis], axis) - level.origin[axis] for axis in (0, 1))
    top, left = y.floor(), x.floor()
    dy, dx = y - top, x - left
    top, left = top.long(), left.long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    image = torch.arange(points.shape[0], device=points.device).unsqueeze(1) * (height * width)
    rows = (top * width + left, top * width + right, bottom * width + left, bottom * width + right)
    weights = ((1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx)
    index = torch.stack([image + row for row in rows], dim=-1)
    return index.reshape(-1, 4), torch.stack(weights, dim=-1).reshape(-1, 4)


def table_of(feature: Tensor) -> Tensor:
    """(N, C, h, w) as (N*h*w, C); a view if the feature is channels_last."""
    return feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1])


def map_of(table: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `table_of`: (N*h*w, C) as (N, C, h, w), a view."""
    count, channels, height, width = shape
    return table.view(count, height, width, channels).permute(0, 3, 1, 2)


def hypercolumns_reference(levels: Sequence[Level], points: Tensor) -> Tensor:
    """The hypercolumns at points, (N, P, K), by `F.grid_sample`: what the functions above are tested against."""
    columns = []
    for level in levels:
        height, width = level.feature.shape[2:]
        y, x = (level.positions(points[..., axis], axis) for axis in (0, 1))
        # grid_sample's coordinates are -1..1 from edge to edge of the map
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1).to(level.feature.dtype)
        values = F.grid_sample(level.feature, grid.unsqueeze(1), align_corners=False, padding_mode="border")
        columns.append(values.squeeze(2).transpose(1, 2))
    return torch.cat(columns, dim=-1)


def hypercolumn_linear_reference(levels: Sequence[Level], points: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The plain form of `gbseg.pixelnet.first_layer.gather_linear`: concatenate, then multiply."""
    return F.linear(hypercolumns_reference(levels, points), weight, bias)
