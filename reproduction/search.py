"""``gbseg search-boost``: is there a better output than the softmax for a classifier?

Boosted outputs and the softmax get the same number of trials on the same training images, pruned alike by successive halving
on training images held out. The best of each is then trained with fresh seeds and measured on the test set, which nothing
before has seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gbseg.files import require_folder
from gbseg.mm.config import load_config
from gbseg.parallel import available_cores
from reproduction.grid import HOME, run_all
from reproduction.runs import Run, RunResult
from reproduction.search_space import SIDES, Base, Candidate, read_base, suggest
from reproduction.summary import Estimate, estimate

if TYPE_CHECKING:
    import optuna

__all__ = [
    "Answer",
    "Confirmed",
    "Found",
    "Settings",
    "Trial",
    "answer",
    "best_of",
    "confirm",
    "rungs",
    "search",
    "search_boost",
]

METRIC = "accuracy/top1"
KEEP = 3
"""One of so many trials of a rung goes on to the next."""
GENERATION = 10
"""The trials that TPE draws before it hears how they did; a fixed number, so that a search does not depend on the jobs."""
SEARCH_SEED = 1000
"""The least training seed of a search; those of the confirmation are below, and so are fresh."""

# of n and n values in random order, those of one side all come first in 2 / binomial(2n, n) of cases: 10% at 3, 2.9% at 4
LEAST_SEEDS = 4


@dataclass(frozen=True)
class Settings:
    """The size of a search.

    Attributes:
        trials: of each side.
        epochs: of a trial that is never pruned, and of the confirmation.
        held_out: training images that the search measures on.
        images: training images that it trains on; None: all others.
        confirm: seeds of the confirmation.
        seed: of the draws, and, after `SEARCH_SEED`, of the trials' training.
        sampler: 'random', or 'tpe' (tree-structured Parzen estimators, which learn from the trials before).
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
        """Refuse what makes no sense.

        Raises:
            ValueError: says which and why.
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


@dataclass
class Trial:
    """A setting and how it did.

    Attributes:
        candidate: the setting.
        errors: on the held-out images in per cent, one for each rung that it ran; None where it diverged.
        keys: of its runs.
        seconds: they took.
    """

    candidate: Candidate
    errors: list[float | None] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def diverged(self) -> bool:
        """Whether its loss was not finite any more; it then is never chosen."""
        return bool(self.errors) and self.errors[-1] is None


def rungs(epochs: int) -> list[int]:
    """The epochs after which trials are compared: a quarter, a half and all of them, at least 1 each."""
    return sorted({max(1, epochs // 4), max(1, epochs // 2), epochs})


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The lowest error among those that got furthest; None where all diverged."""
    sound = [
        (-len(trial.errors), error, trial.candidate.number, trial)
        for trial in trials
        if (error := (trial.errors or [None])[-1]) is not None
    ]
    return min(sound)[-1] if sound else None


def error_of(result: RunResult) -> float | None:
    """The error after the last epoch in per cent; None if the run diverged."""
    return None if result.diverged is not None else 100 - result.metrics[METRIC][-1]


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise RuntimeError("search-boost draws its trials with Optuna: pip install 'gbseg[mm,search]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _studies(settings: Settings) -> dict[str, optuna.Study]:
    optuna = _optuna()
    studies = {}
    for side in SIDES:
        if settings.sampler == "random":
            sampler = optuna.samplers.RandomSampler(settings.seed)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                # a generation is drawn at once: the liar keeps its members apart
                sampler = optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=GENERATION, constant_liar=True)
        studies[side] = optuna.create_study(sampler=sampler)
    return studies


def _tell(study: optuna.Study, draws: optuna.Trial, trial: Trial, steps: Sequence[int]) -> None:
    optuna = _optuna()
    if trial.diverged:
        # pruned before it reported anything is the worst that a sampler knows
        study.tell(draws, state=optuna.trial.TrialState.PRUNED)
        return
    for step, error in zip(steps, trial.errors, strict=False):
        if error is not None:
            draws.report(error, step)
    if len(trial.errors) == len(steps):
        study.tell(draws, trial.errors[-1])
    else:
        study.tell(draws, state=optuna.trial.TrialState.PRUNED)


