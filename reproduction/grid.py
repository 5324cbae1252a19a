"""A claim's grid: a sweep of rates for every arm on held-out training data, then trials at the best rate.

A *claim* is a file of ``configs/reproduction``. An *arm* is one of the settings that it compares. A *budget* is a size at
which it can be run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmengine.config import Config

from gbseg.mm.config import load_config
from reproduction import CONFIGS
from reproduction.runs import Run, RunResult

__all__ = ["HOME", "Claim", "Grid", "SweepResult", "load_claim"]

HOME = Path("work_dirs/reproduce")


@dataclass(frozen=True)
class Claim:
    """A claim at one budget.

    Attributes:
        name: name of its file.
        budget: 'full' or another of the file's ``budgets``.
        settings: the file's keys, merged with the budget's changes.
    """

    name: str
    budget: str
    settings: Config

    @property
    def label(self) -> str:
        """The name of the folder of its results."""
        return self.name if self.budget == "full" else f"{self.name}_{self.budget}"


def load_claim(name: str, budget: str | None = None, trials: int | None = None) -> Claim:
    """Read ``configs/reproduction/<name>.py``.

    Args:
        name: name of the file.
        budget: one of its ``budgets``; None: its ``default_budget``.
        trials: replaces the number of final trials per arm.

    Raises:
        FileNotFoundError: there is no such claim.
        ValueError: there is no such budget; a sweep has fewer than two rates or an unknown ``choose``; arms have unequal
            numbers of rates; there is less than one trial; runs trained together are not validated after every epoch; the
            sides of a contest have unequal numbers of tries.
    """
    settings = load_config(CONFIGS / "reproduction" / f"{name}.py")
    budgets = {"full": {}, **settings.get("budgets", {})}
    budget = budget or settings.get("default_budget", "full")
    if budget not in budgets:
        raise ValueError(f"{name}: budget is one of {', '.join(budgets)}, got {budget!r}.")
    settings.merge_from_dict(dict(budgets[budget]))
    if trials is not None:
        settings.final.trials = trials
    if settings.final.trials < 1:
        raise ValueError(f"{name}: at least one trial is needed, got {settings.final.trials}.")
    tries = {arm: len(set(spec.rates)) for arm, spec in settings.arms.items()}
    if (choose := settings.sweep.choose) not in ("min", "last", "mean"):
        raise ValueError(f"{name}: sweep.choose is 'min', 'last' or 'mean' of the errors by epoch, got {choose!r}.")
    if too_few := [arm for arm, count in tries.items() if count < 2]:
        raise ValueError(f"{name}: a sweep needs at least two rates to choose from; {', '.join(too_few)} has fewer.")
    if settings.get("together") and any(settings[phase].get("every", 1) != 1 for phase in ("sweep", "final")):
        raise ValueError(f"{name}: runs trained together are measured after every epoch; 'every' is for runs trained alone.")
    if len(set(tries.values())) > 1:
        raise ValueError(f"{name}: every arm gets the same number of rates, or the comparison is tuned on one side: {tries}.")
    for contest, sides in settings.get("contests", {}).items():
        counts = {side: sum(len(settings.arms[arm].rates) for arm in arms) for side, arms in sides.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"{name}: both sides of the contest {contest!r} get as many tries (arms times rates), got {counts}."
            )
    return Claim(name, budget, settings)


@dataclass(frozen=True)
class SweepResult:
    """The result of one arm's sweep.

    Attributes:
        scores: rate -> mean over the seeds of the error on held-out data in per cent; None where a seed diverged. Rates with
            a missing run are left out.
        best: the rate of the lowest score; None if every rate diverged, or while a run is missing.
        missing: number of rates with a missing run.
    """

    scores: dict[float, float | None]
    best: float | None
    missing: int = 0

    @property
    def diverged(self) -> bool:
        """Whether all rates were run and each of them diverged."""
        return self.best is None and not self.missing

    @property
    def at_edge(self) -> bool:
        """Whether the best is the lowest or highest rate tried, so that a better one may lie beyond."""
        return bool(self.scores) and self.best in (min(self.scores), max(self.scores))


class Grid:
    """The runs of a claim.

    Args:
        claim: the claim.
        home: the folder of the runs.
    """

    def __init__(self, claim: Claim, home: Path = HOME) -> None:
        self.claim, self.home = claim, home
        self.settings = claim.settings
        # a run's key needs its config, which takes time to read: each run is made once
        self.run = lru_cache(maxsize=None)(self._make_run)

    def _make_run(self, arm: str, stage: str, rate: float, seed: int) -> Run:
        spec, phase = self.settings.arms[arm], self.settings[stage]
        options = {**self.settings.get("options", {}), **spec.get("options", {}), **phase.get("options", {})}
        held_out = phase.get("held_out")
        if held_out:
            for loader, part in (("train_dataloader", "tune"), ("val_dataloader", "held_out")):
                options |= {f"{loader}.dataset.part": part, f"{loader}.dataset.held_out": held_out}
        return Run(
            arm=arm,
            stage=stage,
            rate=rate,
            seed=seed,
            epochs=phase.epochs,
            config=CONFIGS / spec.get("config", self.settings.get("config")),
            options=options,
            amp=self.settings.get("amp", False),
            every=phase.get("every", 1),
            together=bool(self.settings.get("together")),
            home=self.home,
        )

    def sweep(self) -> list[Run]:
        """All runs of the sweep."""
        return [
            self.run(arm, "sweep", rate, 1000 + seed)
            for seed in range(self.settings.sweep.get("seeds", 1))
            for arm, spec in self.settings.arms.items()
            for rate in spec.rates
        ]

    def sweep_results(self) -> dict[str, SweepResult]:
        """The result of the sweep by arm, from the runs that are done."""
        sweep_results = {}
        runs = [(run, run.result()) for run in self.sweep()]
        for arm, spec in self.settings.arms.items():
            scores: dict[float, float | None] = {}
            for rate in spec.rates:
                results = [result for run, result in runs if (run.arm, run.rate) == (arm, rate)]
                if None in results:
                    continue
                errors = [self.score(result) for result in results if result is not None]
                finite = [error for error in errors if error is not None]
                scores[rate] = sum(finite) / len(finite) if len(finite) == len(errors) else None
            usable = {rate: score for rate, score in scores.items() if score is not None}
            missing = len(set(spec.rates)) - len(scores)
            # all arms are tuned equally: no best rate as long as one of them is missing
            best = min(usable, key=usable.__getitem__) if usable and not missing else None
            sweep_results[arm] = SweepResult(scores, best, missing)
        return sweep_results

    def errors(self, result: RunResult) -> list[float]:
        """The error after each validation: 100 minus the metric, or the metric itself if the claim's ``lower`` is set."""
        values = result.metrics.get(self.settings.metric, [])
        return list(values) if self.settings.get("lower") else [100 - value for value in values]

    def score(self, result: RunResult) -> float | None:
        """What a sweep minimises: 'min', 'last' or 'mean' of the errors, as ``sweep.choose`` says; None if it diverged.

        Raises:
            ValueError: the claim's metric was not measured.
        """
        if result.diverged is not None:
            return None
        errors = self.errors(result)
        if not errors:
            measured = ", ".join(result.metrics) or "nothing"
            raise ValueError(f"{self.claim.name}: its metric {self.settings.metric!r} was not measured; {measured} was.")
        match self.settings.sweep.choose:
            case "min":
                return min(errors)
            case "last":
                return errors[-1]
            case _:
                return sum(errors) / len(errors)

    def final(self, sweep_results: Mapping[str, SweepResult]) -> list[Run]:
        """The final trials, each arm at its best rate. An arm without a best rate has none."""
        return [
            self.run(arm, "final", rate, seed)
            for seed in range(self.settings.final.trials)
            for arm in self.settings.arms
            if (rate := sweep_results[arm].best) is not None
        ]
