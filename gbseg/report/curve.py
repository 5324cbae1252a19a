"""Figures of convergence, a metric against iterations or epochs, and what all figures share: palette, style, PNG.

Runs are drawn as lines with their names beside their ends, bands of uncertainty around them where there are any, and the
training losses in a panel of their own below.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context, rc_params_from_file
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation
from matplotlib.transforms import ScaledTranslation

from gbseg.files import write_atomically

Dashes = str | tuple[int, tuple[float, ...]]

# Okabe and Ito's palette without its yellow, which is too light for lines on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BASELINE = "#404040"
DASHES: tuple[Dashes, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)))
# a dict, so that `STYLE | {...}` changes some of it
STYLE: Any = dict(rc_params_from_file(Path(__file__).with_name("figures.mplstyle"), use_default_template=False))
WIDTH, METRIC_HEIGHT, LOSS_HEIGHT, DPI = 7.2, 3.4, 1.9, 200  # inches and dots an inch


@dataclass(frozen=True)
class Line:
    """One line of the figure.

    Attributes:
        name: its label.
        steps: (m,) where the metric was measured, in the axis's unit.
        values: (m,) the metric.
        loss_steps: (n,) where the loss was logged, in the axis's unit; empty for none.
        loss: (n,) the training loss.
        note: how the run went wrong, empty if it did not.
        band: (2, m) lower and upper ends of the intervals of ``values``; None for none.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    loss_steps: np.ndarray = field(default_factory=lambda: np.empty(0))
    loss: np.ndarray = field(default_factory=lambda: np.empty(0))
    note: str = ""
    band: np.ndarray | None = None


def figure_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG.

    To be called within the ``rc_context`` that the figure was made in: matplotlib makes ticks as late as this.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def line_styles(names: Iterable[str], baseline: str) -> dict[str, tuple[str, Dashes]]:
    """Colour and dash pattern of every line by its name: grey and solid for the baseline."""
    styles: dict[str, tuple[str, Dashes]] = {}
    for name in names:
        number = len(styles) - (baseline in styles)
        look = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        styles[name] = (BASELINE, "-") if name == baseline else look
    return styles


def spread_labels(centres: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Move labels along an axis such that they do not overlap and keep their order.

    Args:
        centres: the preferred positions of the labels, in any order.
        sizes: the length of each label along the axis.
        low: the lower end of the axis.
        high: its upper end. If there is too little room, labels go below ``low``.

    Returns:
        The new centres, in the order of ``centres``.
    """
    order = np.argsort(centres, kind="stable").tolist()
    placed, halves = [float(centre) for centre in centres], [float(size) / 2 for size in sizes]
    for i in order:
        placed[i] = max(placed[i], low + halves[i])
        low = placed[i] + halves[i]
    for i in reversed(order):
        placed[i] = min(placed[i], high - halves[i])
        high = placed[i] - halves[i]
    return placed


def _label(axes: Axes, labels: Sequence[tuple[str, str, Dashes, float]], samples: bool) -> float:
    """Write labels to the right of the axes and return their width in inches.

    A label is its text, its colour, its line's dashes, and its preferred position on the axes' height (0..1). ``samples`` puts
    a piece of the line before each label, for figures in which lines share a colour.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    height = axes.get_window_extent().height / figure.dpi
    sizes = [0.155 * (text.count("\n") + 1) / height for text, *_ in labels]
    renderer = FigureCanvasAgg(figure).get_renderer()
    room, start = 0.0, 0.36 if samples else 0.08
    positions = spread_labels([preferred for *_, preferred in labels], sizes, 0.0, 1.0)
    for (text, colour, dashes, _), y in zip(labels, positions, strict=True):
        # offsets in points: the axes become narrower once the width of the labels is known
        style: dict[str, Any] = dict(color=colour, va="center", linespacing=1.1, parse_math=False)  # a name may hold dollars
        drawn = axes.annotate(text, (1, y), (72 * start, 0), xycoords="axes fraction", textcoords="offset points", **style)
        if samples:
            inch = figure.dpi_scale_trans + ScaledTranslation(1.0, y, axes.transAxes)  # type: ignore[arg-type]
            axes.plot([0.06, 0.3], [0.0, 0.0], transform=inch, color=colour, linestyle=dashes, linewidth=1.6, clip_on=False)
        room = max(room, start + drawn.get_window_extent(renderer).width / figure.dpi)
    return room


def _height_of(axes: Axes, value: float) -> float:
    """The position of a value on the y axis, as a share of the axes' height."""
    return float(axes.transAxes.inverted().transform(axes.transData.transform((0.0, value)))[1])


def _smooth(values: np.ndarray, half: int) -> np.ndarray:
    """Centred geometric mean over 2 * half + 1 points, fewer at the ends."""
    window, middle = np.ones(2 * half + 1), slice(half, half + len(values))
    sums, counts = (np.convolve(terms, window)[middle] for terms in (np.log(values), np.ones(len(values))))
    return np.exp(sums / counts)


def render_curves(
    lines: Sequence[Line],
    metric: str,
    xlabel: str,
    baseline: str,
    target: float | None = None,
    lower_is_better: bool = False,
    top: float | None = None,
) -> bytes:
    """Draw the metric of every run against the steps, and under it the training losses on a log scale.

    The levels of different losses are not comparable, hence the log scale. The lower panel is left out where no line has a
    loss. Losses are smoothed over a fiftieth of the longest run's points; behind them the raw ones are pale. A line without
    any value has a label only if it has a note.

    Args:
        lines: the runs.
        metric: the upper panel's y label.
        xlabel: the x label.
        baseline: the name of the line drawn in grey.
        target: the baseline's best value, which is marked; None to mark none.
        lower_is_better: whether small values are good.
        top: the upper end of the metric's axis; None to fit the values.

    Returns:
        A PNG, 7.2 inches wide at 200 dots an inch.
    """
    usable = [np.isfinite(line.loss) & (line.loss > 0) for line in lines]
    panels = 2 if any(mask.any() for mask in usable) else 1
    height = METRIC_HEIGHT + (LOSS_HEIGHT if panels == 2 else 0)
    look = line_styles((line.name for line in lines), baseline)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        ratios = [METRIC_HEIGHT, LOSS_HEIGHT][:panels]
        upper, *rest = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        figure.subplots_adjust(left=0.085, right=0.8, bottom=0.48 / height, top=1 - 0.12 / height, hspace=0.1)

        for line in lines:
            _draw_metric(upper, line, *look[line.name])
        upper.set_ylabel(metric, parse_math=False)
        furthest = max((float(x[-1]) for line in lines for x in (line.steps, line.loss_steps) if len(x)), default=1.0)
        upper.set_xlim(0.0, 1.015 * furthest)
        if top is not None:
            upper.set_ylim(top=top)
        for axes in rest:
            _draw_losses(axes, lines, usable, look)
        bottom = rest[0] if rest else upper
        bottom.set_xlabel(xlabel)
        bottom.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x == round(x) else f"{x:g}"))
        if target is not None:
            _mark_target(upper, f"best of {baseline}", target, lower_is_better)
        upper.get_ylim()  # sets the limits, which matplotlib computes at the first drawing otherwise
        labels = []
        for line in (line for line in lines if len(line.values) or line.note):
            height_share = _height_of(upper, float(line.values[-1])) if len(line.values) else 0.0
            text = line.name + (f"\n({line.note})" if line.note else "")
            labels.append((text, *look[line.name], height_share))
        room = _label(upper, labels, samples=len(look.keys() - {baseline}) > len(COLOURS))
        figure.subplots_adjust(right=1 - (room + 0.1) / WIDTH)
        return figure_png(figure)


