"""Evaluate a checkpoint: IoU of every class, mIoU, pixel accuracy; of a classifier, top-1 and top-5.

Example:
    gbseg test gbseg::pixelnet_expgb.py work_dirs/pixelnet_expgb/iter_80000.pth --ci --out predictions
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from gbseg.cli.common_options import OutputFolder, add_config, add_launch, add_work_dir, existing_checkpoint


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add the options; returns the function that runs the command."""
    add_config(parser)
    parser.add_argument("checkpoint", type=existing_checkpoint, help="the weights")
    add_work_dir(parser)
    add_launch(parser)
    for option, what in (
        ("--out", "predictions as indexed PNGs at original size"),
        ("--show-dir", "image, truth and prediction"),
    ):
        parser.add_argument(option, action=OutputFolder, metavar="DIR", help=f"write {what} there")
    parser.add_argument(
        "--ci", type=int, nargs="?", const=2000, default=0, metavar="B", help="95%% intervals from B (2000) bootstrap resamples"
    )
    parser.add_argument("--calibration", action="store_true", help="expected calibration error and a reliability diagram")
    parser.add_argument(
        "--report", action=argparse.BooleanOptionalAction, default=True, help="write report.html, scores.json and figures"
    )
    parser.add_argument("--tta", action="store_true", help="average probabilities over scales and flips (tta_model)")
    parser.add_argument("--submit", type=Path, metavar="FILE.tgz", help="predict VOC's test list and pack it for its server")
    parser.add_argument("--submit-list", metavar="LIST", help="another list, below the test set's data_root, for --submit")
    return _run


def _run(a: argparse.Namespace) -> None:
    from gbseg.mm import load_config
    from gbseg.prediction.testing import test

    test(
        load_config(a.config, a.cfg_options),
        a.checkpoint,
        out=a.out,
        show_dir=a.show_dir,
        work_dir=a.work_dir,
        amp=a.amp,
        launcher=a.launcher,
        report=a.report,
        ci=a.ci,
        calibration=a.calibration,
        tta=a.tta,
        submit=a.submit,
        submit_list=a.submit_list,
        command=a.command_line,
    )
