"""Runs side by side: a metric by step, who is best, and when each first reaches the baseline's best."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gbseg.report.convergence import area_under, first_below
from gbseg.report.curve import Line, draw_curves
from gbseg.report.history import RunHistory, read_history

NOT_REACHED = "not reached"


@dataclass(frozen=True)
class RunResult:
    """One run of a comparison. Steps are in the comparison's `unit`.

    Attributes:
        name: what the run is called.
        steps: the steps with a value of the metric, rising.
        values: the metric at those steps, in its own unit.
        best: the best value; None where there is none.
        best_step: the first step with that value.
        reached_step: the first step with a value no worse than the baseline's best; None where there is none.
        mean: of the metric over `Comparison.mean_range`, straight lines between the validations; None where the run diverged
            or does not reach its end. The area under the error curve is ``perfect value - mean``, times the range's length.
        ended_early: whether other runs were validated after this one's last validation.
        diverged_at: the first iteration with a loss that is not finite, None if there is none.
        last_iteration: the last iteration that was logged.
        superseded: older log lines left out because the run was started again before them.
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
    def status(self) -> str:
        """`complete`, or how and when the run went wrong."""
        if self.diverged_at is not None:
            return f"diverged at iteration {self.diverged_at:,}"
        return f"ended early at iteration {self.last_iteration:,}" if self.ended_early else "complete"


@dataclass(frozen=True)
class Comparison:
    """Several runs by one metric.

    Attributes:
        metric: the metric's key in the logs.
        baseline: the run whose best value the others are to reach.
        unit: what steps count, `iteration` or `epoch`.
        epoch_length: iterations an epoch; None where it was not given.
        lower_is_better: whether small values of the metric are good.
        mean_range: from the first step that all runs have reached by their first validation to the last step of any; None where
            these are one step.
        runs: the runs in the order in which they were given.
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
        best = next(run.best for run in self.runs if run.name == self.baseline)
        assert best is not None
        return best

    def rows(self) -> list[list[Any]]:
        """Give the table as numbers and words: a head, one row a step, then the summary; None for what there is not."""
        extra = self.unit == "iteration" and self.epoch_length is not None

        def lead(name: Any, epoch: float | str | None = "") -> list[Any]:
            return [name, epoch] if extra else [name]

        def epoch(step: int | None) -> float | None:
            return None if step is None or self.epoch_length is None else step / self.epoch_length

        baseline = next(run for run in self.runs if run.name == self.baseline)
        table: list[list[Any]] = [[self.unit, *(["epoch"] if extra else []), *(run.name for run in self.runs)]]
        for step in sorted({step for run in self.runs for step in run.steps}):
            at_step = [dict(zip(run.steps, run.values, strict=True)).get(step) for run in self.runs]
            table.append([*lead(step, epoch(step)), *at_step])
        table.append([*lead(f"best {self.metric}"), *(run.best for run in self.runs)])
        table.append([*lead(f"best at {self.unit}"), *(run.best_step for run in self.runs)])
        if extra:
            table.append([*lead("best at epoch"), *(epoch(run.best_step) for run in self.runs)])
        reached = [NOT_REACHED if run.reached_step is None else run.reached_step for run in self.runs]
        table.append([*lead(f"reaches {self.baseline}'s best at {self.unit}"), *reached])
        if extra:
            epochs = [NOT_REACHED if run.reached_step is None else epoch(run.reached_step) for run in self.runs]
            table.append([*lead(f"reaches {self.baseline}'s best at epoch"), *epochs])
        ratios = [
            run.reached_step / baseline.best_step if run.reached_step and baseline.best_step else None for run in self.runs
        ]
        table.append([*lead(f"{self.unit}s to it, {self.baseline} = 1"), *ratios])
        if self.mean_range is not None:
            low, high = self.mean_range
            table.append([*lead(f"mean {self.metric}, {self.unit} {low} to {high}"), *(run.mean for run in self.runs)])
        table.append([*lead("status"), *(run.status for run in self.runs)])
        return table

    def _cells(self) -> list[list[str]]:
        """`rows` as short text."""
        fine = 2 if abs(self.target) >= 1.5 else 4  # a percentage or a fraction
        cells = []
        for row in self.rows():
            of_metric = not isinstance(row[0], str) or row[0].startswith((f"best {self.metric}", f"mean {self.metric},"))
            runs = len(row) - len(self.runs)
            digits = [fine if of_metric and column >= runs else 2 for column in range(len(row))]
            cells.append(
                [
                    "-" if cell is None else f"{cell:.{places}f}" if isinstance(cell, float) else str(cell)
                    for cell, places in zip(row, digits, strict=True)
                ]
            )
        return cells

    def table(self) -> str:
        """Lay the table out as plain text for a terminal."""
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
            for row in cells
        ]
        rule = "-" * len(lines[0])
        steps = len({step for run in self.runs for step in run.steps})
        return "\n".join([lines[0], rule, *lines[1 : steps + 1], rule, *lines[steps + 1 :]])

    def markdown(self) -> str:
        """Lay the table out as Markdown, under a heading and above the figure."""
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
        """Lay the table out as CSV, numbers in full, nothing where there is no value."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([["" if cell is None else cell for cell in row] for row in self.rows()])
        return text.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """Give everything as what JSON can hold; an epoch beside every step where `epoch_length` is known."""
        content = asdict(self) | {"target": self.target}
        for run, source in zip(content["runs"], self.runs, strict=True):
            run["status"] = source.status
            if self.unit == "iteration" and self.epoch_length is not None:
                for key in ("best", "reached"):
                    step = run[f"{key}_step"]
                    run[f"{key}_epoch"] = None if step is None else step / self.epoch_length
        return content


