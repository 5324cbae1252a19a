"""Make ImageNet ready: unpack the official archives into folders of classes.

Example:
    gbseg prepare-imagenet data/imagenet --splits val
"""

import argparse
from collections.abc import Callable
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add the options; returns the function that runs the command."""
    from gbseg.data.prepare.imagenet import ARCHIVES, SPLITS

    parser.add_argument("data", nargs="?", type=Path, default=Path("data/imagenet"), help="ImageNet's folder")
    for key, name in ARCHIVES.items():
        option = "--devkit" if key == "devkit" else f"--{key}-tar"
        parser.add_argument(option, type=Path, metavar="FILE", help=f"{name}, if it lies elsewhere")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="which to prepare")
    parser.add_argument("--no-verify", action="store_true", help="take archives of another MD5 and sets of other counts")
    parser.set_defaults(resume_hint="what is done stays done, the same command continues")
    return _run


def _run(a: argparse.Namespace) -> None:
    from gbseg.data.prepare.imagenet import prepare_imagenet

    archives = {"train": a.train_tar, "val": a.val_tar, "devkit": a.devkit}
    prepare_imagenet(a.data, archives, not a.no_verify, list(dict.fromkeys(a.splits)))