def draw_curves(
    lines: Sequence[Line], path: Path, metric: str, xlabel: str, baseline: str, target: float, lower_is_better: bool = False
) -> None:
    """Write what `render_curves` draws to a PNG, atomically."""
    write_atomically(render_curves(lines, metric, xlabel, baseline, target, lower_is_better), path)


def _draw_metric(axes: Axes, line: Line, colour: str, dashes: Dashes) -> None:
    marker = "o" if len(line.steps) <= 30 else None
    axes.plot(line.steps, line.values, color=colour, linestyle=dashes, linewidth=1.6, marker=marker, markersize=3.2)
    if line.band is not None:
        axes.fill_between(line.steps, *line.band, color=colour, alpha=0.18, linewidth=0)
    if line.note and len(line.steps):
        axes.plot(line.steps[-1], line.values[-1], color=colour, marker="X", markersize=8, markeredgecolor="white")


def _draw_losses(axes: Axes, lines: Sequence[Line], usable: Sequence[np.ndarray], look: dict[str, tuple[str, Dashes]]) -> None:
    half = max(int(mask.sum()) for mask in usable) // 100
    for line, mask in zip(lines, usable, strict=True):
        if not mask.any():
            continue
        colour, dashes = look[line.name]
        x, y = line.loss_steps[mask], line.loss[mask]
        smooth = _smooth(y, half)
        if half:
            axes.plot(x, y, color=colour, linewidth=0.5, alpha=0.25)
        axes.plot(x, smooth, color=colour, linestyle=dashes, linewidth=1.4)
        if line.note:
            axes.plot(x[-1], smooth[-1], color=colour, marker="X", markersize=8, markeredgecolor="white")
    axes.set_yscale("log")
    axes.set_ylabel("training loss")
    axes.yaxis.set_minor_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(1.5, 0.6)))


def _mark_target(axes: Axes, name: str, target: float, lower_is_better: bool) -> None:
    axes.axhline(target, color=BASELINE, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1.9)
    # at the left end, on the side of the target that the curves reach last
    offset, va = ((3, -3), "top") if lower_is_better else ((3, 3), "bottom")
    style: dict[str, Any] = dict(va=va, fontsize=8, color=BASELINE, parse_math=False)
    text = f"{name}: {target:.{2 if abs(target) >= 1.5 else 4}f}"
    axes.annotate(text, (0, target), offset, xycoords=("axes fraction", "data"), textcoords="offset points", **style)
