"""Write every image of a test beside its ground truth and its prediction."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.structures import SegDataSample

from gbseg.data.images import read_bgr
from gbseg.evaluation.faults import image_name
from gbseg.files import write_atomically
from gbseg.palettes import default_palette
from gbseg.report.label_overlay import overlay
from gbseg.report.sheet import legend_below

__all__ = ["OverlayHook"]


@HOOKS.register_module()
class OverlayHook(Hook):
    """Write every test image beside its ground truth and its prediction, as ``<id>.png``, with a legend below.

    Args:
        out_dir: folder of the PNGs.
    """

    def __init__(self, out_dir: str | Path) -> None:
        self.out_dir = Path(out_dir)
        self.out_dir.mkdir(parents=True, exist_ok=True)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence[SegDataSample] | None = None
    ) -> None:
        """Draw the images of one batch."""
        metainfo = runner.test_dataloader.dataset.metainfo
        names = metainfo.get("classes") or ()
        palette = metainfo.get("palette") or default_palette(names or [str(label) for label in range(255)])
        for sample in outputs or ():
            if not sample.get("img_path"):
                runner.logger.warning(f"No picture of {image_name(sample, batch_idx)}: it has no img_path.")
                continue
            try:
                panels, occurring = [read_bgr(sample.img_path)], set()
                for field in ("gt_sem_seg", "pred_sem_seg"):
                    if field in sample:
                        label = getattr(sample, field).data[0].cpu().numpy()
                        # overlay refuses what a byte does not hold
                        label = label.astype(np.uint8) if label.max(initial=0) < 256 else label
                        panels.append(overlay(panels[0], label, palette))
                        occurring |= set(np.unique(label).tolist())
            except ValueError as error:
                runner.logger.warning(f"No picture: {error}")
                continue
            png = cv2.imencode(".png", legend_below(np.hstack(panels), sorted(occurring), palette, names))[1]
            write_atomically(png.tobytes(), self.out_dir / f"{Path(sample.img_path).stem}.png")
