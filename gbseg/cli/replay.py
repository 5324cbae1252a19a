"""Run the training step again at which a loss or gradient was not finite, and say where it began.

Training keeps such a step in the work dir. The file is read as data: nothing in it is run. Printed are the loss terms, each
layer's gradient, and the first layer whose output or gradient is not finite; and whether all is as it was recorded.

Example:
    gbseg replay work_dirs/demo_expgb/nonfinite_iter_12.dump
"""

import argparse
from collections.abc import Callable

from gbseg.cli.common_options import add_cfg_options, existing_checkpoint


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add the options; returns the function that runs the command."""
    parser.add_argument("dump", type=existing_checkpoint, help="the file nonfinite_iter_*.dump of a run")
    add_cfg_options(parser)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the kind where it was recorded, if there is one)")
    parser.add_argument(
        "--trust", action="store_true", help="import the modules that the dump's config names, and run their code"
    )
    return _run


def _run(a: argparse.Namespace) -> None:
    import gbseg.mm  # noqa: F401  (registers the components)
    from gbseg.mm.step_replay import replay

    print(replay(a.dump, a.cfg_options, a.device, a.trust).report())
