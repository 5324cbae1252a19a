"""PASCAL VOC 2012 as a data set of the MM packages, with messages for the folder that is not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset

from gbseg.data.voc import VOC_CLASSES, VOC_PALETTE

__all__ = ["VOCSegmentation"]


@DATASETS.register_module()
class VOCSegmentation(BaseSegDataset):
    """Images and indexed label PNGs in VOC's layout, chosen by a list of ids.

    ``data_root/JPEGImages/<id>.jpg``, ``data_root/SegmentationClass/<id>.png``, ``data_root/ImageSets/Segmentation/*.txt``.
    Labels are palette indices: read them with ``dict(type='LoadAnnotations', imdecode_backend='pillow')``.

    Args:
        ann_file: the list of ids, below ``data_root``; None takes every image.
        img_suffix: of the images.
        seg_map_suffix: of the labels.
        settings: those of mmseg's `BaseSegDataset`.

    Raises:
        FileNotFoundError: the list, a folder or the first of the listed images is missing; the message names what was
            looked for and how to get it.
    """

    METAINFO: ClassVar[dict] = {"classes": VOC_CLASSES, "palette": [list(colour) for colour in VOC_PALETTE[: len(VOC_CLASSES)]]}

    def __init__(
        self, ann_file: str | None = "", img_suffix: str = ".jpg", seg_map_suffix: str = ".png", **settings: object
    ) -> None:
        settings.setdefault("reduce_zero_label", False)
        super().__init__(ann_file=ann_file or "", img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **settings)

    def load_data_list(self) -> list[dict]:
        """One dict of paths an image, in the order of the list."""
        where = f"(looked for in {Path(self.data_root or '.').resolve()})"
        how = (
            "VOC 2012 and SBD are downloaded and prepared, with all lists, by: python tools/prepare_voc.py data (the same as "
            "gbseg prepare-voc data); data/README.md says what goes where. "
            "Data that lie elsewhere: link them there, or name them by --cfg-options train_dataloader.dataset.data_root=FOLDER "
            "val_dataloader.dataset.data_root=FOLDER test_dataloader.dataset.data_root=FOLDER."
        )
        if self.ann_file and not Path(self.ann_file).is_file():
            raise FileNotFoundError(f"VOC: there is no list {self.ann_file} {where}. {how}")
        for kind, folder in self.data_prefix.items():
            if folder and not Path(folder).is_dir():
                raise FileNotFoundError(f"VOC: there is no folder {folder} for {kind} {where}. {how}")
        data = super().load_data_list()
        if not data:
            raise FileNotFoundError(f"VOC: {self.ann_file or self.data_prefix['img_path']} names no image {where}. {how}")
        for kind in ("img_path", "seg_map_path"):
            paths = [entry[kind] for entry in data if entry.get(kind)]
            missing = [path for path in paths if not Path(path).is_file()]
            if missing:
                raise FileNotFoundError(
                    f"VOC: {len(missing)} of {len(data)} listed files are missing, first {missing[0]}. {how}"
                )
        return data
