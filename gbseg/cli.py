"""The command line: ``gbseg train|test|compare``, and the same as ``tools/*.py``."""

from __future__ import annotations

import argparse
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

__all__ = ["main"]


def _common(parser: argparse.ArgumentParser) -> None:
    from mmengine.config import DictAction

    parser.add_argument("config", help="a config file, or gbseg::NAME.py for one that came with the package")
    parser.add_argument("--work-dir", type=Path, help="where logs and checkpoints go (default: work_dirs/<config>)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override keys, e.g. optim_wrapper.optimizer.lr=0.01",
    )


def _launched(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--amp", action="store_true", help="mixed precision (bfloat16 on a CPU)")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none", help="for several processes")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def _train(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], object]:
    parser.description = "Train what a config describes; a config may list several runs to compare."
    _common(parser)
    _launched(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the newest readable checkpoint")

    def run(arguments: argparse.Namespace) -> object:
        from gbseg.engine import load_config, train

        config = load_config(arguments.config, arguments.cfg_options)
        a = arguments
        return train(config, a.work_dir, a.resume, a.amp, a.launcher, command=a.command_line)

    return run


def _test(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], object]:
    parser.description = "Evaluate a checkpoint: IoU of every class, mIoU, pixel accuracy."
    _common(parser)
    parser.add_argument("checkpoint", type=Path, help="the weights")
    _launched(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write predictions there as indexed PNGs at original size")
    parser.add_argument("--show-dir", type=Path, metavar="DIR", help="write image, ground truth and prediction there")

    def run(arguments: argparse.Namespace) -> object:
        from gbseg.engine import load_config, test

        config = load_config(arguments.config, arguments.cfg_options)
        a = arguments
        return test(config, a.checkpoint, a.out, a.show_dir, a.work_dir, a.amp, a.launcher)

    return run


def _compare(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], object]:
    parser.description = "Draw the comparison of a config's runs again, from what they left in the work dir."
    _common(parser)

    def run(arguments: argparse.Namespace) -> object:
        from gbseg.engine import compare_runs, load_config
        from gbseg.engine.config import default_work_dir

        config = load_config(arguments.config, arguments.cfg_options)
        return compare_runs(config, arguments.work_dir or default_work_dir(config))

    return run


_COMMANDS = {"train": _train, "test": _test, "compare": _compare}


def main(argv: Sequence[str] | None = None, command: str | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments; by default those of the process.
        command: 'train', 'test' or 'compare' where the script itself is that command.

    Returns:
        The exit status: 0, or 1 after an error of the input (its message goes to stderr, without a traceback).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if find_spec("mmseg") is None:
        print("gbseg: the commands need the MM packages: pip install 'gbseg[mm]'", file=sys.stderr)
        return 1
    prog = None if command else "gbseg"
    parser = argparse.ArgumentParser(prog=prog, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    if command:
        run = _COMMANDS[command](parser)
    else:
        commands = parser.add_subparsers(dest="command", required=True)
        runs = {name: add(commands.add_parser(name)) for name, add in _COMMANDS.items()}
    arguments = parser.parse_args(argv)
    arguments.command_line = shlex.join([f"tools/{command}.py" if command else "gbseg", *argv])
    if not command:
        run = runs[arguments.command]
    # said by the MM packages at every start, about nothing that a user of gbseg can change
    for message in ("Fail to import ``MultiScaleDeformableAttention``", "The draw is False", "__array_wrap__"):
        warnings.filterwarnings("ignore", message=message)
    try:
        run(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        # what gbseg itself refuses is said in a sentence; what breaks elsewhere may be a bug and keeps its traceback
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals.get("__name__", "").startswith("gbseg."):
            raise
        print(f"\ngbseg: {error}", file=sys.stderr)
        return 1
    return 0
