"""The figures of the claims, as PNG. Errors in per cent; medians over trials with their bootstrap intervals.

A figure that the runs there are cannot be drawn of is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gbseg.report.curve import BASELINE, COLOURS, DPI, STYLE, WIDTH, Dashes, Line, figure_png, line_styles, render_curves
from gbseg.report.gradient_log import GradientHistory
from reproduction.summary import Summary

__all__ = ["FIGURES", "colours"]


def colours(arms: Iterable[str]) -> dict[str, tuple[str, Dashes]]:
    """A colour and a dash pattern for every arm; grey for the plain softmax."""
    return line_styles(arms, "softmax")


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_curves(summary: Summary) -> bytes | None:
    """Median error by epoch, the interval as a band."""
    lines, labels = [], {}
    for name, arm in summary.arms.items():
        labels[name] = f"{name} ({len(arm.sound)})" + (f", {arm.diverged} diverged" if arm.diverged else "")
        band = [(point.low, point.high) for point in arm.curve if point.low is not None and point.high is not None]
        lines.append(
            Line(
                name=labels[name],
                steps=np.array(arm.epochs[: len(arm.curve)]),
                values=np.array([point.median for point in arm.curve]),
                band=np.array(band).T if band and len(band) == len(arm.curve) else None,
            )
        )
    # the first epochs of long runs would flatten all that follows
    ends = [point.median for arm in summary.arms.values() for point in arm.curve[len(arm.curve) // 20 :]]
    top = 1.05 * max(ends) if ends else None
    return render_curves(lines, "test error (%), median of (n) trials", "epoch", labels.get("softmax", ""), top=top)


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
        return figure_png(figure)


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
        return figure_png(figure)


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
        return figure_png(figure)


def _gradients(summary: Summary) -> dict[str, GradientHistory]:
    return {arm: histories[0] for arm, found in summary.arms.items() if (histories := found.gradients())}


FIGURES: dict[str, Callable[[Summary], bytes | None]] = {
    "curves": draw_curves,
    "histograms": draw_histograms,
    "rms": draw_rms,
    "normaliser": draw_normaliser,
}
