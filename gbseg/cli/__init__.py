"""The command line: ``gbseg COMMAND``, and the same as ``tools/COMMAND.py`` in a checkout.

To add the command ``gbseg my-command``, add its name to `COMMANDS` and write ``gbseg/cli/my_command.py``: a docstring, whose
first line is the summary in ``gbseg --help`` and which gives an example, and a function ``add(parser)``. That adds the options
and returns the function that runs the command; it takes the parsed arguments, and returns an exit status or None (0). Import
torch and the MM packages inside that function: help and refused arguments must come without them. Tell the user how to go on
after Ctrl-C or with a full disk by ``parser.set_defaults(resume_hint=...)``. For a checkout, write ``tools/my_command.py``.
"""

import argparse
import errno
import inspect
import os
import shlex
import sys
import warnings
from collections.abc import Collection, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from gbseg import __version__
from gbseg.cli.common_options import HelpFormatter, OutputFolder, PrintCompletion, ReadableConfig, existing_checkpoint
from gbseg.errors import is_refusal

__all__ = ["COMMANDS", "build_parser", "main"]

COMMANDS = (
    "prepare-voc",
    "prepare-coco",
    "prepare-imagenet",
    "doctor",
    "browse",
    "class-weights",
    "boost",
    "train",
    "replay",
    "compare",
    "test",
    "reproduce",
    "search-boost",
    "predict",
    "convert-checkpoint",
)
"""The commands, in the order of ``gbseg --help``."""

TRACEBACK = "GBSEG_TRACEBACK"
"""The environment variable with which also what is said in a sentence keeps its traceback."""

UNEXPECTED = (
    "Nothing in gbseg refuses this by itself: if a value of the config is not of the kind that is needed, gbseg doctor may "
    "name it; else it is a bug, and the lines above belong into its report."
)

COMPLETE_PATHS = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
"""What ``shtab.FILE`` is; shtab is loaded for ``--print-completion`` alone."""


def _module(command: str) -> ModuleType:
    return import_module(f"gbseg.cli.{command.replace('-', '_')}")


def _summary(command: str) -> str:
    return (_module(command).__doc__ or "").partition("\n")[0]


def _add_command(parser: argparse.ArgumentParser, command: str) -> None:
    parser.formatter_class = HelpFormatter
    parser.description = inspect.cleandoc(_module(command).__doc__ or "")
    parser.set_defaults(resume_hint="")
    parser.set_defaults(run=_module(command).add(parser))
    for action in parser._actions:
        is_path = action.type in (Path, existing_checkpoint) or isinstance(action, OutputFolder | ReadableConfig)
        if is_path or action.dest == "inputs":
            action.complete = COMPLETE_PATHS  # type: ignore[attr-defined]  # shtab looks for it


def build_parser(commands: Collection[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of ``gbseg``.

    Args:
        commands: those whose options are added; of the others it only has the names.
    """
    parser = argparse.ArgumentParser(
        prog="gbseg",
        formatter_class=HelpFormatter,
        description="Train networks with boosted linear outputs instead of a softmax.",
        epilog="Example:\n    gbseg train gbseg::demo_expgb.py\n\ngbseg COMMAND --help shows the options of a command. "
        f"With {TRACEBACK}=1 in the environment, every error comes with its traceback.",
    )
    parser.add_argument("--version", action="version", version=f"gbseg {__version__}", help="print the version")
    parser.add_argument("--print-completion", action=PrintCompletion, help="print the completion script of a shell")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = subparsers.add_parser(command, help=_summary(command))
        if command in commands:
            _add_command(subparser, command)
    return parser


def main(argv: Sequence[str] | None = None, command: str | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments; by default those of the process.
        command: one of `COMMANDS` where the script itself is that command.

    Returns:
        The exit status: that of the command (0 if it returns None), or 1 after an error of the input (its message goes to
        stderr, without a traceback).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if command is None:
        program, parser = "gbseg", build_parser(argv[:1])
    else:
        program, parser = f"tools/{command.replace('-', '_')}.py", argparse.ArgumentParser()
        _add_command(parser, command)
    arguments = argparse.Namespace(command_line=shlex.join([program, *argv]))
    # said by the MM packages at every start, about nothing that a user of gbseg can change
    for message in ("Fail to import ``MultiScaleDeformableAttention``", "The draw is False", "__array_wrap__"):
        warnings.filterwarnings("ignore", message=message)
    try:
        parser.parse_args(argv, arguments)
        if find_spec("mmseg") is None:
            raise ImportError("the commands need the MM packages: pip install 'gbseg[mm]'")
        status = arguments.run(arguments)
    except Exception as error:
        if not is_refusal(error) or os.environ.get(TRACEBACK):
            error.add_note(f"gbseg: {program} {' '.join(argv[:2])} stopped: {type(error).__name__}: {error}. {UNEXPECTED}")
            raise
        print(f"\ngbseg: {' '.join([str(error), *getattr(error, '__notes__', [])])}", file=sys.stderr)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) and arguments.resume_hint:
            print(f"Make room first; {arguments.resume_hint}.", file=sys.stderr)
        # of a training that was stopped from outside
        return int(getattr(error, "exit_status", 1))
    except KeyboardInterrupt:
        print(f"\ngbseg: interrupted{f'; {arguments.resume_hint}' if arguments.resume_hint else ''}.", file=sys.stderr)
        return 130
    return status or 0
