"""The command line: ``gbseg <command>``, and the same as ``tools/<command>.py``. One module a command.

A command's module has ``add(parser)``, which fills in its options and returns the function that runs it.
"""

from __future__ import annotations

import argparse
import errno
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

__all__ = ["main"]

# a command's name -> what it does, as the list of commands says it; its module is loaded when it runs
COMMANDS = {
    "prepare-voc": "make VOC 2012 + SBD ready: download, unpack, convert SBD's labels, write the lists",
    "prepare-coco": "make a data set for pre-training in VOC's layout out of COCO's instance annotations",
    "prepare-imagenet": "make ImageNet ready: unpack the official archives into folders of classes",
    "doctor": "check a config before it trains: packages, data, labels, loss and learning rate",
    "browse": "draw contact sheets of what the network sees: augmented images, labels, sampled pixels",
    "train": "train what a config describes; a config may list several runs to compare",
    "compare": "draw the comparison of a config's runs again, from what they left in the work dir",
    "test": "evaluate a checkpoint: IoU of every class, mIoU, pixel accuracy; of a classifier, top-1 and top-5",
    "reproduce": "run a claim of the paper: sweep, trials, table or figure, verdict",
    "search-boost": "is there a better output than the softmax for a classifier? Search, then confirm with fresh seeds",
    "predict": "predict images, folders and globs: indexed PNGs at original size",
}


# what to do after Ctrl-C, and once there is room on the disk
_AGAIN = {
    "train": "--resume continues from the newest checkpoint",
    "reproduce": "what was run stays, the same command continues",
    "search-boost": "what was run stays, the same command continues",
    "prepare-voc": "what is done stays done, the same command continues",
    "prepare-coco": "what is done stays done, the same command continues",
    "prepare-imagenet": "what is done stays done, the same command continues",
}


def main(argv: Sequence[str] | None = None, command: str | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments; by default those of the process.
        command: one of `COMMANDS` where the script itself is that command.

    Returns:
        The exit status: that of the command (0 if it says none), or 1 after an error of the input (its message goes to
        stderr, without a traceback).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if find_spec("mmseg") is None:
        print("gbseg: the commands need the MM packages: pip install 'gbseg[mm]'", file=sys.stderr)
        return 1
    spoken = shlex.join([f"tools/{command.replace('-', '_')}.py" if command else "gbseg", *argv])
    if command is None:
        parser = argparse.ArgumentParser(prog="gbseg", description=__doc__.splitlines()[0])
        names = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for name, summary in COMMANDS.items():
            # only the first word decides; the options behind it are the command's own
            names.add_parser(name, help=summary, add_help=False)
        command, argv = parser.parse_args(argv[:1]).command, argv[1:]
        parser = argparse.ArgumentParser(prog=f"gbseg {command}")
    else:
        parser = argparse.ArgumentParser()
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    # str.capitalize would write voc and miou
    parser.description = COMMANDS[command][0].upper() + COMMANDS[command][1:] + "."
    run = import_module(f"gbseg.cli.{command.replace('-', '_')}").add(parser)
    arguments = parser.parse_args(argv)
    arguments.command_line = spoken
    # said by the MM packages at every start, about nothing that a user of gbseg can change
    for message in ("Fail to import ``MultiScaleDeformableAttention``", "The draw is False", "__array_wrap__"):
        warnings.filterwarnings("ignore", message=message)
    hint = _AGAIN.get(command)
    try:
        status = run(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        # what gbseg itself refuses is said in a sentence; what breaks elsewhere may be a bug and keeps its traceback
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals.get("__name__", "").startswith("gbseg."):
            raise
        print(f"\ngbseg: {error}", file=sys.stderr)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) and hint:
            print(f"Make room first; {hint}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ngbseg: interrupted{f'; {hint}' if hint else ''}.", file=sys.stderr)
        return 130
    return status or 0
