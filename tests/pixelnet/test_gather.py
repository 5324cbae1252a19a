"""Features at single pixels, against `F.grid_sample`, Python loops over the formula, and the plain order of the first layer."""

from __future__ import annotations

import math
import re
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("mmseg")
from gbseg.pixelnet.hypercolumn import Level, gather_linear, hypercolumn_linear_reference

LEVEL_CASES = {
    # map size, stride, offset, image size
    "odd image": ((5, 7), (3, 3), 0, (14, 20)),
    "uneven strides": ((4, 3), (2.5, 5), 0, (10, 14)),
    "one pixel, one position": ((1, 1), (32, 32), 0, (1, 1)),
    "one position": ((1, 1), (32, 32), 0, (9, 33)),
    "finer than the image": ((11, 9), (0.5, 0.75), 0, (6, 7)),
    "padded by 100": ((10, 12), (16, 16), 100, (40, 24)),
    "the authors' fc7": ((8, 3), (224, 224), 100, (230, 2)),
    # bfloat16 holds no more than 256 positions
    "long map": ((1, 700), (1.5, 1.5), 0, (1, 1050)),
}


def gather(level: Level, points: Tensor) -> Tensor:
    """The values of one map at points: the first layer with the identity as its weight."""
    dtype = torch.float64 if level.feature.dtype == torch.float64 else torch.float32
    return gather_linear([level], points, torch.eye(level.feature.shape[1], dtype=dtype))


def _pixels(rows: range, columns: range, batch: int = 1) -> Tensor:
    """All pixels of a rectangle, (batch, P, 2)."""
    return torch.cartesian_prod(torch.tensor(rows), torch.tensor(columns)).expand(batch, -1, 2)


def _brute_force(feature: Tensor, stride: tuple[float, float], offset: float, points: Tensor) -> Tensor:
    """The formula of `gather`'s module, one point and one corner at a time, in Python's floats."""
    values = torch.zeros(*points.shape[:2], feature.shape[1], dtype=torch.float64)
    for image, image_points in enumerate(points.tolist()):
        for number, point in enumerate(image_points):
            ends = []
            for pixel, step, extent in zip(point, stride, feature.shape[2:], strict=True):
                position = min(max((pixel + offset + 0.5) / step - 0.5, 0.0), extent - 1.0)
                low = math.floor(position)
                ends.append(((low, 1 - (position - low)), (min(low + 1, extent - 1), position - low)))
            for row, row_weight in ends[0]:
                for column, column_weight in ends[1]:
                    values[image, number] += row_weight * column_weight * feature[image, :, row, column]
    return values


def _level(name: str, channels: int = 3, batch: int = 2, channels_last: bool = False) -> tuple[Level, Tensor]:
    """A float64 level of LEVEL_CASES, and all pixels of its image."""
    size, stride, offset, image = LEVEL_CASES[name]
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(batch, channels, *size, dtype=torch.float64, generator=generator)
    if channels_last:
        feature = feature.contiguous(memory_format=torch.channels_last)
    return Level(feature, stride, offset), _pixels(range(image[0]), range(image[1]), batch)


