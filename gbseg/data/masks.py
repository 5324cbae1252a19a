"""Label maps as files: indexed PNGs whose palette indices are the class indices."""

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
    """A file is no label map: it cannot be read, or its pixels are colours instead of class indices."""


def encode_mask(values: np.ndarray, palette: Sequence[Sequence[int]] = VOC_PALETTE) -> bytes:
    """Encode a label map as an indexed PNG. The same values give the same bytes with the same version of Pillow.

    Args:
        values: (H, W) integers in 0..255.
        palette: (red, green, blue) of the labels 0, 1, ...

    Raises:
        ValueError: ``values`` is not two-dimensional, has no integer type, or a value is not in 0..255.
    """
    if values.ndim != 2 or values.size == 0 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"a label map is (H, W) integers, not {values.shape} {values.dtype}")
    if values.min() < 0 or values.max() > 255:
        raise ValueError(f"a PNG holds class numbers 0..255, not {values.min()}..{values.max()}")
    image, buffer = Image.fromarray(values.astype(np.uint8)), io.BytesIO()
    image.putpalette([channel for colour in palette for channel in colour])
    # label maps are runs of equal bytes: run-length encoding takes a third of the time for a tenth more space
    image.save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def write_mask(path: str | Path, values: np.ndarray, palette: Sequence[Sequence[int]] = VOC_PALETTE) -> None:
    """Write a label map as an indexed PNG, atomically.

    Args:
        path: the file.
        values: (H, W) integers in 0..255.
        palette: (red, green, blue) of the labels 0, 1, ...

    Raises:
        ValueError: ``values`` is no such label map (`encode_mask`).
        gbseg.files.FileWriteError: the file could not be written.
    """
    write_atomically(encode_mask(values, palette), path)


def resize_mask(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resize a (H, W) label map to ``shape`` (height, width) by nearest-neighbour interpolation."""
    height, width = shape[:2]
    if values.shape == (height, width):
        return values
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST))


def read_mask(path: str | Path) -> np.ndarray:
    """Read the class indices of an indexed or grey PNG of 8 bits, (H, W) uint8, exactly as they are stored.

    Raises:
        MaskError: the file is missing or damaged, no PNG, or has colours or 16 bits; the message says which.
    """
    try:
        with Image.open(path) as image:
            if image.format != "PNG":
                raise MaskError(f"{path} is a {image.format}; label maps are PNGs (a JPEG changes class numbers)")
            # decoding ignores the checksums: a flipped bit could give other labels that are valid classes
            image.verify()
        with Image.open(path) as image:
            # grey of 1, 2 or 4 bits is scaled to 0..255 by Pillow and OpenCV alike: 1 becomes 255, 85 or 17
            with Path(path).open("rb") as file:
                depth = file.read(25)[24]  # from the header, because Pillow's mode does not tell
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
