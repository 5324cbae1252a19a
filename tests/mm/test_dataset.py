"""VOC in its own layout: labels survive as indices, and what is missing is named."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")
from mmengine.dataset import ConcatDataset
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, DefaultScope
from torch.utils.data import DataLoader

import gbseg.mm.datasets.segmentation
from gbseg.cli import main
from gbseg.losses import ExpGBLoss
from gbseg.mm.hooks.list_check import ListCheckHook
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


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("ignored", [(20,), (0, 3, 255), 7])
def test_ignored_labels_are_255_when_read(ignored: Any, reduce: bool, root: Path) -> None:
    """As the files have them, also where 0 is reduced. Without it: the 20 of the files. So the classes of an image."""
    dataset = _build(root, ignored=ignored, reduce_zero_label=reduce)
    for number, sample in enumerate(dataset):
        expected = _label(number)
        expected[np.isin(expected, ignored)] = 255
        if reduce:
            expected = np.where((expected == 0) | (expected == 255), 255, expected - 1)
        np.testing.assert_array_equal(sample["data_samples"].gt_sem_seg.data.numpy(), expected[None])
        assert dataset.get_cat_ids(number) == sorted(set(expected.ravel().tolist()) - {255})


@pytest.mark.parametrize("ignored", [(256,), (-1,), (True,), ("11",), (1.5,)])
def test_what_is_no_label(ignored: Any, root: Path) -> None:
    with pytest.raises(ValueError, match=r"ignored are labels of the masks that do not count, numbers in 0\.\.255 such as"):
        _build(root, ignored=ignored)


def test_class_balanced(root: Path) -> None:
    """MMEngine's wrapper repeats the image of a rare class. Without ``get_cat_ids``: its AttributeError."""
    path = root / "SegmentationClass" / f"{IDS[0]}.png"
    with Image.open(path) as image:
        rare = image.point(lambda label: 0 if label == 5 else label)
        rare.putpalette(image.getpalette())
    for name in IDS[1:]:
        rare.resize((6, 4)).save(root / "SegmentationClass" / f"{name}.png")
    settings = {"type": "VOCSegmentation", "ann_file": "ImageSets/Segmentation/val.txt", "data_prefix": FOLDERS}
    settings |= {"pipeline": PIPELINE, "data_root": str(root)}
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset = DATASETS.build({"type": "ClassBalancedDataset", "oversample_thr": 1.0, "dataset": settings})
    # twice as often, rounded up: the square root of 1 / (1 / 3)
    assert [Path(dataset.get_data_info(idx)["img_path"]).stem for idx in range(len(dataset))].count(IDS[0]) == 2
    assert dataset.get_cat_ids(0) == list(range(21))
    unlabelled = _build(root, data_prefix={"img_path": "JPEGImages"}, pipeline=[{"type": "LoadImageFromFile"}])
    with pytest.raises(ValueError, match=r"2007_000033\.jpg has no mask, so its classes are unknown"):
        unlabelled.get_cat_ids(0)


