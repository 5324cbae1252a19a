"""Run a claim of the paper: sweep, trials, table or figure, verdict.

Example:
    gbseg reproduce fig1b --budget reduced
"""

import argparse
from collections.abc import Callable
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path


def in_checkout() -> bool:
    """Whether the folder ``reproduction`` can be imported, which a wheel does not contain."""
    spec = find_spec("reproduction")
    return spec is not None and spec.origin is not None


def require_checkout(script: str) -> None:
    """Check that the command runs in a checkout.

    Raises:
        RuntimeError: it does not; the message says how to get one.
    """
    if not in_checkout():
        urls = dict(url.split(", ") for url in metadata("gbseg").get_all("Project-URL") or [])
        repository = urls.get("Repository", "URL")
        raise RuntimeError(
            "the experiments of the paper are not part of the installed package, they need a checkout: "
            f"git clone {repository} gbseg, then python {script} in it."
        )


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add the options; returns the function that runs the command."""
    if in_checkout():
        from reproduction import CONFIGS

        names = sorted(path.stem for path in (CONFIGS / "reproduction").glob("*.py") if not path.stem.startswith("_"))
        parser.add_argument("claim", choices=names, metavar="CLAIM", help="; ".join(names))
    else:
        parser.add_argument("claim", nargs="?", metavar="CLAIM", help="a file in configs/reproduction; needs a checkout")
    parser.add_argument("--budget", help="a size that the claim's file declares, e.g. small or reduced (default: the file's)")
    parser.add_argument("--trials", type=int, help="final trials of each arm (default: the file's)")
    parser.add_argument("--jobs", type=int, help="processes at a time (default: one a GPU, or one a core)")
    parser.add_argument(
        "--out", type=Path, help="folder of the result (default: results/CLAIM[_BUDGET]; with --trials or small, in work_dirs)"
    )
    parser.add_argument("--draw-only", action="store_true", help="run nothing: report on the runs that are there")
    parser.set_defaults(resume_hint="what is done stays done, the same command continues")
    return _run


def _run(a: argparse.Namespace) -> None:
    require_checkout("tools/reproduce.py")
    from reproduction.command import reproduce

    reproduce(a.claim, a.budget, a.trials, a.jobs, a.out, a.draw_only, a.command_line)
