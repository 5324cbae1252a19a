"""Check a config before it trains: packages, data, labels, loss and learning rate.

Example:
    gbseg doctor gbseg::pixelnet_expgb.py
"""

import argparse
from collections.abc import Callable

from gbseg.cli.common_options import add_config


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options; returns the function that runs the command."""
    add_config(parser)
    parser.add_argument("--all", action="store_true", help="read every image and mask, not 40 of each list")
    return _run


def _run(a: argparse.Namespace) -> int:
    from gbseg.doctor import report
    from gbseg.mm import load_config

    return report(load_config(a.config, a.cfg_options), a.all)
