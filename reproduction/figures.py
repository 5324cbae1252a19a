"""The figures of the claims, as PNG. Errors in per cent; medians over trials with their bootstrap intervals.

A drawing function returns None if the runs have no data for its figure.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from gbseg.report.curve import BASELINE, COLOURS, DPI, STYLE, WIDTH, Line, figure_png, line_styles, render_curves
from gbseg.report.gradient_log import GradientHistory
from reproduction.summary import Summary

__all__ = ["FIGURES"]


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
    """Histograms of the output deltas of the first trial: one column per arm, one row per recorded iteration."""
    arms = {arm: history.histograms for arm, history in _gradients(summary).items()}
    rows = max((len(histograms) for histograms in arms.values()), default=0)
    if not rows:
        return None
    styles = line_styles(summary.arms, "softmax")
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.9 * rows), dpi=DPI, layout="constrained")
        grid = figure.subplots(rows, len(arms), squeeze=False)
        for column, (arm, histograms) in enumerate(arms.items()):
            for axes, (iteration, histogram) in zip(grid[:, column], sorted(histograms.items()), strict=False):
                axes.stairs(histogram.counts, histogram.edges, fill=True, color=styles[arm][0])
                axes.set_yscale("log")
                axes.set_title(f"{arm}, iteration {iteration}", fontsize=8)
        figure.supxlabel("output delta", fontsize=9)
        figure.supylabel("number", fontsize=9)
        return figure_png(figure)


def draw_rms(summary: Summary) -> bytes | None:
    """RMS of the error gradients by epoch of the first trial: one panel per layer, the output first."""
    histories = _gradients(summary)
    layers = list(dict.fromkeys(layer for history in histories.values() for layer in history.rms))
    if not layers:
        return None
    styles = line_styles(summary.arms, "softmax")
    rows = -(-len(layers) // 3)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.2 * rows), dpi=DPI, layout="constrained")
        panels = figure.subplots(rows, min(3, len(layers)), squeeze=False, sharex=True).flat
        for axes, layer in zip(panels, layers, strict=False):
            for arm, history in histories.items():
                axes.plot(*history.rms_by_epoch(layer), color=styles[arm][0], label=arm, marker="o", markersize=2.5)
            axes.set_yscale("log")
            axes.set_title(layer, fontsize=8)
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel("RMS of the error gradients", fontsize=9)
        figure.axes[0].legend(frameon=False, fontsize=8)
        return figure_png(figure)


def draw_normaliser(summary: Summary) -> bytes | None:
    """The softmax's normaliser ``s = sum_j exp(x_j)`` by iteration: median of the batch and its range, first trial."""
    history = _gradients(summary).get("softmax")
    if history is None:
        return None
    low, median, high = (history.normaliser(name) for name in ("min", "median", "max"))
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        axes.plot(history.iterations, median, color=BASELINE, label="median of the batch")
        axes.fill_between(history.iterations, low, high, color=BASELINE, alpha=0.18, linewidth=0, label="least to greatest")
        axes.axhline(2342, color=COLOURS[1], linestyle=(0, (2, 2)), linewidth=0.8, label="the paper's first, 2,342")
        axes.set_yscale("log")
        axes.set_xlabel("iteration")
        axes.set_ylabel("softmax normaliser s")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure_png(figure)


def _gradients(summary: Summary) -> dict[str, GradientHistory]:
    """The gradients of the first trial, by arm."""
    return {name: histories[0] for name, arm in summary.arms.items() if (histories := arm.gradients())}


FIGURES: dict[str, Callable[[Summary], bytes | None]] = {
    "curves": draw_curves,
    "histograms": draw_histograms,
    "rms": draw_rms,
    "normaliser": draw_normaliser,
}
