"""Tiles cover a grid, and read together they give PyTorch's interpolation of the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gbseg.prediction.tiles import ALIGN, Axis, spans


@given(extent=st.integers(1, 2000), tile=st.integers(1, 12), overlap=st.integers(0, 11))
def test_tiles_cover_every_position_once(extent: int, tile: int, overlap: int) -> None:
    if overlap >= tile:
        return
    tile, overlap = tile * ALIGN, overlap * ALIGN
    tiles = spans(extent, tile, overlap)
    kept = [position for span in tiles for position in range(span.first, span.last)]
    assert kept == list(range(extent))
    for span in tiles:
        assert span.start % ALIGN == 0
        assert 0 <= span.start <= span.first < span.last <= span.stop <= extent
        assert span.stop - span.start <= tile
        # what is kept lies away from borders inside the image
        assert span.start == 0 or span.first - span.start >= overlap // 2
        assert span.stop == extent or span.stop - span.last >= overlap // 2


@pytest.mark.parametrize(("tile", "overlap"), [(100, 0), (64, 16), (64, 64), (0, 0), (64, -32)])
def test_tiles_that_do_not_fit(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of 32, .*tile={tile}, overlap={overlap}"):
        spans(500, tile, overlap)


@settings(deadline=None, max_examples=60)
@given(
    extent=st.integers(1, 150),
    upsampled=st.integers(1, 400),
    mode=st.sampled_from(["nearest-exact", "bilinear", "corners"]),
    overlap=st.sampled_from([32, 64]),
)
def test_reading_tiles_is_interpolating_the_whole(extent: int, upsampled: int, mode: str, overlap: int) -> None:
    """One side, random values, against `F.interpolate`."""
    x = torch.randn(3, extent, generator=torch.Generator().manual_seed(extent))
    line = x[None, :, :, None]
    if mode == "nearest-exact":
        expected = F.interpolate(line, (upsampled, 1), mode=mode)
    else:
        expected = F.interpolate(line, (upsampled, 1), mode="bilinear", align_corners=mode == "corners")
    axis = Axis(extent, upsampled, nearest=mode == "nearest-exact", align_corners=mode == "corners")
    actual = torch.full((3, upsampled), torch.nan)
    for span in spans(extent, 96, overlap):
        pixels = axis.pixels(span)
        actual[:, pixels.start : pixels.stop] = axis.read(x[:, span.start : span.stop], span, pixels, dim=1)
    if mode == "nearest-exact" or extent == upsampled:
        assert torch.equal(actual, expected[0, :, :, 0])
    else:
        # both round a position, which is up to `extent`, to float32
        rounding = extent * torch.finfo(torch.float32).eps * (x.max() - x.min()).item()
        torch.testing.assert_close(actual, expected[0, :, :, 0], rtol=1e-5, atol=rounding)
