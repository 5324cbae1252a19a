"""Label maps as files: indexed PNGs whose palette indices are the class indices."""

import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gbseg.data.images import JPEG_FORMATS, MAX_PIXELS, excess_pixels, open_image
from gbseg.files import write_atomically
from gbseg.palettes import VOC_PALETTE

__all__ = [
    "MaskError",
    "converted_by_reader",
    "describe_fault",
    "encode_mask",
    "holds_bytes",
    "label_fault",
    "nearest_exact",
    "read_mask",
    "resize_mask",
    "stored_numbers",
    "write_mask",
]

# the factor by which Pillow multiplies the numbers of a grey PNG of 1, 2 or 4 bits a pixel, by the name of the packing
_SCALES = {"1": 1, "L;2": 85, "L;4": 17}


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


def nearest_exact(source: int, target: int) -> np.ndarray:
    """(target,) int64: of each of ``target`` pixels along a side, the one of ``source`` pixels that lies under its centre.

    ``floor((i + 0.5) * source / target)``, PyTorch's ``'nearest-exact'`` and MATLAB's rule, in whole numbers. OpenCV's
    ``INTER_NEAREST_EXACT`` and Pillow take the pixel before where a centre lies exactly between two, or a rounding error away
    from it; OpenCV's ``INTER_NEAREST`` takes the pixel under a pixel's corner, ``floor(i * source / target)``.
    """
    return (2 * np.arange(target) + 1) * source // (2 * target)


