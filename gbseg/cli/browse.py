"""Draw contact sheets of what the network sees: augmented images, labels, sampled pixels.

Example:
    gbseg browse gbseg::demo_expgb.py --number 24 --out sheets
"""

import argparse
from collections.abc import Callable

from gbseg.cli.common_options import OutputFolder, add_config


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add the options; returns the function that runs the command."""
    add_config(parser)
    help_text = "where the sheets go (default: work_dirs/<config>/browse)"
    parser.add_argument("--out", action=OutputFolder, metavar="DIR", help=help_text)
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="whose samples")
    parser.add_argument("--number", type=int, default=12, metavar="N", help="how many samples")
    parser.add_argument("--image", metavar="NAME", help="this image N times, to see the variety of its augmentation")
    pixels = "pixels: a draw of the same sampler, not training's own"
    parser.add_argument("--seed", type=int, help=f"of order, augmentation and pixels (default: the config's; {pixels})")
    parser.add_argument("--scale", type=int, metavar="K", help="enlarge every pixel K times (default: panels of about 256)")
    parser.add_argument("--per-page", type=int, default=12, metavar="N", help="samples a sheet")
    return _run


def _run(a: argparse.Namespace) -> None:
    from gbseg.mm import load_config
    from gbseg.mm.sample_browser import browse

    config = load_config(a.config, a.cfg_options)
    for path in browse(config, a.out, a.split, a.number, a.image, a.seed, a.scale, a.per_page):
        print(path)
