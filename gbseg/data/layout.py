"""VOC's folder layout: which folders there are, what a list of ids holds, and which masks belong to a list.

``JPEGImages/<id>.jpg``, ``SegmentationClass/<id>.png``, ``SegmentationClassAug/<id>.png`` (VOC's masks and SBD's together),
``ImageSets/Segmentation/<list>.txt``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "BLANK",
    "IMAGES",
    "LISTS",
    "MARK",
    "MASKS",
    "MASKS_AUG",
    "VOC_LISTS",
    "ListLine",
    "find_lists",
    "mask_folders",
    "read_list",
]

IMAGES, MASKS, MASKS_AUG = "JPEGImages", "SegmentationClass", "SegmentationClassAug"
LISTS = "ImageSets/Segmentation"
BLANK, MARK = "is blank", "begins with a byte order mark: save the list as plain text"

# the lists that come with VOC itself: their masks are in SegmentationClass, whatever else was prepared
VOC_LISTS = ("train", "val", "trainval")


class ListLine(NamedTuple):
    """One line of a list.

    Attributes:
        number: from 1.
        id: what it names, empty where it names nothing.
        fault: what is wrong with the line, empty if it is fine.
    """

    number: int
    id: str
    fault: str


def find_lists(root: str | Path) -> list[str]:
    """The names of the lists of a data set, sorted, without ``.txt``.

    Raises:
        FileNotFoundError: the root or its folder of lists is missing, or there is no list.
    """
    root, folder = Path(root), Path(root) / LISTS
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist, so {root} is no data set in VOC's layout; name the folder that holds {IMAGES}, {MASKS} "
            "and ImageSets (for VOC: .../VOCdevkit/VOC2012)"
        )
    names = sorted(path.stem for path in folder.glob("*.txt") if not path.name.startswith("."))
    if not names:
        raise FileNotFoundError(f"{folder} holds no list (<name>.txt, one id a line)")
    return names


def read_list(path: str | Path) -> list[ListLine]:
    """Every line of a list, faulty ones included.

    A line is an id: the name of an image without its suffix. Blank lines, several columns, suffixes, ids that leave their
    folder and ids that stood in an earlier line are faults.

    Raises:
        ValueError: the file is no UTF-8 text.
        OSError: it cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    first: dict[str, int] = {}
    result = []
    for number, line in enumerate(lines, 1):
        name = line.removeprefix("\ufeff").strip()
        fault = _fault(name)
        if not fault and first.setdefault(name, number) != number:
            fault = f"names {name} again, as line {first[name]} does"
        if not fault and line.startswith("\ufeff"):
            fault = MARK
        result.append(ListLine(number, name if name in first else "", fault))
    return result


def _fault(name: str) -> str:
    if not name:
        return BLANK
    if re.search(r"\s", name):
        return f"has several columns: {name[:40]!r}"
    if name.lower().endswith((".jpg", ".jpeg", ".png")):
        return f"has a suffix: {name[:60]!r}"
    if "\\" in name or {"", ".", ".."} & set(name.split("/")):
        return f"is no id but a path: {name[:60]!r}"
    if not name.isprintable():
        return f"holds characters that cannot be printed: {name[:40]!r}"
    return ""


def mask_folders(root: str | Path, name: str) -> tuple[str, ...]:
    """The folders that must hold a mask for every id of a list; the first is the one to train with.

    VOC's own lists need ``SegmentationClass``. Every list needs ``SegmentationClassAug`` where that folder exists, VOC's own
    too, because it holds VOC's masks beside SBD's; other lists need ``SegmentationClass`` only where it does not exist.
    """
    folders = (MASKS,) if name in VOC_LISTS else ()
    if (Path(root) / MASKS_AUG).is_dir():
        return (*folders, MASKS_AUG)
    return (MASKS,)
