"""Is there a better output than the softmax for a classifier? Search, then confirm with fresh seeds.

Example:
    gbseg search-boost gbseg::classification/cifar5_expgb.py --trials 10
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from gbseg.cli.common_options import add_config
from gbseg.cli.reproduce import in_checkout, require_checkout


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add the options; returns the function that runs the command."""
    # without a checkout that is what there is to say, whatever the config is
    add_config(parser, must_exist=in_checkout())
    parser.add_argument("--trials", type=int, default=30, help="settings tried of each side, boosted outputs and softmax")
    parser.add_argument("--epochs", type=int, default=4, help="of a trial that is not pruned, and of the confirmation")
    parser.add_argument("--held-out", type=int, default=5000, help="training images that the search measures on")
    parser.add_argument("--images", type=int, help="training images that it trains on (default: all that are left)")
    parser.add_argument("--confirm", type=int, default=5, help="fresh seeds of the best of each side, on the test set")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn and of the trials")
    parser.add_argument("--sampler", choices=("random", "tpe"), default="random", help="how settings are drawn")
    parser.add_argument("--amp", action="store_true", help="mixed precision (bfloat16 on a CPU)")
    parser.add_argument("--jobs", type=int, help="processes at a time (default: one a GPU, or one a core)")
    parser.add_argument("--out", type=Path, help="where the result goes (default: work_dirs/reproduce/results/search_CONFIG)")
    parser.set_defaults(resume_hint="what is done stays done, the same command continues")
    return _run


def _run(a: argparse.Namespace) -> None:
    require_checkout("tools/search_boost.py")
    from reproduction.command import search_boost
    from reproduction.search import Settings

    settings = Settings(a.trials, a.epochs, a.held_out, a.images, a.confirm, a.seed, a.sampler, a.amp)
    search_boost(a.config, a.cfg_options, settings, a.jobs, a.out, command=a.command_line)
