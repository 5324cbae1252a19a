"""The options that several commands share, and how arguments are read."""

import argparse
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gbseg.config_files import find_config, read_sources
from gbseg.files import checkpoint_path, require_folder


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of an example, and adds defaults to the help of options where they say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class PrintCompletion(argparse.Action):
    """Prints a shell's completion script, made by shtab, and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, choices=("bash", "zsh", "tcsh"), **settings)

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: str | None = None) -> None:
        """Print the script of the shell ``values``."""
        if find_spec("shtab") is None:
            parser.error("completion needs shtab: pip install 'gbseg[mm]'")
        import shtab

        from gbseg.cli import build_parser

        print(shtab.complete(build_parser(), values))
        parser.exit()


class _Update(argparse.Action):
    """Collects pairs of key and value in a dictionary."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **dict(values)})


class ReadableConfig(argparse.Action):
    """Keeps a config as the user wrote it, if there is one and it can be parsed."""

    # an action, because argparse makes "invalid value" of a ValueError of its ``type``
    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        """Look for the file, and read it."""
        read_sources(find_config(values))
        setattr(namespace, self.dest, values)


class OutputFolder(argparse.Action):
    """Keeps the path of a folder, which need not exist, if it can be written to."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        """Look whether a file is in its place."""
        require_folder(Path(values))
        setattr(namespace, self.dest, Path(values))


def existing_checkpoint(name: str) -> Path:
    """The path of a checkpoint; raises as `gbseg.files.checkpoint_path` does."""
    return checkpoint_path(name)


def key_and_value(text: str) -> tuple[str, object]:
    """What ``KEY=VALUE`` says."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    return key, parse_value(value)


def parse_value(text: str) -> object:
    """The value in ``KEY=VALUE``, as ``mmengine.DictAction`` reads it, which would load mmengine.

    A number, True, False, None or a string; ``1,2`` and ``[1,2]`` are lists and ``(1,2)`` is a tuple, which may be nested.
    Spaces, and quotes around a value, are dropped.
    """
    text = text.strip("'\"").replace(" ", "")
    brackets = text[:1] + text[-1:]
    if brackets in ("()", "[]"):
        text = text[1:-1]
    elif "," not in text:
        return _parse_scalar(text)
    items, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    if depth or (items == [text] and brackets not in ("()", "[]")):
        raise argparse.ArgumentTypeError(f"the brackets in {text!r} do not match")
    # a comma may end a list
    values = [parse_value(item) for item in (items if items[-1] else items[:-1])]
    return tuple(values) if brackets == "()" else values


def _parse_scalar(text: str) -> object:
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return {"true": True, "false": False}.get(text.lower(), None if text == "None" else text)


def duration(text: str) -> float:
    """The seconds in ``3h50m``, ``90s``, ``1d12h`` or ``2.5h``; a number alone is in seconds."""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0}
    number = r"\d+(?:\.\d+)?"
    is_duration = re.fullmatch(rf"{number}|(?:{number}[dhms])+", text)
    total = sum(float(value) * units[unit] for value, unit in re.findall(rf"({number})([dhms]?)", text))
    if not is_duration or total <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 3h50m, 90s or 1d12h")
    return total


def add_config(parser: argparse.ArgumentParser, must_exist: bool = True) -> None:
    """``config`` and ``--cfg-options``.

    Args:
        parser: gets them.
        must_exist: whether the file is looked for and parsed with the command line.
    """
    help_text = "a config file, or gbseg::NAME.py for one that came with the package"
    parser.add_argument("config", action=ReadableConfig if must_exist else "store", help=help_text)
    add_cfg_options(parser)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """``--cfg-options``."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        type=key_and_value,
        action=_Update,
        metavar="KEY=VALUE",
        help="override keys, e.g. optim_wrapper.optimizer.lr=0.01",
    )


def add_work_dir(parser: argparse.ArgumentParser) -> None:
    """``--work-dir``."""
    help_text = "where logs and checkpoints go (default: work_dirs/<config>)"
    parser.add_argument("--work-dir", action=OutputFolder, metavar="DIR", help=help_text)


def add_launch(parser: argparse.ArgumentParser) -> None:
    """``--amp`` and what a launcher of several processes passes."""
    parser.add_argument("--amp", action="store_true", help="mixed precision (bfloat16 on a CPU)")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none", help="for several processes")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def _bound(text: str) -> float | str | None:
    """The value of ``--max-delta``."""
    if text in ("auto", "none"):
        return None if text == "none" else text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, auto or none") from None


def add_boost(parser: argparse.ArgumentParser, default: str | None) -> None:
    """``--boost`` and what belongs to it; `boost_arguments` reads them.

    Args:
        parser: gets them.
        default: of ``--boost``.
    """
    group = parser.add_argument_group("boosting", "of a config that is made for a softmax; gbseg boost prints what it changes")
    help_text = "the loss in place of each softmax cross-entropy; softmax takes it back"
    group.add_argument("--boost", choices=("exp", "pow3", "linear", "softmax"), default=default, help=help_text)
    group.add_argument("--alpha", type=float, metavar="A", help="the boost's alpha")
    group.add_argument("--targets", type=float, nargs=2, metavar=("T_NEG", "T_POS"), help="targets of wrong and right outputs")
    help_text = "bound of the error: a number, none, or auto (t_pos for exp, none for the others)"
    group.add_argument("--max-delta", type=_bound, default="auto", metavar="D", help=help_text)
    group.add_argument("--heads", type=lambda text: text.split(","), metavar="HEAD,...", help="these heads alone")


def boost_arguments(a: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `gbseg.mm.boosted_config.boosted` on a command line."""
    return {name: getattr(a, name) for name in ("boost", "alpha", "targets", "max_delta", "heads")}
