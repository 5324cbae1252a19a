"""The colours of classes without a palette, and legends: pictures of any classes can be read."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from gbseg.palettes import VOC_CLASSES, VOC_PALETTE, default_palette
from gbseg.report.label_overlay import overlay
from gbseg.report.sheet import legend_below


def rgb2lab(colours: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of (1, N, 3) colours, uint8 or in 0..1."""
    shares = colours / 255 if colours.dtype == np.uint8 else colours
    return cv2.cvtColor(np.atleast_3d(shares).reshape(1, -1, 3).astype(np.float32), cv2.COLOR_RGB2LAB)


OWN = ["sky", "road", "car"]


def test_own_classes_are_light_and_distinct() -> None:
    """CIE distances by OpenCV. With VOC's colours, the lightness of class 0 is 0, and that of class 1 is 26."""
    lab = rgb2lab(np.array(default_palette([str(i) for i in range(60)]), np.uint8)[None])[0]
    assert lab[:, 0].min() > 60
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1) + 1000 * np.eye(len(lab))
    # 2.3 is the least difference that is seen
    assert distances.min() > 12
    # and from white, which is void, and magenta, which is no class
    for other in ((255, 255, 255), (255, 0, 255)):
        assert np.linalg.norm(lab - rgb2lab(np.array([[other]], np.uint8))[0], axis=-1).min() > 10


def _deficient(colours: np.ndarray, kind: str) -> np.ndarray:
    """How the colour-blind see colours in 0..1: Machado, Oliveira and Fernandes (2009), severity 1."""
    matrices = {
        "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }
    linear = np.where(colours > 0.04045, ((colours + 0.055) / 1.055) ** 2.4, colours / 12.92)
    seen = np.clip(linear @ np.array(matrices[kind]).T, 0, 1)
    return np.where(seen > 0.0031308, 1.055 * seen ** (1 / 2.4) - 0.055, 12.92 * seen)


@pytest.mark.parametrize("kind", ["protanopia", "deuteranopia"])
def test_the_colour_blind_tell_the_first_nine_apart(kind: str) -> None:
    """With the first nine colours of matplotlib's tab20 the smallest distance is 4.6 or 7.2."""
    seen = rgb2lab(_deficient(np.array(default_palette(list("abcdefghi"))) / 255, kind)[None])[0]
    distances = np.linalg.norm(seen[:, None] - seen, axis=-1) + 1000 * np.eye(9)
    assert distances.min() > 8


def test_vocs_colours_are_vocs_alone() -> None:
    assert default_palette(VOC_CLASSES) == [list(colour) for colour in VOC_PALETTE[:21]]
    assert default_palette(OWN) == default_palette(["a", "b", "c"]) != [list(colour) for colour in VOC_PALETTE[:3]]
    # the first class alone may be the background
    assert default_palette(["background", "a"]) == [[0, 0, 0], default_palette(["a"])[0]]
    assert len(default_palette([str(i) for i in range(400)])) == 400


@pytest.mark.parametrize("grey", [40, 90, 128])
def test_the_sky_is_not_darkened(grey: int) -> None:
    """With VOC's black for class 0 a pixel of 128 becomes 51."""
    image, label = np.full((2, 3, 3), grey, np.uint8), np.zeros((2, 3), np.uint8)
    assert overlay(image, label, default_palette(OWN)).mean() > grey


def test_a_legend_has_every_label_that_occurs() -> None:
    """A swatch of each colour below, however narrow the image; without the legend there is nothing below."""
    palette = default_palette(OWN)
    image = np.zeros((5, 7, 3), np.uint8)
    page = legend_below(image, [0, 2, 255], palette, OWN)
    np.testing.assert_array_equal(page[:5, :7], image)
    below = {tuple(colour) for colour in page[5:, :, ::-1].reshape(-1, 3).tolist()}
    assert {tuple(palette[0]), tuple(palette[2])} <= below and tuple(palette[1]) not in below
    # the name makes it wider
    assert legend_below(image, [0], palette, ["a long name of a class"]).shape[1] > page.shape[1]


def test_pictures_of_a_test_have_a_legend(tmp_path: Path) -> None:
    """``--show-dir``: a data set without a palette, whose sky is a class like others. Before, the sky was VOC's black."""
    pytest.importorskip("mmseg")
    import torch
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    from gbseg.mm.hooks.overlay_hook import OverlayHook

    cv2.imwrite(str(tmp_path / "street.png"), np.full((20, 300, 3), 90, np.uint8))
    sample = SegDataSample(metainfo=dict(img_path=str(tmp_path / "street.png")))
    labels = torch.zeros(1, 20, 300, dtype=torch.int64)
    sample.gt_sem_seg = PixelData(data=labels)
    labels = labels.clone()
    labels[..., 150:] = 2
    sample.pred_sem_seg = PixelData(data=labels)
    dataset = SimpleNamespace(metainfo=dict(classes=OWN, palette=None))
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset))
    OverlayHook(tmp_path / "shown").after_test_iter(runner, 0, outputs=[sample])
    picture = cv2.imread(str(tmp_path / "shown/street.png"))
    assert picture.shape[0] > 20 and picture.shape[1] == 900
    assert picture[:20].min() >= 90
    swatches = {tuple(colour) for colour in picture[20:, :, ::-1].reshape(-1, 3).tolist()}
    palette = [tuple(colour) for colour in default_palette(OWN)]
    assert {palette[0], palette[2]} <= swatches and palette[1] not in swatches
