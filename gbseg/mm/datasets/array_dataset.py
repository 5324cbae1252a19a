"""Small image sets held in memory: a batch is one gather, on the device where there is one.

A data set whose `__getitems__` returns a whole batch, for an ordinary DataLoader with ``num_workers=0`` and
``collate_fn=dict(type='as_is')``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import DATASETS, FUNCTIONS
from torch.utils.data import Dataset

from gbseg.data.arrays import CIFAR10_CLASSES, MNIST_CLASSES, Images, random_crops, read_cifar10, read_folder, read_mnist
from gbseg.data.arrays import uniform_words as words

__all__ = ["ArrayImages", "as_is"]

_SOURCES: dict[str, Callable[[Path, bool], tuple[Images, Sequence[str]]]] = {
    "MNIST": lambda root, train: (read_mnist(root, train), MNIST_CLASSES),
    "CIFAR10": lambda root, train: (read_cifar10(root, train), CIFAR10_CLASSES),
    "folder": lambda root, train: read_folder(root / ("train" if train else "val")),
}


@FUNCTIONS.register_module()
def as_is(batch: Any) -> Any:
    """A collate function for batches that are collated already."""
    return batch


@DATASETS.register_module()
class ArrayImages(Dataset):
    """MNIST, CIFAR-10, or a folder of equally large images with one sub-folder a class, as arrays.

    A batch is ``dict(inputs=(B, C, H, W) uint8, data_samples=(B,) labels)``. What is random in it depends on the seed and the
    number of each draw alone (see `gbseg.mm.resumable_sampler`), so a resumed run sees what an uninterrupted one would.

    Args:
        source: 'MNIST', 'CIFAR10' or 'folder' (``data_root/train`` and ``data_root/val``).
        data_root: see `gbseg.data.arrays.read_mnist` and `read_cifar10`.
        part: 'train' or 'test'; with ``held_out`` also 'tune' (train without the images held out) and 'held_out'.
        held_out: how many training images are held out, a fixed choice, for tuning without the test set.
        num: use only this many, the first of a fixed shuffling.
        pad: pixels of zeros around an image before it is cropped at random to its own size; 0: no crop.
        flip: whether half of the images are mirrored.
        device: where the arrays live: 'cpu', 'cuda', or 'auto' for CUDA where it is.

    Raises:
        BadDataFileError: a file is missing or damaged.
        ValueError: an unknown source or part, or more images asked for than there are.
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
        # one shuffling for all parts, so that 'tune' and 'held_out' never share an image, whatever their sizes
        order = np.random.default_rng(0).permutation(len(images.labels))
        if part in ("tune", "held_out"):
            if not 0 < held_out < len(order):
                raise ValueError(f"ArrayImages: part={part!r} needs held_out in 1..{len(order) - 1}, got {held_out}.")
            order = order[held_out:] if part == "tune" else order[:held_out]
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
        """How many images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """A batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A batch; augmented where the indices are draws (`gbseg.mm.resumable_sampler.Draw`), else as the images are."""
        device = self.pixels.device
        index = torch.tensor(indices, device=device)
        draws = [getattr(number, "draw", None) for number in indices]
        if not (self.pad or self.flip) or None in draws:
            inner = slice(self.pad, -self.pad or None)
            return {"inputs": self.pixels[index][..., inner, inner], "data_samples": self.labels[index]}
        random = words(indices[0].seed, draws, 3)
        spread = 2 * self.pad + 1
        top, left, mirrored = (torch.from_numpy(random[:, k] % n).to(device) for k, n in enumerate((spread, spread, 2)))
        flip = (mirrored == 1) & self.flip
        crops = random_crops(self.pixels, index, top.long(), left.long(), flip, self.size)
        return {"inputs": crops, "data_samples": self.labels[index]}
