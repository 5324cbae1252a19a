"""Make a checkpoint that one trusts readable: write what is data in it, and name what is left out.

gbseg reads a checkpoint as data, and refuses a file with other objects, since to load these can run any code. This command does
load them, once: only for files from a source that you trust as you trust a program that you run.

Example:
    gbseg convert-checkpoint old.pth new.pth --trust
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from gbseg.cli.common_options import existing_checkpoint


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add the options; returns the function that runs the command."""
    parser.add_argument("source", type=existing_checkpoint, metavar="IN", help="the checkpoint")
    parser.add_argument("target", type=Path, metavar="OUT", help="the file to write; none of that name may exist")
    parser.add_argument("--trust", action="store_true", help="load IN in full, which runs whatever code it holds")
    return _run


def _run(a: argparse.Namespace) -> None:
    if not a.trust:
        raise ValueError(
            f"to convert {a.source} is to load it in full, which runs whatever code the file holds, with your rights: if you "
            "trust where it comes from as you trust a program that you run, repeat the command with --trust."
        )
    from gbseg.mm.checkpoint_contents import convert_checkpoint

    left_out = convert_checkpoint(a.source, a.target)
    for place, kind in left_out.items():
        print(f"left out: {place} ({kind})")
    print(f"{a.target} holds the rest of {a.source}" if left_out else f"{a.target} holds all of {a.source}")
