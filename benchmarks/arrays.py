"""CIFAR-10 from memory against torchvision behind two workers: ``python -m benchmarks.arrays``.

Both read the same files, pad by 4, crop 32 x 32 at random, mirror half of the images, and hand out batches of 128 in a new
order each epoch. torchvision's are float32 in 0..1 (`ToTensor`); ours are bytes, which the model's preprocessor makes float32
and standardises, so the table has ours with and without that. In every round each way has the same time, in turn the first of
it, so that whatever else the machine does meets all alike; an epoch goes on where the last round left it, workers running.
"""

from __future__ import annotations

import argparse
import csv
import json
import pickle
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import MODELS
from mmpretrain.models import ClsDataPreprocessor
from torch.utils.data import BatchSampler, DataLoader
from torchvision.datasets import CIFAR10, VisionDataset
from torchvision.transforms import Compose, RandomCrop, RandomHorizontalFlip, ToTensor

from gbseg.mm.config import load_config
from gbseg.mm.datasets.array_dataset import ArrayImages, as_is
from gbseg.mm.resumable_sampler import ResumableSampler, SeededDataset
from gbseg.report.run_provenance import provenance

BATCH = 128


class StagedCIFAR10(CIFAR10):
    """torchvision's data set, whatever the checksums of its files and whether their keys are text or bytes.

    A staged set may be of other pixels than the published one, and pickled by Python 3; torchvision's own reader takes neither.
    What is timed, a sample and its transforms, is torchvision's.
    """

    def __init__(self, root: Path, transform: Callable | None = None) -> None:
        VisionDataset.__init__(self, str(root), transform=transform)
        parts = []
        for name, _ in self.train_list:
            with (root / self.base_folder / name).open("rb") as file:
                content = pickle.load(file, encoding="bytes")
            parts.append({key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()})
        self.targets = [label for part in parts for label in part["labels"]]
        self.data = np.vstack([part["data"] for part in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _endless(loader: DataLoader) -> Iterator:
    while True:
        yield from loader


def contenders(root: Path) -> dict[str, Callable[[], object]]:
    """One batch of each way, by name; loaders and workers start with the first."""
    config = load_config("configs/classification/cifar5_expgb.py")
    dataset = SeededDataset(ArrayImages("CIFAR10", root, pad=4, flip=True, device="cpu"))
    ours = [
        iter(DataLoader(dataset, batch_sampler=BatchSampler(ResumableSampler(dataset, seed=0), BATCH, False), collate_fn=as_is))
        for _ in range(2)
    ]
    preprocessor = MODELS.build(dict(type=ClsDataPreprocessor, **config.model.data_preprocessor))
    augment = Compose([ToTensor(), RandomCrop(32, padding=4), RandomHorizontalFlip()])
    theirs = StagedCIFAR10(root, augment)
    workers = _endless(DataLoader(theirs, BATCH, shuffle=True, num_workers=2, persistent_workers=True))
    return {
        "gbseg ArrayImages, bytes": lambda: next(ours[0]),
        "gbseg ArrayImages, standardised float32": lambda: preprocessor(next(ours[1]), training=True),
        "torchvision CIFAR10, two workers": lambda: next(workers),
    }


def agree(root: Path) -> None:
    """Refuse to time what does not read the same.

    Raises:
        RuntimeError: the arrays differ.
    """
    ours, theirs = ArrayImages("CIFAR10", root, device="cpu"), StagedCIFAR10(root)
    if not (ours.pixels.numpy() == theirs.data.transpose(0, 3, 1, 2)).all() or ours.labels.tolist() != theirs.targets:
        raise RuntimeError(f"gbseg and torchvision read different arrays from {root}")


def measure(root: Path, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Batches a second of every round, by contender; the first round warms up and is left out."""
    agree(root)
    ways = list(contenders(root).items())
    rates: dict[str, list[float]] = {name: [] for name, _ in ways}
    for turn in range(rounds + 1):
        first = turn % len(ways)
        for name, take in ways[first:] + ways[:first]:
            # what two workers prefetched while the others had their turn is not their speed
            for _ in range(8):
                take()
            count, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < seconds:
                take()
                count += 1
            if turn:
                rates[name].append(count / spent)
    return rates


def main() -> None:
    """Measure, print the table, and write it with what it was measured on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.5, help="that each way has in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="what else the machine did, for the result")
    parser.add_argument("--out", type=Path, default=Path("results/speed/arrays.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rates = measure(arguments.data, arguments.rounds, arguments.seconds)
    theirs = list(rates)[-1]
    metadata = provenance(f"python -m benchmarks.arrays --rounds {arguments.rounds} --seconds {arguments.seconds:g}")
    metadata["versions"] |= {name: version(name) for name in ("torchvision", "onedl-mmpretrain")}
    metadata |= {"threads": arguments.threads, "rounds": arguments.rounds, "note": arguments.note}
    rows = []
    for name, values in rates.items():
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        # of each round, so that both sides had the same neighbours
        ratio = statistics.median(rate / reference for rate, reference in zip(values, rates[theirs], strict=True))
        print(f"{median:9.1f} batches/s  (quartiles {low:.1f}, {high:.1f})  {ratio:6.2f} x torchvision's  {name}")
        rows.append([name, f"{median:.2f}", f"{low:.2f}", f"{high:.2f}", f"{ratio:.3f}"])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        file.write(f"# {json.dumps(metadata)}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["what", "batches_of_128_a_second", "quartile_1", "quartile_3", "times_torchvision"])
        writer.writerows(rows)
    print(f"The table is in {arguments.out}")


if __name__ == "__main__":
    main()
