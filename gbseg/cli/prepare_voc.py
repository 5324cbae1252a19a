"""``gbseg prepare-voc``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Options, and the function that runs them."""
    where = "the file's URL, or a folder's that ends in a slash"
    parser.add_argument("data", nargs="?", type=Path, default=Path("data"), help="the data folder")
    parser.add_argument("--voc-tar", type=Path, metavar="FILE", help="VOCtrainval_11-May-2012.tar, if it lies elsewhere")
    parser.add_argument("--sbd-tar", type=Path, metavar="FILE", help="SBD's benchmark.tgz, if it lies elsewhere")
    parser.add_argument("--voc-mirror", metavar="URL", help=f"download VOC from there: {where}")
    parser.add_argument("--sbd-mirror", metavar="URL", help="the same for SBD")
    parser.add_argument("--noval-mirror", metavar="URL", help="the same for train_noval.txt")
    parser.add_argument("--noval", action="store_true", help="also make the list sbd_train_noval, out of a file to download")
    parser.add_argument("--no-verify", action="store_true", help="take archives of another MD5 and lists of other counts")
    parser.add_argument("--processes", type=int, metavar="N", help="that convert (default: one a core)")
    return _run


def _run(a: argparse.Namespace) -> None:
    from gbseg.data.prepare import prepare_voc

    mirrors = {"voc": a.voc_mirror, "sbd": a.sbd_mirror, "noval": a.noval_mirror}
    prepare_voc(a.data, a.voc_tar, a.sbd_tar, mirrors, not a.no_verify, a.noval, a.processes)
