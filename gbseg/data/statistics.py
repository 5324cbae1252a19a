"""What a list of labelled images holds, for who chooses a crop size, a sampling or a loss weight: classes and sizes.

C: classes. A *region* is a set of pixels of one class that touch each other at a side or a corner; two objects of a class that
touch are one region. Its *box* is the smallest upright rectangle around it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from gbseg.data.layout import LISTS, mask_folders, read_list
from gbseg.data.masks import read_mask
from gbseg.palettes import VOC_CLASSES
from gbseg.parallel import run_in_processes

__all__ = ["Statistics", "statistics"]

QUANTILES = (5, 25, 50, 75, 95)  # percent
# VOC's PNGs encode the class as a palette index, the first of which is everything that is no object
BACKGROUND = "background"


@dataclass(frozen=True)
class Statistics:
    """Counts of one list.

    Attributes:
        name: of the list.
        folder: of the masks.
        classes: the C names.
        sizes: (N, 2) int64, height and width of each image in pixels, in the order of the list.
        pixels: (C,) int64, pixels of every class.
        void: pixels that belong to no class.
        images: (C,) int64, images in which a class occurs.
        shared: (C,) int64, labelled pixels, of any class, of the images in which a class occurs.
        regions: (R, 4) int64: class, pixels, height and width of the box of each region.
    """

    name: str
    folder: str
    classes: tuple[str, ...]
    sizes: np.ndarray
    pixels: np.ndarray
    void: int
    images: np.ndarray
    shared: np.ndarray
    regions: np.ndarray

    def areas(self, label: int) -> np.ndarray:
        """The areas of the regions of a class in pixels, (r,) int64."""
        return self.regions[self.regions[:, 0] == label, 1]

    def median_pixel(self, label: int) -> int | None:
        """The area of the region in which the median pixel of a class lies: half of the class's pixels lie in regions of at
        least that area. Masks hold many regions of a pixel or two, by which the median region says little. None without one.
        """
        areas = np.sort(self.areas(label))
        return int(areas[np.searchsorted(np.cumsum(areas), areas.sum() / 2)]) if len(areas) else None

    def objects(self) -> np.ndarray:
        """(r,) whether a region is one of an object, that is, not of the class ``background``."""
        return np.array([name != BACKGROUND for name in self.classes])[self.regions[:, 0]]

    def fitting(self, side: int) -> dict[str, float]:
        """What a square of ``side`` pixels holds whole: the shares of the images, of the objects' regions by their boxes, and
        of the objects' pixels that lie in such regions.
        """
        objects = self.regions[self.objects()]
        held = objects[:, 2:].max(1) <= side
        return {
            "images": float((self.sizes.max(1) <= side).mean()),
            "regions": float(held.mean()) if len(objects) else 0.0,
            "object_pixels": float(objects[held, 1].sum() / objects[:, 1].sum()) if len(objects) else 0.0,
        }

    def rows(self) -> list[dict[str, Any]]:
        """The table by class: what JSON and CSV hold. Quantiles of a class without regions are None."""
        labelled, count = int(self.pixels.sum()), len(self.sizes)
        rows = []
        for label, name in enumerate(self.classes):
            areas = self.areas(label)
            quantiles = np.quantile(areas, [q / 100 for q in QUANTILES]).tolist() if len(areas) else [None] * len(QUANTILES)
            pixels, images, shared = int(self.pixels[label]), int(self.images[label]), int(self.shared[label])
            rows.append(
                {
                    "label": label,
                    "class": name,
                    "pixels": pixels,
                    "share_of_pixels": pixels / labelled if labelled else 0.0,
                    "images": images,
                    "share_of_images": images / count,
                    "share_where_present": pixels / shared if shared else None,
                    "regions": len(areas),
                    **{f"area_p{q:02d}": value for q, value in zip(QUANTILES, quantiles, strict=True)},
                    "area_of_median_pixel": self.median_pixel(label),
                }
            )
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Everything as what JSON can hold; areas as histograms of [2^k, 2^(k+1)) pixels."""
        total = int(self.pixels.sum()) + self.void
        sizes, counts = np.unique(self.sizes, axis=0, return_counts=True)
        octaves = np.frexp(self.regions[:, 1].astype(np.float64))[1] - 1
        last = int(octaves.max(initial=0))
        rows = self.rows()
        for row in rows:
            found = octaves[self.regions[:, 0] == row["label"]]
            row["area_histogram"] = np.bincount(found, minlength=last + 1).tolist()
        return {
            "list": self.name,
            "masks": self.folder,
            "images": len(self.sizes),
            "pixels": total,
            "void": {"pixels": self.void, "share_of_pixels": self.void / total},
            "classes": rows,
            "area_bins": [2**k for k in range(last + 2)],
            "sizes": [
                {"height": h, "width": w, "images": n} for (h, w), n in zip(sizes.tolist(), counts.tolist(), strict=True)
            ],
            "fitting": {str(side): self.fitting(side) for side in (128, 224, 256, 321, 384, 473, 512, 640)},
        }

    def summary(self) -> str:
        """One line."""
        total = int(self.pixels.sum()) + self.void
        absent = [name for name, images in zip(self.classes, self.images, strict=True) if not images]
        without = f" (without {', '.join(absent)})" if absent else ""
        return (
            f"{len(self.sizes):,} images, {len(self.regions):,} regions of {int((self.images > 0).sum())} of "
            f"{len(self.classes)} classes{without}, "
            f"{100 * self.void / total:.1f}% of the pixels void"
        )


