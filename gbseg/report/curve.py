"""The figure of a comparison: a metric against iterations or epochs, and under it the training losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation
from matplotlib.transforms import ScaledTranslation

Dashes = str | tuple[int, tuple[float, ...]]

# Okabe and Ito's palette without its yellow, which is too light for lines on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BASELINE = "#404040"
DASHES: tuple[Dashes, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)))
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": "#404040",
    "axes.labelcolor": "#404040",
    "xtick.color": "#404040",
    "ytick.color": "#404040",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
}
WIDTH, METRIC_HEIGHT, LOSS_HEIGHT, DPI = 7.2, 3.4, 1.9, 200  # inches and dots an inch


@dataclass(frozen=True)
class Line:
    """One run of the figure.

    Attributes:
        name: what its label says.
        steps: (m,) where the metric was measured, in the axis's unit.
        values: (m,) the metric.
        loss_steps: (n,) where the loss was logged, in the axis's unit; empty for none.
        loss: (n,) the training loss.
        note: how the run went wrong, empty if it did not.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    loss_steps: np.ndarray
    loss: np.ndarray
    note: str = ""


def spread(centres: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Move labels along a line so that they do not overlap and keep their order.

    Args:
        centres: where the labels would like to be, in any order.
        sizes: how much room each takes.
        low: the lower end of the line.
        high: its upper end. Where the room is too small, labels go beyond `low`.

    Returns:
        The new centres, in the order of the old.
    """
    order = np.argsort(centres, kind="stable").tolist()
    placed = [float(centres[i]) for i in order]
    size = [float(sizes[i]) for i in order]
    floor = low
    for i, half in enumerate(half / 2 for half in size):
        placed[i] = max(placed[i], floor + half)
        floor = placed[i] + half
    ceiling = high
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling - size[i] / 2)
        ceiling = placed[i] - size[i] / 2
    result = [0.0] * len(placed)
    for centre, i in zip(placed, order, strict=True):
        result[i] = centre
    return result


def _label(axes: Axes, labels: Sequence[tuple[str, str, Dashes, float]], samples: bool) -> float:
    """Write labels to the right of the axes and return the room that they take, in inches.

    A label is its text, its colour, its line's dashes, and where on the axes' height (0..1) it would like to be.
    `samples` puts a piece of the line before it, for where one colour serves several lines.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    height = axes.get_window_extent().height / figure.dpi
    sizes = [0.155 * (text.count("\n") + 1) / height for text, *_ in labels]
    renderer = FigureCanvasAgg(figure).get_renderer()
    room, start = 0.0, 0.36 if samples else 0.08
    for (text, colour, dashes, _), y in zip(labels, spread([wish for *_, wish in labels], sizes, 0.0, 1.0), strict=True):
        # offsets in points: the axes are made narrower once the labels' room is known
        drawn = axes.annotate(
            text,
            (1.0, y),
            xycoords="axes fraction",
            xytext=(72 * start, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            linespacing=1.1,
            parse_math=False,  # a dollar in a name is a dollar
        )
        if samples:
            inch = figure.dpi_scale_trans + ScaledTranslation(1.0, y, axes.transAxes)  # type: ignore[arg-type]
            axes.plot([0.06, 0.3], [0.0, 0.0], transform=inch, color=colour, linestyle=dashes, linewidth=1.6, clip_on=False)
        room = max(room, start + drawn.get_window_extent(renderer).width / figure.dpi)
    return room


def _height_of(axes: Axes, value: float) -> float:
    """Where a value lies on the y axis, as a share of its height."""
    return float(axes.transAxes.inverted().transform(axes.transData.transform((0.0, value)))[1])


def _smooth(values: np.ndarray, half: int) -> np.ndarray:
    """Take a centred mean of the logarithm over 2 * half + 1 points, fewer at the ends."""
    log = np.log(values)
    sums = np.concatenate([[0.0], np.cumsum(log)])
    first = np.maximum(np.arange(len(log)) - half, 0)
    end = np.minimum(np.arange(len(log)) + half + 1, len(log))
    return np.exp((sums[end] - sums[first]) / (end - first))


def draw_curves(
    lines: Sequence[Line],
    path: Path,
    metric: str,
    xlabel: str,
    baseline: str,
    target: float,
    lower_is_better: bool = False,
) -> None:
    """Draw the metric of every run against the steps, and under it the training losses on a log scale.

    Losses of different definition differ in scale, hence the log scale: their levels are not to be compared. The
    lower panel is left out where no line has a loss. Losses are smoothed over a fiftieth of the longest run's points; the
    raw ones stand behind them in pale.

    Args:
        lines: the runs.
        path: the PNG to write, 7.2 inches wide at 200 dots an inch.
        metric: the upper panel's y label.
        xlabel: the x label.
        baseline: the name of the run drawn in grey, whose best value is marked.
        target: that value.
        lower_is_better: whether small values are good.
    """
    usable = [np.isfinite(line.loss) & (line.loss > 0) for line in lines]
    panels = 2 if any(mask.any() for mask in usable) else 1
    height = METRIC_HEIGHT + (LOSS_HEIGHT if panels == 2 else 0)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        ratios = [METRIC_HEIGHT, LOSS_HEIGHT][:panels]
        upper, *rest = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        figure.subplots_adjust(left=0.085, right=0.8, bottom=0.48 / height, top=1 - 0.12 / height, hspace=0.1)

        others = [line.name for line in lines if line.name != baseline]
        look = {name: (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i, name in enumerate(others)}
        look[baseline] = (BASELINE, "-")
        upper.axhline(target, color=BASELINE, linewidth=0.8, linestyle=(0, (2, 2)))
        for line in lines:
            colour, dashes = look[line.name]
            marker = "o" if len(line.steps) <= 30 else None
            upper.plot(line.steps, line.values, color=colour, linestyle=dashes, linewidth=1.6, marker=marker, markersize=3.2)
            if line.note and len(line.steps):
                upper.plot(line.steps[-1], line.values[-1], color=colour, marker="X", markersize=8, markeredgecolor="white")
        upper.set_ylabel(metric, parse_math=False)
        furthest = max((float(x[-1]) for line in lines for x in (line.steps, line.loss_steps) if len(x)), default=1.0)
        upper.set_xlim(0.0, 1.015 * furthest)
        half = max(int(mask.sum()) for mask in usable) // 100
        for line, mask in zip(lines, usable, strict=True):
            if not rest or not mask.any():
                continue
            colour, dashes = look[line.name]
            x, y = line.loss_steps[mask], line.loss[mask]
            smooth = _smooth(y, half)
            if half:
                rest[0].plot(x, y, color=colour, linewidth=0.5, alpha=0.25)
            rest[0].plot(x, smooth, color=colour, linestyle=dashes, linewidth=1.4)
            if line.note:
                rest[0].plot(x[-1], smooth[-1], color=colour, marker="X", markersize=8, markeredgecolor="white")
        for axes in rest:
            axes.set_yscale("log")
            axes.set_ylabel("training loss")
            axes.yaxis.set_minor_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(1.5, 0.6)))
        bottom = rest[0] if rest else upper
        bottom.set_xlabel(xlabel)
        bottom.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x == round(x) else f"{x:g}"))

        # beside the start of the curves, on the side that they come from last
        upper.annotate(
            f"best of {baseline}: {target:.{2 if abs(target) >= 1.5 else 4}f}",
            (0.0, target),
            xycoords=("axes fraction", "data"),
            xytext=(3, -3 if lower_is_better else 3),
            textcoords="offset points",
            va="top" if lower_is_better else "bottom",
            fontsize=8,
            color=BASELINE,
            parse_math=False,
        )
        upper.get_ylim()  # has the limits set, which wait for the first drawing otherwise
        labels = []
        for line in lines:
            wish = _height_of(upper, float(line.values[-1])) if len(line.values) else 0.0
            text = line.name + (f"\n({line.note})" if line.note else "")
            labels.append((text, *look[line.name], wish))
        room = _label(upper, labels, samples=len(others) > len(COLOURS))
        figure.subplots_adjust(right=1 - (room + 0.1) / WIDTH)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
