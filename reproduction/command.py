"""The commands ``gbseg reproduce``, a claim from its sweep to its verdict, and ``gbseg search-boost``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gbseg.files import require_folder
from gbseg.mm.config import load_config
from gbseg.parallel import available_cores
from reproduction.grid import HOME, Grid, SweepResult, load_claim
from reproduction.pool import RunFailedError, WorkerPool, train_runs
from reproduction.report import missing_runs, write_report
from reproduction.runs import Run
from reproduction.search import SearchResult, Settings, answer, confirm, run_search
from reproduction.search_report import write_search
from reproduction.search_space import read_base
from reproduction.summary import summarise

__all__ = ["reproduce", "search_boost"]


def _number_of_jobs(jobs: int | None) -> int:
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs is a number of processes, at least 1, got {jobs}.")
    return jobs or torch.cuda.device_count() or available_cores()


def reproduce(
    name: str,
    budget: str | None = None,
    trials: int | None = None,
    jobs: int | None = None,
    out: Path | None = None,
    draw_only: bool = False,
    command: str | None = None,
) -> Path:
    """Sweep the rates of a claim's arms, run the trials at the best, and write table, figure and verdict.

    Runs are cached in ``work_dirs/reproduce`` by a hash of what determines them; an interrupted call is continued by the next.

    Args:
        name: name of a file in ``configs/reproduction``.
        budget: one of its budgets.
        trials: final trials per arm, instead of the file's.
        jobs: number of processes; None: one per GPU, or one per core.
        out: folder of the result. Default: ``results/<name>[_<budget>]``; with other trials or the budget 'small', which would
            replace committed results, ``work_dirs/reproduce/results``. An existing result with fewer missing runs is never
            replaced; the new one then goes to the latter as well.
        draw_only: run nothing, report on the runs that are there.
        command: the command line, for the provenance.

    Returns:
        The folder of the result.

    Raises:
        ValueError: the claim is refused by `reproduction.grid.load_claim`; ``jobs`` is below 1; ``out`` is a file.
        BadDataFileError: the claim's data are missing or damaged.
        RunFailedError: runs failed; the report on the others is written first.
    """
    jobs = _number_of_jobs(jobs)
    require_folder(out)
    grid = Grid(load_claim(name, budget, trials))
    together = grid.settings.get("together", 0)
    failures: list[str] = []
    if not draw_only:
        failures += _train(grid.sweep(), jobs, together)
        sweep_results = grid.sweep_results()
        for arm, result in sweep_results.items():
            print(f"{arm}: {_choice(result)}")
        failures += _train(grid.final(sweep_results), jobs, together)
    summary = summarise(grid)
    committed = grid.claim.budget != "small" and trials is None
    out = out or (Path("results") if committed else grid.home / "results") / grid.claim.label
    if (missing := missing_runs(out)) is not None and missing < summary.missing:
        print(f"{out} holds a result of which {missing} runs are missing, here it is {summary.missing}: it stays.")
        out = grid.home / "results" / grid.claim.label
    # --draw-only alone makes no result
    verdict = write_report(summary, out, (command or "").replace(" --draw-only", "") or None)
    print((out / "README.md").read_text())
    print(f"{verdict.outcome}: {out / 'README.md'}")
    if failures:
        raise RunFailedError("\n".join(failures))
    return out


def _train(runs: Sequence[Run], jobs: int, together: int) -> list[str]:
    """The failures of training some runs, as messages."""
    try:
        train_runs(runs, jobs, together)
    except RunFailedError as error:
        return [str(error)]
    return []


def _choice(result: SweepResult) -> str:
    if result.best is None:
        return "every rate diverged" if result.diverged else f"{result.missing} rates are missing, no trials"
    return f"rate {result.best:g}{' (at the edge of the rates tried)' if result.at_edge else ''}"


def search_boost(
    config: str | Path,
    options: dict[str, Any] | None = None,
    settings: Settings | None = None,
    jobs: int | None = None,
    out: Path | None = None,
    home: Path = HOME,
    command: str | None = None,
) -> Path:
    """Search for an output that is better than the softmax, confirm it with fresh seeds, and write the answer.

    Trials are stored, and runs are cached by a hash of what determines them; an interrupted call is continued by the next.

    Args:
        config: config of a classifier: a file, or ``gbseg::NAME.py``.
        options: dotted keys and values that override the file's.
        settings: the size of the search.
        jobs: number of processes; None: one per GPU, or one per core. With one, a search can be repeated exactly.
        out: folder of the result; default: ``work_dirs/reproduce/results/search_<config>``.
        home: the folder of the runs.
        command: the command line, for the provenance.

    Returns:
        The folder of the result.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: the config describes no classifier, a setting is out of range, or ``out`` is a file.
        BadDataFileError: the config's data are missing or damaged.
        RunFailedError: a run failed; the next call tries it again.
        RuntimeError: Optuna is not installed, or another process runs this search.
    """
    jobs = _number_of_jobs(jobs)
    require_folder(out)
    settings = settings or Settings()
    options = dict(options or {})
    loaded = load_config(config, options)
    base = read_base(loaded, options)
    settings.check(base)
    with WorkerPool(jobs, home) as pool:
        trials = run_search(base, settings, lambda run: pool.submit([run]), home, jobs)
        confirmed = confirm(base, settings, trials, pool.train, home)
    result = SearchResult(base, settings, trials, confirmed, answer(confirmed))
    out = out or home / "results" / f"search_{base.path.stem}"
    write_search(result, out, command)
    print((out / "README.md").read_text())
    print(f"{result.answer.outcome}: {out / 'README.md'}")
    return out
