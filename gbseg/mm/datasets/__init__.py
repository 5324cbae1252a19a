"""Data sets and transforms for configs."""

from gbseg.mm.datasets.array_dataset import ArrayImages
from gbseg.mm.datasets.class_folders import ClassFolders
from gbseg.mm.datasets.segmentation import FolderSegmentation, VOCSegmentation
from gbseg.mm.datasets.transforms import ChannelGain, ResizeAligned, SeededAlbu

__all__ = [
    "ArrayImages",
    "ChannelGain",
    "ClassFolders",
    "FolderSegmentation",
    "ResizeAligned",
    "SeededAlbu",
    "VOCSegmentation",
]
