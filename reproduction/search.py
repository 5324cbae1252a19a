"""The search of ``gbseg search-boost``: is there a better output than the softmax for a classifier?

Boosted outputs and the softmax get the same number of trials on the same training images, pruned by the same successive
halving on held-out training images. The best setting of each side is then trained with fresh seeds and measured on the test
set, which the search does not use.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbseg.files import lock_folder, write_atomically
from reproduction.grid import HOME
from reproduction.pool import RunFailedError, describe_failure
from reproduction.runs import Run, RunResult, describe_data
from reproduction.search_space import CLIP, RANGES, RATE, SIDES, SMALL_INIT, SPAN, Base, Candidate, suggest
from reproduction.summary import Estimate, estimate

if TYPE_CHECKING:
    import optuna

__all__ = [
    "Answer",
    "Confirmation",
    "SearchResult",
    "Settings",
    "Trial",
    "answer",
    "best_of",
    "confirm",
    "run_search",
    "rungs",
]

METRIC = "accuracy/top1"
KEEP = 3
"""One in so many trials of a rung goes on to the next."""
STARTUP_TRIALS = 10
"""Trials that the TPE sampler draws at random before it uses their errors."""
SEARCH_SEED = 1000
"""The lowest training seed of a search. Those of the confirmation are below it, and so are fresh."""

# in random order, the n values of one of two sides all come first with probability 2 / binomial(2n, n): 10% for 3, 2.9% for 4
LEAST_SEEDS = 4


@dataclass(frozen=True)
class Settings:
    """The size of a search.

    Attributes:
        trials: trials per side.
        epochs: epochs of a trial that is never pruned, and of the confirmation.
        held_out: number of training images on which the search measures the error.
        images: number of training images to train on; None: all others.
        confirm: number of seeds of the confirmation.
        seed: seed of the sampler and, added to `SEARCH_SEED`, of the trials' training.
        sampler: 'random', or 'tpe' (tree-structured Parzen estimator, which learns from earlier trials).
        amp: mixed precision.
    """

    trials: int = 30
    epochs: int = 4
    held_out: int = 5000
    images: int | None = None
    confirm: int = 5
    seed: int = 0
    sampler: str = "random"
    amp: bool = False

    def check(self, base: Base) -> None:
        """Check the settings against the config's data.

        Raises:
            ValueError: a setting is out of range.
        """
        if self.trials < 2:
            raise ValueError(f"--trials: a search compares at least two trials of each side, got {self.trials}.")
        if self.epochs < 1:
            raise ValueError(f"--epochs is at least 1, got {self.epochs}.")
        if not LEAST_SEEDS <= self.confirm <= SEARCH_SEED:
            raise ValueError(
                f"--confirm takes {LEAST_SEEDS} to {SEARCH_SEED:,} seeds, got {self.confirm}: with fewer, all of one side "
                "are better than all of the other by chance in more than 5% of cases."
            )
        if self.seed < 0:
            raise ValueError(f"--seed is not negative, got {self.seed}.")
        if self.sampler not in ("random", "tpe"):
            raise ValueError(f"--sampler is 'random' or 'tpe', got {self.sampler!r}.")
        if not 0 < self.held_out < base.images:
            raise ValueError(
                f"--held-out: of {base.images:,} training images 1 to {base.images - 1:,} can be held out, "
                f"got {self.held_out:,}."
            )
        if self.images is not None and not 0 < self.images <= base.images - self.held_out:
            raise ValueError(
                f"--images: {base.images - self.held_out:,} training images are left beside the {self.held_out:,} held out, "
                f"{self.images:,} were asked for."
            )


@dataclass(frozen=True)
class Trial:
    """A setting and the runs that tried it.

    Attributes:
        candidate: the setting.
        keys: keys of its runs, one per rung that it ran.
        results: their results.
    """

    candidate: Candidate
    keys: list[str] = field(default_factory=list)
    results: list[RunResult] = field(default_factory=list)

    @property
    def errors(self) -> list[float | None]:
        """The error on the held-out images in per cent after each rung; None if it diverged."""
        return [error_of(result) for result in self.results]

    @property
    def diverged(self) -> bool:
        """Whether its loss became non-finite; it is then never chosen."""
        return self.errors[-1] is None


def rungs(epochs: int) -> list[int]:
    """The epochs after which trials are compared: a quarter, a half and all of them, at least 1 each."""
    return sorted({max(1, epochs // 4), max(1, epochs // 2), epochs})


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the lowest error among those that ran the most rungs; None if all diverged."""
    finished = [
        (-len(trial.errors), error, trial.candidate.number, trial)
        for trial in trials
        if (error := trial.errors[-1]) is not None
    ]
    return min(finished)[-1] if finished else None


def error_of(result: RunResult) -> float | None:
    """The error after the last epoch in per cent; None if the run diverged."""
    return None if result.diverged is not None else 100 - result.metrics[METRIC][-1]


