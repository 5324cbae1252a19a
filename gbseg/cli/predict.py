"""Predict images, folders and globs: indexed PNGs at original size.

Example:
    gbseg predict gbseg::pixelnet_expgb.py iter_80000.pth photos --out masks --overlay
"""

import argparse
import sys
from collections.abc import Callable

from gbseg.cli.common_options import OutputFolder, add_config, existing_checkpoint


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options; returns the function that runs the command."""
    add_config(parser)
    parser.add_argument("checkpoint", type=existing_checkpoint, help="the weights")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="an image, a folder of images, or a glob in quotes")
    parser.add_argument("--out", action=OutputFolder, required=True, metavar="DIR", help="write <stem>.png there, indexed")
    parser.add_argument("--overlay", action="store_true", help="write the images with the classes' colours to DIR/overlay")
    parser.add_argument("--probabilities", action="store_true", help="write (C, H, W) float32 to DIR/probabilities as .npz")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--tta", action="store_true", help="average probabilities over scales and flips (tta_model)")
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--amp", action="store_true", help="mixed precision (bfloat16 on a CPU)")
    parser.add_argument("--tile", type=int, default=1024, metavar="PIXELS", help="side of the tiles of very large images")
    parser.add_argument("--overlap", type=int, default=256, metavar="PIXELS", help="what neighbouring tiles share")
    return _run


def _run(a: argparse.Namespace) -> int:
    from gbseg.prediction.jobs import find_images, plan_outputs

    # before the packages of the network are loaded
    jobs = plan_outputs(find_images(a.inputs), a.out, a.overlay, a.probabilities, a.overwrite)

    from gbseg.prediction.image_files import predict_images
    from gbseg.prediction.segmenter import Segmenter

    segmenter = Segmenter(
        a.config,
        a.checkpoint,
        a.device,
        cfg_options=a.cfg_options,
        amp=a.amp,
        tta=a.tta,
        tile=a.tile,
        overlap=a.overlap,
    )
    failed = predict_images(segmenter, jobs)
    print(f"{len(jobs) - len(failed)} of {len(jobs)} predictions are in {a.out}")
    if failed:
        lines = [f"{len(failed)} of {len(jobs)} images failed:", *(f"  {error}" for _, error in failed)]
        print("\n".join(lines), file=sys.stderr)
    return 1 if failed else 0
