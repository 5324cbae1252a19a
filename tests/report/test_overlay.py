"""Overlays against the formula, and sheets of them as images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gbseg.report.label_overlay import overlay, prediction_sheet

PALETTE = ((0, 0, 0), (200, 100, 50), (0, 255, 0))


def _image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_formula() -> None:
    """Every pixel is (1 - alpha) * image + alpha * colour, blue first, void white, worked out one by one."""
    image = np.array([[[10, 20, 30], [10, 20, 30], [255, 0, 7]]], dtype=np.uint8)
    result = overlay(image, np.array([[1, 0, 255]], dtype=np.uint8), PALETTE, alpha=0.6)
    # 0.4 * 10 + 0.6 * 50 = 34 (blue), 0.4 * 20 + 0.6 * 100 = 68, 0.4 * 30 + 0.6 * 200 = 132; 0.4 * 7 + 153 = 155.8
    assert result.tolist() == [[[34, 68, 132], [4, 8, 12], [255, 153, 156]]] and result.dtype == np.uint8


@pytest.mark.parametrize("alpha", [0.0, 0.35, 1.0])
def test_against_a_loop(alpha: float) -> None:
    """The same over a random image, by a loop in plain Python; the palette's own entry 255 is not used."""
    image = _image(5, 7)
    label = np.random.default_rng(1).choice(np.array([0, 1, 2, 255], dtype=np.uint8), (5, 7))
    palette = [*PALETTE, *[(9, 9, 9)] * 253]
    result = overlay(image, label, palette, alpha)
    for y in range(5):
        for x in range(7):
            colour = (255, 255, 255) if label[y, x] == 255 else palette[label[y, x]]
            for channel in range(3):
                exact = (1 - alpha) * int(image[y, x, channel]) + alpha * colour[2 - channel]
                assert abs(int(result[y, x, channel]) - exact) <= 0.5 + 1e-9


def test_wrong_inputs() -> None:
    """Shapes, types and labels that cannot be drawn are refused."""
    image, label = _image(4, 6), np.zeros((4, 6), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8, not \(4, 6, 3\) float64"):
        overlay(image / 255, label, PALETTE)
    with pytest.raises(ValueError, match=r"\(4, 6\) uint8 as the image, not \(6, 4\) uint8"):
        overlay(image, label.T, PALETTE)
    with pytest.raises(ValueError, match="int64"):
        overlay(image, label.astype(np.int64), PALETTE)
    with pytest.raises(ValueError, match=r"alpha must lie in 0\.\.1"):
        overlay(image, label, PALETTE, alpha=60)
    label[0, :3] = 3, 9, 255
    with pytest.raises(ValueError, match=r"labels \[3, 9\] have no colour: the palette holds 3"):
        overlay(image, label, PALETTE)
    with pytest.raises(ValueError, match="at least one row"):
        prediction_sheet([], ["image", "truth"], "never.png")
    with pytest.raises(ValueError, match="row 2 holds 3 arrays for the 2 titles image, truth"):
        prediction_sheet([(image, label), (image, label, label)], ["image", "truth"], "never.png")
    with pytest.raises(ValueError, match="row 1: the label must be"):
        prediction_sheet([(image, label.T)], ["image", "truth"], "never.png")
    with pytest.raises(ValueError, match=r"labels \[21\] have no name"):
        prediction_sheet([(image, np.full_like(label, 21))], ["image", "truth"], "never.png")


def test_sheet(tmp_path: Path) -> None:
    """A sheet has its size; every panel holds its overlay; the legend shows the classes there are and no others."""
    images = [np.full((40, 80, 3), 250, dtype=np.uint8), np.full((80, 80, 3), 250, dtype=np.uint8)]
    labels = [np.full(image.shape[:2], value, dtype=np.uint8) for image, value in zip(images, (8, 12), strict=True)]
    rows = [(image, label, np.full_like(label, 15)) for image, label in zip(images, labels, strict=True)]
    path = tmp_path / "new" / "sheet.png"
    prediction_sheet(rows, ["image", "ground truth", "softmax"], path)
    with Image.open(path) as opened:
        result = np.asarray(opened.convert("RGB")).astype(int)
    # three panels of 2 in with 0.05 in between and 0.06 in around; rows 1 in and 2 in high, title, gaps, legend
    assert result.shape[1] == round((3 * 2 + 2 * 0.05 + 2 * 0.06) * 150)
    assert result.shape[0] == pytest.approx((0.26 + 1 + 2 + 2 * 0.05 + 0.22 + 0.06) * 150, abs=1)
    # the middle of every panel, VOC's colours for cat (64, 0, 0), dog (64, 0, 128) and person (192, 128, 128)
    centres = [int((0.06 + 2.05 * column + 1) * 150) for column in range(3)]
    blend = {"cat": (138, 100, 100), "dog": (138, 100, 177), "person": (215, 177, 177), "none": (250, 250, 250)}
    for y, names in ((0.26 + 0.5, ("none", "cat", "person")), (0.26 + 1.05 + 1, ("none", "dog", "person"))):
        for x, name in zip(centres, names, strict=True):
            assert result[int(y * 150), x].tolist() == list(blend[name])
    legend = result[int((0.26 + 3 + 0.1) * 150) :]
    present = {tuple(colour) for colour in legend.reshape(-1, 3).tolist()}
    assert {(64, 0, 0), (64, 0, 128), (192, 128, 128)} <= present
    assert not {(128, 0, 0), (0, 128, 0), (64, 128, 0)} & present  # aeroplane, bicycle, cow


def test_sheet_shows_void_white(tmp_path: Path) -> None:
    """Void is white on the sheet whatever VOC's palette says, and has a place in the legend."""
    image = np.full((60, 60, 3), 255, dtype=np.uint8)
    label = np.full((60, 60), 255, dtype=np.uint8)
    prediction_sheet([(image, label)], ["image", "truth"], tmp_path / "void.png")
    prediction_sheet([(image, label * 0)], ["image", "truth"], tmp_path / "background.png")
    void, background = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("void", "background"))
    middle = int((0.26 + 1) * 150), int((0.06 + 2.05 + 1) * 150)
    assert void[middle] == 255 and background[middle] == round(0.4 * 255)
    assert (void[-30:] != background[-30:]).any()
