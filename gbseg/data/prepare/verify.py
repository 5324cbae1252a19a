"""Verify a data set in VOC's layout before training on it: every image, mask and list."""

import functools
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import ExifTags
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from gbseg._moved import add_moved_names
from gbseg.data.images import MAX_PIXELS, ImageError, check_file, open_image
from gbseg.data.layout import IMAGES, LISTS, MASKS, MASKS_AUG, find_lists, mask_folders, read_list
from gbseg.data.masks import MaskError, read_mask
from gbseg.files import is_dead_link, walk_files
from gbseg.palettes import VOC_CLASSES
from gbseg.parallel import run_in_processes

__all__ = ["Problem", "Verification", "verify_dataset"]


@dataclass(frozen=True, order=True)
class Problem:
    """A fault of a file that training or evaluation would fail on.

    Attributes:
        file: path relative to the data set's folder.
        what: what is wrong with the file.
        remedy: what to do.
    """

    file: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Verification:
    """Result of `verify_dataset`.

    Attributes:
        root: the data set's folder.
        problems: all problems, sorted by file.
        images: number of decoded images.
        masks: number of decoded masks.
        lists: name of a list -> number of its ids.
        unlabelled: the lists without labels (VOC's ``test``).
    """

    root: Path
    problems: tuple[Problem, ...]
    images: int
    masks: int
    lists: dict[str, int]
    unlabelled: tuple[str, ...]

    def report(self, file: TextIO | None = None) -> int:
        """Print a table of all problems (in a pipe, one line each) and one line that says what was checked.

        Args:
            file: the stream to print to, by default the standard output.

        Returns:
            The exit status: 1 if there are problems, else 0.
        """
        file = sys.stdout if file is None else file
        lists = [f"{name} ({count:,} ids{', no masks' * (name in self.unlabelled)})" for name, count in self.lists.items()]
        checked = f"{self.images:,} images, {self.masks:,} masks and the lists {', '.join(lists)}"
        if not self.problems:
            print(f"{self.root}: no problem in {checked}.", file=file)
            return 0
        # no line is folded in a pipe, so that it can be searched
        terminal = file.isatty()
        console = Console(file=file, width=None if terminal else 100_000, highlight=False)
        columns = (Column(heading, overflow="fold") for heading in ("file", "problem", "remedy"))
        rows = Table(*columns, box=box.SIMPLE_HEAD if terminal else box.ASCII2, show_edge=False)
        for problem in self.problems:
            # Text, because a file name may look like markup
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


