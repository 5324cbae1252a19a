"""The confusion matrix of one image against mmseg's and torchmetrics': ``python -m benchmarks.confusion``.

All of them count the same 375 x 500 label maps of 21 classes, one after the other in every round and in turn the first of
it, so that caches and whatever else the machine does meet all alike. Ratios of medians are what counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from mmseg.evaluation import IoUMetric
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from gbseg.evaluation.confusion import confusion_matrix, count_bins
from gbseg.mm.voc_metric import VOCMetric
from gbseg.report.run_provenance import provenance

CLASSES, SHAPE, IGNORE = 21, (375, 500), 255


def label_maps(seed: int) -> tuple[Tensor, Tensor]:
    """Prediction and label (H, W) int64, as mmseg hands them to a metric: smooth regions, one in ten pixels mispredicted,
    a border of ignored pixels around each region, a third of the image background.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(CLASSES, 7, 9))
    coarse[0] += 1.0
    fields = np.stack([cv2.resize(field, SHAPE[::-1], interpolation=cv2.INTER_CUBIC) for field in coarse])
    noise = np.stack([cv2.resize(field, SHAPE[::-1]) for field in rng.normal(size=(CLASSES, 24, 32))])
    label, prediction = fields.argmax(0), (fields + 0.25 * noise).argmax(0)
    kernel = np.ones((5, 5), np.uint8)
    values = label.astype(np.uint8)
    label[cv2.dilate(values, kernel) != cv2.erode(values, kernel)] = IGNORE
    return torch.from_numpy(prediction), torch.from_numpy(label)


def contenders(prediction: Tensor, label: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed, by name. Ours is what `VOCMetric` does for an image of a test: count it and note what is impossible in
    it, without and with the logits that a model's samples hold. The others check or drop what is out of range in ways of
    their own, and look at no logits.
    """

    def torchmetrics_update(check: bool) -> Callable[[], None]:
        metric = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE, validate_args=check)
        return lambda: metric.update(prediction, label)

    sample = {"pred_sem_seg": {"data": prediction[None]}, "gt_sem_seg": {"data": label[None]}, "img_path": "a.jpg"}
    logits = torch.nn.functional.one_hot(prediction, CLASSES).permute(2, 0, 1).float().contiguous()
    with_logits = sample | {"seg_logits": {"data": logits}}
    metrics = [VOCMetric(), VOCMetric()]
    for metric in metrics:
        metric.dataset_meta = {"classes": tuple(map(str, range(CLASSES)))}
    return {
        "gbseg VOCMetric.process": lambda: metrics[0].process(None, [sample]),
        "gbseg VOCMetric.process, with seg_logits": lambda: metrics[1].process(None, [with_logits]),
        "gbseg count_bins (the counting alone)": lambda: count_bins(prediction, label, CLASSES, IGNORE),
        "gbseg confusion_matrix": lambda: confusion_matrix(prediction, label, CLASSES, IGNORE),
        "mmseg IoUMetric.intersect_and_union": lambda: IoUMetric.intersect_and_union(prediction, label, CLASSES, IGNORE),
        "torchmetrics MulticlassConfusionMatrix.update": torchmetrics_update(True),
        "the same, validate_args=False": torchmetrics_update(False),
    }


def agree(prediction: Tensor, label: Tensor) -> None:
    """Refuse to time what does not count the same.

    Raises:
        RuntimeError: the counts differ.
    """
    ours = confusion_matrix(prediction, label, CLASSES, IGNORE)
    theirs = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE)(prediction, label)
    hit, union, _, _ = IoUMetric.intersect_and_union(prediction, label, CLASSES, IGNORE)
    same = torch.equal(ours.diagonal(), hit.long()) and torch.equal(ours.sum(0) + ours.sum(1) - ours.diagonal(), union.long())
    if not torch.equal(ours, theirs) or not same:
        raise RuntimeError("gbseg, mmseg and torchmetrics count differently")


def measure(rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds of every round, by contender."""
    maps = [label_maps(seed) for seed in range(4)]
    for pair in maps:
        agree(*pair)
    seconds_by_name: dict[str, list[float]] = {name: [] for name in contenders(*maps[0])}
    for turn in range(warm_up + rounds):
        runs = list(contenders(*maps[turn % len(maps)]).items())
        first = turn % len(runs)
        for name, run in runs[first:] + runs[:first]:
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            if turn >= warm_up:
                seconds_by_name[name].append(seconds)
    return seconds_by_name


def main() -> None:
    """Measure, print the table, and write it with what it was measured on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("results/speed/confusion.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seconds = measure(arguments.rounds, arguments.warm_up)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ours = next(iter(median.values()))
    about = provenance(f"python -m benchmarks.confusion --threads {arguments.threads}")
    about["versions"]["torchmetrics"] = version("torchmetrics")
    print(
        f"median of {arguments.rounds} rounds, {arguments.threads} threads, {SHAPE[0]} x {SHAPE[1]} pixels, {CLASSES} classes"
    )
    rows = []
    for name, value in median.items():
        low, high = np.quantile(seconds[name], (0.25, 0.75))
        print(
            f"{1e3 * value:8.3f} ms  (quartiles {1e3 * low:.3f}, {1e3 * high:.3f})  ours / this = {ours / value:5.3f}  {name}"
        )
        rows.append([name, f"{1e3 * value:.4f}", f"{1e3 * low:.4f}", f"{1e3 * high:.4f}", f"{ours / value:.4f}"])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        file.write(f"# {json.dumps(about | {'threads': arguments.threads, 'rounds': arguments.rounds})}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["what", "median_ms", "quartile_1_ms", "quartile_3_ms", "ratio_of_gbseg_to_it"])
        writer.writerows(rows)
    print(f"The table is in {arguments.out}")


if __name__ == "__main__":
    main()
