"""Write the report of a test: scores, the worst and best images, calibration, figures and the page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mmengine.dist import all_gather_object, all_reduce, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.structures import SegDataSample

from gbseg.evaluation.calibration import Calibration, Reliability
from gbseg.evaluation.confusion import count_bins, scores
from gbseg.evaluation.faults import image_name
from gbseg.evaluation.probabilities import probabilities_of
from gbseg.mm.voc_metric import VOCMetric, class_numbers
from gbseg.palettes import default_palette
from gbseg.report.label_overlay import VOID
from gbseg.report.page import TestReport
from gbseg.report.pictures import Picture, Ranking
from gbseg.report.run_provenance import provenance
from gbseg.report.test_report import write_test_report

__all__ = ["ReportHook"]


@HOOKS.register_module()
class ReportHook(Hook):
    """Write ``scores.json``, ``confusion.png``, ``report.html`` and, of the calibration, ``reliability.png`` after a test.

    The scores are those of the test's `gbseg.mm.voc_metric.VOCMetric`. In distributed runs, rank 0 writes; images that a
    sampler repeats to give every process equally many are counted and shown once.

    Args:
        out_dir: the folder of the report.
        pictures: number of worst and of best images on the page. With it, the host waits for each image's IoU, and keeps the
            label maps and predictions that are shown.
        page: whether to write ``report.html`` and ``confusion.png``.
        calibration: whether to compute the expected calibration error, ``ECE``; the samples must hold ``seg_logits``, or the
            ``probabilities`` of test-time augmentation.
        name: title of the page: what is tested.
        facts: further rows of the report, by name.
        command: the command line, for the provenance.

    Raises:
        ValueError: before the test, calibration of a model whose loss has no known link, or there is no ``VOCMetric``.
    """

    def __init__(
        self,
        out_dir: str | Path,
        pictures: int = 8,
        page: bool = True,
        calibration: bool = False,
        name: str = "test",
        facts: Mapping[str, str] | None = None,
        command: str | None = None,
    ) -> None:
        self.out_dir = Path(out_dir)
        self.pictures = pictures if page else 0
        self.page = page
        self.with_calibration = calibration
        # a config's file name need not be UTF-8, and no font has a surrogate
        self.name = name.encode(errors="backslashreplace").decode()
        self.facts = dict(facts or {})
        self.command = command

    def before_test(self, runner: Runner) -> None:
        """Reset the state, and refuse settings that cannot work before the test takes its time."""
        metric = self._metric(runner)
        self.num_seen = 0
        self.ranking = Ranking(self.pictures)
        self.calibration = Calibration(ignore_index=metric.ignore_index) if self.with_calibration else None
        if self.with_calibration:
            self.link = probabilities_of(runner.model)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence[SegDataSample] | None = None
    ) -> None:
        """Add the images of one batch."""
        rank, world = get_dist_info()
        for sample in outputs or ():
            position = self.num_seen * world + rank
            self.num_seen += 1
            # the sampler repeats the first images to fill the last round
            if position < len(runner.test_dataloader.dataset) and "gt_sem_seg" in sample:
                if self.calibration is not None:
                    self._calibrate(self.calibration, sample)
                if self.pictures:
                    self._rank(runner, sample, position)

    def _calibrate(self, calibration: Calibration, sample: SegDataSample) -> None:
        label = sample.gt_sem_seg.data.squeeze(0)
        if "probabilities" in sample:
            # the mean of test-time augmentation has no logits; labels are its argmax
            calibration.update(sample.probabilities.data, sample.probabilities.data, label)
            return
        if "seg_logits" not in sample:
            raise ValueError(f"{sample.get('img_path')}: calibration needs seg_logits in the model's data samples.")
        logits = sample.seg_logits.data
        calibration.update(logits, self.link(logits.unsqueeze(0)).squeeze(0), label)

    def _rank(self, runner: Runner, sample: SegDataSample, position: int) -> None:
        metric = self._metric(runner)
        names = metric.class_names
        prediction = class_numbers(sample.pred_sem_seg.data.squeeze(0))
        label = sample.gt_sem_seg.data.squeeze(0).to(prediction.device)
        bins = count_bins(prediction, label, len(names), metric.ignore_index)
        image_scores = scores(bins[: len(names), : len(names)], names)
        # a uint8 label map holds 255 classes beside void; the metric reports values out of range
        if self.ranking.wants(image_scores.miou, position) and len(names) <= 255:
            label = label.masked_fill(label == metric.ignore_index, VOID)
            label_map, prediction_map = (labels.cpu().numpy().astype(np.uint8) for labels in (label, prediction))
            name, path = Path(image_name(sample, position)).stem, sample.get("img_path")
            self.ranking.add(Picture(image_scores.miou, position, name, path, label_map, prediction_map, image_scores.iou))

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Merge the results of all processes, add ``ECE`` to the metrics, and write the report."""
        evaluation = self._metric(runner).last
        if evaluation is None or metrics is None:
            return
        reliability: Reliability | None = None
        if self.calibration is not None:
            all_reduce(self.calibration.state)
            reliability = self.calibration.reliability()
            metrics["ECE"] = 100 * reliability.ece
            runner.logger.info(f"Expected calibration error: {metrics['ECE']:.2f}% (ECE, 15 bins)")
        parts: list[list[Picture]] = all_gather_object(self.ranking.kept)
        if not is_main_process():
            return
        ranking = Ranking(self.pictures)
        ranking.add(*(picture for part in parts for picture in part))
        colours = runner.test_dataloader.dataset.metainfo.get("palette") or ()
        defaults = default_palette(evaluation.scores.class_names)
        report = TestReport(
            name=self.name,
            images=evaluation.images,
            metrics=dict(metrics),
            scores=evaluation.scores,
            matrix=evaluation.matrix.numpy(),
            palette=[*map(list, colours), *defaults[len(colours) :]],
            intervals=evaluation.intervals,
            reliability=reliability,
            worst=ranking.worst,
            best=ranking.best,
            facts=self.facts,
            provenance=provenance(self.command),
        )
        write_test_report(report, self.out_dir, self.page)

    @staticmethod
    def _metric(runner: Runner) -> VOCMetric:
        for metric in runner.test_loop.evaluator.metrics:
            if isinstance(metric, VOCMetric) and not metric.format_only:
                return metric
        raise ValueError("a report needs test_evaluator=dict(type='VOCMetric'), alone or in a list.")
