"""Train what a config describes; a config may list several runs to compare.

Example:
    gbseg train gbseg::demo_expgb.py --cfg-options train_cfg.max_iters=100
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from gbseg.cli.common_options import add_boost, add_config, add_launch, add_work_dir, boost_arguments, duration


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add the options; returns the function that runs the command."""
    add_config(parser)
    add_work_dir(parser)
    add_launch(parser)
    earlier = parser.add_mutually_exclusive_group()
    help_text = "continue from the newest readable checkpoint; start where there is none"
    earlier.add_argument("--resume", action="store_true", help=help_text)
    help_text = "first remove the checkpoints and logs of an earlier run in the folder"
    earlier.add_argument("--overwrite", action="store_true", help=help_text)
    help_text = "keep MMEngine's loop, sampler and checkpoint hook, with which a run does not resume exactly"
    parser.add_argument("--stock-loop", action="store_true", help=help_text)
    parser.add_argument(
        "--stop-after",
        type=duration,
        metavar="TIME",
        help="stop after the step in which this time is over, e.g. 3h50m or a number of seconds, counted from the start of the "
        "program, with a checkpoint and exit status 124; --resume goes on",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="randomness.seed: the same number gives the same weights")
    parser.add_argument("--deterministic", action="store_true", help="randomness.deterministic: on a GPU too, if slower")
    scale = "multiply the learning rate by the batch of all processes over auto_scale_lr.base_batch_size"
    parser.add_argument("--auto-scale-lr", action="store_true", help=scale)
    add_boost(parser, default=None)
    parser.set_defaults(resume_hint="--resume continues from the newest checkpoint")
    return _run


def _run(a: argparse.Namespace) -> None:
    from gbseg.mm import load_config, train
    from gbseg.mm.boosted_config import boosted
    from gbseg.mm.config import default_work_dir

    config = load_config(a.config, a.cfg_options)
    if a.boost is not None:
        result = boosted(config, **boost_arguments(a))
        file = Path(a.work_dir or default_work_dir(config)) / Path(config.filename).name
        text = (
            f"--boost {a.boost} changes the config:\n{result}\nThe whole config goes to {file}: test and predict with that.\n"
        )
        # of several processes, which do not know each other yet, the first one alone
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            print(text)
        config = result.config
    elif given := [
        f"--{name.replace('_', '-')}"
        for name, value in boost_arguments(a).items()
        if value != ("auto" if name == "max_delta" else None)
    ]:
        raise ValueError(f"{', '.join(given)}: of a loss that --boost puts in; give --boost exp, or leave it out.")
    options = {"seed": a.seed, "deterministic": a.deterministic, "auto_scale_lr": a.auto_scale_lr}
    try:
        train(
            config,
            a.work_dir,
            a.resume,
            a.amp,
            a.launcher,
            a.command_line,
            a.stock_loop,
            a.stop_after,
            a.overwrite,
            **options,
        )
    finally:
        folder = Path(a.work_dir or default_work_dir(config))
        # a run's own folder, or those of its ``runs``
        if not any(path.exists() for path in (folder / "last_checkpoint", *folder.glob("*/last_checkpoint"))):
            a.resume_hint = ""
