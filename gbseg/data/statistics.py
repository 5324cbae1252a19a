"""Class frequencies and sizes of the labelled images of a list, for choosing a crop size, a sampling or loss weights.

C: number of classes. A *region* is a connected component of the pixels of one class, with 8 neighbours; touching objects of a
class are one region. Its *box* is its bounding box.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gbseg._moved import add_moved_names
from gbseg.data.images import MAX_PIXELS
from gbseg.data.layout import BLANK, LISTS, MARK, mask_folders, read_list
from gbseg.data.masks import read_mask
from gbseg.palettes import VOC_CLASSES
from gbseg.parallel import run_in_processes

__all__ = ["Statistics", "dataset_statistics"]

QUANTILES = (5, 25, 50, 75, 95)  # percent
BACKGROUND = "background"  # the class of everything that is no object


@dataclass(frozen=True)
class Statistics:
    """Counts of one list of N images, C classes and R regions.

    Attributes:
        name: name of the list.
        folder: folder of the masks.
        classes: names of the classes.
        sizes: (N, 2) int64, height and width of each image in pixels, in the order of the list.
        pixels: (C,) int64, number of pixels of each class.
        void: number of pixels that belong to no class.
        images: (C,) int64, number of images in which a class occurs.
        shared: (C,) int64, number of labelled pixels, of all classes, in the images in which a class occurs.
        regions: (R, 4) int64, for each region its class, its number of pixels, and height and width of its box.
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
        """Areas of the regions of a class in pixels, (r,) int64."""
        return self.regions[self.regions[:, 0] == label, 1]

    def median_pixel(self, label: int) -> int | None:
        """Area of the region that holds the median pixel of a class: half of its pixels lie in regions of at least that area.

        The median over regions would say little, because masks hold many regions of a pixel or two. None without a region.
        """
        areas = np.sort(self.areas(label))
        return int(areas[np.searchsorted(np.cumsum(areas), areas.sum() / 2)]) if len(areas) else None

    def objects(self) -> np.ndarray:
        """(R,) bool, whether a region belongs to an object, which is any class but ``background``."""
        return np.array([name != BACKGROUND for name in self.classes])[self.regions[:, 0]]

    def fitting(self, side: int) -> dict[str, float]:
        """What fits into a square crop of ``side`` pixels.

        Returns:
            The shares of the images, of the objects' regions by their boxes, and of the objects' pixels in such regions.
        """
        objects = self.regions[self.objects()]
        fits = objects[:, 2:].max(1) <= side
        return {
            "images": float((self.sizes.max(1) <= side).mean()),
            "regions": float(fits.mean()) if len(objects) else 0.0,
            "object_pixels": float(objects[fits, 1].sum() / objects[:, 1].sum()) if len(objects) else 0.0,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per class, for JSON and CSV. Quantiles of a class without regions are None."""
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
        """All counts for JSON; areas as histograms with bins [2^k, 2^(k+1)) pixels."""
        total = int(self.pixels.sum()) + self.void
        sizes, counts = np.unique(self.sizes, axis=0, return_counts=True)
        octaves = np.frexp(self.regions[:, 1].astype(np.float64))[1] - 1
        last = int(octaves.max(initial=0))
        rows = self.rows()
        for row in rows:
            row["area_histogram"] = np.bincount(octaves[self.regions[:, 0] == row["label"]], minlength=last + 1).tolist()
        return {
            "list": self.name,
            "masks": self.folder,
            "images": len(self.sizes),
            "pixels": total,
            "void": {"pixels": self.void, "share_of_pixels": self.void / total},
            "classes": rows,
            "area_bins": [2**k for k in range(last + 2)],
            "sizes": [{"height": h, "width": w, "images": n} for h, w, n in np.column_stack([sizes, counts]).tolist()],
            "fitting": {str(side): self.fitting(side) for side in (128, 224, 256, 321, 384, 473, 512, 640)},
        }

    def summary(self) -> str:
        """One line of text: number of images, regions and classes, and the share of void pixels."""
        total = int(self.pixels.sum()) + self.void
        absent = [name for name, images in zip(self.classes, self.images, strict=True) if not images]
        without = f" (without {', '.join(absent)})" if absent else ""
        classes = f"{int((self.images > 0).sum())} of {len(self.classes)} classes{without}"
        counts = f"{len(self.sizes):,} images, {len(self.regions):,} regions of {classes}"
        return f"{counts}, {100 * self.void / total:.1f}% of the pixels void"


def dataset_statistics(
    root: str | Path,
    name: str,
    classes: Sequence[str] = VOC_CLASSES,
    ignore_index: int = 255,
    folder: str | None = None,
    processes: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Statistics:
    """Count the masks of one list of a data set in VOC's layout. Images are not read: a mask has its image's size.

    Args:
        root: the folder with ``ImageSets``.
        name: name of the list.
        classes: names of the classes 0, 1, ...
        ignore_index: label of pixels that belong to no class.
        folder: folder of the masks, by default the one for training with this list (`gbseg.data.layout.mask_folders`).
        processes: number of processes, by default one per core.
        max_pixels: the most pixels that a mask may have.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: the list is faulty, or masks are missing, damaged or hold other values; the message names the first three.
        RuntimeError: a worker was killed.
    """
    root = Path(root)
    path = root / LISTS / f"{name}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"there is no list {path}")
    # neither training nor evaluation minds them
    lines = [line._replace(fault="" if line.fault == MARK else line.fault) for line in read_list(path) if line.fault != BLANK]
    if not lines:
        raise ValueError(f"{path} is empty: there is nothing to count")
    if faulty := next((line for line in lines if line.fault), None):
        raise ValueError(f"{path}: line {faulty.number} {faulty.fault}")
    ids = [line.id for line in lines]
    folder = mask_folders(root, name)[0] if folder is None else folder
    counts: list[tuple[tuple[int, ...], np.ndarray, int, np.ndarray]] = []
    count = functools.partial(
        _count_mask, folder=root / folder, classes=len(classes), ignore_index=ignore_index, max_pixels=max_pixels
    )
    if failed := run_in_processes(count, ids, f"count {name}", processes, lambda _, mask_counts: counts.append(mask_counts)):
        first = "; ".join(str(error) for _, error in failed[:3])
        raise ValueError(f"{len(failed):,} of {len(ids):,} masks cannot be counted (--verify lists them all): {first}")
    sizes, pixels_by_image, void, regions = zip(*counts, strict=True)
    pixels = np.stack(pixels_by_image)
    return Statistics(
        name,
        folder,
        tuple(classes),
        np.array(sizes, np.int64),
        pixels.sum(0),
        sum(void),
        (pixels > 0).sum(0),
        ((pixels > 0) * pixels.sum(1, keepdims=True)).sum(0),
        np.concatenate(regions),
    )


def _count_mask(
    name: str, folder: Path, classes: int, ignore_index: int, max_pixels: int
) -> tuple[tuple[int, ...], np.ndarray, int, np.ndarray]:
    """Size, pixels of each class, void pixels and regions of a mask, as in `Statistics`."""
    path = folder / f"{name}.png"
    labels = read_mask(path, max_pixels)
    pixels = np.bincount(labels.ravel(), minlength=256)
    void, pixels[ignore_index] = int(pixels[ignore_index]), 0
    if pixels[classes:].any():
        raise ValueError(f"{path} holds {np.flatnonzero(pixels[classes:])[0] + classes}, which is no class")
    regions = [np.empty((0, 4), np.int64)]
    for label in np.flatnonzero(pixels):
        # the first component is the background of this label's pixels
        components = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=8)[2][1:]
        columns = components[:, [cv2.CC_STAT_AREA, cv2.CC_STAT_HEIGHT, cv2.CC_STAT_WIDTH]].astype(np.int64)
        regions.append(np.column_stack([np.full(len(columns), label, np.int64), columns]))
    return labels.shape, pixels[:classes].astype(np.int64), void, np.concatenate(regions)


add_moved_names(__name__)
