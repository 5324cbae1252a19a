"""The figure and the files of a list's statistics: how often each class is seen, how large it is, what a crop holds."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from gbseg.data.statistics import Statistics
from gbseg.files import write_atomically
from gbseg.report.curve import BASELINE, COLOURS, DPI, STYLE, WIDTH, figure_png

__all__ = ["draw_statistics", "write_statistics"]

ROW, HEAD, LOWER, BETWEEN, FOOT = 0.175, 0.5, 1.9, 0.8, 0.45  # inches: a class, above, lower panels, between, below
MOST = 60  # classes that are drawn
DARKEST = 0.6  # share of a class's pixels
SIDES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def write_statistics(found: Statistics, folder: str | Path) -> Path:
    """Write ``stats.png``, ``stats.json`` and ``stats.csv`` (one row a class) into a folder.

    Returns:
        The path of the figure.

    Raises:
        OSError: the system refused to write.
    """
    folder = Path(folder)
    text, rows = io.StringIO(), found.rows()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(json.dumps(found.as_dict(), indent=1).encode() + b"\n", folder / "stats.json")
    write_atomically(text.getvalue().encode(), folder / "stats.csv")
    draw_statistics(found, folder / "stats.png")
    return folder / "stats.png"


def draw_statistics(found: Statistics, path: str | Path) -> None:
    """Draw the statistics of a list: four panels, 7.2 inches wide at 200 dots an inch, no image of the data set.

    Above, a row a class by falling frequency (the 60 most frequent): its share of the labelled pixels and of the images on a
    log scale; and how its pixels spread over regions of different size (square root of the area, in half octaves; coloured is
    the share of *this* class's pixels, so that specks of a pixel do not hide the objects), with the region of the median pixel
    marked and the number of images beside. Below: what a square crop of a given side holds whole; and the sizes of the images,
    by marks whose area grows with their number.

    Raises:
        OSError: the system refused to write.
    """
    order = np.argsort(-found.pixels, kind="stable")[:MOST]
    upper = ROW * len(order)
    height = HEAD + upper + BETWEEN + LOWER + FOOT
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)

        def place(left: float, top: float, width: float, high: float) -> Axes:
            return figure.add_axes((left / WIDTH, 1 - (top + high) / height, width / WIDTH, high / height))

        _draw_shares(place(1.05, HEAD, 2.3, upper), found, order)
        areas, scale = place(3.65, HEAD, 2.95, upper), place(4.95, HEAD - 0.19, 0.6, 0.1)
        _draw_areas(areas, scale, found, order)
        _draw_fitting(place(0.7, HEAD + upper + BETWEEN, 2.9, LOWER), found)
        _draw_sizes(place(4.6, HEAD + upper + BETWEEN, LOWER, LOWER), found)
        what = f"{found.name}: {len(found.sizes):,} images"
        void = found.void / (int(found.pixels.sum()) + found.void)
        what += f", {100 * void:.1f}% of the pixels void"
        if len(order) < len(found.classes):
            what += f"; the {len(order)} most frequent of {len(found.classes)} classes"
        figure.text(0.1 / WIDTH, 1 - 0.17 / height, what, va="center", fontsize=10, parse_math=False)
        write_atomically(figure_png(figure), path)


def _draw_shares(axes: Axes, found: Statistics, order: np.ndarray) -> None:
    rows = np.arange(len(order))
    pixels = 100 * found.pixels[order] / max(int(found.pixels.sum()), 1)
    images = 100 * found.images[order] / len(found.sizes)
    seen = pixels > 0
    axes.hlines(rows[seen], pixels[seen], images[seen], color="#c8c8c8", linewidth=1.2)
    axes.plot(images[seen], rows[seen], "o", markersize=4, color="white", markeredgecolor=COLOURS[0], label="of the images")
    axes.plot(pixels[seen], rows[seen], "o", markersize=4, color=COLOURS[0], label="of the labelled pixels")
    axes.set_xscale("log")
    low = pixels[seen].min(initial=100)
    axes.set_xlim(0.7 * low, 140)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}%"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_yticks(rows, [_short(found.classes[label]) for label in order], parse_math=False)
    axes.tick_params("y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    for row in rows[~seen]:
        axes.text(0.02, row, "absent", transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color="#909090")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=2,
        frameon=False,
        fontsize=8,
        handletextpad=0.1,
        columnspacing=0.8,
        borderaxespad=0.2,
    )


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "\u2026"


def _draw_areas(axes: Axes, scale: Axes, found: Statistics, order: np.ndarray) -> None:
    # a half octave of the side is an octave of the area, whose bounds are powers of two: no rounding decides
    octaves = np.frexp(found.regions[:, 1].astype(np.float64))[1] - 1
    bins = int(octaves.max(initial=0)) + 1
    edges = 2 ** (np.arange(bins + 1) / 2)
    colours = Normalize(0, DARKEST)
    for row, label in enumerate(order):
        areas = found.areas(label)
        if not len(areas):
            continue
        share = np.bincount(octaves[found.regions[:, 0] == label], weights=areas, minlength=bins) / areas.sum()
        axes.pcolormesh(edges, [row - 0.42, row + 0.42], share[None], cmap="Blues", norm=colours)
        median = float(found.median_pixel(label) or 0) ** 0.5
        axes.plot([median, median], [row - 0.42, row + 0.42], color=COLOURS[1], linewidth=1.8)
        _beside(axes, f"{found.images[label]:,}", row, 7.5)
    _beside(axes, "images", -0.5 - 0.145 / ROW, 8)
    axes.set_xscale("log", base=2)
    axes.set_xlim(1, edges[-1])
    axes.xaxis.set_major_locator(FixedLocator([side for side in SIDES if side <= edges[-1]]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("region: square root of the area in pixels")
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    scale.imshow(np.linspace(0, DARKEST, 64)[None], aspect="auto", cmap="Blues", norm=colours)
    scale.set_axis_off()
    for inches, text, side in (
        (-1.3, "of the class\u2019s pixels", "left"),
        (-0.05, "0", "right"),
        (0.64, f"{100 * DARKEST:g}%", "left"),
    ):
        scale.text(inches / 0.6, 0.45, text, transform=scale.transAxes, fontsize=8, ha=side, va="center")
    scale.plot([1.72, 1.72], [0, 1], transform=scale.transAxes, color=COLOURS[1], linewidth=1.8, clip_on=False)
    scale.text(1.79, 0.45, "median", transform=scale.transAxes, fontsize=8, va="center")


def _beside(axes: Axes, text: str, row: float, size: float) -> None:
    axes.annotate(
        text,
        (1.0, row),
        xycoords=("axes fraction", "data"),
        xytext=(36, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=size,
        annotation_clip=False,
    )


def _draw_fitting(axes: Axes, found: Statistics) -> None:
    objects = found.regions[found.objects()]
    images, boxes = found.sizes.max(1), objects[:, 2:].max(1)
    end = 1.05 * int(max(images.max(), boxes.max(initial=1)))
    curves = (boxes, objects[:, 1], COLOURS[1], "pixels of objects"), (images, np.ones(len(images)), BASELINE, "images")
    for values, weights, colour, name in curves:
        if not len(values):
            continue
        sides, group = np.unique(values, return_inverse=True)
        share = 100 * np.cumsum(np.bincount(group, weights=weights)) / max(weights.sum(), 1)
        axes.step([0, *sides, end], [0, *share, share[-1]], where="post", color=colour, label=name)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 103)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}%"))
    axes.set_xlabel("side of a square crop in pixels")
    axes.set_ylabel("whole region or image fits")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, fontsize=8, borderaxespad=0.1)


def _draw_sizes(axes: Axes, found: Statistics) -> None:
    sizes, counts = np.unique(found.sizes, axis=0, return_counts=True)
    area = 6 + 200 * counts / counts.max()
    axes.scatter(sizes[:, 1], sizes[:, 0], s=area, color=COLOURS[0], alpha=0.35, linewidth=0.4, edgecolor=COLOURS[0])
    end = 1.12 * int(sizes.max())
    axes.set_xlim(0, end)
    axes.set_ylim(0, end)
    axes.yaxis.set_major_locator(axes.xaxis.get_major_locator())
    axes.set_xlabel("width of the images in pixels")
    axes.set_ylabel("height in pixels")
