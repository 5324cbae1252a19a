"""ImageNet's development kit: the classes, and the labels of the validation images.

Not read by torchvision's ``parse_devkit_archive``, which drops the number of training images per class, leaves a ``meta.bin``
in the data folder, imports torch, and reports a damaged archive by a traceback from within SciPy or tarfile.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gbseg.data.prepare.archives import ArchiveError, open_tar, read_member
from gbseg.data.prepare.mat_files import read_mat

__all__ = ["DEVKIT", "WNID", "Devkit", "read_devkit"]

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_MOST_BYTES = 2**28  # of the variables in meta.mat: 150,000 for each of its 1,860 synsets
#: A WordNet ID, as a regular expression.
WNID = r"n\d{8}"


@dataclass(frozen=True)
class Devkit:
    """Content of the development kit.

    Attributes:
        train_images: WNID of every class -> its number of training images, None if the kit has no such number.
        val: the WNID of each validation image, the image of number 1 first.
    """

    train_images: Mapping[str, int | None]
    val: Sequence[str]

    def per_class(self, split: str) -> Mapping[str, int | None]:
        """The expected number of images of each class."""
        return self.train_images if split == "train" else Counter(self.val)


def read_devkit(path: str | Path) -> Devkit:
    """Read the classes (``data/meta.mat``) and the validation labels from the archive of the development kit.

    Raises:
        ArchiveError: the archive is damaged or lacks one of the two files, or the files do not belong together.
    """
    remedy = f"Put the official {DEVKIT} there."
    contents = {"data/meta.mat": b"", "data/ILSVRC2012_validation_ground_truth.txt": b""}
    with open_tar(path, remedy) as tar:
        for member in tar:
            for name in contents:
                if member.isfile() and f"/{member.name}".endswith(f"/{name}"):
                    contents[name] = read_member(tar, member, path)
    if missing := [name for name, data in contents.items() if not data]:
        raise ArchiveError(f"{path} holds no {' and no '.join(missing)}. {remedy}")
    meta, labels = contents.values()
    try:
        synsets = np.atleast_1d(read_mat(meta, _MOST_BYTES, squeeze_me=True)["synsets"])
        # synsets with children are groups of classes
        leaves = synsets[[int(number) == 0 for number in synsets["num_children"]]]
        wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in leaves}
        has_sizes = "num_train_images" in (synsets.dtype.names or ())
        sizes = {str(synset["WNID"]): int(synset["num_train_images"]) if has_sizes else None for synset in leaves}
    except Exception as error:  # the file may hold anything
        raise ArchiveError(f"{path}: data/meta.mat cannot be read: {type(error).__name__}: {error}. {remedy}") from error
    # WNIDs become names of folders
    if wrong := [wnid for wnid in sizes if not re.fullmatch(WNID, wnid)]:
        raise ArchiveError(f"{path}: data/meta.mat names {wrong[0]!r}, which is no WordNet ID such as n01440764. {remedy}")
    if len(sizes) < len(leaves) or len(wnids) < len(leaves):
        raise ArchiveError(f"{path}: data/meta.mat names a class twice. {remedy}")
    try:
        return Devkit(sizes, [wnids[int(line)] for line in labels.decode("ascii").split()])
    except (KeyError, ValueError) as error:
        raise ArchiveError(f"{path}: a validation label is no class of data/meta.mat: {error}. {remedy}") from error
