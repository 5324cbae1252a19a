"""Figures of a test: the confusion matrix, and the reliability diagram."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from gbseg.evaluation.calibration import Reliability
from gbseg.report.curve import BASELINE, COLOURS, DPI, STYLE, figure_png

__all__ = ["draw_confusion", "draw_reliability", "row_shares"]

NAMED = 60  # classes whose names and numbers fit on a figure


def row_shares(matrix: np.ndarray) -> np.ndarray:
    """(C, C) float64: the share of every label's pixels that each prediction has; NaN in rows without a pixel."""
    matrix = np.asarray(matrix, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return matrix / matrix.sum(1, keepdims=True)


def draw_confusion(matrix: np.ndarray, class_names: Sequence[str]) -> bytes:
    """The confusion matrix, each row divided by its sum, as the bytes of a PNG.

    Rows are labels, columns predictions. The numbers are percent of the row's pixels, left out below half a percent. Shades are
    proportional to the square root of the share, to make small confusions visible. A class without labels has a hatched row.

    Args:
        matrix: (C, C) counts.
        class_names: the C names.
    """
    shares, count = row_shares(matrix), len(class_names)
    named = count <= NAMED
    side = max(3.4, 0.31 * count) if named else 8.0
    margin = 0.35 + 0.066 * max(map(len, class_names)) if named else 0.6
    size = side + margin + 0.15
    with rc_context(STYLE | {"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(size, size), dpi=DPI)
        axes = figure.add_axes((margin / size, 0.15 / size, side / size, side / size))
        axes.imshow(np.nan_to_num(shares), cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="equal", interpolation="nearest")
        axes.set_xlabel("predicted", labelpad=6)
        axes.set_ylabel("labelled", labelpad=6)
        axes.xaxis.set_label_position("top")
        axes.xaxis.tick_top()
        axes.tick_params(which="both", length=0)
        if named:
            axes.set_xticks(range(count), class_names, rotation=90, fontsize=7.5, parse_math=False)
            axes.set_yticks(range(count), class_names, fontsize=7.5, parse_math=False)
            axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
            axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
            axes.grid(which="minor", color="#e6e6e6", linewidth=0.5)
        for row in range(count):
            if np.isnan(shares[row, 0]):
                axes.axhspan(row - 0.5, row + 0.5, facecolor="none", edgecolor="#c0c0c0", hatch="////", linewidth=0)
                continue
            for column in np.flatnonzero(shares[row] >= 0.005).tolist() if named else ():
                share = shares[row, column]
                colour = "white" if share > 0.4 else "#202020"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
        return figure_png(figure)


def draw_reliability(reliability: Reliability, name: str) -> bytes:
    """A reliability diagram (accuracy against confidence) above the share of the pixels in every bin, as a PNG.

    Args:
        reliability: from `gbseg.evaluation.calibration.Calibration.reliability`.
        name: the name of what was tested.
    """
    count = len(reliability.pixels)
    edges = np.arange(count) / count
    accuracy, confidence = np.array(reliability.accuracy), np.array(reliability.confidence)
    share = np.array(reliability.pixels) / sum(reliability.pixels)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2, 5.0), dpi=DPI)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        figure.subplots_adjust(left=0.14, right=0.97, bottom=0.1, top=0.94, hspace=0.08)
        upper.plot((0, 1), (0, 1), color=BASELINE, linewidth=0.8, linestyle=(0, (2, 2)), label="perfectly calibrated")
        upper.bar(edges, np.nan_to_num(accuracy), 1 / count, align="edge", color=COLOURS[0], alpha=0.35, linewidth=0)
        upper.plot(confidence, accuracy, "o", color=COLOURS[0], markersize=4, label="pixels of one bin")
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
        upper.set_title(f"{name}: ECE {100 * reliability.ece:.2f}%", fontsize=9, loc="left", parse_math=False)
        upper.legend(loc="upper left", frameon=False, fontsize=8)
        lower.bar(edges, share, 1 / count, align="edge", color=BASELINE, alpha=0.6, linewidth=0)
        lower.set(xlabel="probability of the predicted class", ylabel="pixels")
        lower.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
        return figure_png(figure)
