"""Faults of a list of images that training can live with and evaluation cannot: a score over other images is another score."""

import glob
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.logging import print_log

from gbseg.data.lists import abbreviate
from gbseg.files import walk_files

__all__ = ["ListFault", "find_faults", "masks_without_image", "names_listed_twice", "record_faults", "require_sound_list"]


class ListFault(NamedTuple):
    """What is wrong with the images that a data set lists.

    Attributes:
        text: what is wrong, where.
        remedy: what to do.
        usual: whether training lists of others have it on purpose.
    """

    text: str
    remedy: str
    usual: bool = False

    def sentence(self) -> str:
        """Text and remedy."""
        return f"{self.text}: {self.remedy}."


def names_listed_twice(file: str | Path, names: Sequence[str]) -> list[ListFault]:
    """The fault that a list names images more than once."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not twice:
        return []
    extra = len(names) - len(set(names))
    text = f"{file} names {len(twice):,} of its images more than once ({abbreviate(twice, 3)}; {extra:,} lines too many)"
    return [ListFault(text, "each of them counts as often as it is listed; list it once", usual=True)]


def masks_without_image(
    images: Path, masks: Path, root: Path, names: Collection[str], image_suffixes: Sequence[str], mask_suffix: str
) -> list[ListFault]:
    """The fault that a folder holds masks whose images are neither in the folder of images nor in one beside it.

    ``a_color.png`` is no lost mask beside the mask of ``a``, but a picture of it (`_possible_names`).

    Args:
        images: the folder of images.
        masks: the folder of masks; several folders of images may share it (``images/train``, ``images/val``, ``masks``).
        root: the data set's folder, in which those beside ``images`` are looked for.
        names: names of the images, below their folder and without suffix; a set or a dict.
        image_suffixes: suffixes of images.
        mask_suffix: what follows the name in the name of a mask.
    """
    paths = (path for path in walk_files(masks) if path.name.endswith(mask_suffix))
    named = {path.relative_to(masks).as_posix().removesuffix(mask_suffix): path for path in paths}
    lonely = {name: path for name, path in named.items() if not any(one in names for one in _possible_names(name))}
    if images != masks and images.is_relative_to(masks):
        # a folder of masks around everything else: only where masks lie
        used = {named[name].parent for name in names if name in named}
        lonely = {name: path for name, path in lonely.items() if path.parent in used}
    suffixes = {*image_suffixes, *(suffix.upper() for suffix in image_suffixes)}

    def holds(folder: Path, name: str) -> bool:
        return any((folder / f"{name}{suffix}").is_file() for suffix in suffixes)

    # another split has other images; where the same names are, they are masks or pictures of them
    others = [] if images == masks or not lonely else list(_folders_beside(images, root))
    others = [folder for folder in others if not any(holds(folder, name) for name in islice(names, 100))]
    elsewhere = {name for name in lonely for one in _possible_names(name) if any(holds(folder, one) for folder in others)}
    missing = [path for name, path in lonely.items() if name not in elsewhere]
    if not missing:
        return []
    text = f"{len(missing):,} masks in {masks} have no image in {images} (first {missing[0]})"
    return [ListFault(text, "put their images there, or remove the masks, or name the images in a list (ann_file)")]


def _possible_names(name: str) -> list[str]:
    """The names of the images that a file may belong to: its own, and what is before ``_``, ``-`` or ``.`` and a word.

    Not what is before a number, ``a`` of ``a_2``: numbers count images.
    """
    return [name, *(name[: mark.start()] for mark in re.finditer(r"[_.-](?=[^\W\d][^/]*$)", name))]


def _folders_beside(folder: Path, root: Path) -> Iterator[Path]:
    """The folders whose path below ``root`` differs from that of ``folder`` in one part: ``images/val`` of ``images/train``."""
    if not folder.is_relative_to(root):
        root = folder.parent
    parts = [glob.escape(part) for part in folder.relative_to(root).parts]
    for k in range(len(parts)):
        yield from (other for other in root.glob("/".join([*parts[:k], "*", *parts[k + 1 :]])) if other != folder)


def record_faults(dataset: Any, faults: Sequence[ListFault]) -> None:
    """Keep the faults of a data set as ``list_faults``, and log each of them as a warning.

    Raises:
        ValueError: there are some, and the data set is for evaluation (``test_mode=True``).
    """
    dataset.list_faults = tuple(faults)
    if dataset.test_mode:
        require_sound_list(dataset, "evaluation")
    for fault in faults:
        print_log(fault.sentence(), "current", logging.WARNING)


def find_faults(dataset: Any) -> tuple[ListFault, ...]:
    """The faults of a data set, `record_faults`' of those in gbseg."""
    return tuple(getattr(dataset, "list_faults", ()))


def require_sound_list(dataset: Any, title: str) -> None:
    """Refuse a data set for evaluation whose list has a fault.

    Args:
        dataset: the data set, not a wrapped one.
        title: what it is for: 'validation', 'test'.

    Raises:
        ValueError: there is a fault; the message says what to do.
    """
    if faults := find_faults(dataset):
        raise ValueError(f"{title}: " + " ".join(fault.sentence() for fault in faults))
