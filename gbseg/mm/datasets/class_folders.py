"""Images in folders of their classes, ImageNet's layout, for MMPretrain's pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from gbseg.mm.compat import CustomDataset

__all__ = ["ClassFolders"]


@DATASETS.register_module()
class ClassFolders(CustomDataset):
    """``data_root/data_prefix/<class>/<image>``; the classes are the folders there are, in sorted order.

    It reads what MMPretrain's ``ImageNet`` reads. That one names 1,000 classes whatever the folders are; here they are counted,
    so that another number than the head's, or other folders than training's, are noticed (`gbseg.mm.hooks.class_count`).

    Args:
        part: 'all', or with ``held_out`` 'tune' (all but those held out) or 'held_out'.
        held_out: how many images are held out, a fixed choice over all classes, for tuning without the validation set.
        settings: those of MMPretrain's `CustomDataset`: data_root, data_prefix, pipeline.

    Raises:
        FileNotFoundError: there is no such folder, or no folder of a class in it.
        ValueError: a class without images, ``metainfo`` names another number of classes, an unknown part, or more images
            held out than there are.
    """

    def __init__(self, part: str = "all", held_out: int = 0, **settings: Any) -> None:
        if part not in ("all", "tune", "held_out"):
            raise ValueError(f"ClassFolders: part is 'all', 'tune' or 'held_out', got {part!r}.")
        self.part, self.held_out = part, held_out
        super().__init__(**settings)

    def load_data_list(self) -> list[dict]:
        """The path and the class number of every image, class by class."""
        folder = Path(self.img_prefix)
        how = (
            "ImageNet is prepared by: python tools/prepare_imagenet.py data/imagenet (the same as gbseg prepare-imagenet). "
            "Data that lie elsewhere: link them there, or name them by --cfg-options train_dataloader.dataset.data_root=FOLDER "
            "val_dataloader.dataset.data_root=FOLDER test_dataloader.dataset.data_root=FOLDER."
        )
        if not folder.is_dir() or not any(entry.is_dir() for entry in folder.iterdir()):
            raise FileNotFoundError(f"there is no {folder} with one folder of images a class (from {Path.cwd()}). {how}")
        try:
            data = super().load_data_list()
        except (AssertionError, RuntimeError) as error:  # no image at all, or metainfo names another number of classes
            raise ValueError(f"{folder}: {error} {how}") from error
        found = {info["gt_label"] for info in data}
        if empty := [name for number, name in enumerate(self.CLASSES) if number not in found]:
            names = f"{', '.join(empty[:3])}{', ...' if len(empty) > 3 else ''}"
            raise ValueError(
                f"{folder}: {len(empty):,} of the {len(self.CLASSES):,} classes have no images ({names}). Remove "
                f"those folders, or fill them: {how}"
            )
        if self.part == "all":
            return data
        if not 0 < self.held_out < len(data):
            raise ValueError(f"{folder}: part={self.part!r} needs held_out in 1..{len(data) - 1}, got {self.held_out}.")
        order = np.random.default_rng(0).permutation(len(data))
        chosen = order[self.held_out :] if self.part == "tune" else order[: self.held_out]
        return [data[index] for index in np.sort(chosen)]
