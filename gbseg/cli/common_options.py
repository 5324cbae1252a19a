"""The options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_config", "add_launch", "add_work_dir"]


def add_config(parser: argparse.ArgumentParser) -> None:
    """``config`` and ``--cfg-options``."""
    from mmengine.config import DictAction

    parser.add_argument("config", help="a config file, or gbseg::NAME.py for one that came with the package")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override keys, e.g. optim_wrapper.optimizer.lr=0.01",
    )


def add_work_dir(parser: argparse.ArgumentParser) -> None:
    """``--work-dir``."""
    parser.add_argument("--work-dir", type=Path, help="where logs and checkpoints go (default: work_dirs/<config>)")


def add_launch(parser: argparse.ArgumentParser) -> None:
    """``--amp`` and what a launcher of several processes passes."""
    parser.add_argument("--amp", action="store_true", help="mixed precision (bfloat16 on a CPU)")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none", help="for several processes")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