@pytest.mark.parametrize("suffix", [".json", ".npy"])
@pytest.mark.parametrize("weighting", ["inverse", "median"])
def test_class_weights(weighting: str, suffix: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command writes what the losses take: by the formulas, in float64; a class that is absent has the weight 1."""
    for number, name in enumerate(IDS):
        label = np.resize([0, 0, 0, 255, *[1] * (1 + number), *[2] * (number == 1), 11], (10, 12)).astype(np.uint8)
        Image.fromarray(label).save(root / f"SegmentationClass/{name}.png")
        Image.new("RGB", (12, 10)).save(root / f"JPEGImages/{name}.jpg")
    config, out = tmp_path / "config.py", tmp_path / f"weights{suffix}"
    dataset = dict(type="FolderSegmentation", data_root=str(root), metainfo=dict(classes=("a", "b", "c", "d")), ignored=11)
    dataset |= dict(data_prefix=FOLDERS, pipeline=PIPELINE)
    loader = dict(dataset=dict(type="RepeatDataset", times=3, dataset=dataset))
    config.write_text(f"default_scope = 'mmseg'\ntrain_dataloader = {loader}\n")
    assert main(["class-weights", str(config), str(out), "--weighting", weighting]) == 0
    weights = np.array(json.loads(out.read_text())) if suffix == ".json" else np.load(out)
    masks = [np.asarray(Image.open(root / f"SegmentationClass/{name}.png")) for name in IDS]
    counts = [[int((mask == label).sum()) for label in range(4)] for mask in masks]
    total = [sum(row[c] for row in counts) for c in range(3)]
    if weighting == "inverse":
        expected = [sum(total) / 3 / n for n in total]
    else:
        shares = [n / sum(sum(row) for row in counts if row[c]) for c, n in enumerate(total)]
        expected = [sorted(shares)[1] / share for share in shares]
    np.testing.assert_allclose(weights, [*expected, 1], rtol=1e-12)
    np.testing.assert_allclose(ExpGBLoss(class_weight=str(out)).class_weight.numpy(), weights, rtol=1e-6)
    said = capsys.readouterr().out
    assert "1 (absent)" in said and f"Weights of 3 masks are in {out}; give it to a loss as class_weight='{out}'." in said
    assert main(["class-weights", str(config), str(tmp_path / "weights.pkl")]) == 1
    assert "weights are written as .json or .npy" in capsys.readouterr().err


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


LIST = "ImageSets/Segmentation/val.txt"


@pytest.mark.parametrize("content", ["\ufeff{}\n", "{}\n\n", "\n{}\r\n \n", "{}"], ids=["mark", "blank", "blanks", "no end"])
def test_how_a_list_is_written(root: Path, content: str) -> None:
    """A byte order mark and blank lines are no ids."""
    (root / LIST).write_text(content.format("\n".join(IDS)), encoding="utf-8")
    dataset = _build(root)
    assert [Path(dataset.get_data_info(i)["img_path"]).stem for i in range(len(dataset))] == list(IDS)
    (root / LIST).write_text("\n".join(IDS), encoding="utf-16")
    with pytest.raises(ValueError, match=rf"{LIST} is no text in UTF-8 \(invalid start byte at byte 0\): write it again"):
        _build(root)


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """What is logged as a warning."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


class _Loop:
    """What a hook asks of a runner in evaluation."""

    def __init__(self, dataset: Any) -> None:
        self.val_loop = self
        self.val_dataloader = self.test_dataloader = DataLoader(dataset)


def _refused(dataset: Any, match: str) -> None:
    """By the hook, wrapped or not, before training, validation and testing."""
    for wrapped in (dataset, ConcatDataset([dataset])):
        for moment in ("before_train", "before_val", "before_test"):
            with pytest.raises(ValueError, match=match):
                getattr(ListCheckHook(), moment)(_Loop(wrapped))


def test_an_id_that_is_listed_twice(root: Path, warned: list[str]) -> None:
    """It counts twice in training and is said once; it is refused where it would count twice in a score."""
    (root / LIST).write_text("\n".join([*IDS, IDS[1], IDS[1], IDS[0]]))
    match = rf"{LIST} names 2 of its images more than once \({IDS[0]}, {IDS[1]}; 3 lines too many\): .*list it once\."
    dataset = _build(root)
    assert len(dataset) == 6
    assert [bool(re.search(match, message)) for message in warned] == [True]
    _refused(dataset, match)
    with pytest.raises(ValueError, match=f"evaluation: .*{match}"):
        _build(root, test_mode=True)
    (root / LIST).write_text("\n".join(IDS))
    for moment in ("before_train", "before_val", "before_test"):
        getattr(ListCheckHook(), moment)(_Loop(_build(root, test_mode=True)))


def _folder(root: Path, **options: Any) -> gbseg.mm.datasets.segmentation.FolderSegmentation:
    settings = dict(data_root=str(root), metainfo=dict(classes=("a", "b")), pipeline=PIPELINE)
    with DefaultScope.overwrite_default_scope("mmseg"):
        return DATASETS.build({"type": "FolderSegmentation", **settings, **options})


def _names(dataset: Any, root: Path) -> list[str]:
    return [Path(dataset.get_data_info(k)["img_path"]).relative_to(root).as_posix() for k in range(len(dataset))]


def _pair(root: Path, name: str, images: str = "images", masks: str = "masks") -> None:
    for path, image in (
        (root / images / f"{name}.jpg", Image.new("RGB", (8, 8))),
        (root / masks / f"{name}.png", Image.new("L", (8, 8))),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def test_linked_sub_folders(tmp_path: Path) -> None:
    """Links are as good as folders, also to folders on other disks, with and without a list; a circle is named."""
    for k in range(3):
        _pair(tmp_path / "set", f"site1/{k}")
        _pair(tmp_path / "elsewhere", f"{k}")
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind / "site2").symlink_to(tmp_path / "elsewhere" / kind)
    expected = [f"images/site{site}/{k}.jpg" for site in (1, 2) for k in range(3)]
    dataset = _folder(tmp_path / "set", test_mode=True)
    assert _names(dataset, tmp_path / "set") == expected
    assert {sample["data_samples"].gt_sem_seg.data.shape for sample in dataset} == {(1, 8, 8)}
    (tmp_path / "set/list.txt").write_text("site2/1\n")
    assert _names(_folder(tmp_path / "set", ann_file="list.txt"), tmp_path / "set") == ["images/site2/1.jpg"]
    voc = _build(tmp_path / "set", ann_file="", data_prefix={"img_path": "images", "seg_map_path": "masks"})
    assert _names(voc, tmp_path / "set") == expected
    (tmp_path / "elsewhere/images/all").symlink_to(tmp_path / "set")
    with pytest.raises(ValueError, match=r"images/site2/all is a link to \S+/set, which holds the link itself"):
        _folder(tmp_path / "set")


def test_a_link_whose_disk_is_not_mounted(tmp_path: Path) -> None:
    """The folder is not forgotten, even if its masks are lost with it."""
    _pair(tmp_path, "a")
    for kind in ("images", "masks"):
        (tmp_path / kind / "site2").symlink_to(f"/not/mounted/{kind}")
    for build in (_folder, lambda root: _build(root, ann_file="", data_prefix={"img_path": "images", "seg_map_path": "masks"})):
        with pytest.raises(FileNotFoundError, match="images/site2 is a link to /not/mounted/images, which does not exist"):
            build(tmp_path)
    # a list says what is meant
    (tmp_path / "list.txt").write_text("a")
    assert len(_folder(tmp_path, ann_file="list.txt")) == 1


def test_names_with_a_dot(tmp_path: Path) -> None:
    """Hidden files and folders are neither images nor masks."""
    _pair(tmp_path, "a")
    _pair(tmp_path, ".ipynb_checkpoints/a-checkpoint")
    for name in ("images/._a.jpg", "images/.DS_Store", "masks/._a.png"):
        (tmp_path / name).write_bytes(b"Mac OS X")
    (tmp_path / "images/.ipynb_checkpoints/b.jpg").write_bytes(b"")
    assert _names(_folder(tmp_path, test_mode=True), tmp_path) == ["images/a.jpg"]
    voc = dict(ann_file="", data_prefix={"img_path": "images", "seg_map_path": "masks"}, test_mode=True)
    assert _names(_build(tmp_path, **voc), tmp_path) == ["images/a.jpg"]


def test_masks_whose_image_is_missing(tmp_path: Path, warned: list[str]) -> None:
    """Counted and said in training, refused in evaluation."""
    for k in range(4):
        _pair(tmp_path, f"site/{k}")
    for k in (1, 2):
        (tmp_path / f"images/site/{k}.jpg").unlink()
    match = r"2 masks in \S+/masks have no image in \S+/images \(first \S+/masks/site/1\.png\): put their images there"
    voc = dict(ann_file="", data_prefix={"img_path": "images", "seg_map_path": "masks"})
    for build, settings in ((_folder, {}), (_build, voc)):
        warned.clear()
        dataset = build(tmp_path, **settings)
        assert len(dataset) == 2 and [bool(re.search(match, message)) for message in warned] == [True]
        _refused(dataset, match)
        with pytest.raises(ValueError, match=match):
            build(tmp_path, **settings, test_mode=True)
    (tmp_path / "list.txt").write_text("site/0\nsite/3\n")
    assert len(_folder(tmp_path, ann_file="list.txt", test_mode=True)) == 2


def test_pictures_of_masks_are_no_lost_masks(tmp_path: Path, warned: list[str]) -> None:
    """The name of an image, here or in another split, and a word after it; but not a number."""
    for split, names in (("train", ("a", "site_x/1")), ("val", ("b", "site_x/2"))):
        for name in names:
            _pair(tmp_path, name, f"images/{split}")
    folders = dict(data_prefix=dict(img_path="images/train", seg_map_path="masks"))
    for name in ("a_color", "a-overlay_2", "a.vis", "site_x/1_color", "b_color", "site_x/2__color"):
        (tmp_path / f"masks/{name}.png").write_bytes((tmp_path / "masks/a.png").read_bytes())
        assert len(_folder(tmp_path, **folders, test_mode=True)) == 2 and warned == []
    voc = dict(ann_file="", data_prefix={"img_path": "images/train", "seg_map_path": "masks"})
    assert len(_build(tmp_path, **voc, test_mode=True)) == 2
    for name in ("a_2", "a-0001_color", "acolor", "site_x/b_color", "site_a", "site_x/3", "a_color/1"):
        path = tmp_path / f"masks/{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((tmp_path / "masks/a.png").read_bytes())
        with pytest.raises(ValueError, match=rf"1 masks in \S+ have no image in \S+ \(first \S+/masks/{name}\.png\)"):
            _folder(tmp_path, **folders, test_mode=True)
        path.unlink()


@pytest.mark.parametrize(
    ("images", "other", "masks"),
    [
        ("images/train", "images/val", "masks"),
        ("train/images", "val/images", "masks"),
        ("train", "val", "masks"),
        ("png/train", "png/val", "masks"),
        ("images", "unlabelled", "images"),
        ("images", "extra", "."),
    ],
)
def test_a_folder_of_masks_for_several(tmp_path: Path, images: str, other: str, masks: str) -> None:
    """Masks of another split, whose images lie in a folder beside this one, are no fault."""
    _pair(tmp_path, "a", images, masks)
    if masks == "images":
        Image.new("RGB", (8, 8)).save(tmp_path / "images/b.jpg")
        Image.new("L", (8, 8)).save(tmp_path / "images/b.png")
    else:
        _pair(tmp_path, "b", other, masks if masks != "." else other)
    dataset = _folder(tmp_path, data_prefix=dict(img_path=images, seg_map_path=masks), test_mode=True)
    assert _names(dataset, tmp_path) == ([f"{images}/a.jpg", f"{images}/b.jpg"] if masks == "images" else [f"{images}/a.jpg"])
    (tmp_path / images / "a.jpg").rename(tmp_path / images / "c.jpg")
    (tmp_path / masks / "c.png").write_bytes((tmp_path / masks / "a.png").read_bytes())
    with pytest.raises(ValueError, match=r"1 masks in .* \(first \S*a\.png\)"):
        _folder(tmp_path, data_prefix=dict(img_path=images, seg_map_path=masks), test_mode=True)
