"""Runs side by side: a metric by step, the best value of each, and when each first reaches the baseline's best."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gbseg.report.convergence import area_under, first_below
from gbseg.report.curve import Line, draw_curves
from gbseg.report.history import RunHistory, read_history

NOT_REACHED = "not reached"


@dataclass(frozen=True)
class RunResult:
    """One run of a comparison. Steps are in the comparison's ``unit``.

    Attributes:
        name: what the run is called.
        steps: the steps with a finite value of the metric, rising.
        values: the metric at those steps.
        best: the best value; None without values.
        best_step: the first step with that value.
        reached_step: the first step with a value no worse than the baseline's best; None where there is none.
        mean: mean of the metric over ``Comparison.mean_range``, interpolated linearly between validations; None where the run
            diverged or does not cover the range. The area under the error curve is ``perfect value - mean``, times the
            range's length.
        ended_early: whether another run was validated after this one's last validation.
        diverged_at: the first iteration with a non-finite loss; None if there is none.
        last_iteration: the last iteration that was logged.
        superseded: log lines left out because a later start repeated their iterations.
    """

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    best: float | None
    best_step: int | None
    reached_step: int | None
    mean: float | None
    ended_early: bool
    diverged_at: int | None
    last_iteration: int
    superseded: int

    @property
    def failure(self) -> str:
        """How and when the run failed; empty if it did not."""
        if self.diverged_at is not None:
            return f"diverged at iteration {self.diverged_at:,}"
        return f"ended early at iteration {self.last_iteration:,}" if self.ended_early else ""

    @property
    def status(self) -> str:
        """``complete``, or how and when the run failed."""
        return self.failure or "complete"


@dataclass(frozen=True)
class Comparison:
    """Several runs by one metric.

    Attributes:
        metric: the metric's key in the logs.
        baseline: the run whose best value the others are to reach.
        unit: what steps count, ``iteration`` or ``epoch``.
        epoch_length: iterations per epoch; None where it was not given.
        lower_is_better: whether small values of the metric are good.
        mean_range: from the latest of the runs' first validations to the last validation of any run; None where the two are
            the same step.
        runs: in the order given.
    """

    metric: str
    baseline: str
    unit: Literal["iteration", "epoch"]
    epoch_length: int | None
    lower_is_better: bool
    mean_range: tuple[int, int] | None
    runs: tuple[RunResult, ...]

    @property
    def target(self) -> float:
        """The baseline's best value."""
        best = self._baseline.best
        assert best is not None
        return best

    @property
    def _baseline(self) -> RunResult:
        return next(run for run in self.runs if run.name == self.baseline)

    @property
    def _steps(self) -> list[int]:
        return sorted({step for run in self.runs for step in run.steps})

    def rows(self) -> list[list[Any]]:
        """The table as numbers and text: a header, one row a step, then the summary; None where there is no value."""
        epoch_length = self.epoch_length if self.unit == "iteration" else None
        runs, best = self.runs, self._baseline.best_step

        def in_units(label: str, steps: list[int | None], missing: str | None) -> list[list[Any]]:
            table: list[list[Any]] = [[f"{label} {self.unit}", "", *(missing if step is None else step for step in steps)]]
            if epoch_length is not None:
                epochs = (missing if step is None else step / epoch_length for step in steps)
                table.append([f"{label} epoch", "", *epochs])
            return table

        by_step = [dict(zip(run.steps, run.values, strict=True)) for run in runs]
        reached = [run.reached_step for run in runs]
        table: list[list[Any]] = [
            [self.unit, "epoch", *(run.name for run in runs)],
            *([step, step / (epoch_length or 1), *(values.get(step) for values in by_step)] for step in self._steps),
            [f"best {self.metric}", "", *(run.best for run in runs)],
            *in_units("best at", [run.best_step for run in runs], None),
            *in_units(f"reaches {self.baseline}'s best at", reached, NOT_REACHED),
            [f"{self.unit}s to it, {self.baseline} = 1", "", *(step / best if step and best else None for step in reached)],
        ]
        if self.mean_range is not None:
            low, high = self.mean_range
            table.append([f"mean {self.metric}, {self.unit} {low} to {high}", "", *(run.mean for run in runs)])
        table.append(["status", "", *(run.status for run in runs)])
        return table if epoch_length is not None else [[row[0], *row[2:]] for row in table]

    def _cells(self) -> list[list[str]]:
        """`rows` as short text."""
        digits = 2 if abs(self.target) >= 1.5 else 4  # a percentage or a fraction

        def text(cell: Any, digits: int) -> str:
            return "-" if cell is None else f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)

        cells = []
        for row in self.rows():
            is_metric = not isinstance(row[0], str) or row[0].startswith((f"best {self.metric}", f"mean {self.metric},"))
            labels, values = row[: -len(self.runs)], row[-len(self.runs) :]
            cells.append([text(cell, 2) for cell in labels] + [text(cell, digits if is_metric else 2) for cell in values])
        return cells

    def table(self) -> str:
        """The table as plain text for a terminal."""
        cells = self._cells()
        first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([label.ljust(first), *(cell.rjust(width) for cell, width in zip(row, others, strict=True))])
            for label, *row in cells
        ]
        rule, summary = "-" * len(lines[0]), len(self._steps) + 1
        return "\n".join([lines[0], rule, *lines[1:summary], rule, *lines[summary:]])

    def markdown(self) -> str:
        """The table as Markdown, under a heading and the figure."""
        head, *body = [[cell.replace("|", "\\|") for cell in row] for row in self._cells()]
        lines = [f"# {self.metric}: {', '.join(run.name for run in self.runs)}", "", "![curves](curve.png)", ""]
        lines += [f"| {' | '.join(row)} |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *body)]
        notes = [
            f"{run.name}: {run.superseded} log lines of an earlier start were left out, a later one went over them again."
            for run in self.runs
            if run.superseded
        ]
        return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"

    def as_csv(self) -> str:
        """The table as CSV, numbers in full, nothing where there is no value."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.rows())  # None is written as an empty field
        return text.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; an epoch beside every step where ``epoch_length`` is known."""
        content = asdict(self) | {"target": self.target}
        for entry, run in zip(content["runs"], self.runs, strict=True):
            entry["status"] = run.status
            if self.unit == "iteration" and self.epoch_length is not None:
                for key, step in (("best_epoch", run.best_step), ("reached_epoch", run.reached_step)):
                    entry[key] = None if step is None else step / self.epoch_length
        return content


def _curve(name: str, history: RunHistory, metric: str, unit: str, epoch_length: int | None) -> tuple[np.ndarray, np.ndarray]:
    """A run's validation steps in the comparison's unit, and the metric at them."""
    steps = history.val_steps
    if not len(steps):
        return steps, np.empty(0)
    if history.val_in_epochs != (unit == "epoch"):
        if epoch_length is None:
            have, required = ("epochs", "iterations") if history.val_in_epochs else ("iterations", "epochs")
            raise ValueError(f"{name} was validated by {have}: to show {required}, give epoch_length")
        steps = steps * epoch_length  # with an epoch_length the unit is the iteration
    if metric not in history.metrics:
        raise ValueError(f"{name} has no metric {metric!r}; it has {', '.join(history.metrics) or 'none'}")
    return steps, history.metrics[metric]


def compare(
    runs: Mapping[str, str | Path],
    out_dir: str | Path,
    metric: str,
    baseline: str,
    xlabel: Literal["iteration", "epoch"] = "iteration",
    epoch_length: int | None = None,
    *,
    lower_is_better: bool = False,
    loss_panel: bool = True,
) -> Comparison:
    """Compare runs by a metric, and write ``curve.png``, ``comparison.json``, ``comparison.md`` and ``comparison.csv``.

    A run that ended early or diverged stays in the table and the figure with the values that it has, and is marked. A run
    ended early if another run was validated after its last validation.

    Args:
        runs: the ``work_dir`` of every run by the name to show; a single run is allowed.
        out_dir: the folder to write into.
        metric: the metric's key in the logs, such as ``mIoU``.
        baseline: the name of the run to compare with.
        xlabel: what the figure's x axis counts.
        epoch_length: iterations per epoch, the same in all runs. Needed to show epochs of runs that were validated by
            iterations, or the other way round. If given, the table shows both.
        lower_is_better: for an error or a loss as the metric.
        loss_panel: draw the training losses below the metric. Left out where they cannot share the x axis: epochs without an
            ``epoch_length``.

    Returns:
        The comparison; its `Comparison.table` is for the terminal.

    Raises:
        FileNotFoundError: a run's folder holds no logs.
        ValueError: ``baseline`` is not among the runs or has no value; a validated run lacks ``metric`` (the message lists
            its metrics); epochs and iterations cannot be converted; a log is damaged.
    """
    if baseline not in runs:
        raise ValueError(f"the baseline {baseline!r} is not among the runs: {', '.join(runs)}")
    if xlabel not in ("iteration", "epoch"):
        raise ValueError(f"xlabel must be 'iteration' or 'epoch', not {xlabel!r}")
    if epoch_length is not None and epoch_length < 1:
        raise ValueError(f"epoch_length must be at least 1 iteration, not {epoch_length}")
    histories = {name: read_history(path) for name, path in runs.items()}
    unit: Literal["iteration", "epoch"] = "epoch" if xlabel == "epoch" and epoch_length is None else "iteration"
    curves = {name: _curve(name, history, metric, unit, epoch_length) for name, history in histories.items()}
    finite = {name: (steps[np.isfinite(values)], values[np.isfinite(values)]) for name, (steps, values) in curves.items()}
    if not len(finite[baseline][0]):
        raise ValueError(f"the baseline {baseline!r} has no value of {metric}, so there is nothing to reach")

    sign = 1.0 if lower_is_better else -1.0
    target = float((sign * finite[baseline][1]).min())
    last = max(int(steps[-1]) for steps, _ in finite.values() if len(steps))
    first = max(int(steps[0]) for steps, _ in finite.values() if len(steps))
    results = []
    for name, (steps, values) in finite.items():
        errors, history = sign * values, histories[name]
        best = int(errors.argmin()) if len(errors) else None
        reached = first_below(steps, errors, target)
        # the score of a diverged network does not measure how fast it learned
        area = area_under(*curves[name], first, last) if history.diverged_at is None else None
        results.append(
            RunResult(
                name=name,
                steps=tuple(steps.tolist()),
                values=tuple(values.tolist()),
                best=None if best is None else float(values[best]),
                best_step=None if best is None else int(steps[best]),
                reached_step=None if reached is None else int(reached),
                mean=None if area is None else area / (last - first),
                ended_early=not len(steps) or int(steps[-1]) < last,
                diverged_at=history.diverged_at,
                last_iteration=history.last_step,
                superseded=history.superseded,
            )
        )
    mean_range = (first, last) if first < last else None
    comparison = Comparison(metric, baseline, unit, epoch_length, lower_is_better, mean_range, tuple(results))

    out_dir = Path(out_dir)
    scale = 1.0 if unit == xlabel else 1.0 / (epoch_length or math.nan)
    lines = [Line(run.name, np.array(run.steps) * scale, np.array(run.values), note=run.failure) for run in results]
    if loss_panel and unit == "iteration":
        logs = histories.values()
        lines = [
            replace(line, loss_steps=log.train_steps * scale, loss=log.loss) for line, log in zip(lines, logs, strict=True)
        ]
    draw_curves(lines, out_dir / "curve.png", metric, xlabel, baseline, comparison.target, lower_is_better)
    (out_dir / "comparison.json").write_text(json.dumps(comparison.as_dict(), indent=2, allow_nan=False) + "\n")
    (out_dir / "comparison.md").write_text(comparison.markdown())
    (out_dir / "comparison.csv").write_text(comparison.as_csv())
    return comparison
