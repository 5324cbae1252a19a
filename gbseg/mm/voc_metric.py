"""PASCAL VOC's mIoU as a metric for MMEngine's runners, which can also write the predictions as PNGs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
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
from gbseg.evaluation.faults import describe_faults, image_name, non_finite_logits, value_range
from gbseg.evaluation.table import score_table
from gbseg.palettes import VOC_PALETTE

LISTED = 10  # images with impossible values that an error message names
RESAMPLES = 2000  # of the bootstrap, with ci=True


def class_numbers(prediction: Tensor) -> Tensor:
    """A label map as integers: that of a decode head with one output, 0 or 1, has the dtype of the logits."""
    whole = prediction.is_floating_point() and bool((prediction == prediction.trunc()).all())
    return prediction.long() if whole else prediction


@dataclass(frozen=True)
class Evaluation:
    """The result of one epoch of `VOCMetric`, the same in every process.

    Attributes:
        images: number of images.
        matrix: (C, C) int64 on the CPU, rows = label, columns = prediction.
        scores: of the matrix, fractions in 0..1.
        intervals: confidence intervals of the scores; None without ``ci`` or with a single image.
    """

    images: int
    matrix: Tensor
    scores: Scores
    intervals: Intervals | None = None


@METRICS.register_module()
class VOCMetric(BaseMetric):
    """mIoU by VOC's definition, from one confusion matrix of the whole set.

    ``IoU_c = TP_c / (TP_c + FP_c + FN_c)``, summed over the set; pixels with the label ``ignore_index`` do not count. The
    matrix stays on the device of the predictions and is reduced over the processes once, at the end of the epoch. Images that
    a sampler repeats, to give every process equally many, count once. Works in any MMSegmentation config:
    ``val_evaluator = dict(type='VOCMetric', headline=['background', 'cat'])``.

    The metrics are in percent and unrounded: ``mIoU`` over the classes that occur in labels or predictions, ``mIoU-<n>`` over
    those of the n headline classes, ``aAcc`` (correct pixels over all valid pixels), ``mAcc``, ``fwIoU`` and ``mDice`` (see
    `gbseg.evaluation.confusion.Scores`), and ``IoU/<class>``, NaN where the class does not occur. MMEngine knows that greater
    is better for ``save_best='mIoU'`` or ``'mIoU-7'``. With ``ci`` there are also the ends of 95% confidence intervals,
    ``mIoU/low``, ``mIoU/high`` and those of the headline.

    Args:
        headline: names of the classes whose mean is reported as ``mIoU-<n>``; None to report none.
        out_dir: folder for the predictions, one indexed PNG an image (values 0..C-1, the data set's palette or VOC's, the
            image's original size, the image's stem as name); None to write none.
        format_only: write the PNGs and compute nothing, for sets without labels. Needs ``out_dir``.
        ignore_index: label of the pixels that do not count.
        ci: number of bootstrap resamples for confidence intervals over images, as in
            `gbseg.evaluation.bootstrap.bootstrap_intervals`; True for 2,000, False or 0 for no intervals. Keeps 3 C numbers
            an image.
        collect_device: accepted for compatibility with MMEngine, and not used.
        prefix: put before every metric's name, with a slash.

    Attributes:
        last: the `Evaluation` of the last epoch.

    Raises:
        ValueError: ``format_only`` without ``out_dir``, or a negative ``ci``. At the end of the epoch: no image was seen, or
            more than the set holds; no pixel has a label; two images of one stem were written to ``out_dir``; an image has a
            label or prediction out of range, logits with NaN or infinity, or a pixel with minus infinity for every class (the
            message names the images; with ``format_only`` too, after their PNGs were written).
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
        self._faults: list[Tensor] = []  # (7,) of every image, see `gbseg.evaluation.faults.describe_faults`
        self._counts: list[Tensor] = []  # of every image, for the intervals: correct, labelled and predicted pixels
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
                ``gt_sem_seg.data``, (1, H, W) integer tensors. For the PNGs ``img_path``, and ``ori_shape`` (height, width)
                where it differs from the prediction's.

        Raises:
            KeyError: a sample has no label, or no ``img_path`` to name its PNG by.
            ValueError: label and prediction differ in shape, two images have one stem, or a prediction to be written is out of
                range.
        """
        class_names = self.class_names
        if self.headline is not None:
            check_headline(class_names, self.headline)  # before the epoch is spent, not after
        rank, world = get_dist_info()
        for sample in data_samples:
            name = image_name(sample, len(self._names) * world + rank)
            self._names.append(name)
            prediction = class_numbers(sample["pred_sem_seg"]["data"].squeeze(0))
            ranges = torch.zeros(6, dtype=torch.int64, device=prediction.device)
            if not self.format_only:
                if "gt_sem_seg" not in sample:
                    raise KeyError(f"{name} has no gt_sem_seg; for a set without labels use format_only=True")
                ranges = self._count(name, prediction, sample["gt_sem_seg"]["data"].squeeze(0), len(class_names))
            self._faults.append(torch.cat([ranges, non_finite_logits(sample, prediction).view(1)]))
            if self.out_dir is not None:
                self._write(name, sample, prediction, len(class_names))

    def _count(self, name: str, prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
        """Add an image to the matrix. Returns its `gbseg.evaluation.faults.value_range`."""
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
        return value_range(bins, prediction, label, self.ignore_index)

    def _write(self, name: str, sample: dict, prediction: Tensor, num_classes: int) -> None:
        """Write a prediction to ``out_dir`` at the image's original size."""
        assert self.out_dir is not None
        if not sample.get("img_path"):
            raise KeyError(f"{name} has no img_path, so there is no name for its PNG in {self.out_dir}")
        values = prediction.cpu().numpy()
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(f"{name}: predictions {values.min()}..{values.max()} are out of range 0..{num_classes - 1}")
        # one byte a pixel: larger values would wrap around
        if values.max() > 255:
            raise ValueError(f"{name}: a prediction of class {values.max()} cannot be written: a PNG holds 256 classes, 0..255")
        stem, path = Path(name).stem, str(sample["img_path"])
        if self._written.setdefault(stem, path) != path:
            raise ValueError(f"{self._written[stem]} and {path} would both be written as {stem}.png")
        values = resize_mask(values.astype(np.uint8), sample.get("ori_shape") or values.shape)
        # VOC's colours after those of the classes, so that 255 has one
        colours = list((self.dataset_meta or {}).get("palette") or ())
        write_mask(self.out_dir / f"{stem}.png", values, [*colours, *VOC_PALETTE[len(colours) :]][:256])

    def evaluate(self, size: int) -> dict:
        """Sum up the matrices of all processes and compute the metrics, the same in every process.

        Args:
            size: number of images in the set.

        Returns:
            The metrics by name; empty with ``format_only``.

        Raises:
            ValueError: as listed at the class.
        """
        try:
            metrics = self.compute_metrics([self._gather(size)])
        finally:
            self._reset()
            self.results.clear()
        return {f"{self.prefix}/{key}": value for key, value in metrics.items()} if self.prefix else metrics

    def _gather(self, size: int) -> dict[str, Any]:
        """Sum up over the processes: the matrix, the number of images, the faults, and the counts of every image."""
        rank, world = get_dist_info()
        num_classes = len(self.class_names)
        bins = torch.zeros(num_classes + 2, num_classes + 1, dtype=torch.int64)
        if self._last_bins is not None:
            # a sampler deals the images out in turn and repeats the first ones to fill the last round: an image at or
            # beyond `size` in that order was counted by another process already
            repeated = (len(self._names) - 1) * world + rank >= size
            bins = torch.zeros_like(self._last_bins) if repeated else self._last_bins
            bins = bins if self._earlier_bins is None else bins + self._earlier_bins
        non_finite = torch.stack(self._faults)[:, -1].sum() if self._faults else bins.new_zeros(())
        bins = bins.to(non_finite.device)
        packed = torch.cat([bins.flatten(), bins.new_tensor([len(self._names)]), non_finite.view(1)])
        all_reduce(packed)
        packed = packed.cpu()
        images, bins = int(packed[-2]), packed[:-2].view(num_classes + 2, num_classes + 1)
        if images >= size + world:
            raise ValueError(f"VOCMetric has seen {images} images, but the set holds {size}: some would count twice")
        faults: list[str] = []
        # the sum is the same in every process, so all of them take part
        if packed[-1] or bins[num_classes].any() or bins[:, num_classes].any():
            parts = all_gather_object(describe_faults(self._names, self._faults, num_classes))
            faults = list(dict.fromkeys(fault for part in parts for fault in part))
        if self.out_dir is not None:
            # `_write` refuses a second image of one stem within a process, this one across processes
            written: dict[str, str] = {}
            for stem, path in (item for part in all_gather_object(self._written) for item in part.items()):
                if written.setdefault(stem, path) != path:
                    raise ValueError(f"{written[stem]} and {path} were both written as {self.out_dir / stem}.png")
        counts: list[np.ndarray] = []
        if self.resamples and not self.format_only:
            # in the order of the set, so that a seed means the same resamples in any number of processes
            parts = all_gather_object([count.cpu().numpy() for count in self._counts])
            counts = [count for turn in zip_longest(*parts) for count in turn if count is not None][:size]
        return {"matrix": bins[:num_classes, :num_classes], "images": min(images, size), "faults": faults, "counts": counts}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the metrics from the sums over all processes, and log the table of the classes.

        Args:
            results: one dict with ``matrix`` (C, C), ``images``, ``faults`` and ``counts``.

        Returns:
            The metrics by name, in percent; empty with ``format_only``.

        Raises:
            ValueError: no image was seen, no pixel has a label, or an image holds impossible values.
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
        if not result["matrix"].any():
            raise ValueError(
                f"there is no labelled pixel in {images} images: all are {self.ignore_index} (ignored), so there is no score. "
                "Look at the masks: gbseg doctor CONFIG, gbseg browse CONFIG."
            )
        s, intervals = scores(result["matrix"], self.class_names, self.headline), None
        if len(counts) > 1:
            classes = None if self.headline is None else [self.class_names.index(name) for name in self.headline]
            intervals = bootstrap_intervals(np.stack(counts), classes, resamples=self.resamples)
        self.last = Evaluation(images, result["matrix"], s, intervals)
        headline = f"mIoU-{len(self.headline or ())}"
        values = {"mIoU": s.miou, headline: s.headline_miou, "aAcc": s.pixel_accuracy, "mAcc": s.macc, "fwIoU": s.fwiou}
        values["mDice"] = s.mdice
        if intervals is not None:
            for name, ends in (("mIoU", intervals.miou), (headline, intervals.headline_miou)):
                values |= {} if ends is None else {f"{name}/low": ends[0], f"{name}/high": ends[1]}
        metrics = {name: 100 * value for name, value in values.items() if value is not None}
        if is_main_process():
            print_log(score_table(images, s, metrics, intervals), logger="current")
            if self.resamples and intervals is None:
                print_log("There is no confidence interval: one image says nothing of how images vary.", logger="current")
        return metrics | {f"IoU/{name}": 100 * iou for name, iou in zip(s.class_names, s.iou, strict=True)}
