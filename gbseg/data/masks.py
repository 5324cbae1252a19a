"""Label maps as files: indexed PNGs in VOC's palette, whose indices are the class numbers."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from gbseg.files import write_atomically
from gbseg.palettes import VOC_PALETTE

__all__ = ["MaskError", "encode_mask", "read_mask", "resize_mask", "write_mask"]


class MaskError(ValueError):
    """A file is no label map: it cannot be read, or its pixels are colours instead of class numbers."""


def encode_mask(values: np.ndarray, palette: Sequence[Sequence[int]] = VOC_PALETTE) -> bytes:
    """A label map as the bytes of an indexed PNG; the same values give the same bytes with the same Pillow.

    Args:
        values: (H, W) integers in 0..255.
        palette: (red, green, blue) of the labels 0, 1, ...

    Raises:
        ValueError: not two dimensions, no integers, or a value that a byte does not hold.
    """
    if values.ndim != 2 or values.size == 0 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"a label map is (H, W) integers, not {values.shape} {values.dtype}")
    if values.min() < 0 or values.max() > 255:
        raise ValueError(f"a PNG holds class numbers 0..255, not {values.min()}..{values.max()}")
    image, buffer = Image.fromarray(values.astype(np.uint8)), io.BytesIO()
    image.putpalette([channel for colour in palette for channel in colour])
    # label maps are runs of equal bytes: looking for nothing else takes a third of the time for a tenth more space
    image.save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def write_mask(path: str | Path, values: np.ndarray, palette: Sequence[Sequence[int]] = VOC_PALETTE) -> None:
    """Write a label map as an indexed PNG, atomically; raises as `encode_mask` and `gbseg.files.write_atomically` do."""
    write_atomically(encode_mask(values, palette), path)


def resize_mask(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A (H, W) label map enlarged or shrunk to ``shape`` (height, width) by nearest neighbour."""
    height, width = shape[:2]
    if values.shape == (height, width):
        return values
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST))


def read_mask(path: str | Path) -> np.ndarray:
    """The class numbers of an indexed or grey PNG of 8 bits, (H, W) uint8, exactly as they are stored.

    Raises:
        MaskError: the file is missing or damaged, no PNG, or holds colours or 16 bits; the message says which.
    """
    try:
        with Image.open(path) as image:
            if image.format != "PNG":
                raise MaskError(f"{path} is a {image.format}; label maps are PNGs (a JPEG changes class numbers)")
            # Pillow decodes without looking at the checksums: a flipped bit may give other labels, all of them classes
            image.verify()
        with Image.open(path) as image:
            # grey of 1, 2 or 4 bits is scaled up to 0..255 by Pillow and OpenCV alike: 1 becomes 255, 85 or 17
            depth = _bit_depth(path)
            if image.mode not in ("P", "L") or (image.mode == "L" and depth != 8):
                what = f"mode {image.mode}, {depth} bits"
                raise MaskError(f"{path} has {what}; label maps are indexed (P) or grey (L) PNGs of 8 bits")
            return np.array(image)
    except MaskError:
        raise
    except FileNotFoundError as error:
        raise MaskError(f"{path} is missing") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MaskError(f"{path} cannot be decoded: {error}") from error


def _bit_depth(path: str | Path) -> int:
    """The bits of a PNG's sample, as its header says: Pillow's mode does not."""
    with Path(path).open("rb") as file:
        return file.read(25)[24]