@pytest.mark.parametrize(("size", "stride"), [((4, 6), 8), ((7, 5), 2), ((3, 3), 1), ((1, 2), 32)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gather_is_grid_sample_at_multiples_of_the_stride(size: tuple[int, int], stride: int, channels_last: bool) -> None:
    """Value and gradient are `F.grid_sample(align_corners=False, padding_mode='border')` at the pixels' centres."""
    torch.manual_seed(0)
    height, width = size[0] * stride, size[1] * stride
    feature = torch.randn(2, 5, *size, dtype=torch.float64)
    if channels_last:
        feature = feature.contiguous(memory_format=torch.channels_last)
    points = torch.stack([torch.randint(height, (2, 60)), torch.randint(width, (2, 60))], dim=-1)
    # grid_sample's coordinates: (x, y), -1..1 from edge to edge of the image
    grid = (2 * points.flip(-1) + 1) / torch.tensor([width, height], dtype=torch.float64) - 1
    ours, theirs = feature.clone().requires_grad_(), feature.clone().requires_grad_()

    actual = gather(Level(ours, (stride, stride)), points)
    expected = F.grid_sample(theirs, grid.unsqueeze(1), align_corners=False, padding_mode="border").squeeze(2).mT
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(actual)
    torch.testing.assert_close(
        *(torch.autograd.grad(out, x, cotangent)[0] for out, x in ((actual, ours), (expected, theirs))), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", LEVEL_CASES)
def test_gather_is_the_formula(name: str) -> None:
    """At any size, stride and offset, every pixel reads what the formula says."""
    level, points = _level(name)
    expected = _brute_force(level.feature, level.stride, level.offset, points)
    torch.testing.assert_close(gather(level, points), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LEVEL_CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_crop_gives_the_same_values(name: str, channels_last: bool) -> None:
    """A crop holds the positions that its pixels read, one more on each side, and gives what the whole map gives."""
    level, _ = _level(name, channels_last=channels_last)
    sides = LEVEL_CASES[name][3]
    for cut in ((0.0, 0.3), (0.4, 0.9), (0.99, 1.0)):
        rows, columns = ((int(cut[0] * (n - 1)), int(cut[1] * (n - 1))) for n in sides)
        crop = level.crop(rows, columns)
        points = _pixels(range(rows[0], rows[1] + 1), range(columns[0], columns[1] + 1), 2)
        torch.testing.assert_close(gather(crop, points), gather(level, points), rtol=0, atol=1e-13)
        for axis, (first, last) in enumerate((rows, columns)):
            extent = level.feature.shape[2 + axis]
            reads = [
                min(max((pixel + level.offset + 0.5) / level.stride[axis] - 0.5, 0.0), extent - 1.0) for pixel in (first, last)
            ]
            # one position more on each side: another device may round the coordinate otherwise
            begin, end = max(math.floor(reads[0]) - 1, 0), min(math.floor(reads[1]) + 3, extent)
            assert (crop.origin[axis], crop.feature.shape[2 + axis]) == (begin, end - begin)


@pytest.mark.parametrize("points", [2, 5000], ids=["rows first", "whole table"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_interpolated_in_float32(points: int, dtype: torch.dtype) -> None:
    """Weights of bfloat16 would be off by 4e-3; these are float32's, whichever way the rows are read."""
    torch.manual_seed(0)
    feature = torch.randn(1, 8, 30, 300).to(dtype)
    pixels = torch.stack([torch.randint(480, (1, points)), torch.randint(4800, (1, points))], dim=-1)
    actual = gather(Level(feature, (16, 16)), pixels)
    assert actual.dtype == torch.float32
    expected = gather(Level(feature.double(), (16, 16)), pixels)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("crop", [False, True])
def test_gradients_by_finite_differences(crop: bool) -> None:
    """Autograd against gradcheck, for both functions, in both orders, through a crop."""
    torch.manual_seed(0)
    small = torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    large = torch.randn(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[[0, 0], [3, 4], [2, 1], [3, 4], [1, 2], [2, 3]]])

    def levels(small: Tensor, large: Tensor) -> list[Level]:
        levels = [Level(small, (4, 5), 1), Level(large, (2, 2), 1)]
        return [level.crop((0, 3), (0, 4)) for level in levels] if crop else levels

    assert torch.autograd.gradcheck(lambda x: gather(levels(small, x)[1], points), (large,))
    assert torch.autograd.gradcheck(lambda a, b, w, c: gather_linear(levels(a, b), points, w, c), (small, large, weight, bias))


def _compare_with_reference(sizes: list[tuple[int, int, int]], points: int, batch: int, bias: bool, seed: int) -> None:
    """Value and all gradients of `gather_linear`; ``sizes`` are the levels' (channels, h, w)."""
    torch.manual_seed(seed)
    image = (int(torch.randint(1, 40, ())), int(torch.randint(1, 40, ())))
    leaves = [torch.randn(batch, *size, dtype=torch.float64, requires_grad=True) for size in sizes]
    weight = torch.randn(4, sum(size[0] for size in sizes), dtype=torch.float64, requires_grad=True)
    shift = torch.randn(4, dtype=torch.float64, requires_grad=True) if bias else None
    levels = [Level(x, (image[0] / x.shape[2], image[1] / x.shape[3]), 100 * (i % 2)) for i, x in enumerate(leaves)]
    pixels = torch.stack([torch.randint(side, (batch, points)) for side in image], dim=-1)
    actual = gather_linear(levels, pixels, weight, shift)
    expected = hypercolumn_linear_reference(levels, pixels, weight, shift)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    inputs = [weight, *leaves, *([] if shift is None else [shift])]
    cotangent = torch.randn_like(actual)
    gradients = (torch.autograd.grad(out, inputs, cotangent) for out in (actual, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("points", [3, 20, 500], ids=["gather first", "mixed", "project first"])
@pytest.mark.parametrize("bias", [False, True])
def test_gather_linear_in_both_orders(points: int, bias: bool) -> None:
    """Fewer points than positions, more, and both in one call."""
    _compare_with_reference([(3, 9, 8), (2, 4, 5), (4, 1, 1), (1, 2, 10)][: 4 if points == 20 else 2], points, 2, bias, 0)


@pytest.mark.parametrize("needs_grad", list(product((False, True), repeat=4)), ids=str)
def test_what_needs_no_gradient(needs_grad: tuple[bool, ...]) -> None:
    """Any of a gathered map, a projected one, the weight and the bias: those that want a gradient get the reference's."""
    torch.manual_seed(0)
    shapes = ((2, 3, 12, 12), (2, 4, 2, 2), (5, 7), (5,))
    tensors = [
        torch.randn(shape, dtype=torch.float64, requires_grad=flag) for shape, flag in zip(shapes, needs_grad, strict=True)
    ]
    large, small, weight, bias = tensors
    levels, points = [Level(large, (1, 1)), Level(small, (6, 6))], torch.randint(12, (2, 40, 2))
    out = [f(levels, points, weight, bias) for f in (gather_linear, hypercolumn_linear_reference)]
    assert out[0].requires_grad == any(needs_grad)
    inputs = [tensor for tensor in tensors if tensor.requires_grad]
    if inputs:
        for ours, theirs in zip(*(torch.autograd.grad(one.square().sum(), inputs) for one in out), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("batch", "count"), [(0, 5), (2, 0)])
def test_nothing_to_gather(batch: int, count: int) -> None:
    """No images, or no points: empty, and gradients of zero."""
    leaves = [torch.randn(batch, c, side, side, requires_grad=True) for c, side in ((3, 12), (4, 2))]
    weight = torch.randn(5, 7, requires_grad=True)
    levels = [Level(leaf, (12 / leaf.shape[2],) * 2) for leaf in leaves]
    actual = gather_linear(levels, torch.zeros(batch, count, 2, dtype=torch.long), weight)
    assert actual.shape == (batch, count, 5)
    for gradient in torch.autograd.grad(actual.sum(), [*leaves, weight]):
        assert not gradient.any()


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 60),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 1000),
)
def test_gather_linear_is_the_plain_form(
    sizes: list[tuple[int, int, int]], points: int, batch: int, bias: bool, seed: int
) -> None:
    """At any sizes: concatenate, then multiply."""
    _compare_with_reference(sizes, points, batch, bias, seed)


def test_each_level_takes_the_cheaper_order() -> None:
    """PixelNet's levels at 224 x 224, 1/16 as wide: the smaller of points and positions counts, for every level."""
    levels = list(zip((4, 8, 16, 32, 32, 256), (1, 2, 4, 8, 16, 32), strict=True))
    maps = [Level(torch.zeros(1, c, 224 // s, 224 // s), (s, s)) for c, s in levels]
    with FlopCounterMode(display=False) as counter:
        gather_linear(maps, torch.zeros(1, 2000, 2, dtype=torch.long), torch.zeros(16, 348), torch.zeros(16))
    assert counter.get_total_flops() == 2 * 16 * sum(c * min(2000, (224 // s) ** 2) for c, s in levels)


def test_autocast_sums_in_float32() -> None:
    """Under bfloat16 autocast only the products are bfloat16."""
    torch.manual_seed(0)
    levels = [Level(torch.randn(1, 32, 4, 4), (8, 8)), Level(torch.randn(1, 16, 32, 32), (1, 1))]
    points, weight, bias = torch.randint(32, (1, 50, 2)), torch.randn(8, 48) / 7, torch.full((8,), 1000.0)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gather_linear(levels, points, weight, bias)
    assert actual.dtype == torch.float32
    # bfloat16 has steps of 4 to 8 at 1000
    torch.testing.assert_close(actual, gather_linear(levels, points, weight, bias), rtol=0, atol=0.1)


@pytest.mark.parametrize("channels", [(3, 2), (3, 5), ()])
def test_channels_that_the_layer_was_not_made_for(channels: tuple[int, ...]) -> None:
    """The message says what came and what was expected."""
    levels = [Level(torch.zeros(1, c, 2, 2), (1, 1)) for c in channels]
    with pytest.raises(ValueError, match=re.escape(f"{list(channels)} channels") + ".* made for 7"):
        gather_linear(levels, torch.zeros(1, 1, 2, dtype=torch.long), torch.zeros(4, 7))
