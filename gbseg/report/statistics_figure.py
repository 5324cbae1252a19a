"""The figure and the files of a list's statistics: class frequencies, region sizes, what a crop holds, image sizes."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
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
LEGEND: dict[str, Any] = dict(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, fontsize=8)


def write_statistics(statistics: Statistics, folder: str | Path) -> Path:
    """Write ``stats.png``, ``stats.json`` and ``stats.csv`` (one row a class) into a folder.

    Returns:
        The path of the figure.

    Raises:
        OSError: a file could not be written.
    """
    folder = Path(folder)
    text, rows = io.StringIO(), statistics.rows()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(json.dumps(statistics.as_dict(), indent=1).encode() + b"\n", folder / "stats.json")
    write_atomically(text.getvalue().encode(), folder / "stats.csv")
    draw_statistics(statistics, folder / "stats.png")
    return folder / "stats.png"


def draw_statistics(statistics: Statistics, path: str | Path) -> None:
    """Draw the statistics of a list in four panels, 7.2 inches wide at 200 dots an inch.

    Top left, one row a class by falling frequency (the 60 most frequent): its share of the labelled pixels and of the images,
    on a log scale. Top right: how the class's pixels distribute over regions by size (square root of the area, in half
    octaves). Colour is the share of the class's pixels, so that regions of few pixels do not hide the objects; the region of
    the median pixel is marked, and the number of images stands beside. Bottom left: which share of images and of object
    pixels fits into a square crop of a given side. Bottom right: the sizes of the images, with marks whose area grows with
    the number of images.

    Raises:
        OSError: the file could not be written.
    """
    order = np.argsort(-statistics.pixels, kind="stable")[:MOST]
    upper = ROW * len(order)
    height = HEAD + upper + BETWEEN + LOWER + FOOT
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)

        def add_axes(left: float, top: float, width: float, high: float) -> Axes:
            return figure.add_axes((left / WIDTH, 1 - (top + high) / height, width / WIDTH, high / height))

        _draw_shares(add_axes(1.05, HEAD, 2.3, upper), statistics, order)
        areas, colour_bar = add_axes(3.65, HEAD, 2.95, upper), add_axes(4.95, HEAD - 0.19, 0.6, 0.1)
        _draw_areas(areas, statistics, order)
        _draw_colour_bar(colour_bar)
        _draw_fitting(add_axes(0.7, HEAD + upper + BETWEEN, 2.9, LOWER), statistics)
        _draw_sizes(add_axes(4.6, HEAD + upper + BETWEEN, LOWER, LOWER), statistics)
        void = statistics.void / (int(statistics.pixels.sum()) + statistics.void)
        title = f"{statistics.name}: {len(statistics.sizes):,} images, {100 * void:.1f}% of the pixels void"
        if len(order) < len(statistics.classes):
            title += f"; the {len(order)} most frequent of {len(statistics.classes)} classes"
        figure.text(0.1 / WIDTH, 1 - 0.17 / height, title, va="center", fontsize=10, parse_math=False)
        write_atomically(figure_png(figure), path)


def _set_ticks(axis: Axis, unit: str = "") -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    axis.set_minor_locator(NullLocator())


def _draw_shares(axes: Axes, statistics: Statistics, order: np.ndarray) -> None:
    rows = np.arange(len(order))
    pixels = 100 * statistics.pixels[order] / max(int(statistics.pixels.sum()), 1)
    images = 100 * statistics.images[order] / len(statistics.sizes)
    present = pixels > 0
    axes.hlines(rows[present], pixels[present], images[present], color="#c8c8c8", linewidth=1.2)
    for shares, fill, name in ((images, "white", "images"), (pixels, COLOURS[0], "labelled pixels")):
        dots: dict[str, Any] = dict(markersize=4, color=fill, markeredgecolor=COLOURS[0], label=f"of the {name}")
        axes.plot(shares[present], rows[present], "o", **dots)
    axes.set_xscale("log")
    axes.set_xlim(0.7 * pixels[present].min(initial=100), 140)
    _set_ticks(axes.xaxis, "%")
    axes.set_ylim(len(order) - 0.5, -0.5)
    names = [statistics.classes[label] for label in order]
    axes.set_yticks(rows, [name if len(name) <= 14 else name[:13] + "\u2026" for name in names], parse_math=False)
    axes.tick_params("y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    for row in rows[~present]:
        axes.text(0.02, row, "absent", transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color="#909090")
    axes.legend(**LEGEND, handletextpad=0.1, columnspacing=0.8, borderaxespad=0.2)


def _draw_areas(axes: Axes, statistics: Statistics, order: np.ndarray) -> None:
    # a half octave of the side is an octave of the area, whose bounds are powers of two: rounding has no effect
    octaves = np.frexp(statistics.regions[:, 1].astype(np.float64))[1] - 1
    bins = int(octaves.max(initial=0)) + 1
    edges = 2 ** (np.arange(bins + 1) / 2)
    for row, label in enumerate(order):
        areas = statistics.areas(label)
        if not len(areas):
            continue
        share = np.bincount(octaves[statistics.regions[:, 0] == label], weights=areas, minlength=bins) / areas.sum()
        axes.pcolormesh(edges, [row - 0.42, row + 0.42], share[None], cmap="Blues", norm=Normalize(0, DARKEST))
        median = float(statistics.median_pixel(label) or 0) ** 0.5
        axes.plot([median, median], [row - 0.42, row + 0.42], color=COLOURS[1], linewidth=1.8)
        _write_beside(axes, f"{statistics.images[label]:,}", row, 7.5)
    _write_beside(axes, "images", -0.5 - 0.145 / ROW, 8)
    axes.set_xscale("log", base=2)
    axes.set_xlim(1, edges[-1])
    axes.xaxis.set_major_locator(FixedLocator([side for side in (2**i for i in range(14)) if side <= edges[-1]]))
    _set_ticks(axes.xaxis)
    axes.set_xlabel("region: square root of the area in pixels")
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _write_beside(axes: Axes, text: str, row: float, size: float) -> None:
    style: dict[str, Any] = dict(ha="right", va="center", fontsize=size, annotation_clip=False)
    axes.annotate(text, (1, row), (36, 0), xycoords=("axes fraction", "data"), textcoords="offset points", **style)


def _draw_colour_bar(axes: Axes) -> None:
    axes.imshow(np.linspace(0, DARKEST, 64)[None], aspect="auto", cmap="Blues", norm=Normalize(0, DARKEST))
    axes.set_axis_off()
    inside: dict[str, Any] = dict(transform=axes.transAxes)
    axes.plot([1.72, 1.72], [0, 1], color=COLOURS[1], linewidth=1.8, clip_on=False, **inside)
    labels = (-1.3 / 0.6, "of the class\u2019s pixels", "left"), (-0.05 / 0.6, "0", "right"), (1.79, "median", "left")
    for x, text, side in (*labels, (0.64 / 0.6, f"{100 * DARKEST:g}%", "left")):
        axes.text(x, 0.45, text, fontsize=8, ha=side, va="center", **inside)


def _draw_fitting(axes: Axes, statistics: Statistics) -> None:
    objects = statistics.regions[statistics.objects()]
    images, boxes = statistics.sizes.max(1), objects[:, 2:].max(1)
    end = 1.05 * int(max(images.max(), boxes.max(initial=1)))
    curves = (boxes, objects[:, 1], COLOURS[1], "pixels of objects"), (images, np.ones(len(images)), BASELINE, "images")
    for values, weights, colour, name in curves:
        if not len(values):
            continue
        sides, group = np.unique(values, return_inverse=True)
        share = 100 * np.cumsum(np.bincount(group, weights=weights)) / max(weights.sum(), 1)
        axes.step([0, *sides, end], [0, *share, share[-1]], where="post", color=colour, label=name)
    axes.set(xlim=(0, end), ylim=(0, 103), xlabel="side of a square crop in pixels", ylabel="whole region or image fits")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}%"))
    axes.legend(**LEGEND, borderaxespad=0.1)


def _draw_sizes(axes: Axes, statistics: Statistics) -> None:
    sizes, counts = np.unique(statistics.sizes, axis=0, return_counts=True)
    area = 6 + 200 * counts / counts.max()
    axes.scatter(sizes[:, 1], sizes[:, 0], s=area, color=COLOURS[0], alpha=0.35, linewidth=0.4, edgecolor=COLOURS[0])
    limits = 0, 1.12 * int(sizes.max())
    axes.set(xlim=limits, ylim=limits, xlabel="width of the images in pixels", ylabel="height in pixels")
    axes.yaxis.set_major_locator(axes.xaxis.get_major_locator())
