"""VOC's folder layout: the folders, the format of a list, and the masks that belong to a list.

``JPEGImages/<id>.jpg``, ``SegmentationClass/<id>.png``, ``SegmentationClassAug/<id>.png`` (VOC's masks and SBD's together),
``ImageSets/Segmentation/<list>.txt``.
"""

import re
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "IMAGES",
    "LISTS",
    "MASKS",
    "MASKS_AUG",
    "VOC_LISTS",
    "ListLine",
    "find_lists",
    "mask_folders",
    "read_lines",
    "read_list",
]

#: Folder of the images.
IMAGES = "JPEGImages"
#: Folder of VOC's masks.
MASKS = "SegmentationClass"
#: Folder of VOC's and SBD's masks together.
MASKS_AUG = "SegmentationClassAug"
#: Folder of the lists.
LISTS = "ImageSets/Segmentation"
BLANK, MARK = "is blank", "begins with a byte order mark: save the list as plain text"

#: The lists that come with VOC: their masks are in ``SegmentationClass``, whatever else was prepared.
VOC_LISTS = ("train", "val", "trainval")


class ListLine(NamedTuple):
    """One line of a list.

    Attributes:
        number: line number, from 1.
        id: the id, '' if the line has none.
        fault: what is wrong with the line, '' for nothing.
    """

    number: int
    id: str
    fault: str


def find_lists(root: str | Path) -> list[str]:
    """The names of the lists of a data set, sorted, without ``.txt``.

    Raises:
        FileNotFoundError: the root or its folder of lists does not exist, or holds no list.
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


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a list as they are.

    Raises:
        ValueError: the file is no UTF-8 text.
        OSError: the file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}): write it again.") from error


def read_list(path: str | Path) -> list[ListLine]:
    """Read every line of a list, also faulty ones.

    A line is an id: the name of an image without its suffix. Faults are blank lines, several columns, suffixes, paths that
    leave the folder, and ids of an earlier line.

    Raises:
        ValueError: the file is no UTF-8 text.
        OSError: the file cannot be read.
    """
    first_line: dict[str, int] = {}
    result = []
    for number, line in enumerate(read_lines(path), 1):
        name = line.removeprefix("\ufeff").strip()
        fault = _fault(name)
        if not fault and first_line.setdefault(name, number) != number:
            fault = f"names {name} again, as line {first_line[name]} does"
        if not fault and line.startswith("\ufeff"):
            fault = MARK
        result.append(ListLine(number, name if name in first_line else "", fault))
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
    """The folders that must hold a mask for every id of a list; the first is used for training.

    VOC's own lists need ``SegmentationClass``. All lists, VOC's too, need ``SegmentationClassAug`` if that folder exists, as it
    holds the masks of VOC and SBD. Other lists need ``SegmentationClass`` only if it does not exist.
    """
    folders = (MASKS,) if name in VOC_LISTS else ()
    if (Path(root) / MASKS_AUG).is_dir():
        return (*folders, MASKS_AUG)
    return (MASKS,)
