"""The speed of convergence of a run, written after every validation."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from gbseg.files import write_atomically
from gbseg.mm.hooks.nonfinite_guard import parameters_are_finite
from gbseg.mm.resumable_sampler import iterations_per_epoch
from gbseg.report.convergence import area_under, first_below
from gbseg.report.history import read_history

__all__ = ["ConvergenceHook"]


@HOOKS.register_module()
class ConvergenceHook(Hook):
    """Write after every validation when a metric reached given values, and the area under the error curve so far.

    ``convergence.json`` in the run's ``work_dir`` holds:

    * ``points``: iteration, epoch and value of every validation, those before an interruption included; None for a value
      that is not finite, or of parameters that are not;
    * ``best``: the best of them, the first where several are equal;
    * ``targets``: the first validation at which each target was reached, None where it was not;
    * ``baseline``: the same for the best value of another run;
    * ``area``: the area under the error ``|perfect - value|`` from the first to the last validation, in the metric's unit times
      epochs, and that divided by its length (``mean_error``). Compare it over equal ranges only. None before the second
      validation and where a value is not finite;
    * ``complete``: whether training finished. False for a run that diverged or was killed.

    Nothing is interpolated: a value reached between two validations counts from the second. An epoch is the number of
    iterations in which each training image is drawn once, rounded up.

    Args:
        metric: a key of the validation's metrics.
        higher_is_better: False for an error or a loss.
        targets: values of the metric to reach: for an error of 30% of a top-1 accuracy, 70.
        baseline: the ``work_dir`` of a finished run.
        perfect: the metric of a perfect model; None: 100 where higher is better, else 0.

    Raises:
        ValueError: the metric is not among those of a validation, or of the baseline (the message lists them); a target is
            not finite.
        FileNotFoundError: the baseline's folder holds no logs.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        metric: str = "accuracy/top1",
        higher_is_better: bool = True,
        targets: Sequence[float] = (),
        baseline: str | None = None,
        perfect: float | None = None,
    ) -> None:
        if wrong := [value for value in targets if not math.isfinite(value)]:
            raise ValueError(f"ConvergenceHook: targets are values of {metric}, got {wrong[0]}.")
        self.metric = metric
        self.sign = -1.0 if higher_is_better else 1.0
        self.higher_is_better = higher_is_better
        self.targets = tuple(targets)
        self.baseline = baseline
        self.perfect = perfect if perfect is not None else 100.0 if higher_is_better else 0.0
        self._values: dict[int, float] = {}

    def before_train(self, runner: Runner) -> None:
        """Read the baseline and, if the run was resumed, its earlier validations."""
        self._epoch_length = iterations_per_epoch(runner.train_dataloader)
        self._path = Path(runner.work_dir) / "convergence.json"
        self._goal = None if self.baseline is None else self._best_of_baseline(self.baseline)
        self._values = self._earlier_values(runner) if runner.iter else {}

    def _best_of_baseline(self, work_dir: str) -> float:
        history = read_history(work_dir)
        if self.metric not in history.metrics:
            raise ValueError(
                f"ConvergenceHook: the baseline {work_dir} has no metric {self.metric!r}; it has "
                f"{', '.join(history.metrics) or 'none'}."
            )
        best = self._best(history.metrics[self.metric])
        if best is None:
            raise ValueError(f"ConvergenceHook: the baseline {work_dir} has no finite value of {self.metric}.")
        return best

    def _best(self, values: np.ndarray) -> float | None:
        """The best finite value."""
        finite = values[np.isfinite(values)]
        return float(self.sign * (self.sign * finite).min()) if len(finite) else None

    def _earlier_values(self, runner: Runner) -> dict[int, float]:
        """Validations by iteration, up to the one at which a resumed run continues; later ones may have been undone."""
        written: dict[int, float] = {}
        if self._path.is_file():
            try:
                content = json.loads(self._path.read_text(encoding="utf-8"))
                if content["metric"] == self.metric:
                    written = {p["iteration"]: math.nan if p["value"] is None else p["value"] for p in content["points"]}
            except (ValueError, KeyError, TypeError) as error:
                runner.logger.warning(f"ConvergenceHook: {self._path} is not what this hook wrote: {error!r}")
        logged: dict[int, float] = {}
        try:
            history = read_history(runner.work_dir)
        except (OSError, ValueError) as error:
            # without LocalVisBackend there are no logs
            runner.logger.warning(f"ConvergenceHook: {error}")
        else:
            steps = history.val_steps * (self._epoch_length if history.val_in_epochs else 1)
            values = history.metrics.get(self.metric, np.empty(0))
            logged = {int(step): float(value) for step, value in zip(steps, values, strict=False)}
        # the logs alone have the validations of a start without this hook, but they also have the scores of diverged networks
        values_by_step = written | {step: value for step, value in logged.items() if not math.isnan(written.get(step, 0.0))}
        earlier = {step: value for step, value in sorted(values_by_step.items()) if step <= runner.iter}
        if not earlier:
            runner.logger.warning(
                f"ConvergenceHook: {runner.work_dir} holds no validation of {self.metric} up to iteration {runner.iter}, where "
                "training goes on: what was reached before is not known."
            )
        return earlier

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add the validation, and write the file."""
        # outside of training (runner.val()) there is nothing to add to
        if not hasattr(self, "_path"):
            return
        if metrics is None or self.metric not in metrics:
            raise ValueError(
                f"ConvergenceHook: the validation has no metric {self.metric!r}; it has {', '.join(metrics or ()) or 'none'}."
            )
        # the score of a diverged network means nothing
        self._values[runner.iter] = float(metrics[self.metric]) if parameters_are_finite(runner.model) else math.nan
        self._write(complete=False)

    def after_train(self, runner: Runner) -> None:
        """Log what was reached, in one line."""
        if not self._values:
            runner.logger.warning(f"ConvergenceHook: there was no validation, so nothing is known of {self.metric}.")
            return
        summary = self._write(complete=True)
        best, area, baseline = summary["best"], summary["area"], summary["baseline"]
        parts = [f"best {best['value']:g} {_when(best)}"] if best else ["no value is finite"]
        parts += [f"{target['value']:g} {_when(target)}" for target in summary["targets"]]
        if baseline:
            parts.append(f"the baseline's best, {baseline['value']:g}, {_when(baseline)}")
        if area:
            parts.append(f"mean error {area['mean_error']:g} from epoch {area['from_epoch']:g} to {area['to_epoch']:g}")
        runner.logger.info(f"{self.metric}: {'; '.join(parts)} ({self._path})")

    def _write(self, complete: bool) -> dict[str, Any]:
        steps = np.array(sorted(self._values), np.int64)
        values = np.array([self._values[step] for step in steps.tolist()])
        epochs = steps / self._epoch_length

        def reached(value: float) -> dict[str, Any]:
            step = first_below(steps, self.sign * values, self.sign * value)
            return {"value": value, "iteration": step, "epoch": None if step is None else step / self._epoch_length}

        best = self._best(values)
        area = area_under(epochs, np.abs(self.perfect - values))
        summary: dict[str, Any] = {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "iterations_per_epoch": self._epoch_length,
            "complete": complete,
            "best": None if best is None else reached(best),
            "targets": [reached(value) for value in self.targets],
            "baseline": None if self._goal is None else {"work_dir": str(self.baseline), **reached(self._goal)},
            "area": None
            if area is None
            else {
                "perfect": self.perfect,
                "from_epoch": epochs[0],
                "to_epoch": epochs[-1],
                "error_epochs": area,
                "mean_error": area / (epochs[-1] - epochs[0]),
            },
            "points": [
                {"iteration": step, "epoch": step / self._epoch_length, "value": value if math.isfinite(value) else None}
                for step, value in zip(steps.tolist(), values.tolist(), strict=True)
            ],
        }
        if is_main_process():
            write_atomically((json.dumps(summary, indent=2, allow_nan=False) + "\n").encode(), self._path)
        return summary


def _when(target: dict[str, Any]) -> str:
    if target["iteration"] is None:
        return "not reached"
    return f"at iteration {target['iteration']:,} (epoch {target['epoch']:g})"
