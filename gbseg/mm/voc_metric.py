"""PASCAL VOC's mIoU as a metric for MMEngine's runners, which can also write the predictions as PNGs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, get_dist_info, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from torch import Tensor

from gbseg.data.masks import resize_mask, write_mask
from gbseg.evaluation.bootstrap import Intervals, bootstrap_intervals
from gbseg.evaluation.confusion import Scores, check_headline, count_bins, scores
from gbseg.evaluation.faults import describe_faults, image_name, no_numbers
from gbseg.evaluation.table import score_table
from gbseg.palettes import VOC_PALETTE

LISTED = 10  # images with values out of range that an error message names
RESAMPLES = 2000  # default of the bootstrap


@dataclass(frozen=True)
class Evaluation:
    """The result of `VOCMetric` in one epoch, the same in every process.

    Attributes:
        images: number of images.
        matrix: (C, C) int64 on the CPU, rows = label, columns = prediction.
        scores: computed from the matrix, fractions in 0..1.
        intervals: of the scores; None without ``ci``, or if there was only one image.
    """

    images: int
    matrix: Tensor
    scores: Scores
    intervals: Intervals | None = None


@METRICS.register_module()
class VOCMetric(BaseMetric):
    """mIoU by VOC's definition, from one confusion matrix of the whole set.

    ``IoU_c = TP_c / (TP_c + FP_c + FN_c)``, summed over the set; pixels labelled ``ignore_index`` do not count. The matrix
    stays on the device of the predictions and is summed over the processes once, at the end of the epoch; images that a
    sampler repeats to give every process equally many are counted once. Usable in any MMSegmentation config:
    ``val_evaluator = dict(type='VOCMetric', headline=['background', 'cat'])``.

    The metrics, all in percent and unrounded: ``mIoU`` over the classes that occur in labels or predictions, ``mIoU-<n>`` over
    those of the n headline classes, ``aAcc`` (correct pixels over all that count), ``mAcc``, ``fwIoU`` and ``mDice`` (see
    `gbseg.evaluation.confusion.Scores`), and ``IoU/<class>``, NaN where the class does not occur. With ``save_best='mIoU'`` or
    ``'mIoU-7'`` mmengine knows that greater is better. With ``ci`` also the ends of 95% intervals, ``mIoU/low``,
    ``mIoU/high`` and those of the headline.

    Args:
        headline: names of the classes whose mean is reported as ``mIoU-<n>``; None: not reported.
        out_dir: folder for the predictions, one indexed PNG per image (values 0..C-1, the data set's palette or VOC's, the
            image's original size, the image's stem as name); None: not written.
        format_only: write the PNGs and compute nothing, for sets without labels. Needs ``out_dir``.
        ignore_index: label of the pixels that do not count.
        ci: number of bootstrap resamples for confidence intervals over images (see
            `gbseg.evaluation.bootstrap.bootstrap_intervals`); True for 2,000, False or 0 for no intervals. Keeps 3 C numbers
            per image.
        collect_device: accepted for compatibility with MMEngine's metrics, and not used.
        prefix: prefix of every metric's name, followed by a slash.

    Attributes:
        last: the `Evaluation` of the last epoch.

    Raises:
        ValueError: ``format_only`` without ``out_dir``. At the end of the epoch: a label or prediction of any image is out of
            range, its logits hold NaN or infinity, or a pixel of it has minus infinity for every class (the message names the
            images; with ``format_only`` their PNGs are written by then); two images with the same stem were written to
            ``out_dir``; there was no image, or some were counted twice.
    """

    def __init__(
        self,
        headline: Sequence[str] | None = None,
        out_dir: str | Path | None = None,
        format_only: bool = False,
        ignore_index: int = 255,
        ci: int | bool = False,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if format_only and out_dir is None:
            raise ValueError("VOCMetric(format_only=True) computes no score, so it needs an out_dir to write to")
        self.headline = None if headline is None else tuple(headline)
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.format_only = format_only
        self.ignore_index = ignore_index
        self.resamples = RESAMPLES if ci is True else int(ci)
        if self.resamples < 0:
            raise ValueError(f"ci is a number of bootstrap resamples, not {ci}")
        self.last: Evaluation | None = None
        self._reset()

    def _reset(self) -> None:
        self._names: list[str] = []
        self._earlier_bins: Tensor | None = None  # of all images but the last
        self._last_bins: Tensor | None = None
        self._bounds: list[Tensor] = []  # per image, see _count
        self._non_finite: list[Tensor] = []  # per image, whether a pixel has no finite greatest logit
        self._counts: list[Tensor] = []  # per image, for the intervals: correct, labelled and predicted pixels
        self._written: dict[str, str] = {}  # stem of a PNG -> path of its image

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, from the data set's ``metainfo``."""
        if not self.dataset_meta or "classes" not in self.dataset_meta:
            raise ValueError("VOCMetric needs dataset_meta['classes']: the data set has no metainfo with class names")
        return tuple(self.dataset_meta["classes"])

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch, and write its predictions.

        Args:
            data_batch: not used.
            data_samples: MMSegmentation's samples as dicts, with ``pred_sem_seg.data`` and (unless ``format_only``)
                ``gt_sem_seg.data``, (1, H, W) integer tensors; for the PNGs ``img_path``, and ``ori_shape`` (height, width)
                where it differs from the prediction's.

        Raises:
            KeyError: a sample has no label, or no ``img_path`` to name its PNG.
            ValueError: label and prediction differ in shape, two images have the same stem, or a prediction to be written is
                out of range.
        """
        class_names = self.class_names
        if self.headline is not None:
            check_headline(class_names, self.headline)  # before the epoch is spent, not after
        rank, world = get_dist_info()
        for sample in data_samples:
            name = image_name(sample, len(self._names) * world + rank)
            self._names.append(name)
            prediction = sample["pred_sem_seg"]["data"].squeeze(0)
            self._non_finite.append(no_numbers(sample, prediction))
            if not self.format_only:
                if "gt_sem_seg" not in sample:
                    raise KeyError(f"{name} has no gt_sem_seg; for a set without labels use format_only=True")
                self._count(name, prediction, sample["gt_sem_seg"]["data"].squeeze(0), len(class_names))
            if self.out_dir is not None:
                self._write(name, sample, prediction, len(class_names))

    def _count(self, name: str, prediction: Tensor, label: Tensor, num_classes: int) -> None:
        """Add an image to the matrix and record, on its device, the values that are out of range."""
        label = label.to(prediction.device)
        try:
            bins = count_bins(prediction, label, num_classes, self.ignore_index)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        if self._last_bins is not None:
            self._earlier_bins = self._last_bins if self._earlier_bins is None else self._earlier_bins + self._last_bins
        self._last_bins = bins
        if self.resamples:
            matrix = bins[:num_classes, :num_classes]
            self._counts.append(torch.stack((matrix.diagonal(), matrix.sum(1), matrix.sum(0))))
        bad_predictions, bad_labels = bins[:, num_classes].sum(), bins[num_classes].sum()
        if bins.device.type == "cpu" and not (bad_predictions or bad_labels):
            self._bounds.append(bins.new_zeros(6))
            return
        # on a GPU it is always computed: to read the two sums first, the host would have to wait for them
        valid_label = label.long().masked_fill(label == self.ignore_index, 0)
        # number out of range, minimum and maximum of the predictions, and the same of the labels
        bounds = [bad_predictions, *prediction.long().aminmax(), bad_labels, *valid_label.aminmax()]
        self._bounds.append(torch.stack(bounds))

    def _write(self, name: str, sample: dict, prediction: Tensor, num_classes: int) -> None:
        """Write a prediction to ``out_dir`` at the image's original size."""
        assert self.out_dir is not None
        if not sample.get("img_path"):
            raise KeyError(f"{name} has no img_path, so there is no name for its PNG in {self.out_dir}")
        values = prediction.cpu().numpy()
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(f"{name}: predictions {values.min()}..{values.max()} are out of range 0..{num_classes - 1}")
        # one byte per pixel: larger values would wrap around
        if values.max() > 255:
            raise ValueError(f"{name}: a prediction of class {values.max()} cannot be written: a PNG holds 256 classes, 0..255")
        stem, path = Path(name).stem, str(sample["img_path"])
        if self._written.setdefault(stem, path) != path:
            raise ValueError(f"{self._written[stem]} and {path} would both be written as {stem}.png")
        values = resize_mask(values.astype(np.uint8), sample.get("ori_shape") or values.shape)
        # followed by VOC's colours, so that 255 has one
        colours = list((self.dataset_meta or {}).get("palette") or ())
        write_mask(self.out_dir / f"{stem}.png", values, [*colours, *VOC_PALETTE[len(colours) :]][:256])

    def evaluate(self, size: int) -> dict:
        """Sum the matrices of all processes and compute the metrics, the same in every process.

        Args:
            size: number of images in the set.

        Returns:
            The metrics by name; empty with ``format_only``.

        Raises:
            ValueError: as the class says.
        """
        try:
            metrics = self.compute_metrics([self._gather(size)])
        finally:
            self._reset()
            self.results.clear()
        return {f"{self.prefix}/{key}": value for key, value in metrics.items()} if self.prefix else metrics

    def _gather(self, size: int) -> dict[str, Any]:
        """Collect from all processes: matrix, number of images, faults, and per-image counts for the intervals."""
        rank, world = get_dist_info()
        num_classes = len(self.class_names)
        device = self._non_finite[0].device if self._non_finite else "cpu"
        bins = torch.zeros(num_classes + 2, num_classes + 1, dtype=torch.int64, device=device)
        # samplers deal the images out in turn and repeat the first ones to fill the last round: an image at or beyond `size`
        # in that order has been counted by another process
        if self._last_bins is not None and (len(self._names) - 1) * world + rank < size:
            bins = self._last_bins
        if self._earlier_bins is not None:
            bins = bins + self._earlier_bins
        non_finite = torch.stack(self._non_finite).sum().view(1) if self._non_finite else bins.new_zeros(1)
        packed = torch.cat([bins.flatten(), bins.new_tensor([len(self._names)]), non_finite])
        all_reduce(packed)
        packed = packed.cpu()
        images, bins = int(packed[-2]), packed[:-2].view(num_classes + 2, num_classes + 1)
        if images >= size + world:
            raise ValueError(f"VOCMetric has seen {images} images, but the set holds {size}: some would count twice")
        faults: list[str] = []
        # the sum is the same in every process, so all of them take part
        if packed[-1] or bins[num_classes].any() or bins[:, num_classes].any():
            described = describe_faults(self._names, self._bounds, self._non_finite, num_classes)
            faults = list(dict.fromkeys(fault for part in all_gather_object(described) for fault in part))
        if self.out_dir is not None:
            # within one process, `_write` refuses the second image before it is written
            written: dict[str, str] = {}
            for stem, path in (item for part in all_gather_object(self._written) for item in part.items()):
                if written.setdefault(stem, path) != path:
                    raise ValueError(f"{written[stem]} and {path} were both written as {self.out_dir / stem}.png")
        counts = None
        if self.resamples and not self.format_only:
            own = torch.stack(self._counts).cpu().numpy() if self._counts else np.zeros((0, 3, num_classes), np.int64)
            parts = all_gather_object(own)
            # in the order of the set, so that a seed gives the same resamples with any number of processes
            row_by_position = {i * world + r: row for r, part in enumerate(parts) for i, row in enumerate(part)}
            counts = [row_by_position[position] for position in sorted(row_by_position) if position < size]
        matrix = bins[:num_classes, :num_classes]
        return {"matrix": matrix, "images": min(images, size), "faults": faults, "counts": counts}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the metrics from the sums over all processes, and log the table of the classes.

        Args:
            results: one dict with ``matrix`` (C, C), ``images``, ``faults`` and ``counts``.

        Returns:
            The metrics by name, in percent; empty with ``format_only``.

        Raises:
            ValueError: as the class says.
        """
        (result,) = results
        images, faults, counts = result["images"], result["faults"], result["counts"]
        if not images:
            raise ValueError("VOCMetric has seen no image")
        if faults:
            more = f" and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
            listed = "; ".join(faults[:LISTED]) + more
            raise ValueError(f"{len(faults)} of {images} images hold values that cannot be: {listed}")
        if self.format_only:
            print_log(f"{images} predictions are in {self.out_dir}", logger="current")
            return {}
        result_scores = scores(result["matrix"], self.class_names, self.headline)
        intervals = None
        if counts is not None and len(counts) > 1:
            chosen = None if self.headline is None else [self.class_names.index(name) for name in self.headline]
            intervals = bootstrap_intervals(np.stack(counts), chosen, resamples=self.resamples)
        self.last = Evaluation(images, result["matrix"], result_scores, intervals)
        headline = f"mIoU-{len(self.headline or ())}"
        fractions = {"mIoU": result_scores.miou}
        if result_scores.headline_miou is not None:
            fractions[headline] = result_scores.headline_miou
        fractions |= {"aAcc": result_scores.pixel_accuracy, "mAcc": result_scores.macc}
        fractions |= {"fwIoU": result_scores.fwiou, "mDice": result_scores.mdice}
        if intervals is not None:
            for name, ends in (("mIoU", intervals.miou), (headline, intervals.headline_miou)):
                if ends is not None:
                    fractions |= {f"{name}/low": ends[0], f"{name}/high": ends[1]}
        metrics = {name: 100 * value for name, value in fractions.items()}
        if is_main_process():
            print_log(score_table(images, result_scores, metrics, intervals), logger="current")
            if self.resamples and intervals is None:
                print_log("There is no confidence interval: one image says nothing of how images vary.", logger="current")
        per_class = zip(result_scores.class_names, result_scores.iou, strict=True)
        return metrics | {f"IoU/{name}": 100 * value for name, value in per_class}
