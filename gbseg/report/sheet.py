"""Contact sheets of a network's inputs, pixel for pixel: images, their labels and the pixels sampled in training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from gbseg.files import write_atomically
from gbseg.report.label_overlay import VOID, VOID_COLOUR, overlay

__all__ = ["NO_CLASS_COLOUR", "OTHERS", "Cell", "contact_sheet", "legend_below", "mark_points"]

NO_CLASS_COLOUR = (255, 0, 255)
# stands for every label that is not a class and does not fit into a byte beside the ignored one, 255
OTHERS = 254
GAP, MARGIN, TEXT, LINE = 6, 16, 13, 18  # pixels
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


@dataclass
class Cell:
    """One sample.

    Attributes:
        image: (H, W, 3) uint8, blue first.
        label: (H, W) uint8, 255 for ignored pixels, 254 (`OTHERS`) for labels that are not a class and do not fit into a byte;
            None for an unlabelled image.
        points: (P, 2) sampled pixels, (row, column); None where the network uses all of them.
        caption: the lines below the image.
    """

    image: np.ndarray
    label: np.ndarray | None = None
    points: np.ndarray | None = None
    caption: list[str] = field(default_factory=list)


def mark_points(image: np.ndarray, label: np.ndarray, points: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The image in pale grey with every sampled pixel in the colour of its label.

    Args:
        image: (H, W, 3) uint8, blue first.
        label: (H, W) uint8.
        points: (P, 2), (row, column).
        colours: (256, 3) uint8, (red, green, blue) of every label.

    Returns:
        (H, W, 3) uint8, blue first.
    """
    # pale and not dark: the colour of VOC's background is black
    grey = 190 + 0.25 * (image @ np.array([0.114, 0.587, 0.299]))
    marked = np.rint(grey.clip(0, 255)).astype(np.uint8)[..., None].repeat(3, axis=2)
    rows, columns = points.T
    marked[rows, columns] = colours[label[rows, columns]][:, ::-1]
    return marked