def verify_dataset(
    root: str | Path,
    classes: Sequence[str] = VOC_CLASSES,
    ignore_index: int = 255,
    processes: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Verification:
    """Check every file of a data set in VOC's layout (`gbseg.data.layout`). Nothing is written.

    Links to folders are followed, names that begin with a dot are skipped (`gbseg.files.walk_files`).

    * Every image, listed or not, decodes to its last pixel and is stored upright.
    * Every mask is an indexed or grey PNG of 8 or 16 bits and of its image's size, and its values are classes or
      ``ignore_index``.
    * Every line of every list is an id, and no id occurs twice.
    * Every id has an image and its masks, in the folders of `gbseg.data.layout.mask_folders`. A list ``test`` without a single
      mask has no labels, as VOC's.

    Args:
        root: the folder with ``JPEGImages``.
        classes: names of the classes 0, 1, ...
        ignore_index: label of pixels that belong to no class.
        processes: number of processes, by default one per core.
        max_pixels: the most pixels that an image or a mask may have.

    Raises:
        FileNotFoundError: there is no such data set, or it has no list.
        ValueError: ``processes`` or ``max_pixels`` is less than 1, ``classes`` is empty, or ``ignore_index`` is not in 0..255.
        RuntimeError: a worker was killed.
    """
    root = Path(root)
    if not classes:
        raise ValueError("there must be at least one class")
    if not 0 <= ignore_index <= 255:
        raise ValueError(f"a mask holds values from 0 to 255, so ignore_index cannot be {ignore_index}")
    if max_pixels < 1:
        raise ValueError(f"max_pixels is the most pixels of an image or a mask, not {max_pixels}")
    problems: list[Problem] = []
    files = {folder: _ids(root, folder, problems) for folder in _SUFFIX}
    list_problems, counts, unlabelled = _check_lists(root, files)
    problems += list_problems
    ids = sorted(set().union(*files.values()))
    check = functools.partial(_check_files, root=root, classes=tuple(classes), ignore_index=ignore_index, max_pixels=max_pixels)
    run_in_processes(check, ids, "verify", processes, lambda _, file_problems: problems.extend(file_problems))
    masks = len(files[MASKS]) + len(files[MASKS_AUG])
    return Verification(root, tuple(sorted(problems)), len(files[IMAGES]), masks, counts, tuple(unlabelled))


def _ids(root: Path, name: str, problems: list[Problem]) -> set[str]:
    """The ids of a folder's files, empty if there is no folder; links that cannot be followed are added to the problems."""
    ids, folder, suffix = set(), root / name, _SUFFIX[name]

    def add(link: Path, what: str) -> None:
        problems.append(Problem(link.relative_to(root).as_posix(), what, "mend or remove the link"))

    def add_cycle(link: Path) -> None:
        add(link, f"is a link to a folder that holds it ({link.readlink()})")

    for path in walk_files(folder, add_cycle) if folder.is_dir() else ():
        if path.name.endswith(suffix):
            ids.add(path.relative_to(folder).as_posix().removesuffix(suffix))
        elif is_dead_link(path):
            add(path, f"is a link to {path.readlink()}, which does not exist")
    return ids


def _check_lists(root: Path, files: dict[str, set[str]]) -> tuple[list[Problem], dict[str, int], list[str]]:
    """Check every line of every list and the files that it names: problems, number of ids by list, lists without labels."""
    problems: list[Problem] = []
    counts: dict[str, int] = {}
    unlabelled = []
    missing: dict[str, list[str]] = defaultdict(list)  # file -> the lists that name it
    for name in find_lists(root):
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
        if name == "test" and not any(files[folder].intersection(ids) for folder in (MASKS, MASKS_AUG)):
            unlabelled.append(name)
            folders = (IMAGES,)
        for folder in folders:
            absent = [image_id for image_id in ids if image_id not in files[folder]]
            if len(absent) == len(ids) > 1:
                # one problem for the whole list: thousands would hide the others
                what = f"none of its {len(ids):,} files is in {folder} (first {absent[0]}{_SUFFIX[folder]})"
                problems.append(Problem(path, what, _REMEDY[folder]))
                continue
            for image_id in absent:
                missing[f"{folder}/{image_id}{_SUFFIX[folder]}"].append(name)
    for path, lists in missing.items():
        what = f"is missing, but {', '.join(lists)} name{'s' * (len(lists) == 1)} it"
        problems.append(Problem(path, what, _REMEDY[path.partition("/")[0]]))
    return problems, counts, unlabelled


def _check_files(image_id: str, root: Path, classes: tuple[str, ...], ignore_index: int, max_pixels: int) -> list[Problem]:
    """Decode the image and the masks of an id, as far as they exist."""
    problems = []
    size, fault = None, ""
    path = f"{IMAGES}/{image_id}.jpg"
    # lexists, so that a link to a missing file counts
    if has_image := os.path.lexists(root / path):
        try:
            size, fault = _decode(root / path, max_pixels)
        except ImageError as error:
            what = str(error).removeprefix(f"{root / path} ").replace(str(root / path), Path(path).name)
            what = what.replace("cannot be read as an image", "cannot be decoded")
            problems.append(Problem(path, what, "get this image again: unpack or copy it from where it came"))
        if fault:
            problems.append(Problem(path, fault, "store its pixels upright and remove the tag (for a copy of your own)"))
    for path in (f"{folder}/{image_id}.png" for folder in (MASKS, MASKS_AUG)):
        if not os.path.lexists(root / path):
            continue
        if not has_image:
            problems.append(Problem(path, "has no image", f"put {image_id}.jpg into {IMAGES}, or remove the mask"))
        try:
            labels = read_mask(root / path, max_pixels)
        except MaskError as error:
            what = str(error).removeprefix(f"{root / path} ")
            problems.append(Problem(path, what, "remove it and start the preparation again"))
            continue
        if size and labels.shape != size:
            actual, expected = (f"{width} x {height}" for height, width in (labels.shape, size))
            remedy = "labels of another image, or resized: take the original ones"
            problems.append(Problem(path, f"is {actual} pixels, its image {expected}", remedy))
        counts = np.bincount(labels.ravel(), minlength=256)
        counts[: len(classes)] = 0
        counts[ignore_index] = 0
        if counts.any():
            invalid = np.flatnonzero(counts)
            values = ", ".join(map(str, invalid[:5])) + (f" and {len(invalid) - 5} more" if len(invalid) > 5 else "")
            what = f"{counts.sum():,} pixels with values that are no class: {values}"
            last = len(classes) - 1
            remedy = f"values are 0 ({classes[0]}) to {last} ({classes[last]}) or {ignore_index} (ignored)"
            problems.append(Problem(path, what, remedy))
    return problems


def _decode(path: Path, max_pixels: int) -> tuple[tuple[int, int], str]:
    """(height, width) of an image as it is stored, and a fault that does not prevent reading it ('' for none)."""
    if not path.exists():
        raise ImageError("is a link to a file that does not exist")
    # the header of a file that was cut off is intact
    width, height = check_file(path, max_pixels, decode=True)
    with open_image(path) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    # OpenCV rotates such an image on reading, Pillow does not, and its mask was drawn for one of the two
    return (height, width), "" if orientation in (0, 1) else f"is stored turned (EXIF orientation {orientation})"


add_moved_names(__name__)
