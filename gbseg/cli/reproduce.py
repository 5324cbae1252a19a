"""Run a claim of the paper: sweep, trials, table or figure, verdict.

Example:
    gbseg reproduce fig1a --budget small
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add the options; returns the function that runs the command."""
    from gbseg.config_files import config_folder

    folder = config_folder("gbseg") / "reproduction"
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    parser.add_argument("claim", choices=names, metavar="CLAIM", help="; ".join(names))
    parser.add_argument("--budget", help="a size that the claim's file declares, e.g. small or reduced (default: the file's)")
    parser.add_argument("--trials", type=int, help="final trials of each arm (default: the file's)")
    parser.add_argument("--jobs", type=int, help="processes at a time (default: one a GPU, or one a core)")
    parser.add_argument(
        "--out", type=Path, help="folder of the result (default: results/CLAIM[_BUDGET]; with --trials or small, in work_dirs)"
    )
    parser.add_argument("--draw-only", action="store_true", help="run nothing: report on the runs that are there")
    parser.set_defaults(resume_hint="what was run stays, the same command continues")
    return _run


def _run(a: argparse.Namespace) -> None:
    from reproduction.command import reproduce

    reproduce(a.claim, a.budget, a.trials, a.jobs, a.out, a.draw_only, a.command_line)
