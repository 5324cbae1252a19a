"""A claim's grid: a sweep of rates for every arm on held-out training data, then trials at the best rate.

A *claim* is a file of ``configs/reproduction``; an *arm* is one of the things that it compares; a *budget* is a size at which
it can be run.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmengine.config import Config

from gbseg.mm.config import config_folder, load_config
from gbseg.parallel import available_cores
from reproduction import worker
from reproduction.runs import Run, RunResult

__all__ = ["Claim", "Grid", "Swept", "load_claim", "run_all"]

HOME = Path("work_dirs/reproduce")


class RunFailedError(RuntimeError):
    """A run of a grid broke (which is not: diverged). The others were run."""


@dataclass(frozen=True)
class Claim:
    """A claim at one budget.

    Attributes:
        name: of its file.
        budget: 'full' or another of the file's ``budgets``.
        settings: the file's keys with the budget's changes laid over them.
    """

    name: str
    budget: str
    settings: Config

    @property
    def label(self) -> str:
        """The name of its results' folder."""
        return self.name if self.budget == "full" else f"{self.name}_{self.budget}"


def load_claim(name: str, budget: str | None = None, trials: int | None = None) -> Claim:
    """Read ``configs/reproduction/<name>.py``.

    Args:
        name: of the file.
        budget: one of its ``budgets``; None: its ``default_budget``.
        trials: replaces the number of final trials of each arm.

    Raises:
        FileNotFoundError: no such claim.
        ValueError: no such budget; a sweep of fewer than two rates, or that chooses by nothing known; arms with unequal
            numbers of rates; fewer than one trial; runs trained together but not measured after every epoch; a
            contest whose sides have unequal numbers of tries.
    """
    settings = load_config(config_folder("gbseg") / "reproduction" / f"{name}.py")
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
    if poor := [arm for arm, count in tries.items() if count < 2]:
        raise ValueError(f"{name}: a sweep needs at least two rates to choose from; {', '.join(poor)} has fewer.")
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
class Swept:
    """What a sweep of one arm found.

    Attributes:
        scores: rate -> mean over the seeds of the error on held-out data in per cent, None where a seed diverged; rates of
            which a run is missing are not in it.
        best: the rate of the lowest score; None where every rate diverged, and as long as one is missing.
        missing: number of rates of which a run is missing.
    """

    scores: dict[float, float | None]
    best: float | None
    missing: int = 0

    @property
    def diverged(self) -> bool:
        """Whether all rates were run and none is of use."""
        return self.best is None and not self.missing

    @property
    def at_edge(self) -> bool:
        """Whether the best is the least or greatest rate tried, so that a better one may lie beyond."""
        return bool(self.scores) and self.best in (min(self.scores), max(self.scores))


class Grid:
    """The runs of a claim.

    Args:
        claim: what to run.
        home: the folder of the runs.
    """

    def __init__(self, claim: Claim, home: Path = HOME) -> None:
        self.claim, self.home = claim, home
        self.settings = claim.settings
        # a run's key takes a config to be read: once for all that ask
        self._run = lru_cache(maxsize=None)(self._make)

    def _make(self, arm: str, stage: str, rate: float, seed: int) -> Run:
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
            config=config_folder("gbseg") / spec.get("config", self.settings.get("config")),
            options=options,
            amp=self.settings.get("amp", False),
            every=phase.get("every", 1),
            together=bool(self.settings.get("together")),
            home=self.home,
        )

    def sweep(self) -> list[Run]:
        """All runs of the sweep."""
        return [
            self._run(arm, "sweep", rate, 1000 + seed)
            for seed in range(self.settings.sweep.get("seeds", 1))
            for arm, spec in self.settings.arms.items()
            for rate in spec.rates
        ]

    def swept(self) -> dict[str, Swept]:
        """What the sweep found for each arm."""
        found = {}
        runs = [(run, run.result()) for run in self.sweep()]
        for arm, spec in self.settings.arms.items():
            scores: dict[float, float | None] = {}
            for rate in spec.rates:
                results = [result for run, result in runs if (run.arm, run.rate) == (arm, rate)]
                if None in results:
                    continue
                values = [self.score(result) for result in results if result is not None]
                known = [value for value in values if value is not None]
                scores[rate] = sum(known) / len(known) if len(known) == len(values) else None
            usable = {rate: score for rate, score in scores.items() if score is not None}
            missing = len(set(spec.rates)) - len(scores)
            # fewer tries for one arm than for the others would be no equal tuning
            found[arm] = Swept(scores, min(usable, key=usable.__getitem__) if usable and not missing else None, missing)
        return found

    def errors(self, result: RunResult) -> list[float]:
        """The error after each validation: 100 minus the metric, or the metric itself if the claim's ``lower`` says so."""
        values = result.metrics.get(self.settings.metric, [])
        return list(values) if self.settings.get("lower") else [100 - value for value in values]

    def score(self, result: RunResult) -> float | None:
        """What a sweep minimises, ``choose`` of its errors: 'min', 'last' or 'mean' over the epochs; None if it diverged."""
        if result.diverged is not None:
            return None
        errors = self.errors(result)
        if not errors:
            known = ", ".join(result.metrics) or "nothing"
            raise ValueError(f"{self.claim.name}: its metric {self.settings.metric!r} was not measured; {known} was.")
        match self.settings.sweep.choose:
            case "min":
                return min(errors)
            case "last":
                return errors[-1]
            case _:
                return sum(errors) / len(errors)

    def final(self, swept: Mapping[str, Swept]) -> list[Run]:
        """The trials, each arm at its best rate; an arm without a best rate has none."""
        return [
            self._run(arm, "final", rate, seed)
            for seed in range(self.settings.final.trials)
            for arm in self.settings.arms
            if (rate := swept[arm].best) is not None
        ]


