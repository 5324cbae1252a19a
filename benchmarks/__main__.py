"""Speed and memory of losses and of PixelNet against their peers: ``python -m benchmarks [names...]``, all without a name.

Each benchmark writes one table, ``<name>.csv`` (``<name>_cuda.csv`` on a GPU), whose first line says what it was measured on.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import growth, head, linear, loss, resized
from benchmarks.table import Row, Settings, facts, write_table

# name -> what it says of itself, and its `run`; a module of its own each
BENCHMARKS: dict[str, tuple[str, Callable[[Settings], list[Row]]]] = {
    "loss": ("exp-GB against cross-entropy and focal loss: time, peak memory, share of the bandwidth", loss.run),
    "loss_memory": ("the same losses: memory of the forward and of both, and what is held between them", loss.run_memory),
    "resized": ("loss of upsampled logits", resized.run),
    "linear": ("a last layer of 100,000 classes and its loss", linear.run),
    "gather": ("PixelNet's hypercolumns and first layer, forward and backward; also against the points", head.run_gather),
    "head": ("the training step of PixelNet's head", head.run_head),
    "dense": ("PixelNet at every pixel", head.run_dense),
    "train_step": ("PixelNet's whole step in bfloat16, for a GPU", head.run_train_step),
    "growth": ("time and memory against batch, classes and image side", growth.run),
}
# with arguments of their own
OTHERS = {
    "adaptive": "adaptive prediction on real images: evaluations saved, mIoU lost",
    "arrays": "CIFAR-10 from memory against torchvision",
    "confusion": "the confusion matrix against mmseg and torchmetrics",
    "gradient_stats": "what recording gradients costs in training",
    "sbd": "reading SBD",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the lines, and write a table for each benchmark."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help="what to measure; all of them if none is named")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds, to see that all runs")
    parser.add_argument("--rounds", type=int, help="how often each contender is timed; 15, or 3 with --quick")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--note", default="", help="what else the machine did, for the result")
    parser.add_argument("--out", type=Path, help="the tables' folder; results/speed, or a temporary one with --quick")
    given = parser.parse_args(arguments)
    if given.list:
        for name, (what, _) in BENCHMARKS.items():
            print(f"{name:16}{what}")
        for name, what in OTHERS.items():
            print(f"{name:16}{what}: python -m benchmarks.{name} --help")
        return
    if unknown := sorted(set(given.names) - set(BENCHMARKS)):
        mine, others = ", ".join(BENCHMARKS), ", ".join(OTHERS)
        parser.error(
            f"there is no benchmark {', '.join(unknown)} here. There are {mine}; and, with arguments of their own as "
            f"python -m benchmarks.NAME, {others}"
        )
    torch.set_num_threads(given.threads)
    settings = Settings(given.device, given.rounds or (3 if given.quick else 15), given.quick)
    out = given.out or (Path(tempfile.mkdtemp(prefix="benchmarks-")) if given.quick else Path("results/speed"))
    for name in given.names or BENCHMARKS:
        # before it is measured: the measured code is what is in the working tree now
        options = f"--rounds {settings.rounds} --device {settings.device} --threads {given.threads}"
        about = facts(f"python -m benchmarks {name} {options}{' --quick' * given.quick}", settings, given.note)
        rows = BENCHMARKS[name][1](settings)
        path = out / f"{name}{'_cuda' * (settings.device == 'cuda')}.csv"
        write_table(path, rows, about)
        print(*rows, f"The table is in {path}", sep="\n")


if __name__ == "__main__":
    main()
