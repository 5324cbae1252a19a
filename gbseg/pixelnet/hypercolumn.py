"""Hypercolumns (what the feature maps of a trunk hold at single pixels), and the first linear layer over them.

Pixel ``x`` of an image reads a feature map of stride ``s`` at the map position ``(x + offset + 0.5)/s - 0.5``, clamped to
the map, bilinearly (half-pixel centres; ``offset`` is the padding in front of the image, 0 by default). Where the image is
a multiple of the stride, that is ``F.grid_sample(align_corners=False, padding_mode='border')``.

The hypercolumns themselves are never built. A linear layer commutes with interpolation, so each level is projected and
interpolated in the order that takes fewer multiplications: a map with fewer positions than there are points is projected first,
a larger one is gathered first. All projected maps make one table, and a point's sum over levels and corners is a weighted sum
of rows of this table (``F.embedding_bag``, or a Triton kernel on a GPU).

The gradient adds to rows of the table. Both directions loop over what they write and add in a fixed order. They need no atomic
additions and give the same bits every time, whatever ``torch.use_deterministic_algorithms`` says.

Shapes: N images, P points an image, C_l channels of level l (K their sum), h_l x w_l its map, D units of the layer,
R rows of a table, Q weighted sums of k rows each. Points are (row, column) pixels of the image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["FirstLayer", "Level", "compute_dtype", "gather_linear", "hypercolumn_linear_reference", "hypercolumns_reference"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Level:
    """One feature map of a hypercolumn.

    Attributes:
        feature: (N, C_l, h_l, w_l).
        stride: pixels of the image per position of the map, (rows, columns).
        offset: pixels of padding that the trunk put in front of the image.
        origin: position (row, column) of ``feature`` in the full map, if it is a crop of it.
        size: (h_l, w_l) of the full map, where positions are clamped; None if ``feature`` is the full map.
    """

    feature: Tensor
    stride: tuple[float, float]
    offset: float = 0.0
    origin: tuple[int, int] = (0, 0)
    size: tuple[int, int] | None = None

    def positions(self, pixels: Tensor, axis: int) -> Tensor:
        """Map positions of pixel coordinates along ``axis`` (0 rows, 1 columns), clamped to the full map."""
        extent = (self.size or self.feature.shape[2:])[axis]
        # at least float32: bfloat16 holds no more than 256 positions
        dtype = torch.float64 if self.feature.dtype == torch.float64 else torch.float32
        position = (pixels.to(dtype) + (self.offset + 0.5)) / self.stride[axis] - 0.5
        return position.clamp(0, extent - 1)

    def crop(self, rows: tuple[int, int], columns: tuple[int, int]) -> Level:
        """The part of the map that the pixels of ``rows`` and ``columns`` (each first, last) read."""
        height, width = self.feature.shape[2:]
        bounds = []
        for axis, (pixels, extent) in enumerate(((rows, height), (columns, width))):
            first, last = self.positions(torch.tensor(pixels), axis).tolist()
            # one position more on each side than exact arithmetic needs: the device that reads the crop may round differently
            bounds.append((max(int(first) - 1, 0), min(int(last) + 3, extent)))
        (top, bottom), (left, right) = bounds
        return Level(self.feature[:, :, top:bottom, left:right], self.stride, self.offset, (top, left), (height, width))


def bilinear_corners(level: Level, points: Tensor) -> tuple[Tensor, Tensor]:
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


def flatten_map(feature: Tensor) -> Tensor:
    """(N, C, h, w) as (N*h*w, C); a view if the feature is channels_last."""
    return feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1])


def unflatten_map(table: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of ``flatten_map``: (N*h*w, C) as (N, C, h, w), a view."""
    count, channels, height, width = shape
    return table.view(count, height, width, channels).permute(0, 3, 1, 2)


@cache
def _triton_kernel() -> Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor] | None:
    """The Triton kernel, imported at its first use; None without the package triton."""
    try:
        from gbseg.pixelnet.row_sums_triton import sums
    except ImportError:
        _logger.debug("hypercolumns are gathered by F.embedding_bag: the package triton cannot be imported.")
        return None
    return sums


def supports_half_precision(device: torch.device) -> bool:
    """Whether ``row_sums`` reads a table in half precision as it is; otherwise the table should be float32 already."""
    return device.type == "cuda" and not torch.compiler.is_compiling() and _triton_kernel() is not None


def _kernel_for(table: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor] | None:
    if table.dtype == torch.float64 or not supports_half_precision(table.device):
        return None
    return _triton_kernel()


