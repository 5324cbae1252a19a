"""Is everything there, and can it be read? Every image, mask and list of a data set in VOC's layout, before training on it."""

from __future__ import annotations

import functools
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from PIL import ExifTags, Image
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gbseg.data.layout import IMAGES, LISTS, MASKS, MASKS_AUG, find_lists, mask_folders, read_list
from gbseg.data.masks import MaskError, read_mask
from gbseg.palettes import VOC_CLASSES
from gbseg.parallel import run_in_processes

__all__ = ["Problem", "Verification", "verify"]


@dataclass(frozen=True, order=True)
class Problem:
    """Something that training or evaluation would stumble over.

    Attributes:
        file: which, relative to the data set's folder.
        what: what is wrong with it.
        remedy: what to do.
    """

    file: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Verification:
    """What was looked at and what was found.

    Attributes:
        root: the data set's folder.
        problems: sorted by file; empty if all is well.
        images: how many were decoded.
        masks: how many were decoded.
        lists: how many ids each list holds.
        unlabelled: the lists that have no masks by nature (VOC's ``test``).
    """

    root: Path
    problems: tuple[Problem, ...]
    images: int
    masks: int
    lists: dict[str, int]
    unlabelled: tuple[str, ...]

    def report(self, file: TextIO | None = None) -> int:
        """Print one table of all problems (one line each in a pipe), or one line of what was checked.

        Returns:
            The exit status: 1 if there are problems, else 0.
        """
        file = sys.stdout if file is None else file
        lists = [f"{name} ({count:,} ids{', no masks' * (name in self.unlabelled)})" for name, count in self.lists.items()]
        checked = f"{self.images:,} images, {self.masks:,} masks and the lists {', '.join(lists)}"
        if not self.problems:
            print(f"{self.root}: no problem in {checked}.", file=file)
            return 0
        # a pipe has no width: a line that is cut or folded there could not be searched
        terminal = file.isatty()
        console = Console(file=file, width=None if terminal else 100_000, highlight=False)
        rows = Table(box=box.SIMPLE_HEAD if terminal else box.ASCII2, title=None, show_edge=False)
        for heading in ("file", "problem", "remedy"):
            rows.add_column(heading, overflow="fold")
        for problem in self.problems:
            # Text: a file's name may look like markup
            rows.add_row(*(Text(cell) for cell in (problem.file, problem.what, problem.remedy)))
        console.print(rows)
        print(f"{self.root}: {len(self.problems):,} problem{'s'[: len(self.problems) > 1]} in {checked}.", file=file)
        return 1


_SUFFIX = {IMAGES: ".jpg", MASKS: ".png", MASKS_AUG: ".png"}
_REMEDY = {
    IMAGES: "unpack or link the images there, or take the id out of the list",
    MASKS: "unpack or prepare the masks, or take the id out of the list",
    MASKS_AUG: "prepare the masks (gbseg prepare-voc), or take the id out of the list",
}


class _Entry(NamedTuple):
    id: str
    image: bool  # whether there is one
    masks: tuple[str, ...]  # the folders that have one


def verify(
    root: str | Path, classes: Sequence[str] = VOC_CLASSES, ignore_index: int = 255, processes: int | None = None
) -> Verification:
    """Look at every file of a data set in VOC's layout (`gbseg.data.layout`). All is read, nothing is written.

    Every image, listed or not, decodes to its last pixel and is stored upright; every mask is an indexed or grey PNG of 8 bits
    and of its image's size whose values are classes or ``ignore_index``; every line of every list is an id, none twice; and
    every id has its image and its masks (`gbseg.data.layout.mask_folders` says in which folders; a list called ``test`` that
    has not a single mask is one without labels, as VOC's).

    Args:
        root: the folder with ``JPEGImages``.
        classes: the names of the classes 0, 1, ...; their number is the number of classes.
        ignore_index: the value of pixels that belong to no class.
        processes: how many; None for as many as there are cores.

    Raises:
        FileNotFoundError: there is no such data set, or it has no list.
        ValueError: ``processes < 1``, no classes, or an ``ignore_index`` that a mask cannot hold.
        RuntimeError: a worker was killed.
    """
    root = Path(root)
    if not classes:
        raise ValueError("there must be at least one class")
    if not 0 <= ignore_index <= 255:
        raise ValueError(f"a mask holds values from 0 to 255, so ignore_index cannot be {ignore_index}")
    names = find_lists(root)
    files = {folder: _ids(root / folder, suffix) for folder, suffix in _SUFFIX.items()}
    problems, counts, unlabelled = _check_lists(root, names, files)
    entries = [
        _Entry(key, key in files[IMAGES], tuple(folder for folder in (MASKS, MASKS_AUG) if key in files[folder]))
        for key in sorted(set().union(*files.values()))
    ]
    check = functools.partial(_check, root=root, classes=tuple(classes), ignore_index=ignore_index)
    run_in_processes(check, entries, "verify", processes, lambda _, found: problems.extend(found))
    masks = sum(len(entry.masks) for entry in entries)
    return Verification(root, tuple(sorted(problems)), len(files[IMAGES]), masks, counts, tuple(unlabelled))


