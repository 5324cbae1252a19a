"""The first linear layer over hypercolumns, without building the hypercolumns.

A linear layer commutes with interpolation, so each level is projected and interpolated in the order that takes less arithmetic:
a map with fewer positions than there are points is projected first, a larger one is gathered first. All projected maps make one
table, of which each point's sum over levels and corners is one bag of rows.

Shapes: see `gbseg.pixelnet.gather`; D units of the layer, R positions of all projected maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gbseg.pixelnet.gather import Level, corners, map_of, table_of
from gbseg.pixelnet.row_sums import keeps_half, row_sums, spread

__all__ = ["FirstLayer", "gather_linear", "products_dtype", "projects_first"]


def projects_first(positions: int, points: int, channels: int, units: int) -> bool:
    """Whether a map takes fewer multiplications projected and then interpolated than the other way round; all of one image."""
    return positions * channels * units + 4 * points * units < 4 * points * channels + points * channels * units


class _Part(NamedTuple):
    """A level with its columns of the weight, and its rows of the table of projected maps if it is one of those."""

    number: int
    level: Level
    columns: slice
    rows: slice | None

    @property
    def table(self) -> Tensor:
        return table_of(self.level.feature)


def _plan(levels: Sequence[Level], weight: Tensor, points: int) -> tuple[list[_Part], list[_Part]]:
    """The levels that are gathered first, and those that are projected first."""
    channels = [level.feature.shape[1] for level in levels]
    if sum(channels) != weight.shape[1] or not channels:
        raise ValueError(f"the feature maps have {channels} channels, the first layer was made for {weight.shape[1]}.")
    gathered, projected = [], []
    column = row = 0
    for number, (level, width) in enumerate(zip(levels, channels, strict=True)):
        columns = slice(column, column + width)
        column += width
        count, _, height, wide = level.feature.shape
        if projects_first(height * wide, points, width, len(weight)):
            projected.append(_Part(number, level, columns, slice(row, row + count * height * wide)))
            row += count * height * wide
        else:
            gathered.append(_Part(number, level, columns, None))
    return gathered, projected


def _bags(projected: Sequence[_Part], points: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the table that each point sums, and their factors; both (N*P, 4 times the levels)."""
    found = [corners(part.level, points) for part in projected]
    index = torch.cat([index + part.rows.start for part, (index, _) in zip(projected, found, strict=True)], 1)
    return index, torch.cat([weights for _, weights in found], 1)


def products_dtype(weight: Tensor) -> torch.dtype:
    """What products with ``weight`` are computed in: autocast's dtype where that is on."""
    kind = weight.device.type
    if weight.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


class FirstLayer:
    """The layer over some feature maps, the small ones of which have been through it.

    Args:
        levels: the feature maps.
        weight: (D, K), its columns in the order of the levels.
        bias: (D,), added once.
        points: P, by which the order of each level is chosen.
        dtype: of the products; sums over levels and corners are in float32 (float64 for float64).

    Raises:
        ValueError: the levels do not have K channels together.
    """

    def __init__(self, levels: Sequence[Level], weight: Tensor, bias: Tensor | None, points: int, dtype: torch.dtype) -> None:
        self.gathered, self.projected = _plan(levels, weight, points)
        self.bias, self.dtype = bias, dtype
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.tables = [part.table for part in self.gathered]
        columns = [weight[:, part.columns].to(dtype) for part in self.gathered]
        self.columns = torch.cat(columns, 1).T if columns else None
        rows = self.projected[-1].rows.stop if self.projected else 0
        self.table = weight.new_empty((rows, len(weight)), dtype=dtype if keeps_half(weight.device) else self.wide)
        for part in self.projected:
            product, out = (part.table.to(dtype), weight[:, part.columns].to(dtype).T), self.table[part.rows]
            if out.dtype == dtype:
                torch.mm(*product, out=out)
            else:
                out.copy_(torch.mm(*product))

    def hypercolumns(self, points: Tensor) -> Tensor | None:
        """What is projected after it was gathered: (N*P, channels) at points (N, P, 2); None where that is no level."""
        found = [
            row_sums(table, *corners(part.level, points)).to(self.dtype)
            for table, part in zip(self.tables, self.gathered, strict=True)
        ]
        return torch.cat(found, 1) if found else None

    def __call__(self, points: Tensor, hypercolumns: Tensor | None = None) -> Tensor:
        """(N*P, D) at points (N, P, 2), in float32 or float64; ``hypercolumns`` are computed where they are not given."""
        hypercolumns = self.hypercolumns(points) if hypercolumns is None else hypercolumns
        bias = None if self.bias is None else self.bias.to(self.wide)
        total = row_sums(self.table, *_bags(self.projected, points)) if self.projected else None
        if hypercolumns is not None:
            if bias is not None and self.dtype == self.wide:
                product, bias = torch.addmm(bias, hypercolumns, self.columns), None
            else:
                # in half precision, brought back before the sum
                product = (hypercolumns @ self.columns).to(self.wide)
            total = product if total is None else total.add_(product)
        return total if bias is None else total.add_(bias)


