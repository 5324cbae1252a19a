"""Images with one folder per class, as in ImageNet, for MMPretrain's pipelines."""

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from gbseg.data.lists import abbreviate
from gbseg.files import class_folders, walk_files
from gbseg.mm.compat import CustomDataset, set_classes
from gbseg.mm.datasets.array_dataset import part_indices
from gbseg.mm.datasets.segmentation import OTHER_DATA_ROOT

__all__ = ["ClassFolders"]


@DATASETS.register_module()
class ClassFolders(CustomDataset):
    """``data_root/data_prefix/<class>/<image>``; the classes are the sub-folders in sorted order.

    The layout of MMPretrain's ``ImageNet``. That one always has 1,000 classes; here the folders are counted, so that
    `gbseg.mm.hooks.class_count` can compare them with the head's classes, and the training's with the validation's. Links to
    folders are followed, and names that begin with a dot are skipped (`gbseg.files.walk_files`); MMPretrain's own scan makes
    a class of ``.ipynb_checkpoints``.

    Args:
        part: 'all', or with ``held_out`` 'tune' (all but those held out) or 'held_out'.
        held_out: number of images that are held out, a fixed choice over all classes, for tuning without the validation set.
        settings: arguments of MMPretrain's ``CustomDataset``: data_root, data_prefix, pipeline.

    Raises:
        FileNotFoundError: there is no such folder, or it has no sub-folder.
        ValueError: a class has no images, ``metainfo`` names another number of classes, a link leads nowhere or to a folder
            that holds it, or unknown ``part`` or impossible ``held_out``.
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
        names = class_folders(folder) if folder.is_dir() else []
        if not names:
            raise FileNotFoundError(f"there is no {folder} with one folder of images a class (from {Path.cwd()}). {how}")
        data = super().load_data_list() if self.ann_file else self._scan(folder, names, how)
        labels = {info["gt_label"] for info in data}
        if empty := [name for label, name in enumerate(self.CLASSES) if label not in labels]:
            raise ValueError(
                f"{folder}: {len(empty):,} of the {len(self.CLASSES):,} classes have no images ({abbreviate(empty, 3)}). "
                f"Remove those folders, or fill them: {how}"
            )
        return [data[index] for index in np.sort(part_indices(str(folder), len(data), self.part, self.held_out))]

    def _scan(self, folder: Path, names: list[str], how: str) -> list[dict]:
        """What MMPretrain's scan gives, in its order."""
        if self.CLASSES is not None and len(self.CLASSES) != len(names):
            raise ValueError(
                f"{folder}: the number of subfolders ({len(names)}) doesn't match the number of specified classes "
                f"({len(self.CLASSES)}). {how}"
            )
        if self.CLASSES is None:
            set_classes(self, names)
        self.folder_to_idx = {name: label for label, name in enumerate(names)}
        data = [
            {"img_path": path, "gt_label": label}
            for label, name in enumerate(names)
            for path in sorted(map(str, walk_files(folder / name)))
            if self.is_valid_file(path)
        ]
        if not data:
            suffixes = ", ".join(sorted(self.extensions))
            raise ValueError(f"{folder}: Found 0 files in subfolders (suffixes looked for: {suffixes}). {how}")
        return data
