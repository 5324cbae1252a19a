"""The images that a network segments worst and best, and the panels that show them.

H, W: height and width of an image in pixels. C classes.
"""

import base64
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from gbseg.data.images import ImageError, read_bgr
from gbseg.data.masks import resize_mask
from gbseg.report.label_overlay import VOID, overlay

__all__ = ["ERROR_COLOURS", "Picture", "Ranking", "error_map", "jpeg_uri", "panels"]

# of the error map, as (red, green, blue): object taken for background, background taken for an object, one class for another
ERROR_COLOURS = {"missed": (0, 114, 214), "invented": (240, 160, 0), "confused": (214, 0, 128)}
SIDE, QUALITY = 480, 82  # longest side of a panel in pixels, and its JPEG quality


class Picture(NamedTuple):
    """One image of a test set with its score.

    Attributes:
        score: mean IoU over the classes that occur in its label or its prediction.
        position: index in the set.
        name: its name on the page.
        path: of the image file; None where the sample has none.
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
        """The sort key: worst first, ties by position."""
        return self.score, self.position


class Ranking:
    """The k worst and the k best images so far. At most 2 k images are in memory.

    Args:
        k: number of worst and of best images; 0 keeps none.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.kept: list[Picture] = []

    def wants(self, score: float, position: int) -> bool:
        """Whether an image with this score and position would be kept. A score of NaN (no class) never is."""
        if not self.k or math.isnan(score):
            return False
        rank = score, position
        return len(self.kept) < 2 * self.k or rank < self.kept[self.k - 1].rank or rank > self.kept[self.k].rank

    def add(self, *pictures: Picture) -> None:
        """Add pictures."""
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
    """The image in pale grey with every wrong pixel in the colour of its kind of error.

    Args:
        image_bgr: (H, W, 3) uint8.
        label: (H, W) uint8; void pixels (255) are dark grey and never wrong.
        prediction: (H, W) uint8.
        background: index of the background class, whose confusions are missed or invented objects; None without one, so
            that every error is a confusion of classes.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    grey = (150 + 0.4 * cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY)).astype(np.uint8)[..., None].repeat(3, axis=2)
    grey[label == VOID] = 96
    wrong = (label != prediction) & (label != VOID)
    kinds = np.where(wrong, 3, 0).astype(np.uint8)  # 0 is right
    if background is not None:
        kinds[wrong & (prediction == background)] = 1
        kinds[wrong & (label == background)] = 2
    opacity = np.where(np.arange(256) > 0, 0.8, 0.0)
    return overlay(grey, kinds, [(0, 0, 0), *ERROR_COLOURS.values()], opacity)


def panels(picture: Picture, palette: Sequence[Sequence[int]], background: int | None = 0) -> list[np.ndarray]:
    """Image, ground truth, prediction and error map of a picture, (h, w, 3) uint8 BGR, the longer side 480 pixels.

    Raises:
        gbseg.data.images.ImageError: the picture has no image file, or OpenCV cannot read it.
    """
    if picture.path is None:
        raise ImageError(f"{picture.name} has no img_path")
    image = read_bgr(picture.path)
    height, width = picture.label.shape
    scale = SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    label, prediction = resize_mask(picture.label, size), resize_mask(picture.prediction, size)
    opacity = np.full(256, 0.65)
    if background is not None:
        opacity[background] = 0.35  # its colour is black as a rule, and would hide most of the image
    overlays = [overlay(image, values, palette, opacity) for values in (label, prediction)]
    return [image, *overlays, error_map(image, label, prediction, background)]


def jpeg_uri(image_bgr: np.ndarray) -> str:
    """An image as a ``data:`` URI with a JPEG, for a self-contained page."""
    done, data = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of {image_bgr.shape} as JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