def search(base: Base, settings: Settings, train: Callable[[Sequence[Run]], None], home: Path = HOME) -> dict[str, list[Trial]]:
    """The trials of both sides, by successive halving: of those of a rung the best third goes on to the next.

    A trial of more epochs is a run of its own: a schedule of rates has another shape then. What was drawn depends on the
    settings and the errors alone, so that a search that was stopped is repeated from its cached runs, and goes on.

    Args:
        base: of the config.
        settings: the size; checked.
        train: gives runs a result, see `reproduction.grid.run_all`.
        home: the folder of the runs.

    Returns:
        For each side as many trials as the settings say.
    """
    data: dict[str, Any] = {"train_dataloader.dataset.part": "tune", "val_dataloader.dataset.part": "held_out"}
    data |= {f"{loader}.dataset.held_out": settings.held_out for loader in ("train_dataloader", "val_dataloader")}
    if settings.images is not None:
        data["train_dataloader.dataset.num"] = settings.images
    steps = rungs(settings.epochs)
    studies = _studies(settings)
    found: dict[str, list[Trial]] = {side: [] for side in SIDES}
    size = settings.trials if settings.sampler == "random" else GENERATION
    while (left := settings.trials - len(found[SIDES[0]])) > 0:
        drawn = {side: [studies[side].ask() for _ in range(min(size, left))] for side in SIDES}
        fresh = {side: [Trial(suggest(one, side, base)) for one in drawn[side]] for side in SIDES}
        alive = {side: list(trials) for side, trials in fresh.items()}
        for number, epochs in enumerate(steps):
            stage = f"rung {number + 1} of {len(steps)},"
            runs = {
                id(trial): trial.candidate.run(base, stage, epochs, SEARCH_SEED + settings.seed, data, settings.amp, home)
                for trials in alive.values()
                for trial in trials
            }
            train(list(runs.values()))
            for side, trials in alive.items():
                for trial in trials:
                    result = runs[id(trial)].result()
                    assert result is not None
                    trial.errors.append(error_of(result))
                    trial.keys.append(runs[id(trial)].key)
                    trial.seconds += result.seconds
                ranked = sorted((t for t in trials if not t.diverged), key=lambda t: (t.errors[-1], t.candidate.number))
                alive[side] = ranked[: -(-len(trials) // KEEP)]
        for side in SIDES:
            for draws, trial in zip(drawn[side], fresh[side], strict=True):
                _tell(studies[side], draws, trial, steps)
            found[side] += fresh[side]
    return found


@dataclass(frozen=True)
class Confirmed:
    """The best setting of a side, trained with fresh seeds on the training images.

    Attributes:
        trial: the setting's.
        results: of all seeds.
        errors: on the test images in per cent, of the seeds that did not diverge.
    """

    trial: Trial
    results: list[RunResult]
    errors: list[float]

    @property
    def error(self) -> Estimate | None:
        """The median over the seeds."""
        return estimate(self.errors)

    @property
    def diverged(self) -> int:
        """How many seeds diverged; they are in no number."""
        return len(self.results) - len(self.errors)


def confirm(
    base: Base,
    settings: Settings,
    found: dict[str, list[Trial]],
    train: Callable[[Sequence[Run]], None],
    home: Path = HOME,
) -> dict[str, Confirmed | None]:
    """Train the best of each side with fresh seeds and measure it on the test set; None for a side that all diverged on."""
    data: dict[str, Any] = {"train_dataloader.dataset.part": "train", "val_dataloader.dataset.part": "test"}
    if settings.images is not None:
        data["train_dataloader.dataset.num"] = settings.images
    best = {side: best_of(found[side]) for side in SIDES}
    runs = {
        side: [
            trial.candidate.run(base, "confirm", settings.epochs, seed, data, settings.amp, home)
            for seed in range(settings.confirm)
        ]
        for side, trial in best.items()
        if trial is not None
    }
    train([run for some in runs.values() for run in some])
    confirmed: dict[str, Confirmed | None] = {}
    for side, trial in best.items():
        results = [result for run in runs.get(side, []) if (result := run.result()) is not None]
        errors = [error for result in results if (error := error_of(result)) is not None]
        confirmed[side] = None if trial is None else Confirmed(trial, results, errors)
    return confirmed


@dataclass(frozen=True)
class Answer:
    """Whether there is a better output than the softmax.

    Attributes:
        outcome: 'better', 'not told apart' or 'worse'.
        because: a sentence with the numbers.
    """

    outcome: str
    because: str


def _said(name: str, side: Confirmed | None) -> str:
    if side is None:
        return f"every trial of {name} diverged"
    if side.error is None:
        return f"{name} diverged with all {len(side.results)} seeds"
    diverged = f", {side.diverged} more diverged" if side.diverged else ""
    return f"{name} has {side.error.text()}% test error ({len(side.errors)} seeds{diverged})"


def answer(confirmed: dict[str, Confirmed | None]) -> Answer:
    """Better or worse only if the intervals of the medians do not touch and the better one never diverged.

    Of the other, as many seeds must be left as a confirmation needs, or none.
    """
    boosted, softmax = confirmed["boosted"], confirmed["softmax"]
    name = "the boosted output" if boosted is None else f"the best boosted output ({boosted.trial.candidate.boost})"

    def below(one: Confirmed | None, other: Confirmed | None) -> bool:
        if one is None or one.diverged or one.error is None or one.error.high is None:
            return False
        if other is None or other.error is None:
            return True
        if len(other.errors) < LEAST_SEEDS:
            return False
        return other.error.low is not None and one.error.high < other.error.low

    outcome = "better" if below(boosted, softmax) else "worse" if below(softmax, boosted) else "not told apart"
    said = f"{_said(name, boosted)}, {_said('the softmax', softmax)}"
    return Answer(outcome, f"{said[0].upper()}{said[1:]}.")


@dataclass(frozen=True)
class Found:
    """A finished search.

    Attributes:
        base: what it read off the config.
        settings: its size.
        trials: of each side.
        confirmed: the best of each.
        answer: to the question.
    """

    base: Base
    settings: Settings
    trials: dict[str, list[Trial]]
    confirmed: dict[str, Confirmed | None]
    answer: Answer


def search_boost(
    config: str | Path,
    options: dict[str, Any] | None = None,
    settings: Settings | None = None,
    jobs: int | None = None,
    out: Path | None = None,
    home: Path = HOME,
    command: str | None = None,
) -> Path:
    """Search, confirm, and write the answer.

    Runs are cached by a hash of what determines them; a second call goes on where the first one was stopped.

    Args:
        config: of a classifier: a file, or ``gbseg::NAME.py``.
        options: keys with dots and their values, which override the file's.
        settings: the size.
        jobs: processes at a time; None: one a GPU, or one a core.
        out: where the result goes; ``work_dirs/reproduce/results/search_<config>``.
        home: the folder of the runs.
        command: the command line, for the provenance.

    Returns:
        The folder of the result.

    Raises:
        FileNotFoundError: no such config.
        ValueError: the config is no classifier, a setting makes no sense, or ``out`` is a file.
        BadDataFileError: the config's data are missing or damaged.
        RunFailedError: runs broke (which is not: diverged); a second call tries them again.
        RuntimeError: Optuna is not installed.
    """
    from reproduction.search_report import write_search

    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs is a number of processes, at least 1, got {jobs}.")
    require_folder(out)
    settings = settings or Settings()
    options = dict(options or {})
    read = load_config(config, options)
    base = read_base(read, options)
    settings.check(base)
    train = partial(run_all, jobs=jobs or torch.cuda.device_count() or available_cores())
    trials = search(base, settings, train, home)
    confirmed = confirm(base, settings, trials, train, home)
    found = Found(base, settings, trials, confirmed, answer(confirmed))
    out = out or home / "results" / f"search_{base.path.stem}"
    write_search(found, out, command)
    print((out / "README.md").read_text())
    print(f"{found.answer.outcome}: {out / 'README.md'}")
    return out