def _result(run: Run) -> RunResult:
    result = run.result()
    assert result is not None, f"{run.folder} has no result, although it was trained"
    return result


class _Side:
    """The trials of one side: an Optuna study in a file.

    A trial trains one run per rung: a run of more epochs is a run of its own, because its schedule of rates has another shape.
    """

    def __init__(self, side: str, base: Base, settings: Settings, home: Path, storage: optuna.storages.BaseStorage) -> None:
        import optuna

        self.side, self.base, self.settings, self.home = side, base, settings, home
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=KEEP)
        self.study = optuna.create_study(storage=storage, study_name=side, pruner=pruner, load_if_exists=True)
        self.trials: list[Trial] = []

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """The sampler of one trial, seeded by its number: a continued search draws what it would have drawn."""
        import optuna

        seed = int(np.random.SeedSequence([self.settings.seed, number]).generate_state(1)[0])
        if self.settings.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        # constant_liar keeps trials that are drawn at the same time apart
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True)

    def attempt(self, number: int) -> Iterator[Run]:
        """Ask for a trial, or continue or read the stored one. Yields the runs to train, one after the other."""
        from optuna.trial import Trial as OptunaTrial
        from optuna.trial import TrialState

        stored = self.study.get_trials(deepcopy=False)[number : number + 1]
        if stored:
            trial, reported = OptunaTrial(self.study, stored[0]._trial_id), stored[0].intermediate_values
        else:
            self.study.sampler = self._sampler(number)
            trial, reported = self.study.ask(), {}
        candidate = suggest(trial, self.side, self.base)
        runs = _rung_runs(candidate, self.base, self.settings, self.home)
        if stored and stored[0].state.is_finished():
            runs = runs[: len(reported)]
        self.trials.append(Trial(candidate))
        record = self.trials[-1]
        for rung, run in enumerate(runs):
            if run.result() is None:
                yield run
            record.keys.append(run.key)
            record.results.append(_result(run))
            error = record.errors[-1]
            # the pruner's rungs are at powers of its reduction factor; it always prunes NaN
            if KEEP**rung not in reported:
                trial.report(math.nan if error is None else error, KEEP**rung)
            if trial.should_prune():
                self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
                return
        self.study.tell(trial, record.errors[-1], skip_if_finished=True)


def _journal(path: Path) -> optuna.storages.journal.JournalFileBackend:
    """Optuna's journal, without the end of a line that was being written when the disk was full or the power failed."""
    from optuna.storages.journal import JournalFileBackend

    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        write_atomically(content[: content.rfind(b"\n") + 1], path)
    return JournalFileBackend(str(path))


def _rung_runs(candidate: Candidate, base: Base, settings: Settings, home: Path) -> list[Run]:
    steps = rungs(settings.epochs)
    data = {"train_dataloader.dataset.part": "tune", "val_dataloader.dataset.part": "held_out", **_images(settings)}
    data |= {f"{loader}.dataset.held_out": settings.held_out for loader in ("train_dataloader", "val_dataloader")}
    return [
        candidate.run(base, f"rung {rung} of {len(steps)},", epochs, SEARCH_SEED + settings.seed, data, settings.amp, home)
        for rung, epochs in enumerate(steps, 1)
    ]


def _images(settings: Settings) -> dict[str, Any]:
    return {} if settings.images is None else {"train_dataloader.dataset.num": settings.images}


def _folder(base: Base, settings: Settings, home: Path) -> Path:
    """The folder of a search, named by a hash of what determines its trials, except their number."""
    run = _rung_runs(Candidate("", 0, "", {}, 1.0, base.rate, {}), base, settings, home)[-1]
    space = [RANGES, SPAN, RATE, CLIP, SMALL_INIT, base.rate, base.decay, settings.sampler]
    determining = [run.key, describe_data(run.resolved), space]
    return home / f"search_{hashlib.sha256(json.dumps(determining).encode()).hexdigest()[:16]}"