def _batches(runs: Sequence[Run], together: int) -> Iterator[list[Run]]:
    """What one process trains at a time: a run alone, or up to ``together`` runs of one arm."""
    if not together:
        yield from ([run] for run in runs)
        return
    arms: dict[str, list[list[Run]]] = {}
    for arm in dict.fromkeys(run.arm for run in runs):
        same = [run for run in runs if run.arm == arm]
        parts = -(-len(same) // together)
        # of equal size: twelve runs at ten together are six and six, not ten and two
        arms[arm] = [same[part * len(same) // parts : (part + 1) * len(same) // parts] for part in range(parts)]
    # in turn, so that an interrupted grid has as many trials of every arm
    for batches in itertools.zip_longest(*arms.values()):
        yield from (batch for batch in batches if batch)


def run_all(runs: Sequence[Run], jobs: int, together: int = 0, say: Callable[[str], None] = print) -> None:
    """Run what has no result yet, several processes at a time.

    Args:
        runs: what to run.
        jobs: processes at a time; the cores, or the GPUs, are shared out among them.
        together: runs that one process trains vectorised; 0: each alone.
        say: told of every batch of runs that ends.

    Raises:
        RunFailedError: a run broke; the others were run first, and a second start tries it again. Or a process was killed,
            with which all end.
    """
    left = list({run.key: run for run in runs if run.result() is None}.values())
    if len(left) < len(runs):
        say(f"{len(runs) - len(left)} of {len(runs)} runs are there already.")
    if not left:
        return
    context = multiprocessing.get_context("spawn")
    slots = context.Queue()
    for slot in range(jobs):
        slots.put(slot)
    failures: list[str] = []
    done, start = 0, time.monotonic()
    # processes that stay: importing the MM packages takes as long as a short run
    pool = ProcessPoolExecutor(jobs, context, worker.prepare, (slots, max(1, available_cores() // jobs), left[0].home))
    try:
        waiting = {}
        for batch in _batches(left, together):
            folders = [run.write().parent for run in batch]
            waiting[pool.submit(worker.train_folders, folders, bool(together))] = batch
        for future in as_completed(waiting):
            batch = waiting[future]
            done += len(batch)
            remaining = (time.monotonic() - start) / done * (len(left) - done) / 60
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                # no run's own fault, and all that were waiting end with it
                failures.append(
                    "a process of the grid was killed, as a rule because the memory ran out: start again, with fewer --jobs; "
                    "what is done stays done."
                )
                break
            if error is not None:
                failures.append(f"{_name(batch)}: {error} (its traceback: {batch[0].home}/process_*.log)")
            say(f"[{done}/{len(left)}] {_name(batch)}: {_outcome(batch, error)}; about {remaining:.0f} min left")
    finally:
        pool.shutdown(cancel_futures=True)
    if failures:
        raise RunFailedError("\n".join(failures))


def _name(batch: list[Run]) -> str:
    first = batch[0]
    return f"{first.stage} {first.arm}, " + (
        f"rate {first.rate:g}, seed {first.seed}" if len(batch) == 1 else f"{len(batch)} runs"
    )


def _outcome(batch: list[Run], error: BaseException | None) -> str:
    if error is not None:
        return "failed"
    results = [run.result() for run in batch]
    bad = sum(result is not None and result.diverged is not None for result in results)
    seconds = sum(result.seconds for result in results if result is not None)
    return f"{seconds:.0f} s{f', {bad} diverged' if bad else ''}"