def row_sums(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows, ``out[q] = sum_k weights[q, k] * table[index[q, k]]``.

    Args:
        table: (R, D).
        index: (Q, k).
        weights: (Q, k).

    Returns:
        (Q, D), summed in float32 (float64 for float64).
    """
    if (kernel := _kernel_for(table)) is not None:
        return kernel(table, index.reshape(-1), weights.reshape(-1), None, index.shape[1])
    if table.dtype not in (torch.float32, torch.float64):
        if index.numel() < len(table):
            # embedding_bag needs one dtype, and weights in bfloat16 would be off by up to 0.4 %; of a large table only the
            # rows that are read are converted
            return (F.embedding(index, table).float() * weights.unsqueeze(-1)).sum(1)
        table = table.float()
    return F.embedding_bag(index, table, per_sample_weights=weights.to(table.dtype), mode="sum")


def scatter_add_rows(values: Tensor, index: Tensor, weights: Tensor, rows: int) -> Tensor:
    """The transpose of ``row_sums``: adds ``weights[q, k] * values[q]`` to row ``index[q, k]`` of a table of zeros.

    Args:
        values: (Q, D).
        index: (Q, k).
        weights: (Q, k).
        rows: R.

    Returns:
        (R, D), summed in float32 (float64 for float64).
    """
    flat = index.reshape(-1)
    # for each row of the table, the sums that it is in, in their order
    order = flat.argsort(stable=True)
    starts = torch.searchsorted(flat[order], torch.arange(rows + 1, device=flat.device))
    source, weight = order // index.shape[1], weights.reshape(-1)[order]
    if (kernel := _kernel_for(values)) is not None:
        return kernel(values.contiguous(), source, weight, starts, 0)
    values = values if values.dtype == torch.float64 else values.float()
    return F.embedding_bag(
        source, values, offsets=starts, per_sample_weights=weight.to(values.dtype), mode="sum", include_last_offset=True
    )


def projects_first(positions: int, points: int, channels: int, units: int) -> bool:
    """Whether projecting a map and then interpolating takes fewer multiplications than the reverse; all of one image."""
    return positions * channels * units + 4 * points * units < 4 * points * channels + points * channels * units


class _LevelPlan(NamedTuple):
    """A level, its columns of the weight, and its rows of a table: all projected maps share one, a gathered map has its own."""

    number: int
    level: Level
    columns: slice
    rows: slice


def _plan(levels: Sequence[Level], weight: Tensor, points: int) -> tuple[list[_LevelPlan], list[_LevelPlan]]:
    """The levels that are gathered first, and those that are projected first."""
    channels = [level.feature.shape[1] for level in levels]
    if sum(channels) != weight.shape[1] or not channels:
        raise ValueError(f"the feature maps have {channels} channels, the first layer was made for {weight.shape[1]}.")
    gathered: list[_LevelPlan] = []
    projected: list[_LevelPlan] = []
    column = row = 0
    for number, level in enumerate(levels):
        batch, width, map_height, map_width = level.feature.shape
        columns = slice(column, column + width)
        column += width
        rows = batch * map_height * map_width
        if projects_first(map_height * map_width, points, width, len(weight)):
            projected.append(_LevelPlan(number, level, columns, slice(row, row + rows)))
            row += rows
        else:
            gathered.append(_LevelPlan(number, level, columns, slice(0, rows)))
    return gathered, projected


def _shared_table_corners(projected: Sequence[_LevelPlan], points: Tensor) -> tuple[Tensor, Tensor]:
    """``bilinear_corners`` of all levels as rows of the shared table, and their weights; both (N*P, 4 times the levels)."""
    indices, weights = zip(*(bilinear_corners(plan.level, points) for plan in projected), strict=True)
    shifted = [index + plan.rows.start for plan, index in zip(projected, indices, strict=True)]
    return torch.cat(shifted, 1), torch.cat(weights, 1)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which products with ``weight`` are computed: autocast's if it is on."""
    kind = weight.device.type
    if weight.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


class FirstLayer:
    """The first linear layer over some feature maps, the small ones of which have been projected already.

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
        self.sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.gathered_tables = [flatten_map(plan.level.feature) for plan in self.gathered]
        columns = [weight[:, plan.columns].to(dtype) for plan in self.gathered]
        self.gathered_weight = torch.cat(columns, 1).T if columns else None
        rows = self.projected[-1].rows.stop if self.projected else 0
        table_dtype = dtype if supports_half_precision(weight.device) else self.sum_dtype
        self.projected_table = weight.new_empty((rows, len(weight)), dtype=table_dtype)
        for plan in self.projected:
            feature, columns_t = flatten_map(plan.level.feature).to(dtype), weight[:, plan.columns].to(dtype).T
            out = self.projected_table[plan.rows]
            if out.dtype == dtype:
                torch.mm(feature, columns_t, out=out)
            else:
                out.copy_(torch.mm(feature, columns_t))

    def hypercolumns(self, points: Tensor) -> Tensor | None:
        """The gathered levels at points (N, P, 2), (N*P, channels); None if all levels are projected first."""
        if not self.gathered:
            return None
        values = [
            row_sums(table, *bilinear_corners(plan.level, points)).to(self.dtype)
            for table, plan in zip(self.gathered_tables, self.gathered, strict=True)
        ]
        return torch.cat(values, 1)

    def __call__(self, points: Tensor, hypercolumns: Tensor | None = None) -> Tensor:
        """(N*P, D) at points (N, P, 2), in float32 or float64; ``hypercolumns`` are computed if they are not given."""
        hypercolumns = self.hypercolumns(points) if hypercolumns is None else hypercolumns
        bias = None if self.bias is None else self.bias.to(self.sum_dtype)
        summands = []
        if self.projected:
            summands.append(row_sums(self.projected_table, *_shared_table_corners(self.projected, points)))
        if hypercolumns is not None and self.gathered_weight is not None:
            if bias is not None and self.dtype == self.sum_dtype:
                summands.append(torch.addmm(bias, hypercolumns, self.gathered_weight))
                bias = None
            else:
                # a product in half precision is converted before the sum
                summands.append((hypercolumns @ self.gathered_weight).to(self.sum_dtype))
        if bias is not None:
            summands.append(bias)
        total = summands[0]
        for summand in summands[1:]:
            total.add_(summand)
        return total


class _GatherLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        geometry: list[tuple],
        *features: Tensor,
    ) -> Tensor:
        levels = [Level(feature, *where) for feature, where in zip(features, geometry, strict=True)]
        with torch.autocast(weight.device.type, enabled=False):
            layer = FirstLayer(levels, weight, bias, points.shape[1], dtype)
            hypercolumns = layer.hypercolumns(points)
            ctx.save_for_backward(points, weight, hypercolumns, *features)
            ctx.dtype, ctx.geometry, ctx.bias_dtype = dtype, geometry, None if bias is None else bias.dtype
            return layer(points, hypercolumns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        points, weight, hypercolumns, *features = ctx.saved_tensors
        levels = [Level(feature, *where) for feature, where in zip(features, ctx.geometry, strict=True)]
        needs_grad = ctx.needs_input_grad[5:]
        grad_tables: list[Tensor | None] = [None] * len(levels)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        gathered, projected = _plan(levels, weight, points.shape[1])
        with torch.autocast(weight.device.type, enabled=False):
            grad_low = grad_output.to(ctx.dtype)
            if gathered and grad_weight is not None:
                widths = [plan.level.feature.shape[1] for plan in gathered]
                for plan, part in zip(gathered, (grad_low.T @ hypercolumns).split(widths, 1), strict=True):
                    grad_weight[:, plan.columns] = part
            for plan in gathered:
                if needs_grad[plan.number]:
                    part = grad_low @ weight[:, plan.columns].to(ctx.dtype)
                    grad_tables[plan.number] = scatter_add_rows(part, *bilinear_corners(plan.level, points), plan.rows.stop)
            if projected and (grad_weight is not None or any(needs_grad[plan.number] for plan in projected)):
                table = scatter_add_rows(grad_output, *_shared_table_corners(projected, points), projected[-1].rows.stop)
                for plan in projected:
                    part = table[plan.rows].to(ctx.dtype)
                    if grad_weight is not None:
                        grad_weight[:, plan.columns] = part.T @ flatten_map(plan.level.feature).to(ctx.dtype)
                    if needs_grad[plan.number]:
                        grad_tables[plan.number] = part @ weight[:, plan.columns].to(ctx.dtype)
        grad_bias = grad_output.sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        grad_features = [
            None if table is None else unflatten_map(table, feature.shape).to(feature.dtype)
            for table, feature in zip(grad_tables, features, strict=True)
        ]
        return (None, grad_weight, grad_bias, None, None, *grad_features)


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
    geometry = [(level.stride, level.offset, level.origin, level.size) for level in levels]
    features = [level.feature for level in levels]
    out = _GatherLinear.apply(points, weight, bias, compute_dtype(weight), geometry, *features)
    return out.view(*points.shape[:2], len(weight))


def hypercolumns_reference(levels: Sequence[Level], points: Tensor) -> Tensor:
    """The hypercolumns at points, (N, P, K), by ``F.grid_sample``: what the functions above are tested against."""
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
    """The plain form of `gather_linear`: concatenate, then multiply."""
    return F.linear(hypercolumns_reference(levels, points), weight, bias)
