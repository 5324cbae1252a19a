"""Make a data set for pre-training in VOC's layout out of COCO's instance annotations.

Example:
    gbseg prepare-coco data/coco --out data/coco_voc --splits train
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from gbseg.cli.data_checks import add_checks, check


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options; returns the function that runs the command."""
    from gbseg.data.prepare.coco import LINK_MODES, SPLITS

    parser.add_argument(
        "coco", nargs="?", type=Path, default=Path("data/coco"), help="COCO 2017: annotations/, train2017/, ..."
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("data/coco_voc"), help="the data set to make")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="which to prepare")
    parser.add_argument(
        "--min-pixels",
        type=int,
        default=1000,
        metavar="N",
        help="leave out images with fewer pixels of the 20 VOC classes than this",
    )
    parser.add_argument("--images", choices=LINK_MODES, default="symlink", help="how COCO's images get into JPEGImages")
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out images that are broken or of which an annotation is"
    )
    add_checks(parser)
    parser.set_defaults(resume_hint="what is done stays done, the same command continues")
    return _run


def _run(a: argparse.Namespace) -> int:
    from gbseg.data.prepare.coco import find_coco, prepare_coco

    splits = list(dict.fromkeys(a.splits))
    for split in splits:
        # before the first one is worked on
        find_coco(a.coco, split)
    made = [prepare_coco(a.coco, a.out, split, a.min_pixels, a.images, a.processes, a.skip_broken) for split in splits]
    for split in made:
        print(
            f"{a.out / 'ImageSets/Segmentation' / split.name}.txt: {split.listed:,} of {split.images:,} images have "
            f"{a.min_pixels:,} or more pixels of VOC's classes"
        )
        if split.broken:
            print(f"{split.broken:,} images are broken and left out: {a.out / f'{split.name}_broken.txt'} lists why")
    return check(a, a.out, [split.name for split in made])
