"""Label maps as PNGs, read back by OpenCV and by Pillow's raw decoder."""

from __future__ import annotations

import io
import math
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, features

from gbseg.data.masks import (
    MaskError,
    describe_fault,
    encode_mask,
    holds_bytes,
    label_fault,
    nearest_exact,
    read_mask,
    resize_mask,
    write_mask,
)
from gbseg.palettes import VOC_PALETTE


def test_round_trip(tmp_path: Path) -> None:
    """Every value of a byte comes back, and OpenCV sees VOC's colours where Pillow sees the numbers."""
    values = np.arange(256).reshape(8, 32)
    write_mask(tmp_path / "a.png", values)
    assert (read_mask(tmp_path / "a.png") == values).all() and read_mask(tmp_path / "a.png").dtype == np.uint8
    colours = cv2.imread(str(tmp_path / "a.png"))[..., ::-1]
    assert (colours == np.array(VOC_PALETTE)[values]).all()
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "grey.png")
    assert (read_mask(tmp_path / "grey.png") == values).all()


def _grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits, written by the specification: Pillow and OpenCV write none."""
    rows = [sum(values[:, k :: 8 // bits].astype(np.uint8) << (8 - bits * (k + 1)) for k in range(8 // bits))][0]
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    packed = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_what_is_no_mask(tmp_path: Path) -> None:
    """Colours, other formats, damage and absence each get their own sentence."""
    grey = np.random.default_rng(0).integers(0, 21, (40, 48), np.uint8)
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "rgb.png")
    Image.fromarray(grey).save(tmp_path / "photo.jpg")
    Image.fromarray(grey > 3).save(tmp_path / "bits.png")
    Image.fromarray(grey.astype(np.uint16) + 250).save(tmp_path / "deep.png")
    (tmp_path / "nothing.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(encode_mask(grey)[:-200])
    (tmp_path / "text.png").write_text("no picture")
    for name, bits in (("two.png", 2), ("four.png", 4)):
        # OpenCV reads 85 and 17 where 1 is stored
        (tmp_path / name).write_bytes(_grey_png(grey % 2, bits))
        assert cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED).max() == 255 // (2**bits - 1)
    whole = bytearray(encode_mask(grey))
    whole[whole.index(b"IDAT") + 60] ^= 4
    (tmp_path / "flipped.png").write_bytes(whole)
    for name, words in {
        "rgb.png": "has mode RGB",
        "photo.jpg": "is a JPEG",
        "bits.png": "has mode 1",
        "deep.png": r"holds the numbers 256, 257, 258, 259, 260, \.\.\., which do not fit into the 8 bits",
        "nothing.png": "cannot be decoded",
        "two.png": "has mode L, 2 bits",
        "four.png": "has mode L, 4 bits",
        "flipped.png": "cannot be decoded",
        "cut.png": "cannot be decoded",
        "text.png": "cannot be decoded",
        "none.png": "is missing",
    }.items():
        with pytest.raises(MaskError, match=words) as caught:
            read_mask(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.parametrize("values", [np.zeros((2, 2)), np.full((2, 2), 256), np.full((2, 2), -1), np.zeros((2, 2, 3), int)])
def test_what_a_mask_cannot_hold(values: np.ndarray, tmp_path: Path) -> None:
    """Nothing is wrapped around or rounded."""
    with pytest.raises(ValueError, match=r"label map is|class numbers 0..255"):
        write_mask(tmp_path / "a.png", values)
    assert not (tmp_path / "a.png").exists()


def test_sixteen_bits_whose_numbers_fit(tmp_path: Path) -> None:
    """They are read as they are stored."""
    values = np.arange(256, dtype=np.uint16).reshape(8, 32)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert (read_mask(tmp_path / "deep.png") == values).all() and read_mask(tmp_path / "deep.png").dtype == np.uint8


def test_pixels_have_one_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, which the caller can change, and not Pillow's."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    write_mask(tmp_path / "a.png", np.zeros((6, 8), int))
    assert read_mask(tmp_path / "a.png").shape == (6, 8)
    assert read_mask(tmp_path / "a.png", max_pixels=48).shape == (6, 8)
    with pytest.raises(MaskError, match=r"a\.png has 8 x 6 pixels; at most 47 can be read: .*max_pixels"):
        read_mask(tmp_path / "a.png", max_pixels=47)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("sizes", [(500, 224), (375, 224), (224, 500), (640, 224), (1, 5), (5, 1), (100_000, 99_999)])
def test_the_pixel_under_the_centre(sizes: tuple[int, int]) -> None:
    """By the rule itself, in fractions; the pixel after the centre where it lies between two."""
    source, target = sizes
    expected = [math.floor((Fraction(i) + Fraction(1, 2)) * source / target) for i in range(target)]
    assert nearest_exact(source, target).tolist() == expected


LABELS = np.zeros((60, 80), np.uint8)
LABELS[10:40, 20:50] = 20
GREY, COLOURS = Image.fromarray(LABELS), Image.fromarray(np.stack([LABELS] * 3, 2))


@pytest.mark.parametrize(
    ("image", "settings", "fault"),
    [
        (GREY, dict(format="JPEG2000", irreversible=True), "lossy"),
        (GREY, dict(format="JPEG2000", irreversible=True, no_jp2=True), "lossy"),
        (GREY, dict(format="JPEG2000", irreversible=True, comment="\u00ff\u0052", tile_size=(32, 32)), "lossy"),
        (GREY, dict(format="TIFF", compression="jpeg"), "lossy"),
        (GREY, dict(format="AVIF"), "lossy"),
        (COLOURS, dict(format="WEBP"), "lossy"),
        (GREY, dict(format="JPEG"), "JPEG"),
        (GREY, dict(format="JPEG2000"), ""),
        (GREY, dict(format="JPEG2000", no_jp2=True, comment="lossless"), ""),
        (GREY, dict(format="TIFF", compression="tiff_lzw"), ""),
        (GREY, dict(format="TIFF"), ""),
        (COLOURS, dict(format="WEBP", lossless=True), ""),
        (GREY, dict(format="PNG"), ""),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_compressions_that_change_labels(image: Image.Image, settings: dict[str, Any], fault: str) -> None:
    """In grey files, and in those of colours that a loader has made class numbers of."""
    if settings["format"] in ("AVIF", "WEBP") and not features.check(settings["format"].lower()):
        pytest.skip(f"this Pillow has no {settings['format']}")
    buffer = io.BytesIO()
    image.save(buffer, **settings)
    with Image.open(buffer) as stored:
        read = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
        assert holds_bytes(stored) == (not fault and image is GREY)
        for compare in (True, False):
            assert label_fault(stored, read if read.ndim == 2 else read[..., 0], compare=compare) == fault
        assert fault or np.array_equal(read, np.asarray(image))
        text = describe_fault(fault, stored, "a loader")
        assert ("changes class numbers: make it again as a PNG" in text) == bool(fault)


def test_colours_in_tiff_by_webp() -> None:
    """Pillow writes none here; it gives the compression's name."""
    buffer = io.BytesIO()
    COLOURS.save(buffer, format="TIFF")
    with Image.open(buffer) as stored:
        stored.info["compression"] = "webp"
        assert label_fault(stored, LABELS) == "lossy"


def test_resize() -> None:
    """Nearest neighbour: the pixel under the centre, in float64 arithmetic."""
    values = np.random.default_rng(1).integers(0, 21, (7, 10), np.uint8)
    rows = ((np.arange(17) + 0.5) * 7 / 17).astype(int)
    columns = ((np.arange(9) + 0.5) * 10 / 9).astype(int)
    assert (resize_mask(values, (17, 9)) == values[np.ix_(rows, columns)]).all()
