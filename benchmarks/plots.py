"""The figures of the tables: ``python -m benchmarks.plots results/speed`` draws ``loss``, ``growth`` and ``gather.png``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.table import Row, read_table
from gbseg.report.curve import BASELINE, COLOURS, DPI, STYLE, WIDTH

BAR, PANEL = 0.21, 1.55  # inches: the height of a bar, of a panel
PAPER = dict(facecolor="white", edgecolor="none", pad=0.5)  # behind a number, over lines


def _colour(contender: str) -> str:
    ours = contender.startswith(("exp-GB", "ExpGBLoss", "pow3-GB")) and "PyTorch" not in contender
    return COLOURS[0] if ours else BASELINE


def _bars(axes: Axes, rows: Sequence[Row], values: Sequence[float | None], shown: str) -> None:
    """Bars from the top down, each with its value; none where nothing was measured."""
    for position, (row, value) in enumerate(zip(rows, values, strict=True)):
        if value is None:
            axes.annotate("not run", (0, position), xytext=(3, 0), textcoords="offset points", va="center", color="#808080")
            continue
        axes.barh(position, value, height=0.68, color=_colour(row.contender))
        axes.annotate(
            shown.format(value), (value, position), xytext=(3, 0), textcoords="offset points", va="center", bbox=PAPER
        )
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * max((value for value in values if value is not None), default=1.0))
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


def draw_loss(rows: Sequence[Row], path: Path) -> None:
    """Median time relative to the row's ``ratio_to``, and peak memory; one pair of panels a shape.

    Args:
        rows: of the benchmark 'loss'.
        path: the PNG to write, 7.2 inches wide at 200 dots an inch.
    """
    shapes = list(dict.fromkeys(row.shape for row in rows))
    groups = [[row for row in rows if row.shape == shape] for shape in shapes]
    heights = [BAR * len(group) + 0.75 for group in groups]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, sum(heights)), dpi=DPI, layout="constrained")
        panels = figure.subplots(len(groups), 2, squeeze=False, sharey="row", height_ratios=heights)
        for (left, right), group, shape in zip(panels, groups, shapes, strict=True):
            compared = next((row.ratio_to for row in group if row.ratio_to), "")
            _bars(left, group, [row.ratio for row in group], "{:.2f}")
            _bars(right, group, [row.peak_mib for row in group], "{:,.0f}")
            left.set_yticks(range(len(group)), [row.contender for row in group], parse_math=False)
            left.axvline(1, color=BASELINE, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.6)
            left.set_xlabel(f"median time / that of {compared}")
            right.set_xlabel("peak memory beyond the inputs, MiB")
            left.set_title(f"logits {shape.replace('x', ' x ')}", fontsize=9, loc="left")
        figure.savefig(path)


def _short(size: int) -> str:
    return f"{size // 1000}k" if size >= 1000 and size % 1000 == 0 else str(size)


def draw_growth(rows: Sequence[Row], path: Path) -> None:
    """Time with its quartiles, and peak memory, against what grows, on logarithmic axes; one column for each thing that grows.

    Args:
        rows: of the benchmark 'growth'; those that were not run are left out.
        path: the PNG to write, 7.2 inches wide at 200 dots an inch.
    """
    rows = [row for row in rows if row.size is not None and row.median_ms is not None]
    variables = list(dict.fromkeys(row.what for row in rows))
    contenders = list(dict.fromkeys(row.contender for row in rows))
    # the first is what the others are compared with
    look = {name: BASELINE if i == 0 else COLOURS[(i - 1) % len(COLOURS)] for i, name in enumerate(contenders)}
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2 * PANEL + 0.9), dpi=DPI, layout="constrained")
        panels = figure.subplots(2, len(variables), squeeze=False, sharex="col", sharey="row")
        for what, upper, lower in zip(variables, *panels, strict=True):
            sizes = sorted({row.size for row in rows if row.what == what})
            for name in contenders:
                line = [row for row in rows if (row.what, row.contender) == (what, name)]
                style = dict(color=look[name], linewidth=1.4, marker="o", markersize=3)
                at = [row.size for row in line]
                upper.fill_between(
                    at,
                    [row.quartile_1 for row in line],
                    [row.quartile_3 for row in line],
                    color=look[name],
                    alpha=0.2,
                    linewidth=0,
                )
                upper.plot(at, [row.median_ms for row in line], label=name, **style)
                lower.plot(at, [row.peak_mib for row in line], **style)
            lower.set_xlabel(what)
            for axes in (upper, lower):
                axes.set(xscale="log", yscale="log")
                low, high = axes.get_ylim()
                # of less than two decades the powers of ten are too few to read anything from
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=8))
                axes.yaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
                axes.set_xticks(sizes, [_short(size) for size in sizes], fontsize=7.5)
                axes.xaxis.set_minor_locator(NullLocator())
        panels[0, 0].set_ylabel("median time, ms")
        panels[1, 0].set_ylabel("peak memory, MiB")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=len(contenders), frameon=False)
        figure.savefig(path)


def main() -> None:
    """Draw every figure whose table is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the tables are and the figures go")
    folder = parser.parse_args().folder
    for name, draw in {"loss": draw_loss, "growth": draw_growth, "gather": draw_growth}.items():
        for table in (folder / f"{name}.csv", folder / f"{name}_cuda.csv"):
            if table.exists():
                draw(read_table(table)[1], table.with_suffix(".png"))
                print(f"The figure is in {table.with_suffix('.png')}")


if __name__ == "__main__":
    main()