def resize_mask(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resize a (H, W) label map to ``shape`` (height, width) by nearest-neighbour interpolation (`nearest_exact`)."""
    height, width = shape[:2]
    if values.shape == (height, width):
        return values
    return values[nearest_exact(values.shape[0], height)][:, nearest_exact(values.shape[1], width)]


def read_mask(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read the class indices of an indexed or grey PNG of 8 or 16 bits, (H, W) uint8, exactly as they are stored.

    Args:
        path: the file.
        max_pixels: the most pixels that it may have.

    Raises:
        MaskError: the file is missing or damaged, no PNG, has colours, fewer than 8 bits of grey, numbers above 255, or more
            than ``max_pixels`` pixels; the message says which.
    """
    try:
        with open_image(path) as image:
            if image.format != "PNG":
                raise MaskError(f"{path} is a {image.format}; label maps are PNGs (a JPEG changes class numbers)")
            if excess := excess_pixels(*image.size, max_pixels):
                raise MaskError(f"{path} {excess}")
            # decoding ignores the checksums: a flipped bit could give other labels that are valid classes
            image.verify()
        with open_image(path) as image:
            # grey of 1, 2 or 4 bits is scaled to 0..255 by Pillow and OpenCV alike: 1 becomes 255, 85 or 17
            with Path(path).open("rb") as file:
                depth = file.read(25)[24]  # from the header, because Pillow's mode does not tell
            if image.mode not in ("P", "L", "I", "I;16") or (image.mode != "P" and depth < 8):
                what = f"mode {image.mode}, {depth} bits"
                raise MaskError(f"{path} has {what}; label maps are indexed (P) or grey (L) PNGs of 8 bits")
            values = np.array(image)
    except MaskError:
        raise
    except FileNotFoundError as error:
        raise MaskError(f"{path} is missing") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise MaskError(f"{path} cannot be decoded: {error}") from error
    if values.max(initial=0) > 255:
        raise MaskError(f"{path} {_WIDE.format(numbers=_wide(values))}")
    return values.astype(np.uint8)


_WIDE = "holds the numbers {numbers}, which do not fit into the 8 bits of a label: map them to class numbers below 255"
# what a message says of a file with one of `label_fault`'s faults, as far as they give other labels than the file holds
_FAULTS = {
    "JPEG": "is a JPEG, whose compression changes class numbers: make it again as a PNG, from the source",
    "lossy": "is a {format} with a compression that changes class numbers: make it again as a PNG, from the source",
    "palette read as colours": "is a palette image, which {loader} reads as colours instead of class numbers: set "
    "imdecode_backend='pillow' there",
    "stored as colours": "holds colours ({mode}) instead of class numbers: write the class number of every pixel into one "
    "channel",
    "more than 8 bits": _WIDE,
    "numbers scaled": "is a grey PNG of fewer than 8 bits a pixel, whose numbers {loader} reads scaled up to 0..255: write it "
    "again with 8 bits a pixel",
    "numbers changed": "is read by {loader} as other numbers than are stored (a palette read as grey, as a rule): set "
    "imdecode_backend='pillow' there",
}


def stored_numbers(image: Image.Image) -> tuple[np.ndarray, int | None]:
    """The numbers of a mask as its file stores them, and the factor by which readers scale them, None where they do not."""
    # how the pixels are packed, which Pillow forgets once it has loaded them
    scale = _SCALES.get(_packing(image)) if image.format == "PNG" else None
    stored = np.asarray(image)
    return (stored if scale is None else stored.astype(np.uint8) // scale), scale


def _packing(image: Image.Image) -> str:
    """How Pillow packs the pixels of a file that it has not loaded yet; '' for another image."""
    tile = getattr(image, "tile", None)
    return str(tile[0][3]) if tile else ""


def _is_lossy(image: Image.Image) -> bool:
    """Whether the numbers of a file that Pillow has not loaded yet are for certain, or as a rule, others than were written."""
    if image.format == "TIFF":
        # by WebP are colours only, and without loss they are rare
        return image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")
    if image.format in ("JPEG2000", "WEBP") and (file := getattr(image, "fp", None)):
        place = file.tell()
        file.seek(0)
        content = file.read()
        file.seek(place)
        if image.format == "WEBP":
            return b"VP8L" not in content
        # The 9-7 wavelet rounds. The 5-3 one does not: satellites' class maps have it. That such a file was cut to a size, and
        # so has lost something, no header tells, and to refuse all of them would refuse masks that are right.
        start = content.find(b"\xff\x4f\xff\x51")
        coding = content.find(b"\xff\x52", start + 4 + int.from_bytes(content[start + 4 : start + 6]))
        return content[coding + 13 : coding + 14] == b"\x00"
    # an AVIF can be lossless, though no writer's default is, and nobody keeps masks in one
    return image.format in (*JPEG_FORMATS, "AVIF")


def holds_bytes(image: Image.Image) -> bool:
    """Whether a file, of which the header is enough, holds one number of 8 bits a pixel, as readers give it."""
    return image.mode in ("P", "L") and not _is_lossy(image) and _packing(image) not in _SCALES


def label_fault(image: Image.Image, read: np.ndarray, remapped: bool = False, compare: bool = True) -> str:
    """Say what is wrong with a mask, or with what a loader made of it; '' for nothing.

    Args:
        image: the file, opened by Pillow.
        read: what the loader gave.
        remapped: whether the loader has changed numbers on purpose (``reduce_zero_label``, ``label_map``).
        compare: compare all numbers; otherwise only those of files which readers are known to change.

    Returns:
        A key of doctor's ``label_problems.toml``.
    """
    mode = image.mode
    if read.ndim != 2:
        return "palette read as colours" if mode == "P" else "stored as colours"
    if _is_lossy(image):
        return "JPEG" if image.format in JPEG_FORMATS else "lossy"
    if not compare and holds_bytes(image):
        return ""
    stored, scale = stored_numbers(image)
    if stored.shape != read.shape:
        # colours that the loader has made class numbers of, or another frame
        return ""
    same = np.array_equal(stored, read)
    if scale is not None:
        # remapped pixels cannot be compared; all readers of the MM packages scale 2 and 4 bits
        return "numbers scaled" if (scale > 1 if remapped else not same) else "fewer than 8 bits"
    if mode not in ("P", "L"):
        return "more than 8 bits" if read.dtype.itemsize == 1 and _wide(stored) else ""
    return "" if remapped or same else "numbers changed"


def converted_by_reader(image: Image.Image, read: np.ndarray) -> bool:
    """Whether labels are what readers make of a file unasked, and not class numbers that somebody's loader makes on purpose.

    That is: cut or limited to 8 bits, or their upper 8 bits; 2 and 4 bits scaled up; the grey of a palette's colours.

    Args:
        image: the file, opened by Pillow.
        read: what the loader gave.
    """
    stored, scale = stored_numbers(image)
    with np.errstate(invalid="ignore"):
        results = [stored.astype(np.uint8), np.clip(stored, 0, 255), stored.astype(np.int64) >> 8, stored * (scale or 1)]
    if any(np.array_equal(read, result) for result in results):
        return True
    # libraries round grey in two ways
    return image.mode == "P" and bool((abs(np.asarray(image.convert("L")).astype(int) - read) <= 1).all())


def describe_fault(fault: str, image: Image.Image, loader: str) -> str:
    """What a message says of a file with a fault; '' for one that changes no label.

    Args:
        fault: what `label_fault` found.
        image: the file, opened by Pillow.
        loader: what reads it.
    """
    numbers = _wide(np.asarray(image)) if fault == "more than 8 bits" else ""
    return _FAULTS.get(fault, "").format(loader=loader, format=image.format, mode=image.mode, numbers=numbers)


def _wide(values: np.ndarray) -> str:
    """The first numbers that 8 bits do not hold; '' if there is none."""
    # said so that NaN is among them
    numbers = np.unique(values[~((values >= 0) & (values <= 255) & (np.floor(values) == values))])
    return ", ".join(f"{number:g}" for number in numbers[:5].tolist()) + ", ..." * (len(numbers) > 5)
