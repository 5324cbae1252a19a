"""Small image sets in memory, on the GPU if there is one: a batch is one gather.

A data set whose `__getitems__` returns a whole batch, for an ordinary DataLoader with ``num_workers=0`` and
``collate_fn=dict(type='as_is')``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import DATASETS, FUNCTIONS
from torch.utils.data import Dataset

from gbseg.data.arrays import (
    CIFAR10_CLASSES,
    MNIST_CLASSES,
    Images,
    random_crops,
    read_cifar10,
    read_folder,
    read_mnist,
    uniform_words,
)
from gbseg.mm.resumable_sampler import SampleIndex

__all__ = ["ArrayImages", "as_is"]

_SOURCES: dict[str, Callable[[Path, bool], tuple[Images, Sequence[str]]]] = {
    "MNIST": lambda root, train: (read_mnist(root, train), MNIST_CLASSES),
    "CIFAR10": lambda root, train: (read_cifar10(root, train), CIFAR10_CLASSES),
    "folder": lambda root, train: read_folder(root / ("train" if train else "val")),
}


def part_indices(title: str, count: int, part: str, held_out: int) -> np.ndarray:
    """Indices of a part of ``count`` training images, in the order of a fixed permutation.

    Args:
        title: start of the error message.
        count: number of images.
        part: 'held_out' for the images held out, 'tune' for the others, else all. The two never share an image, since the
            permutation is the same.
        held_out: number of images held out.

    Raises:
        ValueError: ``held_out`` is not in 1..count-1 for 'tune' or 'held_out'.
    """
    order = np.random.default_rng(0).permutation(count)
    if part not in ("tune", "held_out"):
        return order
    if not 0 < held_out < count:
        raise ValueError(f"{title}: part={part!r} needs held_out in 1..{count - 1}, got {held_out}.")
    return order[held_out:] if part == "tune" else order[:held_out]


@FUNCTIONS.register_module()
def as_is(batch: Any) -> Any:
    """A collate function for batches that are already collated."""
    return batch


@DATASETS.register_module()
class ArrayImages(Dataset):
    """MNIST, CIFAR-10, or a folder of images of the same size with one sub-folder per class, as arrays.

    A batch is ``dict(inputs=(B, C, H, W) uint8, data_samples=(B,) labels)``. Its augmentation depends only on the seed and the
    number of each draw (see `gbseg.mm.resumable_sampler`), so a resumed run sees the batches of an uninterrupted one.

    Args:
        source: 'MNIST', 'CIFAR10' or 'folder' (``data_root/train`` and ``data_root/val``).
        data_root: folder of the files, see `gbseg.data.arrays.read_mnist` and `gbseg.data.arrays.read_cifar10`.
        part: 'train' or 'test'; with ``held_out`` also 'tune' (train without the images held out) and 'held_out'.
        held_out: number of training images that are held out, a fixed choice, for tuning without the test set.
        num: use only the first ``num`` images of a fixed permutation.
        pad: pixels of zeros around an image before a random crop to its own size; 0: no crop.
        flip: whether to flip an image horizontally with probability 1/2.
        device: device of the arrays: 'cpu', 'cuda', or 'auto' for CUDA if available.

    Raises:
        BadDataFileError: a file is missing or damaged.
        ValueError: unknown source or part, or ``held_out`` or ``num`` exceeds the number of images.
    """

    def __init__(
        self,
        source: str,
        data_root: str | Path,
        part: str = "train",
        held_out: int = 0,
        num: int | None = None,
        pad: int = 0,
        flip: bool = False,
        device: str = "auto",
    ) -> None:
        if source not in _SOURCES:
            raise ValueError(f"ArrayImages: source is one of {', '.join(_SOURCES)}, got {source!r}.")
        if part not in ("train", "test", "tune", "held_out"):
            raise ValueError(f"ArrayImages: part is 'train', 'test', 'tune' or 'held_out', got {part!r}.")
        images, classes = _SOURCES[source](Path(data_root), part != "test")
        order = part_indices("ArrayImages", len(images.labels), part, held_out)
        if num is not None:
            if not 0 < num <= len(order):
                raise ValueError(f"ArrayImages: num={num} images asked for, there are {len(order)}.")
            order = order[:num]
        if num is not None or part in ("tune", "held_out"):
            images = Images(images.pixels[order], images.labels[order])
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.metainfo = {"classes": tuple(classes)}
        self.size = images.pixels.shape[2:]
        self.pad, self.flip = pad, flip
        # not from_numpy: a file's bytes may be read-only
        self.pixels = F.pad(torch.tensor(images.pixels, device=device), [pad] * 4)
        self.labels = torch.tensor(images.labels, device=device)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """A batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A batch; augmented if all indices are `gbseg.mm.resumable_sampler.SampleIndex`."""
        device = self.pixels.device
        index = torch.tensor(indices, device=device)
        drawn = [sample for sample in indices if isinstance(sample, SampleIndex)]
        if not (self.pad or self.flip) or len(drawn) < len(indices):
            inner = slice(self.pad, -self.pad or None)
            return {"inputs": self.pixels[index][..., inner, inner], "data_samples": self.labels[index]}
        words = uniform_words(drawn[0].seed, [sample.draw for sample in drawn], 3)
        offsets = 2 * self.pad + 1
        top, left, mirrored = (torch.from_numpy(words[:, k] % n).to(device) for k, n in enumerate((offsets, offsets, 2)))
        flip = (mirrored == 1) & self.flip
        crops = random_crops(self.pixels, index, top.long(), left.long(), flip, self.size)
        return {"inputs": crops, "data_samples": self.labels[index]}