def run_search(
    base: Base, settings: Settings, submit: Callable[[Run], Future[None]], home: Path = HOME, jobs: int = 1
) -> dict[str, list[Trial]]:
    """Run the trials of both sides, pruned by asynchronous successive halving.

    After each rung, a trial goes on if its error is in the best third of those that have reached the rung so far. Trials are
    stored in ``home/search_<hash>/trials.journal``: an interrupted search continues from there, and one with more trials
    extends it.

    Args:
        base: what was read from the config.
        settings: the size of the search; checked.
        submit: starts to train a run, see `reproduction.pool.WorkerPool.submit`.
        home: the folder of the runs.
        jobs: trials at a time. With one, the same settings give the same trials.

    Returns:
        The trials of each side, by number.

    Raises:
        RunFailedError: a run failed. The next call tries it again.
        RuntimeError: Optuna is not installed, or another process runs this search.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise RuntimeError("search-boost draws its trials with Optuna: pip install 'gbseg[mm,search]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = _folder(base, settings, home)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        storage = optuna.storages.JournalStorage(_journal(folder / "trials.journal"))
        sides = {side: _Side(side, base, settings, home, storage) for side in SIDES}
        attempts = (side.attempt(number) for number in range(settings.trials) for side in sides.values())
        _train_attempts(attempts, submit, jobs)
        return {name: side.trials for name, side in sides.items()}


def _train_attempts(attempts: Iterator[Iterator[Run]], submit: Callable[[Run], Future[None]], jobs: int) -> None:
    """Train the runs of some attempts, each run after the one before it, ``jobs`` attempts at a time."""
    training: dict[Future[None], tuple[Run, Iterator[Run]]] = {}

    def advance(attempt: Iterator[Run]) -> None:
        if (run := next(attempt, None)) is not None:
            training[submit(run)] = run, attempt

    while True:
        while len(training) < jobs and (attempt := next(attempts, None)) is not None:
            advance(attempt)
        if not training:
            return
        for future in wait(training, return_when=FIRST_COMPLETED).done:
            run, attempt = training.pop(future)
            if (error := future.exception()) is not None:
                raise RunFailedError(describe_failure([run], error)) from error
            advance(attempt)


@dataclass(frozen=True)
class Confirmation:
    """The best setting of a side, trained with fresh seeds on the training images.

    Attributes:
        trial: the trial that found the setting.
        results: the results of all seeds.
    """

    trial: Trial
    results: list[RunResult]

    @property
    def errors(self) -> list[float]:
        """The error on the test images in per cent, of the seeds that did not diverge."""
        return [error for result in self.results if (error := error_of(result)) is not None]

    @property
    def error(self) -> Estimate | None:
        """The median over the seeds."""
        return estimate(self.errors)

    @property
    def diverged(self) -> int:
        """The number of seeds that diverged; they are in no number."""
        return len(self.results) - len(self.errors)


def confirm(
    base: Base,
    settings: Settings,
    trials: dict[str, list[Trial]],
    train: Callable[[Sequence[Run]], None],
    home: Path = HOME,
) -> dict[str, Confirmation | None]:
    """Train the best setting of each side with fresh seeds and measure it on the test set; None for a side that diverged."""
    data = {"train_dataloader.dataset.part": "train", "val_dataloader.dataset.part": "test", **_images(settings)}
    best = {side: best_of(trials[side]) for side in SIDES}
    runs = {
        side: [
            trial.candidate.run(base, "confirm", settings.epochs, seed, data, settings.amp, home)
            for seed in range(settings.confirm)
        ]
        for side, trial in best.items()
        if trial is not None
    }
    train([run for side_runs in runs.values() for run in side_runs])
    return {
        side: None if trial is None else Confirmation(trial, [_result(run) for run in runs[side]])
        for side, trial in best.items()
    }


@dataclass(frozen=True)
class Answer:
    """Whether there is a better output than the softmax.

    Attributes:
        outcome: 'better', 'not told apart' or 'worse'.
        because: a sentence with the numbers.
    """

    outcome: str
    because: str


def _describe(name: str, side: Confirmation | None) -> str:
    if side is None:
        return f"every trial of {name} diverged"
    if side.error is None:
        return f"{name} diverged with all {len(side.results)} seeds"
    diverged = f", {side.diverged} more diverged" if side.diverged else ""
    return f"{name} has {side.error.text()}% test error ({len(side.errors)} seeds{diverged})"


def _is_lower(a: Confirmation | None, b: Confirmation | None) -> bool:
    if a is None or a.diverged or a.error is None or a.error.high is None:
        return False
    if b is None or b.error is None:
        return True
    return len(b.errors) >= LEAST_SEEDS and b.error.low is not None and a.error.high < b.error.low


def answer(confirmed: dict[str, Confirmation | None]) -> Answer:
    """Compare the two sides.

    One is better only if the intervals of the medians do not overlap, it never diverged, and of the other as many seeds are
    left as a confirmation needs, or none.
    """
    boosted, softmax = confirmed["boosted"], confirmed["softmax"]
    name = "the boosted output" if boosted is None else f"the best boosted output ({boosted.trial.candidate.boost})"
    outcome = "better" if _is_lower(boosted, softmax) else "worse" if _is_lower(softmax, boosted) else "not told apart"
    text = f"{_describe(name, boosted)}, {_describe('the softmax', softmax)}"
    return Answer(outcome, f"{text[0].upper()}{text[1:]}.")


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        base: what was read from the config.
        settings: the size of the search.
        trials: the trials of each side.
        confirmed: the confirmation of each side.
        answer: the answer to the question.
    """

    base: Base
    settings: Settings
    trials: dict[str, list[Trial]]
    confirmed: dict[str, Confirmation | None]
    answer: Answer

    @property
    def confirmation_runs(self) -> list[RunResult]:
        """The results of all runs of the confirmation."""
        return [run for side in self.confirmed.values() if side is not None for run in side.results]
