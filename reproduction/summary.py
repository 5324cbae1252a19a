"""Summary of the runs of a claim: medians over trials with 95% bootstrap intervals, by arm and epoch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from gbseg.evaluation.bootstrap import bootstrap_distribution, percentile_interval
from gbseg.report.convergence import first_below
from gbseg.report.gradient_log import GradientHistory, read_gradients
from reproduction.grid import Grid, SweepResult
from reproduction.runs import Run, RunResult

__all__ = ["ArmSummary", "Estimate", "Summary", "estimate", "reaches", "summarise"]


@dataclass(frozen=True)
class Estimate:
    """A median over trials and its 95% percentile bootstrap interval (10,000 resamples; None of a single trial).

    With fewer than six trials, the interval is their range, which covers the true median less often: 87.5% with four.
    """

    median: float
    low: float | None
    high: float | None

    def text(self, digits: int = 2) -> str:
        """'1.73 [1.70, 1.75]'."""
        interval = "" if self.low is None or self.high is None else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{self.median:.{digits}f}{interval}"


def estimate(values: Sequence[float] | np.ndarray) -> Estimate | None:
    """The median over trials; None if there are none."""
    if not len(values):
        return None
    median = float(np.median(values))
    if len(values) == 1:
        return Estimate(median, None, None)
    if min(values) == max(values):
        return Estimate(median, median, median)
    trials = np.asarray(values, dtype=float)
    medians = bootstrap_distribution(lambda drawn: np.median(trials[drawn], axis=1), [len(trials)], resamples=10_000)
    return Estimate(median, *percentile_interval(medians))


@dataclass(frozen=True)
class ArmSummary:
    """The trials of one arm. T trials, E epochs; errors in per cent (or the claim's metric as it is, where ``lower`` says so).

    Attributes:
        sweep: the result of its sweep.
        runs: the final trials that have a result, with it.
        diverged: number of trials that diverged; they are in no number below.
        epochs: (E,) epochs of the validations.
        errors: (T, E) errors of the trials.
        curve: E medians, by epoch.
        best: median over trials of the lowest error. It is chosen with the errors measured here, as the paper does.
        best_epoch: median over trials of the epoch with the lowest error.
        best_epochs: that epoch, for each trial.
        early: median over trials of the mean error in epochs 2 to 5, as far as there are.
        last: median over trials of the error after the last epoch; nothing is chosen.
        area: median over trials of the mean error over all epochs.
    """

    sweep: SweepResult
    runs: list[tuple[Run, RunResult]]
    diverged: int
    epochs: list[float]
    errors: np.ndarray
    curve: list[Estimate]
    best: Estimate | None
    best_epoch: Estimate | None
    best_epochs: list[float]
    early: Estimate | None
    last: Estimate | None
    area: Estimate | None

    @property
    def sound(self) -> list[Run]:
        """The trials that did not diverge."""
        return [run for run, result in self.runs if result.diverged is None]

    def gradients(self) -> list[GradientHistory]:
        """The records of `GradientStatsHook`, for each of the sound trials that used it."""
        histories = []
        for run in self.sound:
            with suppress(FileNotFoundError):
                histories.append(read_gradients(run.folder))
        return histories


@dataclass(frozen=True)
class Summary:
    """The summary of a claim.

    Attributes:
        grid: the grid of its runs.
        arms: the summaries of its arms, by name.
        missing: number of runs without a result, including trials whose rate is not chosen yet.
        hours: computing time of all runs.
    """

    grid: Grid
    arms: dict[str, ArmSummary]
    missing: int
    hours: float


reaches = partial(first_below, interpolate=True)
"""Epochs until a curve is at or below an error, between validations interpolated; None: never."""


def summarise(grid: Grid) -> Summary:
    """Summarise the runs of a grid that have a result."""
    sweep_results = grid.sweep_results()
    all_runs = [(run, run.result()) for run in [*grid.sweep(), *grid.final(sweep_results)]]
    arms = {}
    for arm, sweep in sweep_results.items():
        runs = [(run, result) for run, result in all_runs if run.stage == "final" and run.arm == arm and result is not None]
        sound = [(run, result) for run, result in runs if result.diverged is None]
        errors = np.array([grid.errors(result) for _, result in sound])
        epochs = [step / sound[0][0].epoch for step in sound[0][1].steps] if sound else []
        early = [2 <= epoch <= 5 for epoch in epochs]
        arms[arm] = ArmSummary(
            sweep=sweep,
            runs=runs,
            diverged=len(runs) - len(sound),
            epochs=epochs,
            errors=errors,
            curve=[point for column in errors.T if (point := estimate(column)) is not None],
            best=estimate(errors.min(1) if sound else []),
            best_epoch=estimate(np.array(epochs)[errors.argmin(1)] if sound else []),
            best_epochs=list(np.array(epochs)[errors.argmin(1)]) if sound else [],
            early=estimate(errors[:, early].mean(1) if sound and any(early) else []),
            last=estimate(errors[:, -1] if sound else []),
            area=estimate(errors.mean(1) if sound else []),
        )
    results = [result for _, result in all_runs if result is not None]
    # the final trials of an arm with an incomplete sweep are not among the runs yet
    pending = sum(grid.settings.final.trials for sweep in sweep_results.values() if sweep.missing)
    hours = sum(result.seconds for result in results) / 3600
    return Summary(grid, arms, len(all_runs) - len(results) + pending, hours)