class _GatherLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        places: list[tuple],
        *features: Tensor,
    ) -> Tensor:
        levels = [Level(feature, *place) for feature, place in zip(features, places, strict=True)]
        with torch.autocast(weight.device.type, enabled=False):
            layer = FirstLayer(levels, weight, bias, points.shape[1], dtype)
            hypercolumns = layer.hypercolumns(points)
            ctx.save_for_backward(points, weight, hypercolumns, *features)
            ctx.dtype, ctx.places, ctx.bias = dtype, places, None if bias is None else bias.dtype
            return layer(points, hypercolumns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        points, weight, hypercolumns, *features = ctx.saved_tensors
        levels = [Level(feature, *place) for feature, place in zip(features, ctx.places, strict=True)]
        wanted = ctx.needs_input_grad[5:]
        tables: list[Tensor | None] = [None] * len(levels)
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        gathered, projected = _plan(levels, weight, points.shape[1])
        with torch.autocast(weight.device.type, enabled=False):
            low = upstream.to(ctx.dtype)
            if gathered:
                widths = [part.columns.stop - part.columns.start for part in gathered]
                if of_weight is not None:
                    for part, piece in zip(gathered, (low.T @ hypercolumns).split(widths, 1), strict=True):
                        of_weight[:, part.columns] = piece
                for part in gathered:
                    if wanted[part.number]:
                        piece = low @ weight[:, part.columns].to(ctx.dtype)
                        feature = part.level.feature
                        rows = feature.numel() // feature.shape[1]
                        tables[part.number] = spread(piece, *corners(part.level, points), rows)
            if projected and (of_weight is not None or any(wanted[part.number] for part in projected)):
                table = spread(upstream, *_bags(projected, points), projected[-1].rows.stop)
                for part in projected:
                    piece = table[part.rows].to(ctx.dtype)
                    if of_weight is not None:
                        of_weight[:, part.columns] = piece.T @ part.table.to(ctx.dtype)
                    if wanted[part.number]:
                        tables[part.number] = piece @ weight[:, part.columns].to(ctx.dtype)
        of_bias = upstream.sum(0).to(ctx.bias) if ctx.needs_input_grad[2] else None
        of_features = [
            None if table is None else map_of(table, feature.shape).to(feature.dtype)
            for table, feature in zip(tables, features, strict=True)
        ]
        return (None, of_weight, of_bias, None, None, *of_features)


def gather_linear(levels: Sequence[Level], points: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The first linear layer over the hypercolumns at points, ``sum_l W_l I_l(f_l) + b``.

    ``I_l`` is the bilinear interpolation of level l at the points and ``W_l`` its columns of the weight; the two commute,
    ``W_l I_l(f_l) = I_l(W_l f_l)``. Gradients are deterministic, and summed in float32 (float64 for float64). There is no
    second derivative.

    Args:
        levels: the feature maps.
        points: (N, P, 2) integer pixels (row, column).
        weight: (D, K), its columns in the order of the levels.
        bias: (D,), added once.

    Returns:
        (N, P, D), float32 or float64.

    Raises:
        ValueError: the levels do not have K channels together.
    """
    places = [(level.stride, level.offset, level.origin, level.size) for level in levels]
    features = [level.feature for level in levels]
    found = _GatherLinear.apply(points, weight, bias, products_dtype(weight), places, *features)
    return found.view(*points.shape[:2], len(weight))
