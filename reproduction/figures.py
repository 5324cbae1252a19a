"""The figures of the claims, as PNG. Errors in per cent; medians over trials with their bootstrap intervals.

A figure that the runs there are cannot be drawn of is None.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gbseg.report.curve import BASELINE, COLOURS, DASHES, DPI, STYLE, WIDTH, Dashes
from gbseg.report.gradient_log import GradientHistory
from reproduction.summary import Summary

__all__ = ["FIGURES", "colours"]


def colours(arms: Mapping[str, object]) -> dict[str, tuple[str, Dashes]]:
    """A colour and a dash pattern for every arm; grey for the plain softmax."""
    others = [arm for arm in arms if arm != "softmax"]
    found = {arm: (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i, arm in enumerate(others)}
    return {arm: found.get(arm, (BASELINE, "-")) for arm in arms}


def _finish(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_curves(summary: Summary) -> bytes | None:
    """Median error by epoch, the interval as a band."""
    looks = colours(summary.arms)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        for arm, found in summary.arms.items():
            if not found.curve:
                continue
            colour, dashes = looks[arm]
            median = [point.median for point in found.curve]
            marker = "o" if len(median) <= 30 else None
            label = f"{arm} ({len(found.sound)})" + (f", {found.diverged} diverged" if found.diverged else "")
            axes.plot(found.epochs, median, color=colour, linestyle=dashes, marker=marker, markersize=3, label=label)
            low = [point.low for point in found.curve if point.low is not None]
            high = [point.high for point in found.curve if point.high is not None]
            if len(low) == len(median):
                axes.fill_between(found.epochs, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel("test error (%), median of (n) trials")
        # the first epochs of long runs would flatten all that follows
        ends = [point.median for found in summary.arms.values() for point in found.curve[len(found.curve) // 20 :]]
        if ends:
            axes.set_ylim(top=max(ends) * 1.05)
        if ends:
            _legend(axes)
        return _finish(figure)


def draw_histograms(summary: Summary) -> bytes | None:
    """The distributions of the output deltas of the first trial: a column an arm, a row an iteration that has one."""
    arms = {arm: found.histograms for arm, found in _gradients(summary).items()}
    rows = max((len(found) for found in arms.values()), default=0)
    if not rows:
        return None
    looks = colours(summary.arms)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.9 * rows), dpi=DPI, layout="constrained")
        grid = figure.subplots(rows, len(arms), squeeze=False)
        for column, (arm, histograms) in enumerate(arms.items()):
            for axes, (iteration, found) in zip(grid[:, column], sorted(histograms.items()), strict=False):
                axes.stairs(found.counts, found.edges, fill=True, color=looks[arm][0])
                axes.set_yscale("log")
                axes.set_title(f"{arm}, iteration {iteration}", fontsize=8)
        figure.supxlabel("output delta", fontsize=9)
        figure.supylabel("number", fontsize=9)
        return _finish(figure)


def draw_rms(summary: Summary) -> bytes | None:
    """RMS of the error gradients over each epoch of the first trial: a panel a layer, the output first."""
    series = _gradients(summary)
    layers = list(dict.fromkeys(layer for found in series.values() for layer in found.rms))
    if not layers:
        return None
    looks = colours(summary.arms)
    rows = -(-len(layers) // 3)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.2 * rows), dpi=DPI, layout="constrained")
        panels = figure.subplots(rows, min(3, len(layers)), squeeze=False, sharex=True).flat
        for axes, layer in zip(panels, layers, strict=False):
            for arm, found in series.items():
                axes.plot(*found.rms_by_epoch(layer), color=looks[arm][0], label=arm, marker="o", markersize=2.5)
            axes.set_yscale("log")
            axes.set_title(layer, fontsize=8)
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel("RMS of the error gradients", fontsize=9)
        figure.axes[0].legend(frameon=False, fontsize=8)
        return _finish(figure)


def draw_normaliser(summary: Summary) -> bytes | None:
    """The softmax's normaliser ``s = sum_j exp(x_j)`` by iteration: median of the batch and its range, first trial."""
    found = _gradients(summary).get("softmax")
    if found is None:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        low, high = found.normaliser("min"), found.normaliser("max")
        axes.plot(found.iterations, found.normaliser("median"), color=BASELINE, label="median of the batch")
        axes.fill_between(found.iterations, low, high, color=BASELINE, alpha=0.18, linewidth=0, label="least to greatest")
        axes.axhline(2342, color=COLOURS[1], linestyle=(0, (2, 2)), linewidth=0.8, label="the paper's first, 2,342")
        axes.set_yscale("log")
        axes.set_xlabel("iteration")
        axes.set_ylabel("softmax normaliser s")
        _legend(axes)
        return _finish(figure)


def _gradients(summary: Summary) -> dict[str, GradientHistory]:
    return {arm: histories[0] for arm, found in summary.arms.items() if (histories := found.gradients())}


FIGURES: dict[str, Callable[[Summary], bytes | None]] = {
    "curves": draw_curves,
    "histograms": draw_histograms,
    "rms": draw_rms,
    "normaliser": draw_normaliser,
}