def _val_steps(name: str, history: RunHistory, unit: str, epoch_length: int | None) -> np.ndarray:
    """Give a run's validation steps in the comparison's unit."""
    if history.val_in_epochs == (unit == "epoch") or not len(history.val_steps):
        return history.val_steps
    if epoch_length is None:
        counted, wanted = ("epochs", "iterations") if history.val_in_epochs else ("iterations", "epochs")
        raise ValueError(f"{name} was validated by {counted}: to show {wanted}, give epoch_length")
    return history.val_steps * epoch_length  # with an epoch_length the unit is the iteration


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
    """Compare runs by a metric, and write `curve.png`, `comparison.json`, `comparison.md` and `comparison.csv`.

    A run that ended early or diverged stays in the table and in the figure with the values that it has, and is marked
    as such. A run is taken to have ended early where another one was validated after its last validation.

    Args:
        runs: the `work_dir` of every run by the name to show; one run may be enough.
        out_dir: the folder to write into.
        metric: the metric's key in the logs, such as `mIoU`.
        baseline: the name of the run to compare with.
        xlabel: what the figure's axis counts.
        epoch_length: iterations an epoch, the same in all runs; needed where the runs were validated by iterations and
            epochs are to be shown, or the other way round. Where it is given, the table shows both.
        lower_is_better: for an error or a loss as the metric.
        loss_panel: whether to draw the training losses under the metric. It is left out where they cannot share the
            axis: epochs without an `epoch_length`.

    Returns:
        The comparison; its `table()` is for the terminal.

    Raises:
        FileNotFoundError: a run's folder holds no logs.
        ValueError: `baseline` is not among the runs or has no value; the metric is in no validation of a run that was
            validated (the message lists those that are); epochs and iterations cannot be converted; a log is damaged.
    """
    if baseline not in runs:
        raise ValueError(f"the baseline {baseline!r} is not among the runs: {', '.join(runs)}")
    if xlabel not in ("iteration", "epoch"):
        raise ValueError(f"xlabel must be 'iteration' or 'epoch', not {xlabel!r}")
    if epoch_length is not None and epoch_length < 1:
        raise ValueError(f"epoch_length must be at least 1 iteration, not {epoch_length}")
    histories = {name: read_history(path) for name, path in runs.items()}
    unit: Literal["iteration", "epoch"] = "epoch" if xlabel == "epoch" and epoch_length is None else "iteration"
    points, curves = {}, {}
    for name, history in histories.items():
        steps = _val_steps(name, history, unit, epoch_length)
        if len(steps) and metric not in history.metrics:
            raise ValueError(f"{name} has no metric {metric!r}; it has {', '.join(history.metrics) or 'none'}")
        values = history.metrics.get(metric, np.empty(0))
        kept = np.isfinite(values)
        curves[name] = (steps, values)
        points[name] = (steps[kept].tolist(), values[kept].tolist())
    if not points[baseline][0]:
        raise ValueError(f"the baseline {baseline!r} has no value of {metric}, so there is nothing to reach")

    sign = 1.0 if lower_is_better else -1.0
    target = min(sign * value for value in points[baseline][1])
    last = max(steps[-1] for steps, _ in points.values() if steps)
    first = max(steps[0] for steps, _ in points.values() if steps)
    results = []
    for name, (steps, values) in points.items():
        errors = [sign * value for value in values]
        best = min(errors, default=None)
        # what a diverged network scores is no measure of how fast it learned
        area = area_under(*curves[name], first, last) if histories[name].diverged_at is None else None
        results.append(
            RunResult(
                name=name,
                steps=tuple(steps),
                values=tuple(values),
                best=None if best is None else sign * best,
                best_step=None if best is None else first_below(steps, errors, best),
                reached_step=first_below(steps, errors, target),
                mean=None if area is None else area / (last - first),
                ended_early=not steps or steps[-1] < last,
                diverged_at=histories[name].diverged_at,
                last_iteration=histories[name].last_step,
                superseded=histories[name].superseded,
            )
        )
    mean_range = (first, last) if first < last else None
    found = Comparison(metric, baseline, unit, epoch_length, lower_is_better, mean_range, tuple(results))

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    scale = 1.0 if unit == xlabel else 1.0 / (epoch_length or math.nan)
    with_loss = loss_panel and unit == "iteration"
    lines = [
        Line(
            name=run.name,
            steps=np.array(run.steps) * scale,
            values=np.array(run.values),
            loss_steps=histories[run.name].train_steps * scale if with_loss else np.empty(0),
            loss=histories[run.name].loss if with_loss else np.empty(0),
            note="" if run.status == "complete" else run.status,
        )
        for run in found.runs
    ]
    draw_curves(lines, out_dir / "curve.png", metric, xlabel, baseline, found.target, lower_is_better)
    (out_dir / "comparison.json").write_text(json.dumps(found.as_dict(), indent=2, allow_nan=False) + "\n")
    (out_dir / "comparison.md").write_text(found.markdown())
    (out_dir / "comparison.csv").write_text(found.as_csv())
    return found
