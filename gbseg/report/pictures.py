"""Which images a network segments worst and best, and what to show of them.

H, W: height and width of an image in pixels. C classes.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from gbseg.data.images import ImageError, read_bgr
from gbseg.data.masks import resize_mask
from gbseg.report.overlay import VOID, overlay

__all__ = ["ERROR_COLOURS", "Picture", "Ranking", "error_map", "jpeg_uri", "panels"]

# of the error map, as (red, green, blue): object taken for background, background taken for an object, one class for another
ERROR_COLOURS = {"missed": (0, 114, 214), "invented": (240, 160, 0), "confused": (214, 0, 128)}
SIDE, QUALITY = 480, 82  # longest side of a panel in pixels, and its JPEG quality


class Picture(NamedTuple):
    """One image of a test set, ordered by its score.

    Attributes:
        score: mean IoU over the classes that occur in its label or its prediction.
        position: in the set.
        name: what the page calls it.
        path: of the image; None where the sample names no file.
        label: (H, W) uint8.
        prediction: (H, W) uint8.
        iou: of every class, NaN where it occurs in neither.
    """

    score: float
    position: int
    name: str
    path: str | None
    label: np.ndarray
    prediction: np.ndarray
    iou: tuple[float, ...]

    @property
    def rank(self) -> tuple[float, int]:
        """What pictures are sorted by: worst first, ties by position."""
        return self.score, self.position


class Ranking:
    """The k worst and the k best images so far; memory for 2 k of them, however many are seen.

    Args:
        k: how many of either; 0 keeps none.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.kept: list[Picture] = []

    def wants(self, score: float, position: int) -> bool:
        """Whether an image of this score at this position would be kept. One without a class (NaN) never is."""
        if not self.k or math.isnan(score):
            return False
        rank = score, position
        return len(self.kept) < 2 * self.k or rank < self.kept[self.k - 1].rank or rank > self.kept[self.k].rank

    def add(self, *pictures: Picture) -> None:
        """Take pictures in."""
        self.kept = sorted([*self.kept, *pictures], key=lambda picture: picture.rank)
        if len(self.kept) > 2 * self.k:
            self.kept = self.kept[: self.k] + self.kept[len(self.kept) - self.k :]

    @property
    def worst(self) -> list[Picture]:
        """The k worst, or the worse half of fewer than 2 k images; worst first."""
        return self.kept[: min(self.k, (len(self.kept) + 1) // 2)]

    @property
    def best(self) -> list[Picture]:
        """The k best that are not among the worst; best first."""
        return self.kept[len(self.worst) :][::-1]


def error_map(image_bgr: np.ndarray, label: np.ndarray, prediction: np.ndarray, background: int | None = 0) -> np.ndarray:
    """The image in pale grey, and over it every pixel that is wrong in the colour of its kind of error.

    Args:
        image_bgr: (H, W, 3) uint8.
        label: (H, W) uint8; void pixels (255) are dark grey, they cannot be wrong.
        prediction: (H, W) uint8.
        background: the class whose confusion with another is a missed or an invented object; None where no class is
            background, so that every error is one of class.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    grey = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY)
    shown = np.repeat((150 + 0.4 * grey).astype(np.uint8)[..., None], 3, axis=2)
    shown[label == VOID] = 96
    wrong = (label != prediction) & (label != VOID)
    kinds = np.zeros(label.shape, np.uint8)  # 0 is right
    kinds[wrong] = 3
    if background is not None:
        kinds[wrong & (prediction == background)] = 1
        kinds[wrong & (label == background)] = 2
    colours = np.array([(0, 0, 0), *ERROR_COLOURS.values()])[kinds][..., ::-1]
    return np.where(wrong[..., None], np.rint(0.2 * shown + 0.8 * colours), shown).astype(np.uint8)


def panels(picture: Picture, palette: Sequence[Sequence[int]], background: int | None = 0) -> list[np.ndarray]:
    """Image, truth, prediction and error map of a picture, (h, w, 3) uint8 BGR, the longer side 480 pixels.

    Raises:
        gbseg.data.images.ImageError: the image has no file, or OpenCV cannot read it.
    """
    if picture.path is None:
        raise ImageError(f"{picture.name} has no img_path")
    image = read_bgr(picture.path)
    height, width = picture.label.shape
    scale = SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    label, prediction = resize_mask(picture.label, size), resize_mask(picture.prediction, size)
    shown = [image]
    for values in (label, prediction):
        blended = overlay(image, values, palette, 0.65)
        if background is not None:
            # its colour is black as a rule, and would hide most of the image
            blended[values == background] = overlay(image, values, palette, 0.35)[values == background]
        shown.append(blended)
    return [*shown, error_map(image, label, prediction, background)]


def jpeg_uri(image_bgr: np.ndarray) -> str:
    """An image as a ``data:`` URI, so that a page needs no other file."""
    done, data = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of {image_bgr.shape} as JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
