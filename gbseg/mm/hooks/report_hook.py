"""A hook that turns a test into a report: the worst and best images, calibration, figures and the page."""

from __future__ import annotations

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
from gbseg.mm.voc_metric import VOCMetric
from gbseg.palettes import VOC_PALETTE
from gbseg.report.overlay import VOID
from gbseg.report.page import TestReport
from gbseg.report.pictures import Picture, Ranking
from gbseg.report.provenance import provenance
from gbseg.report.test_report import write_test_report

__all__ = ["ReportHook"]


@HOOKS.register_module()
class ReportHook(Hook):
    """Write ``scores.json``, ``confusion.png``, ``report.html`` and, of the calibration, ``reliability.png`` after a test.

    The scores are those of the test's `VOCMetric`. Of several processes the first one writes; images that a sampler repeats to
    give every process equally many are counted and shown once.

    Args:
        out_dir: the folder.
        pictures: how many of the worst and of the best images the page shows. For each image the host waits for its IoU, and
            as many label maps and predictions are kept as are shown; 0 for neither.
        page: whether to write ``report.html`` and ``confusion.png`` at all.
        calibration: whether to compute the expected calibration error, `ECE`; the samples must hold ``seg_logits``, or the
            ``probabilities`` of test-time augmentation.
        name: of what is tested, the page's title.
        facts: what else the report is to say, by name.
        command: the command line, for the provenance.

    Raises:
        ValueError: before the test: calibration of a model whose loss has no known link; there is no `VOCMetric`.
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
        """Refuse what cannot work before the time of the test is spent."""
        self._metric(runner)
        if self.with_calibration:
            self.link = probabilities_of(runner.model)

    def before_test_epoch(self, runner: Runner) -> None:
        """Start from nothing."""
        self.seen = 0
        self.ranking = Ranking(self.pictures)
        self.calibration = Calibration(ignore_index=self._metric(runner).ignore_index) if self.with_calibration else None

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence[SegDataSample] | None = None
    ) -> None:
        """Take the images of one batch in."""
        rank, world = get_dist_info()
        for sample in outputs or ():
            position = self.seen * world + rank
            self.seen += 1
            # a sampler fills the last round up with the first images again
            if position < len(runner.test_dataloader.dataset) and "gt_sem_seg" in sample:
                if self.calibration is not None:
                    self._calibrate(sample)
                if self.pictures:
                    self._rank(runner, sample, position)

    def _calibrate(self, sample: SegDataSample) -> None:
        label = sample.gt_sem_seg.data.squeeze(0)
        if "probabilities" in sample:
            # of test-time augmentation, whose mean has no logits and decides by itself
            self.calibration.update(sample.probabilities.data, sample.probabilities.data, label)
            return
        if "seg_logits" not in sample:
            raise ValueError(f"{sample.get('img_path')}: calibration needs seg_logits in the model's data samples.")
        logits = sample.seg_logits.data
        self.calibration.update(logits, self.link(logits.unsqueeze(0)).squeeze(0), label)

    def _rank(self, runner: Runner, sample: SegDataSample, position: int) -> None:
        names = self._metric(runner).class_names
        prediction = sample.pred_sem_seg.data.squeeze(0)
        label = sample.gt_sem_seg.data.squeeze(0).to(prediction.device)
        bins = count_bins(prediction, label, len(names), self._metric(runner).ignore_index)
        found = scores(bins[: len(names), : len(names)], names)
        # a label map of bytes holds 255 classes beside void; values out of range are the metric's to complain about
        if self.ranking.wants(found.miou, position) and len(names) <= 255:
            void = label.masked_fill(label == self._metric(runner).ignore_index, VOID)
            maps = (values.cpu().numpy().astype(np.uint8) for values in (void, prediction))
            name = Path(image_name(sample, position)).stem
            self.ranking.add(Picture(found.miou, position, name, sample.get("img_path"), *maps, found.iou))

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Merge what the processes have, add `ECE` to the metrics, and write."""
        found = self._metric(runner).last
        if found is None or metrics is None:
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
        count = len(found.scores.class_names)
        report = TestReport(
            name=self.name,
            images=found.images,
            metrics=dict(metrics),
            scores=found.scores,
            matrix=found.matrix.numpy(),
            palette=[*map(list, colours), *(list(VOC_PALETTE[i % 255]) for i in range(len(colours), count))],
            intervals=found.intervals,
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
            if isinstance(metric, VOCMetric):
                return metric
        raise ValueError("a report needs test_evaluator=dict(type='VOCMetric'), alone or in a list.")
