"""Images with one folder per class, as in ImageNet, for MMPretrain's pipelines."""

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from gbseg.mm.compat import CustomDataset
from gbseg.mm.datasets.array_dataset import part_indices
from gbseg.mm.datasets.segmentation import OTHER_DATA_ROOT

__all__ = ["ClassFolders"]


@DATASETS.register_module()
class ClassFolders(CustomDataset):
    """``data_root/data_prefix/<class>/<image>``; the classes are the sub-folders in sorted order.

    The layout of MMPretrain's ``ImageNet``. That one always has 1,000 classes; here the folders are counted, so that
    `gbseg.mm.hooks.class_count` can compare them with the head's classes, and the training's with the validation's.

    Args:
        part: 'all', or with ``held_out`` 'tune' (all but those held out) or 'held_out'.
        held_out: number of images that are held out, a fixed choice over all classes, for tuning without the validation set.
        settings: arguments of MMPretrain's ``CustomDataset``: data_root, data_prefix, pipeline.

    Raises:
        FileNotFoundError: there is no such folder, or it has no sub-folder.
        ValueError: a class has no images, ``metainfo`` names another number of classes, or unknown ``part`` or impossible
            ``held_out``.
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
            + OTHER_DATA_ROOT
        )
        if not folder.is_dir() or not any(entry.is_dir() for entry in folder.iterdir()):
            raise FileNotFoundError(f"there is no {folder} with one folder of images a class (from {Path.cwd()}). {how}")
        try:
            data = super().load_data_list()
        except (AssertionError, RuntimeError) as error:  # no image at all, or metainfo names another number of classes
            raise ValueError(f"{folder}: {error} {how}") from error
        labels = {info["gt_label"] for info in data}
        if empty := [name for label, name in enumerate(self.CLASSES) if label not in labels]:
            names = f"{', '.join(empty[:3])}{', ...' if len(empty) > 3 else ''}"
            raise ValueError(
                f"{folder}: {len(empty):,} of the {len(self.CLASSES):,} classes have no images ({names}). Remove "
                f"those folders, or fill them: {how}"
            )
        return [data[index] for index in np.sort(part_indices(str(folder), len(data), self.part, self.held_out))]
