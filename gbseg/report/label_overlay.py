"""Label maps blended into their images, and sheets of them: image, ground truth, one column a run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from gbseg.files import write_atomically
from gbseg.palettes import VOC_CLASSES, VOC_PALETTE
from gbseg.report.curve import figure_png

VOID = 255
VOID_COLOUR = (255, 255, 255)
PANEL, LEGEND_ROW, HEAD, GAP, MARGIN, DPI = 2.0, 0.22, 0.26, 0.05, 0.06, 150  # inches, and dots an inch
LEGEND: dict[str, Any] = dict(loc="upper center", frameon=False, fontsize=8, borderaxespad=0.0, borderpad=0.0)
SWATCH: dict[str, Any] = dict(handlelength=1.1, handleheight=1.1, handletextpad=0.5, columnspacing=1.2)


def overlay(image_bgr: np.ndarray, label: np.ndarray, palette: ArrayLike, alpha: float | np.ndarray = 0.6) -> np.ndarray:
    """Blend the colours of a label map into its image.

    ``result = round((1 - alpha) * image + alpha * colour(label))`` for every pixel and channel. Label 255 (void) is white
    whatever the palette says.

    Args:
        image_bgr: (H, W, 3) uint8, blue first as OpenCV reads it.
        label: (H, W) uint8.
        palette: the colours of labels 0, 1, ... as (red, green, blue) in 0..255.
        alpha: opacity of the colours in 0..1, one for all labels or (256,) one for each: 0 leaves the image, 1 shows the
            colours alone.

    Returns:
        (H, W, 3) uint8, blue first.

    Raises:
        ValueError: a shape or type is not the one above, ``alpha`` is not in 0..1, or a label has no colour.
    """
    if image_bgr.dtype != np.uint8 or image_bgr.ndim != 3 or image_bgr.shape[2] != 3:
        raise ValueError(f"the image must be (H, W, 3) uint8, not {image_bgr.shape} {image_bgr.dtype}")
    if label.dtype != np.uint8 or label.shape != image_bgr.shape[:2]:
        raise ValueError(f"the label must be {image_bgr.shape[:2]} uint8 as the image, not {label.shape} {label.dtype}")
    opacity = np.full(256, alpha, np.float64)
    if not ((opacity >= 0) & (opacity <= 1)).all():
        raise ValueError(f"alpha must lie in 0..1, not {alpha}")
    colours = np.array(palette, dtype=np.float64)[:VOID]
    beyond = label[(label >= len(colours)) & (label != VOID)]
    if beyond.size:
        raise ValueError(f"labels {np.unique(beyond).tolist()} have no colour: the palette holds {len(colours)}")
    table = np.zeros((256, 3))
    table[: len(colours)] = colours
    table[VOID] = VOID_COLOUR
    weight = opacity[label][..., None]
    return np.rint((1.0 - weight) * image_bgr + weight * table[label][..., ::-1]).astype(np.uint8)


def prediction_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    path: str | Path,
    palette: Sequence[Sequence[int]] = VOC_PALETTE,
    class_names: Sequence[str] = VOC_CLASSES,
    alpha: float = 0.6,
) -> None:
    """Draw a sheet with one row an image (the image, its ground truth and one prediction a run) and a legend.

    The legend names the classes that occur anywhere on the sheet. Void pixels (255) are white.

    Args:
        rows: for every image the image (H, W, 3) uint8 BGR, its ground truth and the predictions, (H, W) uint8 each.
            Images of different rows may differ in size.
        titles: one a column: for the image, for the ground truth, for every run.
        path: the PNG to write; every panel is 2 inches wide at 150 dots an inch.
        palette: the colours of the classes, (red, green, blue) in 0..255.
        class_names: the names of the classes.
        alpha: opacity of the colours, as in `overlay`.

    Raises:
        ValueError: there are no rows, fewer than two titles, a row with another number of arrays than titles, a label
            without a name, or anything that `overlay` refuses; the message names the row.
    """
    if not rows or len(titles) < 2:
        raise ValueError("a sheet needs at least one row, and titles for at least the image and the ground truth")
    panels = []
    for number, row in enumerate(rows, 1):
        if len(row) != len(titles):
            raise ValueError(f"row {number} holds {len(row)} arrays for the {len(titles)} titles {', '.join(titles)}")
        try:
            panels.append([row[0], *(overlay(row[0], label, palette, alpha) for label in row[1:])])
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
    present = sorted({int(value) for row in rows for label in row[1:] for value in np.unique(label)})
    if nameless := [value for value in present if value != VOID and value >= len(class_names)]:
        raise ValueError(f"labels {nameless} have no name: there are {len(class_names)} class names")

    heights = [PANEL * row[0].shape[0] / row[0].shape[1] for row in rows]
    width = 2 * MARGIN + len(titles) * PANEL + (len(titles) - 1) * GAP
    lines = math.ceil(len(present) / max(1, int((width - 2 * MARGIN) / 1.25)))  # an entry takes up to 1.25 inches
    below = GAP + LEGEND_ROW * lines + MARGIN
    height = HEAD + sum(heights) + GAP * (len(rows) - 1) + below
    with rc_context({"font.size": 9}):
        figure = Figure(figsize=(width, height), dpi=DPI)
        grid = figure.subplots(len(rows), len(titles), squeeze=False, height_ratios=heights)
        figure.subplots_adjust(MARGIN / width, below / height, 1 - MARGIN / width, 1 - HEAD / height)
        figure.subplots_adjust(wspace=GAP / PANEL, hspace=GAP * len(rows) / sum(heights))
        for axes, image in zip(grid.flat, (image for row in panels for image in row), strict=True):
            axes.imshow(image[..., ::-1], aspect="auto", interpolation="antialiased")
            axes.axis("off")
        for column, title in enumerate(titles):
            centre = MARGIN + column * (PANEL + GAP) + PANEL / 2
            figure.text(centre / width, 1 - 0.5 * HEAD / height, title, ha="center", va="center", parse_math=False)
        anchor, columns = (0.5, (below - GAP - 0.02) / height), math.ceil(len(present) / lines)
        handles = [_swatch(value, palette, class_names) for value in present]
        figure.legend(handles=handles, bbox_to_anchor=anchor, ncols=columns, **LEGEND, **SWATCH)
        write_atomically(figure_png(figure), path)


def _swatch(value: int, palette: Sequence[Sequence[int]], class_names: Sequence[str]) -> Patch:
    colour, name = (VOID_COLOUR, "void") if value == VOID else (palette[value], class_names[value])
    red, green, blue = (channel / 255 for channel in colour)
    return Patch(facecolor=(red, green, blue), edgecolor="#404040", linewidth=0.5, label=name)
