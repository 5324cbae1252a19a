"""Draw the comparison of a config's runs again, from what they left in the work dir.

Example:
    gbseg compare gbseg::demo_expgb.py
"""

import argparse
from collections.abc import Callable

from gbseg.cli.common_options import add_config, add_work_dir


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add the options; returns the function that runs the command."""
    add_config(parser)
    add_work_dir(parser)
    return _run


def _run(a: argparse.Namespace) -> None:
    from gbseg.mm import compare_runs, load_config
    from gbseg.mm.config import default_work_dir

    config = load_config(a.config, a.cfg_options)
    compare_runs(config, a.work_dir or default_work_dir(config))
