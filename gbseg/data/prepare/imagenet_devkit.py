"""ImageNet's development kit: the classes, and the labels of the validation images."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from gbseg.data.prepare.archives import ArchiveError, damage_named, open_tar, require_end

__all__ = ["DEVKIT", "WNID", "Devkit", "read_devkit"]

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
WNID = r"n\d{8}"
"""A WordNet ID, as a regular expression."""


@dataclass(frozen=True)
class Devkit:
    """What the development kit says.

    Attributes:
        train_images: WNID of every class -> its number of training images; none where the kit does not say.
        val: the WNID of each validation image, by its number less one.
    """

    train_images: Mapping[str, int | None]
    val: Sequence[str]

    def per_class(self, split: str) -> Mapping[str, int | None]:
        """How many images each class should have."""
        return self.train_images if split == "train" else Counter(self.val)


def read_devkit(path: str | Path) -> Devkit:
    """Read the classes (``data/meta.mat``) and the validation labels from the archive of the development kit.

    Raises:
        ArchiveError: it is damaged, lacks one of the two, or they do not belong together.
    """
    remedy = f"Put the official {DEVKIT} there."
    wanted = {"data/meta.mat": b"", "data/ILSVRC2012_validation_ground_truth.txt": b""}
    with damage_named(path, remedy), Path(path).open("rb") as file, open_tar(path, file, remedy) as tar:
        for member in tar:
            for name in wanted:
                if member.isfile() and f"/{member.name}".endswith(f"/{name}"):
                    wanted[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
        require_end(tar)
    if lacking := [name for name, data in wanted.items() if not data]:
        raise ArchiveError(f"{path} holds no {' and no '.join(lacking)}. {remedy}")
    meta, labels = wanted.values()
    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        # those with children are groups of classes
        leaves = synsets[[int(number) == 0 for number in synsets["num_children"]]]
        wnids = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in leaves}
        known = "num_train_images" in (synsets.dtype.names or ())
        sizes = {str(one["WNID"]): int(one["num_train_images"]) if known else None for one in leaves}
    except Exception as error:  # scipy raises whatever the bytes of a damaged file happen to mean
        raise ArchiveError(f"{path}: data/meta.mat cannot be read: {type(error).__name__}: {error}. {remedy}") from error
    # they become names of folders
    if wrong := [wnid for wnid in sizes if not re.fullmatch(WNID, wnid)]:
        raise ArchiveError(f"{path}: data/meta.mat names {wrong[0]!r}, which is no WordNet ID such as n01440764. {remedy}")
    if len(sizes) < len(leaves) or len(wnids) < len(leaves):
        raise ArchiveError(f"{path}: data/meta.mat names a class twice. {remedy}")
    try:
        return Devkit(sizes, [wnids[int(line)] for line in labels.decode("ascii").split()])
    except (KeyError, ValueError) as error:
        raise ArchiveError(f"{path}: a validation label is no class of data/meta.mat: {error}. {remedy}") from error
