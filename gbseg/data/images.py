"""Images from files or from memory, as (H, W, 3) uint8 BGR arrays, and the limit of pixels of every image and mask."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

__all__ = [
    "JPEG_FORMATS",
    "MAX_PIXELS",
    "ImageError",
    "check_file",
    "excess_pixels",
    "open_image",
    "pillow_reads",
    "read_bgr",
    "require_readable",
    "to_bgr",
    "without_pillows_limit",
]

MAX_PIXELS = 2**30
"""The most pixels that an image or a mask may have, unless a config's ``max_pixels`` or ``--max-pixels`` says otherwise.

It is what OpenCV decodes: a greater limit needs ``imdecode_backend='pillow'`` in the pipeline's loaders."""

JPEG_FORMATS = ("JPEG", "MPO")
"""Pillow's names of the formats of JPEG."""

_PILLOWS_LIMIT = threading.RLock()
_MODES_OF_16_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class ImageError(ValueError):
    """An image cannot be read, or does not have 8 or 16 bits per channel."""


def excess_pixels(width: int, height: int, max_pixels: int = MAX_PIXELS) -> str:
    """What a message says of an image or a mask of more than ``max_pixels`` pixels; '' for a smaller one."""
    if width * height <= max_pixels:
        return ""
    return (
        f"has {width} x {height} pixels; at most {max_pixels:,} can be read: cut it into parts, or raise max_pixels (a key of "
        "the config: --cfg-options max_pixels=N; of --verify: --max-pixels N)"
    )


@contextmanager
def without_pillows_limit() -> Iterator[None]:
    """Lift Pillow's own limit, a sixth of `MAX_PIXELS`, as long as the context lasts. It is one for the whole process."""
    with _PILLOWS_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def pillow_reads(size: tuple[int, int]) -> AbstractContextManager[None]:
    """`without_pillows_limit` for an image of this width and height, if Pillow would refuse or warn of it."""
    # under the lock: the None that another thread has set for a while is none to rely on
    with _PILLOWS_LIMIT:
        limit = Image.MAX_IMAGE_PIXELS
    return without_pillows_limit() if limit is not None and size[0] * size[1] > limit else nullcontext()


def open_image(file: str | os.PathLike | BinaryIO) -> Image.Image:
    """Open an image by Pillow, which reads its header, with any number of pixels: `excess_pixels` judges ``size``."""
    with without_pillows_limit():
        return Image.open(file)


def require_readable(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> None:
    """Decode an image file completely: OpenCV fills the missing part of a damaged file with grey, without an error.

    Args:
        path: the file.
        max_pixels: the most pixels that it may have.

    Raises:
        ImageError: the file is missing, empty, damaged or no image, or has more than ``max_pixels`` pixels.
    """
    check_file(path, max_pixels, decode=True)


def check_file(path: str | os.PathLike, max_pixels: int = MAX_PIXELS, decode: bool = False) -> tuple[int, int]:
    """Check what a loader of images does not say, or says without a name, before it decodes the file.

    Args:
        path: the file.
        max_pixels: the most pixels that it may have.
        decode: decode it; otherwise only where OpenCV may not notice that it is cut off, a JPEG without its end.

    Returns:
        Width and height as they are stored; (0, 0) where Pillow cannot tell, though another reader may.

    Raises:
        ImageError: the file is missing, empty or damaged, or has more than ``max_pixels`` pixels; with ``decode`` also where
            Pillow cannot tell.
    """
    try:
        if not Path(path).stat().st_size:
            raise ImageError(f"{path} cannot be read as an image: it is empty (0 bytes)")
        try:
            image = open_image(path)
        except (OSError, SyntaxError, ValueError, EOFError):
            if decode:
                raise
            return 0, 0
        with image:
            if excess := excess_pixels(*image.size, max_pixels):
                raise ImageError(f"{path} {excess}")
            if decode or (image.format in JPEG_FORMATS and not _ends_as_jpeg(path)):
                image.load()
            return image.size
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path} is missing") from error
    # any exception: Pillow raises many different ones for damaged files
    except Exception as error:
        raise ImageError(f"{path} cannot be read as an image: {str(error) or type(error).__name__}") from error


def _ends_as_jpeg(path: str | os.PathLike) -> bool:
    with Path(path).open("rb") as file:
        file.seek(max(0, Path(path).stat().st_size - 64))
        # what follows the end of an image is no fault
        return b"\xff\xd9" in file.read()


def read_bgr(path: str | os.PathLike) -> np.ndarray:
    """Read an image file with OpenCV, (H, W, 3) uint8 BGR, upright.

    Raises:
        ImageError: the file is missing, or OpenCV cannot decode it.
    """
    # here, since label maps are prepared without OpenCV
    import cv2

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
