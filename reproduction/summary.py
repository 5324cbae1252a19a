"""What the runs of a claim say: medians over trials with 95% bootstrap intervals, by arm and epoch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from gbseg.evaluation.bootstrap import bootstrap_distribution, percentile_interval
from gbseg.report.convergence import first_below
from gbseg.report.gradient_log import GradientHistory, read_gradients
from reproduction.grid import Grid, Swept
from reproduction.runs import Run, RunResult

__all__ = ["ArmSummary", "Estimate", "Summary", "estimate", "reaches", "summarise"]


@dataclass(frozen=True)
class Estimate:
    """A median over trials and its 95% percentile bootstrap interval (10,000 resamples; None of a single trial).

    Of fewer than six trials, that interval is their range, which holds the true median less often: 87.5% at four.
    """

    median: float
    low: float | None
    high: float | None

    def text(self, digits: int = 2) -> str:
        """'1.73 [1.70, 1.75]'."""
        interval = "" if self.low is None or self.high is None else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{self.median:.{digits}f}{interval}"


def estimate(values: Sequence[float] | np.ndarray) -> Estimate | None:
    """The median of some trials; None of none."""
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
    """One arm's trials. E epochs; errors in per cent (or the claim's metric as it is, where ``lower`` says so).

    Attributes:
        swept: its sweep.
        runs: the final trials that have a result, with it.
        diverged: how many of them diverged; those are in no number below.
        epochs: (E,) of the validations.
        errors: (T, E) of the trials.
        curve: E medians, by epoch.
        best: of the lowest error of each trial, chosen with the errors measured here, as the paper does.
        best_epoch: of the epoch in which that was.
        best_epochs: that epoch, of each trial.
        early: of the mean error of the epochs 2 to 5, as far as there are.
        last: of the error after the last epoch: nothing chosen.
        area: of the mean error over the epochs.
    """

    swept: Swept
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
        """What `GradientStatsHook` recorded, of each of them that had it."""
        found = []
        for run in self.sound:
            with suppress(FileNotFoundError):
                found.append(read_gradients(run.folder))
        return found


@dataclass(frozen=True)
class Summary:
    """A claim's arms, and what running them took.

    Attributes:
        grid: of the runs.
        arms: by name.
        missing: runs without a result, trials whose rate is not known yet included.
        hours: of computing, all runs together.
    """

    grid: Grid
    arms: dict[str, ArmSummary]
    missing: int
    hours: float


reaches = partial(first_below, interpolate=True)
"""Epochs until a curve is at or below an error, between validations interpolated; None: never."""


def summarise(grid: Grid) -> Summary:
    """Read the results of a grid's runs, as many as there are."""
    swept = grid.swept()
    final = grid.final(swept)
    everything = [(run, run.result()) for run in [*grid.sweep(), *final]]
    arms = {}
    for arm, found in swept.items():
        runs = [(run, result) for run, result in everything if run.stage == "final" and run.arm == arm and result is not None]
        sound = [(run, result) for run, result in runs if result.diverged is None]
        errors = np.array([grid.errors(result) for _, result in sound])
        epochs = [step / sound[0][0].epoch for step in sound[0][1].steps] if sound else []
        early = [2 <= epoch <= 5 for epoch in epochs]
        arms[arm] = ArmSummary(
            swept=found,
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
    known = [result for _, result in everything if result is not None]
    # the trials of an arm whose sweep is not complete are not among the runs yet
    waiting = sum(grid.settings.final.trials for found in swept.values() if found.missing)
    return Summary(grid, arms, len(everything) - len(known) + waiting, sum(result.seconds for result in known) / 3600)