def _ids(folder: Path, suffix: str) -> set[str]:
    """What a folder holds, without the suffix; empty where there is no folder. Hidden files are nobody's data."""
    return {
        path.relative_to(folder).as_posix().removesuffix(suffix)
        for path in folder.rglob(f"*{suffix}")
        if not path.name.startswith(".")
    }


def _check_lists(
    root: Path, names: Sequence[str], files: dict[str, set[str]]
) -> tuple[list[Problem], dict[str, int], list[str]]:
    """Every line of every list, and whether what it names is there: problems, ids by list, lists without labels."""
    problems: list[Problem] = []
    counts: dict[str, int] = {}
    unlabelled = []
    missing: dict[str, list[str]] = defaultdict(list)  # file -> the lists that name it
    for name in names:
        path = f"{LISTS}/{name}.txt"
        try:
            lines = read_list(root / path)
        except (OSError, ValueError) as error:
            problems.append(Problem(path, f"cannot be read: {error}", "write the list again"))
            continue
        if not lines:
            problems.append(Problem(path, "is empty", "write the list again: one id a line"))
        remedy = "one id a line, each once, without a suffix"
        problems += [Problem(path, f"line {line.number} {line.fault}", remedy) for line in lines if line.fault]
        ids = [line.id for line in lines if not line.fault]
        counts[name] = len(ids)
        folders: tuple[str, ...] = (IMAGES, *mask_folders(root, name))
        if name == "test" and not any(key in files[folder] for folder in (MASKS, MASKS_AUG) for key in ids):
            unlabelled.append(name)
            folders = (IMAGES,)
        for folder in folders:
            absent = [key for key in ids if key not in files[folder]]
            if len(absent) == len(ids) > 1:
                # thousands of lines would hide every other problem
                what = f"none of its {len(ids):,} files is in {folder} (first {absent[0]}{_SUFFIX[folder]})"
                problems.append(Problem(path, what, _REMEDY[folder]))
                continue
            for key in absent:
                missing[f"{folder}/{key}{_SUFFIX[folder]}"].append(name)
    for path, users in missing.items():
        what = f"is missing, but {', '.join(users)} name{'s' * (len(users) == 1)} it"
        problems.append(Problem(path, what, _REMEDY[path.partition("/")[0]]))
    return problems, counts, unlabelled


def _check(entry: _Entry, root: Path, classes: tuple[str, ...], ignore_index: int) -> list[Problem]:
    """Decode one image and its masks."""
    problems = []
    size = None
    if entry.image:
        path = f"{IMAGES}/{entry.id}.jpg"
        try:
            size, fault = _decode(root / path)
        except ValueError as error:
            problems.append(Problem(path, str(error), "get this image again: unpack or copy it from where it came"))
        else:
            if fault:
                problems.append(Problem(path, fault, "store its pixels upright and remove the tag (for a copy of your own)"))
    for folder in entry.masks:
        path = f"{folder}/{entry.id}.png"
        if not entry.image:
            problems.append(Problem(path, "has no image", f"put {entry.id}.jpg into {IMAGES}, or remove the mask"))
        try:
            values = read_mask(root / path)
        except MaskError as error:
            what = str(error).removeprefix(f"{root / path} ")
            problems.append(Problem(path, what, "remove it and start the preparation again"))
            continue
        if size and values.shape != size:
            have, want = (f"{width} x {height}" for height, width in (values.shape, size))
            remedy = "labels of another image, or resized: take the original ones"
            problems.append(Problem(path, f"is {have} pixels, its image {want}", remedy))
        counts = np.bincount(values.ravel(), minlength=256)
        counts[: len(classes)] = 0
        counts[ignore_index] = 0
        if counts.any():
            wrong = np.flatnonzero(counts)
            listed = ", ".join(map(str, wrong[:5])) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            what = f"{counts.sum():,} pixels with values that are no class: {listed}"
            last = len(classes) - 1
            remedy = f"values are 0 ({classes[0]}) to {last} ({classes[last]}) or {ignore_index} (ignored)"
            problems.append(Problem(path, what, remedy))
    return problems


def _decode(path: Path) -> tuple[tuple[int, int], str]:
    """(height, width) of an image as it is stored, and what is wrong with it although it can be read."""
    try:
        with warnings.catch_warnings():
            # large is no fault; what Pillow refuses is, because the masks are read with it
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                # the header alone says nothing about a file that was cut off
                image.load()
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
                size = (image.height, image.width)
    except FileNotFoundError as error:
        raise ValueError("is a link to a file that does not exist") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        message = str(error).replace(str(path), path.name)
        raise ValueError(f"cannot be decoded: {message}") from error
    # OpenCV turns such an image on reading, Pillow does not, and its mask was drawn for one of the two
    return size, "" if orientation in (0, 1) else f"is stored turned (EXIF orientation {orientation})"