def contact_sheet(
    cells: Sequence[Cell],
    path: str | Path,
    palette: Sequence[Sequence[int]],
    class_names: Sequence[str],
    title: str = "",
    scale: int | None = None,
    width: int = 1440,
) -> list[tuple[int, int]]:
    """Draw samples with their labels and sampled pixels, captions, and a legend of the classes that occur, as a PNG.

    Nothing is smoothed: a pixel of a sample becomes a square of ``scale`` x ``scale`` pixels.

    Args:
        cells: the samples; their sizes may differ.
        path: the PNG to write.
        palette: (red, green, blue) of the classes; other labels are magenta and have no class name in the legend.
        class_names: one a class.
        title: the line above.
        scale: enlargement of the samples; None makes panels about 256 pixels wide.
        width: of the sheet in pixels, which decides how many cells are side by side; a wider cell makes the sheet wider.

    Returns:
        (left, top) of every cell's image on the sheet.

    Raises:
        ValueError: ``cells`` is empty, or ``scale`` is less than 1.
    """
    if not cells:
        raise ValueError("a contact sheet needs at least one sample")
    widest = max(cell.image.shape[1] for cell in cells)
    scale = max(1, round(256 / widest)) if scale is None else scale
    if scale < 1:
        raise ValueError(f"scale is the number of the sheet's pixels a pixel, at least 1, not {scale}")
    colours = np.full((256, 3), NO_CLASS_COLOUR, np.uint8)
    colours[: len(palette)] = np.array(palette, np.uint8)[:256]
    colours[VOID] = VOID_COLOUR
    rows_of_panels = [_panels(cell, colours) for cell in cells]
    cell_width = max(map(len, rows_of_panels)) * (widest * scale + GAP) - GAP
    columns = max(1, min(len(cells), (width - 2 * MARGIN + 3 * GAP) // (cell_width + 3 * GAP)))
    legend = sorted({int(value) for cell in cells if cell.label is not None for value in np.unique(cell.label)})
    font = _font()
    sheet_width = 2 * MARGIN + columns * (cell_width + 3 * GAP) - 3 * GAP

    positions, top = [], MARGIN + 2 * LINE
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        positions += [(MARGIN + column * (cell_width + 3 * GAP), top) for column in range(len(row))]
        lines = max(len(cell.caption) for cell in row)
        top += max(cell.image.shape[0] for cell in row) * scale + GAP + lines * LINE + 2 * GAP
    entries, legend_height = _legend(legend, class_names, font, sheet_width)
    sheet = Image.new("RGB", (sheet_width, top + legend_height + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), _fit(title, font, sheet_width - 2 * MARGIN), INK, font)
    for cell, panels, (left, upper) in zip(cells, rows_of_panels, positions, strict=True):
        for number, panel in enumerate(panels):
            upsampled = panel[..., ::-1].repeat(scale, axis=0).repeat(scale, axis=1)
            sheet.paste(Image.fromarray(upsampled), (left + number * (widest * scale + GAP), upper))
        for number, text in enumerate(cell.caption):
            position = (left, upper + cell.image.shape[0] * scale + GAP + number * LINE)
            draw.text(position, _fit(text, font, cell_width), FAINT if number else INK, font)
    _draw_legend(draw, entries, legend, colours, top)
    content = BytesIO()
    sheet.save(content, "PNG")
    write_atomically(content.getvalue(), path)
    return positions


def legend_below(
    image: np.ndarray, labels: Sequence[int], palette: Sequence[Sequence[int]], class_names: Sequence[str]
) -> np.ndarray:
    """An image with the legend of the labels that occur in it below: colour and name of each.

    Args:
        image: (H, W, 3) uint8, blue first; it is made wider where a name is.
        labels: numbers of classes, and 255 for ignored pixels.
        palette: (red, green, blue) of the classes.
        class_names: one a class.

    Returns:
        (H + legend, W or more, 3) uint8, blue first.
    """
    font, values = _font(), sorted({*labels})
    colours = np.full((256, 3), NO_CLASS_COLOUR, np.uint8)
    colours[: len(palette)] = np.array(palette, np.uint8)[:256]
    colours[VOID] = VOID_COLOUR
    widest = max((int(font.getlength(_label_name(value, class_names))) for value in values), default=0)
    width = max(image.shape[1], widest + 2 * MARGIN + TEXT + GAP)
    entries, height = _legend(values, class_names, font, width)
    page = Image.new("RGB", (width, image.shape[0] + height + GAP), PAPER)
    page.paste(Image.fromarray(np.ascontiguousarray(image[..., ::-1])), (0, 0))
    _draw_legend(ImageDraw.Draw(page), entries, values, colours, image.shape[0])
    return np.asarray(page)[..., ::-1]


def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), TEXT)


def _draw_legend(
    draw: ImageDraw.ImageDraw, entries: Sequence[tuple[int, int, str]], values: Sequence[int], colours: np.ndarray, top: int
) -> None:
    for (x, y, name), value in zip(entries, values, strict=True):
        draw.rectangle((x, top + y, x + TEXT, top + y + TEXT), tuple(colours[value].tolist()), FAINT)
        draw.text((x + TEXT + GAP, top + y - 1), name, INK, _font())


def _label_name(value: int, class_names: Sequence[str]) -> str:
    number = "254, 255 or no byte" if value == OTHERS else value
    return "ignored" if value == VOID else class_names[value] if value < len(class_names) else f"{number}: no class"


def _panels(cell: Cell, colours: np.ndarray) -> list[np.ndarray]:
    panels = [cell.image]
    if cell.label is not None:
        panels.append(overlay(cell.image, cell.label, colours))
        if cell.points is not None:
            panels.append(mark_points(cell.image, cell.label, cell.points, colours))
    return panels


def _legend(
    values: Sequence[int], class_names: Sequence[str], font: ImageFont.FreeTypeFont, width: int
) -> tuple[list[tuple[int, int, str]], int]:
    """Left, top and name of every entry below the cells, and the height of the legend."""
    entries, x, y = [], MARGIN, GAP
    for value in values:
        name = _label_name(value, class_names)
        entry_width = TEXT + GAP + int(font.getlength(name)) + 3 * GAP
        if x > MARGIN and x + entry_width > width - MARGIN:
            x, y = MARGIN, y + LINE + GAP
        entries.append((x, y, name))
        x += entry_width
    return entries, y + LINE


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut at its beginning if it is wider than ``width``: the end of a path says more."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text
