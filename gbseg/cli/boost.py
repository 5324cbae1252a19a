"""Boost the config of a network made for a softmax: print what changes, with the reasons, or write a short config of it.

Example:
    gbseg boost mmseg::pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512.py -o my_pspnet_expgb.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from gbseg.cli.common_options import add_boost, add_config, boost_arguments


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add the options; returns the function that runs the command."""
    add_config(parser)
    add_boost(parser, default="exp")
    help_text = "write a config there that inherits the original"
    parser.add_argument("-o", "--out", type=Path, metavar="OUT.py", help=help_text)
    return _run


def _run(a: argparse.Namespace) -> None:
    from gbseg.mm import load_config
    from gbseg.mm.boosted_config import boosted, write_config

    result = boosted(load_config(a.config, a.cfg_options), **boost_arguments(a))
    print(result)
    if a.out is not None:
        write_config(result, a.config, a.out)
        print(f"\n{a.out} is written: gbseg train {a.out}")
