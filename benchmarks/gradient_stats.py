"""What `GradientStatsHook` costs at its default interval: ``python -m benchmarks.gradient_stats``.

One run of configs/classification/cifar5_expgb.py on the staged CIFAR-10, in which stretches of one interval (50 iterations, so
exactly one record) with the hook and without take turns in the order A B B A. Whole stretches are compared, in time of the
clock and of the process: other work on the machine spoils the second less. The hook watches the output and the four
convolutions, and writes to TensorBoard, as the config has it.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from gbseg.mm import GradientStatsHook, load_config
from gbseg.mm.training import build_runner
from gbseg.report.gradient_log import read_gradients
from gbseg.report.run_provenance import provenance

LAYERS = tuple(f"backbone.layers.{number}" for number in (0, 4, 8, 12))
RATE = 1e-4


@HOOKS.register_module()
class AlternatingGradientStatsHook(GradientStatsHook):
    """The hook in every other stretch of ``interval`` iterations, with the clocks at each stretch's beginning."""

    # the others' work before an iteration is part of its stretch
    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        """Start from nothing."""
        super().before_train(runner)
        self.clocks: list[tuple[float, float]] = []

    def _read_clocks(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.clocks.append((time.perf_counter(), time.process_time()))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Read the clocks where a stretch begins, and watch in those whose turn it is."""
        if runner.iter % self.interval == 0:
            self._read_clocks()
        if with_hook(runner.iter // self.interval):
            super().before_train_iter(runner, batch_idx, data_batch)

    def after_train(self, runner: Runner) -> None:
        """The end of the last stretch."""
        self._read_clocks()


def with_hook(stretch: int) -> bool:
    """Whether the hook is on in a stretch; the first (0) warms up."""
    return stretch % 4 in (2, 3)


def measure(pairs: int, work_dir: Path) -> dict[str, np.ndarray]:
    """(2 pairs, 2) seconds of the clock and of the process, for stretches without and with the hook."""
    config = load_config("configs/classification/cifar5_expgb.py")
    hook = dict(type="AlternatingGradientStatsHook", layers=LAYERS)
    config.custom_hooks.append(hook)
    interval = AlternatingGradientStatsHook().interval
    # at its own rate it may diverge, and the cost does not depend on it
    config.optim_wrapper.optimizer.lr = RATE
    config.train_cfg.update(max_iters=(1 + 2 * pairs) * interval)
    config.default_hooks.checkpoint.interval = 10**9
    for key in ("val_cfg", "val_dataloader", "val_evaluator"):
        config[key] = None
    runner = build_runner(config, work_dir)
    runner.train()
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, AlternatingGradientStatsHook))
    seconds = np.diff(np.array(hook.clocks), axis=0)
    on = np.array([with_hook(number) for number in range(len(seconds))])
    records = read_gradients(work_dir).iterations
    if records.tolist() != (np.flatnonzero(on) * interval).tolist():
        raise RuntimeError(f"records were due in every other stretch, there are those of {records.tolist()}")
    used = np.arange(len(seconds)) > 0
    return {"without": seconds[used & ~on], "with": seconds[used & on]}


def main() -> None:
    """Measure, print the table, and write it with what it was measured on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8, help="of stretches without and with the hook; an even number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="what else the machine did, for the result")
    parser.add_argument("--out", type=Path, default=Path("results/speed/gradient_stats.csv"))
    arguments = parser.parse_args()
    if arguments.pairs < 2 or arguments.pairs % 2:
        parser.error(f"--pairs is an even number of at least 2, not {arguments.pairs}")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        costs = measure(arguments.pairs, Path(folder))
    about = provenance(f"python -m benchmarks.gradient_stats --pairs {arguments.pairs}", seed=0)
    about |= {
        "threads": arguments.threads,
        "pairs": arguments.pairs,
        "layers": ("head.fc", *LAYERS),
        "rate": RATE,
        "note": arguments.note,
    }
    rows = []
    for column, clock in enumerate(("the clock", "the process")):
        without, with_it = (costs[name][:, column] for name in ("without", "with"))
        ratio = np.median(with_it) / np.median(without)
        totals = with_it.sum() / without.sum()
        print(
            f"seconds of {clock}, 50 iterations: {np.median(without):.3f} without, {np.median(with_it):.3f} with the hook: "
            f"{100 * (ratio - 1):+.2f}% (of the totals {100 * (totals - 1):+.2f}%)"
        )
        for name, values in (("without", without), ("with", with_it)):
            low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
            rows.append([clock, name, f"{median:.4f}", f"{low:.4f}", f"{high:.4f}", f"{median / np.median(without):.4f}"])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        file.write(f"# {json.dumps(about)}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seconds_of", "hook", "median_of_50_iterations", "quartile_1", "quartile_3", "ratio_to_without"])
        writer.writerows(rows)
    print(f"The table is in {arguments.out}")


if __name__ == "__main__":
    main()
