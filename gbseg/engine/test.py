"""Testing: the scores of a checkpoint, its predictions as indexed PNGs, and pictures of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.structures import SegDataSample

from gbseg.engine.config import default_work_dir
from gbseg.engine.submit import prepare_submission
from gbseg.engine.train import build_runner
from gbseg.engine.tta import enable_tta
from gbseg.report.overlay import overlay

__all__ = ["OverlayHook", "test"]


@HOOKS.register_module()
class OverlayHook(Hook):
    """Write every test image beside its ground truth and its prediction, as ``<id>.png``.

    Args:
        out_dir: the folder.
    """

    def __init__(self, out_dir: str | Path) -> None:
        self.out_dir = Path(out_dir)
        self.out_dir.mkdir(parents=True, exist_ok=True)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence[SegDataSample] | None = None
    ) -> None:
        """Draw the images of one batch."""
        palette = runner.test_dataloader.dataset.metainfo["palette"]
        for sample in outputs or ():
            panels = [cv2.imread(sample.img_path)]
            for field in ("gt_sem_seg", "pred_sem_seg"):
                if field in sample:
                    label = getattr(sample, field).data[0].cpu().numpy().astype(np.uint8)
                    panels.append(overlay(panels[0], label, palette))
            cv2.imwrite(str(self.out_dir / f"{Path(sample.img_path).stem}.png"), np.hstack(panels))


def test(
    config: Config,
    checkpoint: Path | str,
    out: Path | str | None = None,
    show_dir: Path | str | None = None,
    work_dir: Path | str | None = None,
    amp: bool = False,
    launcher: str = "none",
    tta: bool = False,
    submit: Path | str | None = None,
    submit_list: str | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint on a config's test set.

    Args:
        config: of one run.
        checkpoint: its weights.
        out: writes every prediction there as an indexed PNG of the image's original size.
        show_dir: writes image, ground truth and prediction side by side there.
        work_dir: where the log goes; by default ``work_dirs/<name of the config>``.
        amp: predict in mixed precision.
        launcher: as `mmengine.runner.Runner` takes it.
        tta: average probabilities over scales and flips, see `gbseg.engine.tta.enable_tta`.
        submit: predict VOC's test list, without labels, and pack this archive for its evaluation server; nothing is scored.
        submit_list: the list to predict instead, see `gbseg.engine.submit.prepare_submission`.

    Returns:
        The scores by name, in percent; none with ``submit``.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the config lists several runs, or predictions are to be written by a metric that cannot; what
            `prepare_submission` refuses.
        SubmissionError: the predictions are no valid submission.
    """
    if "runs" in config:
        raise ValueError(f"{config.filename} lists the runs {', '.join(config.runs)}: test one of them by its own config.")
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}; training writes them into work_dirs/<config>/.")
    work_dir = Path(work_dir or default_work_dir(config))
    config = copy.deepcopy(config)
    model = config.model
    if tta:
        enable_tta(config)
    if submit is not None:
        submission = prepare_submission(config, submit, submit_list, out, work_dir)
    elif out is not None:
        if not isinstance(config.test_evaluator, dict) or config.test_evaluator.get("type") != "VOCMetric":
            raise ValueError("--out needs test_evaluator=dict(type='VOCMetric'): other metrics write no indexed PNGs.")
        config.test_evaluator.out_dir = str(out)
    if show_dir is not None:
        config.custom_hooks = [*config.get("custom_hooks", []), dict(type="OverlayHook", out_dir=str(show_dir))]
    if amp:
        config.test_cfg.fp16 = True
    # tested weights come from the checkpoint alone: nothing of the training side is built
    training = dict.fromkeys(("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"))
    training |= dict.fromkeys(("val_dataloader", "val_cfg", "val_evaluator"))
    runner = build_runner(config, work_dir, launcher=launcher, load_from=str(checkpoint), **training)
    if submit is not None:
        submission.clear()
    scores = runner.test()
    if submit is not None:
        submission.pack()
    if model.type == "PixelNet":
        size = model.get("test_cfg", {}).get("input", "original")
        runner.logger.info(f"Network input: {size}; labels compared at the images' original size.")
    for name, folder in (("Predictions", out), ("Pictures", show_dir)):
        if folder is not None:
            print(f"{name} are in {folder}")
    return scores
