"""Images of every kind that people have: Pillow's and OpenCV's readers agree once ours has converted the former."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image

from gbseg.data.images import ImageError, pillow_reads, read_bgr, require_readable, to_bgr, without_pillows_limit

RNG = np.random.default_rng(0)
RGB = cv2.GaussianBlur(RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8), (5, 5), 2)
GREY = RGB[..., 0]
ALPHA = RNG.integers(0, 256, (24, 32), dtype=np.uint8)


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


INDEXED = Image.fromarray(RGB).quantize(16)
WIDE = RNG.integers(0, 65536, (24, 32), dtype=np.uint16)
KINDS = {
    "grey": _encoded(Image.fromarray(GREY)),
    "rgb": _encoded(Image.fromarray(RGB)),
    "grey+alpha": _encoded(Image.fromarray(np.dstack([GREY, ALPHA]))),
    "rgba": _encoded(Image.fromarray(np.dstack([RGB, ALPHA]))),
    "indexed": _encoded(INDEXED),
    "indexed+transparency": _encoded(INDEXED, transparency=3),
    "one bit": _encoded(Image.fromarray(GREY).convert("1")),
    "16-bit grey": cv2.imencode(".png", WIDE)[1].tobytes(),
    "16-bit grey tiff": cv2.imencode(".tiff", WIDE)[1].tobytes(),
    "16-bit rgb": cv2.imencode(".png", RNG.integers(0, 65536, (24, 32, 3), dtype=np.uint16))[1].tobytes(),
    "gif": _encoded(INDEXED, "GIF"),
    "jpeg": _encoded(Image.fromarray(RGB), "JPEG"),
    "cmyk jpeg": _encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95),
    **{f"jpeg turned {n}": _encoded(Image.fromarray(RGB), "JPEG", exif=_turned(n)) for n in range(1, 9)},
    "png turned": _encoded(Image.fromarray(RGB), exif=_turned(6)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pillow_and_opencv_give_the_same_pixels(kind: str, tmp_path: Path) -> None:
    """OpenCV is what the configs' loader reads files by; Pillow what a user may have read them by."""
    file = tmp_path / "image"
    file.write_bytes(KINDS[kind])
    require_readable(file)
    with Image.open(file) as image:
        converted = to_bgr(image)
    expected = mmcv.imfrombytes(KINDS[kind], flag="color", backend="cv2")
    assert converted.dtype == np.uint8 and converted.flags.c_contiguous
    assert converted.shape == expected.shape
    # the two round the conversion of inks differently
    assert np.abs(converted.astype(int) - expected).max() <= (1 if "cmyk" in kind else 0)
    if "turned" in kind and kind[-1] in "5678d":
        assert converted.shape == (32, 24, 3)


def test_arrays() -> None:
    """The first pixel by hand: channel order, alpha, the upper 8 of 16 bits."""
    pixel = np.array([[[1, 2, 3, 4]]], np.uint8)
    assert to_bgr(pixel).tolist() == [[[3, 2, 1]]]
    assert to_bgr(pixel, bgr=True).tolist() == [[[1, 2, 3]]]
    assert to_bgr(pixel[..., :3]).tolist() == [[[3, 2, 1]]]
    assert to_bgr(pixel[..., 0]).tolist() == to_bgr(pixel[..., :1]).tolist() == [[[1, 1, 1]]]
    wide = np.array([[255, 256, 511, 65535]], np.uint16)
    assert to_bgr(wide)[0, :, 0].tolist() == [0, 1, 1, 255]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), "uint8 or uint16, not float64"),
        (np.zeros((4, 4), bool), "uint8 or uint16, not bool"),
        (np.zeros((3, 4, 5), np.uint8), r"got \(3, 4, 5\)"),
        (np.zeros((4, 4, 2), np.uint8), r"got \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"not empty, got \(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"got \(4,\)"),
        (Image.fromarray(np.ones((2, 2), np.float32)), "holds floats"),
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), "values 70000..70000; 16 bits hold"),
    ],
)
def test_what_is_no_image_in_memory(image: np.ndarray | Image.Image, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        to_bgr(image)


@pytest.mark.parametrize("kind", ["truncated jpeg", "truncated png", "text", "empty", "folder", "missing"])
def test_what_is_no_image_file(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "image.jpg"
    if kind == "folder":
        file.mkdir()
    elif kind != "missing":
        large = Image.fromarray(cv2.resize(RGB, (200, 200)))
        data = {"text": b"no image", "empty": b""}.get(kind, _encoded(large, "PNG" if "png" in kind else "JPEG"))
        file.write_bytes(data[: len(data) * 3 // 4] if "truncated" in kind else data)
    with pytest.raises(ImageError, match=rf"image\.jpg {'is missing' if kind == 'missing' else 'cannot be read as an image'}"):
        require_readable(file)


def test_large_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit, here far below the image, does not hold, and holds again afterwards; OpenCV's does."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "a.png").write_bytes(KINDS["rgb"])
    require_readable(tmp_path / "a.png")
    (tmp_path / "b.pgm").write_bytes(b"P5 40000 30000 255\n")
    with pytest.raises(ImageError, match=r"b\.pgm has 40000 x 30000 pixels; at most 1,073,741,824 .* raise max_pixels"):
        require_readable(tmp_path / "b.pgm")
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")


def test_pillows_limit_of_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks while another thread has lifted the limit gets it lifted when that thread has put it back."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    asked, left, seen = threading.Event(), threading.Event(), []

    def read() -> None:
        context = pillow_reads((20, 20))
        asked.set()
        assert left.wait(20)
        with context:
            seen.append(Image.MAX_IMAGE_PIXELS)

    thread = threading.Thread(target=read)
    with without_pillows_limit():
        thread.start()
        # that it waits shows by nothing but time
        asked.wait(0.3)
    left.set()
    thread.join(20)
    assert seen == [None] and Image.MAX_IMAGE_PIXELS == 100


def test_files_as_opencv_reads_them(tmp_path: Path) -> None:
    """Whatever their names are, which OpenCV's own reader does not survive if they are no UTF-8."""
    name = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png"))
    name.write_bytes(KINDS["png turned"])
    np.testing.assert_array_equal(read_bgr(name), np.rot90(RGB, -1)[..., ::-1])
    for content in (b"", b"no image"):
        name.write_bytes(content)
        with pytest.raises(ImageError, match="cannot be read as an image"):
            read_bgr(name)
    with pytest.raises(ImageError, match=r"none\.jpg cannot be read as an image: .*No such file"):
        read_bgr(tmp_path / "none.jpg")
