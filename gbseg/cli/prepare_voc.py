"""Make VOC 2012 + SBD ready: download, unpack, convert SBD's labels, write the lists.

Example:
    gbseg prepare-voc data --verify
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from gbseg.cli.data_checks import add_checks, check


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options; returns the function that runs the command."""
    where = "the file's URL, or a folder's that ends in a slash"
    parser.add_argument("data", nargs="?", type=Path, default=Path("data"), help="the data folder")
    parser.add_argument("--voc-tar", type=Path, metavar="FILE", help="VOCtrainval_11-May-2012.tar, if it lies elsewhere")
    parser.add_argument("--sbd-tar", type=Path, metavar="FILE", help="SBD's benchmark.tgz, if it lies elsewhere")
    parser.add_argument("--voc-mirror", metavar="URL", help=f"download VOC from there: {where}")
    parser.add_argument("--sbd-mirror", metavar="URL", help="the same for SBD")
    parser.add_argument("--noval-mirror", metavar="URL", help="the same for train_noval.txt")
    parser.add_argument("--noval", action="store_true", help="also make the list sbd_train_noval, out of a file to download")
    parser.add_argument("--no-verify", action="store_true", help="take archives of another MD5 and lists of other counts")
    add_checks(parser)
    parser.add_argument("--check-only", action="store_true", help="prepare nothing: only --verify and --stats of what is there")
    parser.set_defaults(resume_hint="what is done stays done, the same command continues")
    return _run


def _run(a: argparse.Namespace) -> int:
    from gbseg.data.layout import find_lists
    from gbseg.data.prepare.voc import find_voc, prepare_voc

    if a.check_only:
        voc = find_voc(a.data)
        if voc is None:
            raise ValueError(f"there is no VOC 2012 in {a.data}: without --check-only it is prepared.")
        if not (a.verify or a.stats):
            raise ValueError("--check-only does what --verify or --stats ask for: give one of them, or both.")
    else:
        mirrors = {"voc": a.voc_mirror, "sbd": a.sbd_mirror, "noval": a.noval_mirror}
        voc = prepare_voc(a.data, a.voc_tar, a.sbd_tar, mirrors, not a.no_verify, a.noval, a.processes)
    # the lists that one trains on, as far as they are there
    lists = [name for name in ("train_aug", "paper_train", "train") if name in find_lists(voc)]
    return check(a, voc, lists)
