"""Images for prediction, from files or from memory, as (H, W, 3) uint8 BGR arrays."""

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["ImageError", "read_bgr", "require_readable", "to_bgr"]

PIXELS = 2**30  # the largest image that OpenCV's builds decode
_MODES_OF_16_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class ImageError(ValueError):
    """An image cannot be read, or does not have 8 or 16 bits per channel."""


def require_readable(path: str | os.PathLike) -> None:
    """Decode an image file completely: OpenCV fills the missing part of a damaged file with grey, without an error.

    Raises:
        ImageError: the file is missing, damaged or no image, or has more than 2**30 pixels.
    """
    # Pillow's limit is a sixth of what the configs' loader reads
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height <= PIXELS:
                image.load()
    except FileNotFoundError as error:
        raise ImageError(f"{path} is missing") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{path} cannot be read as an image: {error}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if width * height > PIXELS:
        raise ImageError(f"{path} has {width} x {height} pixels; at most {PIXELS:,} (2**30) can be read: cut it into parts")


def read_bgr(path: str | os.PathLike) -> np.ndarray:
    """Read an image file with OpenCV, (H, W, 3) uint8 BGR, upright.

    Raises:
        ImageError: the file is missing, or OpenCV cannot decode it.
    """
    try:
        # opened by Python, because OpenCV 5.0.0 crashes at a name that is not UTF-8
        image = cv2.imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error) as error:
        raise ImageError(f"{path} cannot be read as an image: {error}") from error
    if image is None:
        raise ImageError(f"{path} cannot be read as an image by OpenCV")
    return image


def to_bgr(image: np.ndarray | Image.Image, bgr: bool = False) -> np.ndarray:
    """Convert an image in memory to what OpenCV reads from a file: (H, W, 3) uint8 BGR, upright.

    Alpha is dropped, and the stored colours are kept also under transparent pixels, as in training. Of 16 bits the upper 8 are
    kept (``value // 256``). Grey becomes three equal channels. A PIL image is rotated by its EXIF orientation, and Pillow
    converts palettes, CMYK and the like.

    Args:
        image: a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or uint16.
        bgr: whether an array's channels are blue, green, red(, alpha), as in OpenCV, instead of red, green, blue(, alpha).

    Raises:
        ImageError: the image has another shape or type, or no pixels.
    """
    if isinstance(image, Image.Image):
        image, bgr = _pil_to_array(image), False
    array = np.asarray(image)
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ImageError(f"an image is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) and not empty, got {shape}")
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(
            f"an image is uint8 or uint16, not {array.dtype}; of floats in 0..1: (255 * x).round().astype('uint8')"
        )
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[..., :3] if bgr else array[..., 2::-1])


def _pil_to_array(image: Image.Image) -> np.ndarray:
    name = getattr(image, "filename", "") or "an image"
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode in _MODES_OF_16_BITS:
            array = np.asarray(image)
            if array.min(initial=0) < 0 or array.max(initial=0) > 65535:
                raise ImageError(f"{Path(name)} has values {array.min()}..{array.max()}; 16 bits hold 0..65535")
            return array.astype(np.uint16)
        if image.mode == "F":
            raise ImageError(f"{Path(name)} holds floats (Pillow's mode F): scale it to 8 or 16 bits first")
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, EOFError) as error:
        raise ImageError(f"{Path(name)} cannot be read as an image: {error}") from error
