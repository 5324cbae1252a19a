"""The position of a training run in its data: which sample comes next, and which random numbers augment it.

A *draw* is one sample taken from the endless stream of shuffled epochs, all processes together. Draw d of a data set of
n images is image ``permutation(seed, d // n)[d % n]``, and its augmentation is seeded from (seed, d). So neither depends
on the number of workers, on earlier draws, or on where a run was interrupted. `SampleIndex` carries d and the seed from the
sampler to the data set.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sized
from contextlib import nullcontext
from itertools import count
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_world_size, sync_random_seed
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset, get_worker_info

from gbseg.mm.rng import preserved_rng, seed_cpu_rng

__all__ = ["ResumableSampler", "SampleIndex", "SeededDataset", "iterations_per_epoch"]


class SampleIndex(int):
    """The index of an image, with the number of its draw and the seed of the stream: `SeededDataset` reads them.

    Attributes:
        draw: number of the draw in the endless stream of all processes, from 0.
        seed: seed of the stream.
    """

    draw: int
    seed: int

    def __new__(cls, index: int, draw: int, seed: int) -> SampleIndex:
        """Make the index."""
        self = super().__new__(cls, index)
        self.draw = draw
        self.seed = seed
        return self

    def __reduce__(self) -> tuple[type[SampleIndex], tuple[int, int, int]]:
        """Pickle for the workers of a data loader; int's own way would call ``__new__`` with the index alone."""
        return SampleIndex, (int(self), self.draw, self.seed)


@DATA_SAMPLERS.register_module()
class ResumableSampler(DefaultSampler):
    """A sampler that can start at any draw: one permutation per epoch, distributed over the processes in turn.

    By itself it is endless. With `gbseg.mm.loops.ResumableEpochLoop` (and with mmengine's loop over epochs, in a run with
    `gbseg.mm.hooks.checkpoint.DurableCheckpointHook`) an iterator ends with its epoch. Its length is the number of draws of
    this process in one epoch, rounded up, as that of mmengine's ``DefaultSampler``.

    Args:
        dataset: the data set; only its length is used.
        shuffle: whether every epoch is permuted.
        seed: seed of the stream, the same in all processes. None: the processes agree on one (the Runner passes its own).
        round_up: whether, in a loop over epochs, each process draws equally many samples, as ``DefaultSampler`` takes it.

    Attributes:
        endless: whether an iterator goes on to the next epoch. If not, it yields the epoch of ``set_epoch``.

    Raises:
        ValueError: the data set is empty.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None, round_up: bool = True) -> None:
        # a plain number, since it goes into checkpoints
        self.seed = int(sync_random_seed() if seed is None else seed)
        super().__init__(dataset, shuffle, self.seed, round_up)
        self.size = len(dataset)
        if self.size == 0:
            raise ValueError("ResumableSampler: the data set is empty; check data_root, ann_file and filter_cfg")
        self.start = 0
        self.endless = True

    def skip(self, num_samples: int) -> None:
        """Start at draw ``num_samples`` of this process (in the epoch, if not endless); the cost does not depend on the number.

        The name and the meaning are those of ``mmengine.dataset.InfiniteSampler.skip``, which mmengine's own loops call.

        Raises:
            ValueError: ``num_samples`` is negative.
        """
        if num_samples < 0:
            raise ValueError(f"ResumableSampler.skip: num_samples must not be negative, got {num_samples}")
        self.start = num_samples

    def order(self, epoch: int) -> list[int]:
        """The indices of one epoch of all processes, in the order in which they are drawn."""
        if not self.shuffle:
            return list(range(self.size))
        word = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(word)
        return torch.randperm(self.size, generator=generator).tolist()

    def __iter__(self) -> Iterator[SampleIndex]:
        """Yield the draws of this process from ``start`` on."""
        if not self.endless:
            order = self.order(self.epoch)
            for position in range(self.start * self.world_size + self.rank, self.total_size, self.world_size):
                draw = self.epoch * self.total_size + position
                yield SampleIndex(order[position % self.size], draw, self.seed)
            return
        epoch = -1
        for draw in count(self.start * self.world_size + self.rank, self.world_size):
            if draw // self.size != epoch:
                epoch = draw // self.size
                order = self.order(epoch)
            yield SampleIndex(order[draw % self.size], draw, self.seed)


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Any map-style data set, whose sample at a `SampleIndex` is made with generators seeded from (seed, draw).

    Covers python's ``random``, numpy's global generator, torch's CPU generator, and transforms that hold generators of their
    own and offer albumentations' ``set_random_state(numpy generator, python Random)``, such as ``mmseg.Albu``. All other
    attributes are the wrapped data set's. A transform that keeps earlier samples (a mosaic cache) still depends on history.

    Args:
        dataset: the data set, or its config.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        if hasattr(self.dataset, "full_init"):
            self.dataset.full_init()
        self._seedable = _seedable(self.dataset)

    def __len__(self) -> int:
        """The length of the wrapped data set."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Return the sample; only that of a `SampleIndex` is seeded."""
        if not isinstance(index, SampleIndex):
            return self.dataset[index]
        # in a worker nothing else uses the global generators, so there is nothing to preserve
        with nullcontext() if get_worker_info() else preserved_rng(cuda=False):
            seed_cpu_rng(index.seed, index.draw)
            for number, transform in enumerate(self._seedable):
                word = int(np.random.SeedSequence((index.seed, index.draw, number)).generate_state(1)[0])
                transform.set_random_state(np.random.default_rng(word), random.Random(word))
            return self.dataset[int(index)]

    def __getitems__(self, indices: list[int]) -> Any:
        """Return a batch: from a data set that makes batches (and seeds them by their draws itself), or sample by sample."""
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(indices)
        return [self[index] for index in indices]

    def __getattr__(self, name: str) -> Any:
        """Look all other attributes up in the wrapped data set (metainfo, get_data_info, ...)."""
        # no special methods: DataLoader would call the wrapped __getitems__, not our __getitem__, and unpickling would loop
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)


def iterations_per_epoch(loader: Any) -> int:
    """Iterations in which all processes together draw each training image once, rounded up.

    Raises:
        ValueError: the data has no length.
    """
    try:
        length = len(loader)
    except TypeError as error:
        raise ValueError("the training data has no length, so its epochs cannot be counted.") from error
    # the length of mmengine's endless sampler is that of the data set, not of a process's share
    if isinstance(getattr(loader, "sampler", None), InfiniteSampler):
        length = -(-length // get_world_size())
    return max(length, 1)


def _seedable(root: Any) -> list[Any]:
    """All objects with a ``set_random_state`` that can be reached from ``root``, the outermost ones only.

    Not ``set_random_seed``, which albumentations has too: it gives all children of a Compose the same seed, and with a new
    seed for every sample all transforms with p=0.5 would be applied together or not at all.
    """
    seedable: list[Any] = []
    visited: set[int] = set()
    leaves = (str, bytes, type, ModuleType, FunctionType, np.ndarray, torch.Tensor)

    def visit(node: Any, depth: int) -> None:
        if depth > 12 or id(node) in visited or isinstance(node, leaves):
            return
        visited.add(id(node))
        children: Iterable[Any] = ()
        if callable(getattr(node, "set_random_state", None)):
            seedable.append(node)
        elif isinstance(node, (list, tuple, dict)):
            # a long one is the data and not the pipeline; visiting a million annotations would take minutes
            if len(node) <= 256:
                children = node.values() if isinstance(node, dict) else node
        elif hasattr(node, "__dict__"):
            children = vars(node).values()
        for child in children:
            visit(child, depth + 1)

    visit(root, 0)
    return seedable
