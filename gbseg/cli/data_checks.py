"""``--verify`` and ``--stats``, which the commands that prepare data share."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_checks(parser: argparse.ArgumentParser) -> None:
    """``--processes``, ``--verify``, ``--max-pixels`` and ``--stats``."""
    parser.add_argument("--processes", type=int, metavar="N", help="how many; without it, as many as there are cores")
    parser.add_argument(
        "--verify", action="store_true", help="then look at every file of the data set; 1 if something is wrong"
    )
    parser.add_argument(
        "--max-pixels", type=int, metavar="N", help="the most pixels of an image or a mask for --verify and --stats (2**30)"
    )
    parser.add_argument(
        "--stats", action="store_true", help="then draw class frequencies and sizes into the data set's folder stats"
    )


def check(a: argparse.Namespace, root: Path, lists: Sequence[str]) -> int:
    """Do what `add_checks`' options ask for.

    Args:
        a: the options.
        root: the data set, in VOC's layout.
        lists: the names of those to draw statistics of.

    Returns:
        The exit status: 1 if ``--verify`` found problems.
    """
    status = 0
    limit = {} if a.max_pixels is None else {"max_pixels": a.max_pixels}
    if a.verify:
        from gbseg.data.prepare.verify import verify_dataset

        status = verify_dataset(root, processes=a.processes, **limit).report()
    if a.stats:
        from gbseg.data.statistics import dataset_statistics
        from gbseg.report.statistics_figure import write_statistics

        for name in lists:
            statistics = dataset_statistics(root, name, processes=a.processes, **limit)
            print(f"{write_statistics(statistics, root / 'stats' / name)}: {statistics.summary()}")
    return status