class _Counts(NamedTuple):
    size: tuple[int, int]
    pixels: np.ndarray
    void: int
    regions: np.ndarray


def statistics(
    root: str | Path,
    name: str,
    classes: Sequence[str] = VOC_CLASSES,
    ignore_index: int = 255,
    folder: str | None = None,
    processes: int | None = None,
) -> Statistics:
    """Count the masks of one list of a data set in VOC's layout. Images are not opened: a mask has its image's size.

    Args:
        root: the folder with ``ImageSets``.
        name: of the list.
        classes: the names of the classes 0, 1, ...
        ignore_index: the value of pixels that belong to no class.
        folder: of the masks; None for the one that the list is trained with (`gbseg.data.layout.mask_folders`).
        processes: how many; None for as many as there are cores.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: the list is faulty, or masks are missing, damaged or hold other values (the first three are named).
        RuntimeError: a worker was killed.
    """
    root = Path(root)
    path = root / LISTS / f"{name}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"there is no list {path}")
    lines = read_list(path)
    if not lines:
        raise ValueError(f"{path} is empty: there is nothing to count")
    if faulty := next((line for line in lines if line.fault), None):
        raise ValueError(f"{path}: line {faulty.number} {faulty.fault}")
    ids = [line.id for line in lines]
    folder = mask_folders(root, name)[0] if folder is None else folder
    counts: dict[str, _Counts] = {}
    count = functools.partial(_count, folder=root / folder, classes=len(classes), ignore_index=ignore_index)
    failed = run_in_processes(count, ids, f"count {name}", processes, lambda key, found: counts.update({key: found}))
    if failed:
        first = "; ".join(str(error) for _, error in failed[:3])
        raise ValueError(f"{len(failed):,} of {len(ids):,} masks cannot be counted (--verify lists them all): {first}")
    ordered = [counts[key] for key in ids]
    pixels = np.stack([one.pixels for one in ordered])
    return Statistics(
        name,
        folder,
        tuple(classes),
        np.array([one.size for one in ordered], np.int64),
        pixels.sum(0),
        sum(one.void for one in ordered),
        (pixels > 0).sum(0),
        ((pixels > 0) * pixels.sum(1, keepdims=True)).sum(0),
        np.concatenate([one.regions for one in ordered]),
    )


def _count(key: str, folder: Path, classes: int, ignore_index: int) -> _Counts:
    path = folder / f"{key}.png"
    values = read_mask(path)
    counts = np.bincount(values.ravel(), minlength=256)
    void, counts[ignore_index] = int(counts[ignore_index]), 0
    if counts[classes:].any():
        raise ValueError(f"{path} holds {np.flatnonzero(counts[classes:])[0] + classes}, which is no class")
    pixels = counts[:classes].astype(np.int64)
    regions = []
    for label in np.flatnonzero(pixels):
        found = cv2.connectedComponentsWithStats((values == label).astype(np.uint8), connectivity=8)[2][1:]
        columns = found[:, [cv2.CC_STAT_AREA, cv2.CC_STAT_HEIGHT, cv2.CC_STAT_WIDTH]].astype(np.int64)
        regions.append(np.column_stack([np.full(len(columns), label, np.int64), columns]))
    return _Counts((values.shape[0], values.shape[1]), pixels, void, np.concatenate(regions or [np.empty((0, 4), np.int64)]))
