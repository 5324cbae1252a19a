"""``gbseg reproduce``: a claim from its sweep to its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gbseg.files import require_folder
from gbseg.parallel import available_cores
from reproduction.grid import Grid, RunFailedError, Swept, load_claim, run_all
from reproduction.report import missing_runs, write_report
from reproduction.runs import Run
from reproduction.summary import summarise

__all__ = ["reproduce"]


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

    Runs are cached in ``work_dirs/reproduce`` by a hash of what determines them; a second call goes on where the first one
    was stopped.

    Args:
        name: of a file in ``configs/reproduction``.
        budget: one of its budgets.
        trials: final trials of each arm, for the file's.
        jobs: processes at a time; None: one a GPU, or one a core.
        out: where the result goes; ``results/<name>[_<budget>]``, or with changed trials or at the budget 'small', which
            would replace committed results, ``work_dirs/reproduce/results``. A result that is there and of which fewer runs
            are missing is never replaced; this one then goes to the latter as well.
        draw_only: run nothing, report on what is there.
        command: the command line, for the provenance.

    Returns:
        The folder of the result.

    Raises:
        ValueError: what `load_claim` refuses; fewer than one process; ``out`` is a file.
        BadDataFileError: the claim's data are missing or damaged.
        RunFailedError: runs broke; the report on the others is written first.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs is a number of processes, at least 1, got {jobs}.")
    require_folder(out)
    grid = Grid(load_claim(name, budget, trials))
    jobs = jobs or torch.cuda.device_count() or available_cores()
    together = grid.settings.get("together", 0)
    failures: list[str] = []
    if not draw_only:
        failures += _failures(grid.sweep(), jobs, together)
        swept = grid.swept()
        for arm, found in swept.items():
            print(f"{arm}: {_choice(found)}")
        failures += _failures(grid.final(swept), jobs, together)
    summary = summarise(grid)
    committed = grid.claim.budget != "small" and trials is None
    out = out or (Path("results") if committed else grid.home / "results") / grid.claim.label
    if (known := missing_runs(out)) is not None and known < summary.missing:
        print(f"{out} holds a result of which {known} runs are missing, here it is {summary.missing}: it stays.")
        out = grid.home / "results" / grid.claim.label
    # --draw-only alone makes no result
    verdict = write_report(summary, out, (command or "").replace(" --draw-only", "") or None)
    print((out / "README.md").read_text())
    print(f"{verdict.outcome}: {out / 'README.md'}")
    if failures:
        raise RunFailedError("\n".join(failures))
    return out


def _failures(runs: Sequence[Run], jobs: int, together: int) -> list[str]:
    try:
        run_all(runs, jobs, together)
    except RunFailedError as error:
        return [str(error)]
    return []


def _choice(found: Swept) -> str:
    if found.best is None:
        return "every rate diverged" if found.diverged else f"{found.missing} rates are missing, no trials"
    return f"rate {found.best:g}{' (at the edge of the rates tried)' if found.at_edge else ''}"
