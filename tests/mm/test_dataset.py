"""VOC in its own layout: labels survive as indices, and what is missing is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")
from mmengine.registry import DATASETS, DefaultScope

import gbseg.mm.datasets.segmentation
from gbseg.palettes import VOC_CLASSES, VOC_PALETTE

IDS = ("2007_000033", "2007_000032", "2008_000002")
FOLDERS = {"img_path": "JPEGImages", "seg_map_path": "SegmentationClass"}
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "imdecode_backend": "pillow"},
    {"type": "PackSegInputs"},
]


def _label(number: int) -> np.ndarray:
    """A label map with every class, the border label, and a shape of its own."""
    flat = np.append(np.arange(21), np.full(3, 255)).astype(np.uint8)
    return np.random.default_rng(number).permutation(flat).reshape((4, 6) if number else (3, 8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images in VOC's layout, as its authors write it: JPEG, palette PNG, a list of ids."""
    for folder in (*FOLDERS.values(), "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for number, name in enumerate(IDS):
        label = _label(number)
        Image.new("RGB", label.shape[::-1], (40 * number, 0, 255)).save(tmp_path / "JPEGImages" / f"{name}.jpg", quality=100)
        indexed = Image.fromarray(label, mode="P")
        indexed.putpalette([value for colour in VOC_PALETTE for value in colour])
        indexed.save(tmp_path / "SegmentationClass" / f"{name}.png")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("".join(f"{name}\n" for name in IDS))
    return tmp_path


def _build(root: Path, **options: Any) -> gbseg.mm.datasets.segmentation.VOCSegmentation:
    settings = {"ann_file": "ImageSets/Segmentation/val.txt", "data_prefix": FOLDERS, "pipeline": PIPELINE}
    with DefaultScope.overwrite_default_scope("mmseg"):
        return DATASETS.build({"type": "VOCSegmentation", "data_root": str(root), **settings, **options})


def test_labels_survive(root: Path) -> None:
    """Through the pipeline of the configs: indices and not colours, 255 kept, 0 not reduced; images BGR."""
    dataset = _build(root)
    assert len(dataset) == 3
    for number, (name, sample) in enumerate(zip(IDS, dataset, strict=True)):
        label = _label(number)
        np.testing.assert_array_equal(sample["data_samples"].gt_sem_seg.data.numpy(), label[None])
        assert Path(sample["data_samples"].img_path).stem == name
        assert sample["data_samples"].ori_shape == label.shape
        # JPEG keeps a constant colour up to a few levels
        blue, green, red = sample["inputs"].float().mean((1, 2)).tolist()
        assert (red, green, blue) == pytest.approx((40 * number, 0, 255), abs=4)


def test_classes_and_palette(root: Path) -> None:
    """The metadata are VOC's 21 classes and their colours as PIL finds them in the files."""
    dataset = _build(root)
    assert dataset.metainfo["classes"] == VOC_CLASSES
    assert len(VOC_CLASSES) == 21
    palette = Image.open(root / "SegmentationClass" / f"{IDS[0]}.png").getpalette()
    assert palette is not None
    assert [value for colour in dataset.metainfo["palette"] for value in colour] == palette[:63]


@pytest.mark.parametrize("ann_file", ["", None])
def test_without_a_list(root: Path, ann_file: str | None) -> None:
    """Every image of the folder, sorted."""
    dataset = _build(root, ann_file=ann_file)
    assert [Path(dataset.get_data_info(i)["img_path"]).stem for i in range(3)] == sorted(IDS)


def test_images_without_labels(root: Path) -> None:
    """A list of images for prediction needs no labels."""
    dataset = _build(root, data_prefix={"img_path": "JPEGImages"}, pipeline=[PIPELINE[0], PIPELINE[2]])
    assert [tuple(sample["inputs"].shape[1:]) for sample in dataset] == [_label(number).shape for number in range(3)]


def _remove_image(root: Path) -> str:
    (root / "JPEGImages" / f"{IDS[1]}.jpg").unlink()
    return f"1 of 3 listed files are missing, first {root}/JPEGImages/{IDS[1]}.jpg"


def _remove_label(root: Path) -> str:
    (root / "SegmentationClass" / f"{IDS[2]}.png").unlink()
    return f"1 of 3 listed files are missing, first {root}/SegmentationClass/{IDS[2]}.png"


def _remove_list(root: Path) -> str:
    (root / "ImageSets/Segmentation/val.txt").unlink()
    return f"no list {root}/ImageSets/Segmentation/val.txt"


def _empty_list(root: Path) -> str:
    (root / "ImageSets/Segmentation/val.txt").write_text("")
    return f"{root}/ImageSets/Segmentation/val.txt names no image"


def _remove_labels(root: Path) -> str:
    (root / "SegmentationClass").rename(root / "SegmentationClassAug")
    return f"no folder {root}/SegmentationClass for seg_map_path"


def _remove_images(root: Path) -> str:
    (root / "JPEGImages").rename(root / "Images")
    return f"no folder {root}/JPEGImages for img_path"


@pytest.mark.parametrize("damage", [_remove_image, _remove_label, _remove_list, _empty_list, _remove_labels, _remove_images])
def test_what_is_missing_is_named(root: Path, damage: Callable[[Path], str]) -> None:
    """The path, and how to get VOC."""
    message = damage(root)
    with pytest.raises(FileNotFoundError, match=re.escape(message)) as caught:
        _build(root)
    for part in (
        str(root),
        "tools/prepare_voc.py data",
        "data/README.md",
        "--cfg-options train_dataloader.dataset.data_root=",
    ):
        assert part in str(caught.value)
