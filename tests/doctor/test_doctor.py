"""Every finding of the doctor on a real small data set, and no false alarm on what ships."""

from __future__ import annotations

import ast
import io
import re
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, init_default_scope

from gbseg.data.masks import write_mask
from gbseg.data.scenes import write_scenes
from gbseg.doctor import Finding, examine, report
from gbseg.doctor.dataset_checks import check_data
from gbseg.doctor.model_checks import check_model
from gbseg.doctor.package_checks import check_packages
from gbseg.doctor.schedule_checks import check_schedule
from gbseg.mm.config import load_config
from gbseg.palettes import VOC_PALETTE

ROOT = Path(__file__).parents[2]
COUNT = 6


@pytest.fixture(autouse=True)
def _scope() -> None:
    init_default_scope("mmseg")


def folder(root: Path, mask: Callable[[int], np.ndarray] | None = None, size: tuple[int, int] = (20, 30)) -> Path:
    """images/{train,val} and masks/{train,val}; by default labels 0..2 and 255."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number in range(COUNT):
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / f"images/{split}/{number}.jpg")
            values = mask(number) if mask else rng.choice([0, 1, 2, 255], size).astype(np.uint8)
            Image.fromarray(values).save(root / f"masks/{split}/{number}.png")
    return root


def custom(root: Path, **options: Any) -> Config:
    base = {f"{split}_dataloader.dataset.data_root": str(root) for split in ("train", "val", "test")}
    return load_config(ROOT / "configs/custom_example.py", {**base, "model.backbone.weights": None, **options})


def bad(findings: Any) -> list[Finding]:
    return [finding for finding in findings if finding.level in ("warning", "error")]


def only(findings: Any, level: str, pattern: str, remedy: str = "") -> None:
    """All findings that are not fine are of this level and say this."""
    problems = bad(findings)
    assert problems
    for finding in problems:
        assert finding.level == level
        assert re.search(pattern, finding.text), finding.text
        assert re.search(remedy, finding.remedy, re.DOTALL | re.MULTILINE), finding.remedy


def test_a_sound_folder_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = custom(folder(tmp_path))
    assert report(config, every=True) == 0
    printed = capsys.readouterr().out
    assert "0 warnings, 0 errors" in printed
    assert f"train data: {COUNT} images, first " in printed and f"; {COUNT} read" in printed
    assert f"{COUNT} masks hold 0..2 and 255 (ignored) of 3 classes" in printed


def grey_of_palette(number: int) -> np.ndarray:
    labels = np.resize(np.arange(1, 4, dtype=np.uint8), (20, 30))
    image = Image.fromarray(labels)
    image.putpalette([value for colour in VOC_PALETTE for value in colour])
    # Pillow's own conversion, as a user's script would do it
    return np.asarray(image.convert("L"))


def values(*chosen: int) -> Callable[[int], np.ndarray]:
    return lambda number: np.resize(np.array(chosen, np.uint8), (20, 30))


@pytest.mark.parametrize(
    ("mask", "options", "level", "text", "remedy"),
    [
        (values(0, 255), {"classes": 2}, "error", "0/255 binary masks: .*ignore_index is 255.*never trained", r"mask // 255"),
        (values(0, 255), {"classes": 2, "ignore": 254}, "error", "0/255 binary masks: the foreground is 255", "mask // 255"),
        (values(1, 2, 3), {}, "error", r"off by one: they go 1\.\.3", "reduce_zero_label=True"),
        (values(0, 1, 2, 3), {}, "error", "3 .*just behind the last", r"(?s)ignored=\(3,\) .*num_classes=4"),
        (values(0, 255), {}, "warning", r"all 6 masks hold 0 and 255 \(ignored\) only, of 3 classes: 0/255", "num_classes=2"),
        (values(1, 2), {}, "warning", r"0 \(background\) occurs in none of 6 masks, while 1, 2 do", "subtract one"),
        (values(1, 2, 3, 255), {"classes": 21}, "warning", r"0 \(background\) .* none of 6 masks, while 1\.\.3 do", "subtract"),
        (values(0), {}, "warning", r"0 \(background\) is the only class in all 6 masks, of 3 classes", "browse"),
        (values(1, 255), {"classes": 2}, "warning", r"1 \(thing\) is the only class in all 6 masks, of 2", "browse"),
        (values(0, 7, 9), {}, "error", "labels 7, 9 .*are no class: 3 classes are 0..2, ignored is 255", r"d=\(7, 9\)"),
        (grey_of_palette, {}, "error", "38, 75, 113 .*brightness of the palette's colours", "palette PNGs"),
        (values(255), {}, "error", "all pixels of all 6 masks are 255", "browse"),
        (values(0, 1, 2), {"reduce": True}, "warning", "reduce_zero_label=True ignores the label 0.*'background'", "False"),
        (lambda n: np.zeros((20, 30, 3), np.uint8), {}, "error", "6 of 6 masks .* hold colours", "class number"),
        (lambda n: np.full((20, 30), 300, np.uint16), {}, "error", "hold numbers above 255", "below 255"),
        (lambda n: np.eye(30, 20, dtype=np.uint8), {}, "error", "6 masks are not of .* 30 x 20, image 20 x 30", "EXIF"),
    ],
    ids=[
        "binary", "binary-not-ignored", "1..C", "0..C", "binary-of-3", "no-zero", "no-zero-no-last", "zero-only", "one-only",
        "no-class", "grey-of-palette", "all-ignored", "reduced", "rgb", "16-bit", "size",
    ],
)  # fmt: skip
def test_labels(mask: Any, options: dict, level: str, text: str, remedy: str, tmp_path: Path) -> None:
    config = custom(folder(tmp_path, mask))
    for split in ("train", "val", "test"):
        dataset = config[f"{split}_dataloader"].dataset
        if "classes" in options:
            dataset.metainfo = dict(classes=("background", "thing", *map(str, range(2, options["classes"]))))
        dataset.reduce_zero_label = options.get("reduce", False)
    config.model.decode_head.num_classes = options.get("classes", 3)
    config.model.decode_head.ignore_index = options.get("ignore", 255)
    only(check_data(config, every=True), level, text, remedy)


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("chosen", [(3,), (7, 9)])
def test_the_remedy_of_labels_that_do_not_count(chosen: tuple[int, ...], reduce: bool, tmp_path: Path) -> None:
    """As it is printed, in every data set: nothing is left to say. CamVid's 11 beside 0..10 is no "off by one"."""
    shift = int(reduce)
    config = custom(folder(tmp_path, values(*(value + shift for value in (0, 1, 2, *chosen)), *[0] * shift)))
    for split in ("train", "val", "test"):
        dataset = config[f"{split}_dataloader"].dataset
        dataset.update(reduce_zero_label=reduce, metainfo=dict(classes=("disc", "square", "star"), palette=None))
    findings = bad(check_data(config, every=True))
    assert findings and "off by one" not in str(findings)
    for finding in findings:
        (remedy,) = re.findall(r"set ignored=(\([\d, ]+\)) in every dataset of the config", finding.remedy)
        assert ast.literal_eval(remedy) == tuple(value + shift for value in chosen)
    for split in ("train", "val", "test"):
        config[f"{split}_dataloader"].dataset.ignored = ast.literal_eval(remedy)
    assert not bad(check_data(config, every=True))


def test_labels_that_start_at_one_are_fine_when_reduced(tmp_path: Path) -> None:
    config = custom(folder(tmp_path, values(0, 1, 2, 3)))
    for split in ("train", "val", "test"):
        config[f"{split}_dataloader"].dataset.update(
            reduce_zero_label=True, metainfo=dict(classes=("disc", "square", "star"), palette=None)
        )
    assert not bad(check_data(config, every=True))


def test_images_that_are_missing_while_their_masks_are_there(tmp_path: Path) -> None:
    """The doctor counts them, also in the training data, where training only warns."""
    root = folder(tmp_path)
    for name in ("train/3", "train/4", "val/0"):
        (root / f"images/{name}.jpg").unlink()
    found = {(f.level, f.where): f"{f.text} {f.remedy}" for f in bad(check_data(custom(root)))}
    assert set(found) == {("error", "train data"), ("error", "val/test data")}
    assert "2 masks in" in found["error", "train data"] and "first" in found["error", "train data"]
    assert "1 masks in" in found["error", "val/test data"] and "put their images there" in found["error", "val/test data"]


def test_ids_that_are_listed_twice(tmp_path: Path) -> None:
    """A warning for training, whose authors may mean it; an error for evaluation."""
    root = folder(tmp_path)
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text("0\n1\n0\n")
    config = custom(root)
    for split in ("train", "val", "test"):
        which = "train" if split == "train" else "val"
        dataset = config[f"{split}_dataloader"].dataset
        dataset.update(type="VOCSegmentation", ann_file=f"{which}.txt")
        del dataset.metainfo
    found = {(f.level, f.where): f.text for f in bad(check_data(config)) if "more than once" in f.text}
    assert set(found) == {("warning", "train data"), ("error", "val/test data")}
    assert "val.txt names 1 of its images more than once (0; 1 lines too many)" in found["error", "val/test data"]


def grey_png(labels: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits a pixel by the specification (Pillow writes 1 bit only)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixel_bits = (labels[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint8)) & 1
    # a filter byte before every row
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in pixel_bits)
    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "backend", "level", "text"),
    [
        (
            4,
            "pillow",
            "error",
            "6 of 6 masks .* fewer than 8 bits a pixel, whose numbers .*'pillow'.* reads scaled",
        ),
        (2, "pillow", "error", "fewer than 8 bits a pixel, whose numbers .* reads scaled"),
        (2, "cv2", "error", "fewer than 8 bits a pixel, whose numbers .*'cv2'.* reads scaled"),
        (1, "cv2", "error", "fewer than 8 bits a pixel, whose numbers .*'cv2'.* reads scaled"),
        (1, "pillow", "warning", "fewer than 8 bits a pixel: this pipeline reads them as they are stored"),
    ],
)
def test_grey_masks_of_fewer_than_eight_bits(bits: int, backend: str, level: str, text: str, tmp_path: Path) -> None:
    classes = 2**bits
    root = folder(tmp_path, lambda n: np.resize(np.arange(classes, dtype=np.uint8), (20, 30)))
    config = custom(root)
    for split in ("train", "val", "test"):
        dataset = config[f"{split}_dataloader"].dataset
        dataset.metainfo = dict(classes=tuple(map(str, range(classes))))
        dataset.pipeline[1].imdecode_backend = backend
    config.model.decode_head.num_classes = classes
    assert not bad(check_data(config))
    labels_by_path = {path: np.asarray(Image.open(path)) for path in (root / "masks").rglob("*.png")}
    for path, labels in labels_by_path.items():
        path.write_bytes(grey_png(labels, bits))
    only(check_data(config), level, text, "with 8 bits")
    # the remedy is one
    for path, labels in labels_by_path.items():
        read = np.asarray(Image.open(path)).astype("uint8") // {1: 1, 2: 85, 4: 17}[bits]
        np.testing.assert_array_equal(read, labels)
        Image.fromarray(read).save(path)
    assert not bad(check_data(config))


class LoadGrey(LoadAnnotations):
    """A loader such as users write: OpenCV, as grey."""

    def transform(self, results: dict) -> dict:
        results["gt_seg_map"] = cv2.imread(results["seg_map_path"], cv2.IMREAD_GRAYSCALE)
        return results


@pytest.mark.parametrize("how", ["colour", "grey"])
def test_a_palette_that_the_pipeline_reads_wrongly(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path)
    for path in (root / "masks").rglob("*.png"):
        write_mask(path, np.asarray(Image.open(path)))
    config = custom(root)
    assert not bad(check_data(config))
    monkeypatch.setitem(TRANSFORMS.module_dict, "LoadGrey", LoadGrey)
    for split in ("train", "val", "test"):
        step = config[f"{split}_dataloader"].dataset.pipeline[1]
        step.update(dict(imdecode_backend="cv2") if how == "colour" else dict(type="LoadGrey", imdecode_backend="cv2"))
    text = "palette PNGs, which .*'cv2'.* reads as colours" if how == "colour" else "'cv2'.* as other numbers than are stored"
    only(check_data(config), "error", f"6 of 6 masks .*{text}", "imdecode_backend='pillow'")


def test_files_that_are_missing_damaged_or_lossy(tmp_path: Path) -> None:
    root = folder(tmp_path)
    image = root / "images/train/3.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    only(
        check_data(custom(root)),
        "error",
        r"1 of 6 samples cannot be read, first .*images/train/3\.jpg: .*[Tt]runcated",
        "replace",
    )
    image.write_bytes(whole)
    mask = root / "masks/val/2.png"
    png = mask.read_bytes()
    mask.write_bytes(png[: len(png) // 2])
    only(check_data(custom(root)), "error", r"1 of 6 samples cannot be read, first .*masks/val/2\.png", "replace")
    mask.unlink()
    missing = r"1 of 6 listed files are missing, first .*masks/val/2\.png\. Every image needs a mask"
    only(check_data(custom(root)), "error", missing)
    # a JPEG by name of a PNG
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(mask, format="JPEG")
    only(check_data(custom(root)), "error", "1 of 6 masks .* are JPEGs", "PNG")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(mask, format="JPEG2000", irreversible=True)
    only(check_data(custom(root)), "error", "1 of 6 masks .* compression that changes class numbers", "PNG")
    # mmseg's own data set has no message of gbseg's
    config = custom(root)
    config.val_dataloader.dataset.update(type="BaseSegDataset", ann_file="none.txt")
    config.val_dataloader.dataset.metainfo = dict(classes=("a", "b", "c"))
    problems = [f for f in bad(check_data(config)) if f.where == "val data"]
    assert "none.txt" in problems[0].text
    assert problems[0].remedy == "correct val_dataloader.dataset."


def test_the_limit_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    root = folder(tmp_path)
    assert not bad(check_data(custom(root, max_pixels=600)))
    text = "6 of 6 samples cannot be read, first .*: has 30 x 20 pixels; at most 599 can be read: .*max_pixels"
    only(check_data(custom(root, max_pixels=599)), "error", text)


@pytest.mark.parametrize(
    ("values", "kind"), [((-1, 0, 1), np.int32), ((0, 0.5, 1), np.float32), ((0, 1, 300), np.int32)], ids=str
)
def test_numbers_that_eight_bits_do_not_hold(values: tuple, kind: type, tmp_path: Path) -> None:
    root = folder(tmp_path)
    for path in (root / "masks").rglob("*.png"):
        buffer = io.BytesIO()
        Image.fromarray(np.resize(np.array(values, kind), (20, 30))).save(buffer, format="TIFF")
        path.write_bytes(buffer.getvalue())
    only(check_data(custom(root)), "error", "6 of 6 masks .* hold numbers above 255 .*fractions.*below 0", "below 255")


def test_classes_of_the_data_and_of_the_head(tmp_path: Path) -> None:
    config = custom(folder(tmp_path), **{"model.decode_head.num_classes": 21})
    only(check_data(config), "error", r"3 classes \(background, disc, square\), decode_head.num_classes is 21", "num_classes=3")


def test_overlap(tmp_path: Path) -> None:
    config = custom(folder(tmp_path))
    config.val_dataloader.dataset.data_prefix = config.train_dataloader.dataset.data_prefix
    only(check_data(config), "warning", "6 of the 6 images of the val list are also among the 6", "not a held-out score")


def test_a_config_without_a_model_and_one_without_a_head(tmp_path: Path) -> None:
    config = custom(folder(tmp_path))
    config.model.decode_head = None
    assert not bad(check_data(config))
    config.pop("model")
    only(examine(config), "error", "the config has no model", "inherit")


@pytest.mark.parametrize(
    ("kind", "loop", "wrapped", "warned"),
    [
        ("Albu", "IterBasedTrainLoop", False, True),
        ("mmseg.Albu", "IterBasedTrainLoop", False, True),
        ("Albu", "ResumableIterLoop", False, False),
        ("Albu", "IterBasedTrainLoop", True, False),
        ("SeededAlbu", "IterBasedTrainLoop", False, False),
    ],
)
def test_albumentations_without_seeds(kind: str, loop: str, wrapped: bool, warned: bool, tmp_path: Path) -> None:
    """What it warns of is shown by tests/data/test_albu.py: two workers draw the same numbers."""
    pytest.importorskip("albumentations")
    config = custom(folder(tmp_path))
    config.train_cfg.type = loop
    dataset = config.train_dataloader.dataset
    step = dict(type=kind, transforms=[dict(type="HorizontalFlip")])
    # deep in the pipeline as well
    dataset.pipeline.insert(2, dict(type="RandomApply", transforms=[step]))
    if wrapped:
        config.train_dataloader.dataset = dict(type="SeededDataset", dataset=dataset)
    findings = list(check_data(config))
    if warned:
        only(findings, "warning", "Albu draws .* all 2 workers .* the same numbers, and no run can be repeated", "SeededAlbu")
        config.train_dataloader.num_workers = 0
        only(check_data(config), "warning", "which no seed of the config reaches: no run can be repeated", "SeededAlbu")
    else:
        assert not bad(findings)


MMSEG = "mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py"
EXPGB = "model = dict(decode_head=dict(loss_decode=dict(_delete_=True, type='ExpGBLoss'{})){})\n"
GUARD = "custom_imports = dict(imports=['gbseg', 'gbseg.mm'])\ncustom_hooks = [dict(type='NonFiniteGuardHook')]\n"
POW3 = (
    "model = dict(decode_head=dict(loss_decode=dict(_delete_=True, type='Pow3GBLoss', loss_weight=0.1){}),"
    " auxiliary_head=dict(loss_decode=dict(_delete_=True, type='Pow3GBLoss', loss_weight=0.04){}))\n" + GUARD
)
AUXILIARY = ", auxiliary_head=dict(loss_decode=dict(_delete_=True, type='ExpGBLoss', loss_weight=0.4 / 16))"


def foreign(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "config.py"
    file.write_text(f"_base_ = ['{MMSEG}']\n{text}")
    return load_config(file)


def test_a_foreign_config_that_follows_the_readme_is_sound(tmp_path: Path) -> None:
    config = foreign(tmp_path, EXPGB.format(", loss_weight=1 / 16", AUXILIARY) + GUARD)
    assert not bad(check_model(config))


@pytest.mark.parametrize(
    ("text", "level", "message", "remedy"),
    [
        # r = 0.01 * 16 / (1 - 0.9) = 1.6, which diverged; and the other's 0.4 / 16
        (
            EXPGB.format("", AUXILIARY) + GUARD,
            "warning",
            "16 times as strong.* = 1.6; .*diverged at 0.48",
            r"loss_weight=0\.0625\).*=80",
        ),
        (
            EXPGB.format(", loss_weight=1 / 16", "") + GUARD,
            "warning",
            "auxiliary_head is left on CrossEntropyLoss while decode_head has ExpGBLoss",
            r"^model = dict\(auxiliary_head=dict\(loss_decode=dict\(_delete_=True, type='ExpGBLoss', loss_weight=0\.025\)\)\)$",
        ),
        (
            EXPGB.format(", loss_weight=1 / 16", AUXILIARY) + "custom_imports = dict(imports=['gbseg'])",
            "warning",
            "no NonFiniteGuardHook",
            "custom_hooks",
        ),
        (
            EXPGB.format(", loss_weight=1 / 16", AUXILIARY) + "custom_hooks = [dict(type='NonFiniteGuardHook')]",
            "error",
            "ExpGBLoss, NonFiniteGuardHook would be unknown.*gbseg, gbseg.mm.hooks.nonfinite_guard",
            r"imports=\['gbseg.mm'\]",
        ),
        # the paper's rate of exp-GB with cross-entropy
        (
            "optim_wrapper = dict(optimizer=dict(lr=1e-4))",
            "warning",
            r"CrossEntropyLoss with a step of .*given for exp-GB",
            "raise",
        ),
        ("optim_wrapper = dict(optimizer=dict(lr=1.0))", "warning", "= 10; at 10 the softmax fell apart", "lower"),
        ("load_from = 'nowhere.pth'", "error", r"load_from: there is no file /.*nowhere\.pth", "put it there"),
        (
            "model = dict(decode_head=dict(num_classes=3))",
            "error",
            "different num_classes: decode_head 3, auxiliary_head 21",
            "same",
        ),
        (
            "model = dict(data_preprocessor=dict(seg_pad_val=0))",
            "error",
            r"label 0 .*does not ignore \(ignore_index=255\)",
            "=255",
        ),
        (
            "model = dict(decode_head=dict(typ=1))",
            "error",
            "cannot be built: .*FCNHead takes no typ; is type meant",
            "correct the key",
        ),
        (
            POW3.format(", sampler=dict(type='OHEMPixelSampler', thresh=0.7)", ""),
            "warning",
            r"decode_head\.sampler compares thresh=0\.7 with a softmax, no probability after Pow3GBLoss",
            "LinkOHEMPixelSampler",
        ),
        (
            POW3.format(", out_channels=1, num_classes=2, threshold=0.3", ", num_classes=2"),
            "error",
            "decode_head.out_channels=1 is a sigmoid head",
            "decode_head=dict.*out_channels=2",
        ),
    ],
    ids=[
        "rate", "auxiliary", "guard", "imports", "low-rate", "high-rate", "weights", "heads", "padding", "model", "ohem",
        "sigmoid",
    ],
)  # fmt: skip
def test_model(text: str, level: str, message: str, remedy: str, tmp_path: Path) -> None:
    only([f for f in check_model(foreign(tmp_path, text)) if "1 / 16 / 16" not in f.text], level, message, remedy)


@pytest.mark.parametrize("head", ["decode_head", "auxiliary_head"])
@pytest.mark.parametrize(
    ("loss", "sampler", "warned"),
    [
        ("ExpGBLoss", "type='OHEMPixelSampler', thresh=0.7", False),
        ("LinearLoss", "type='OHEMPixelSampler', thresh=0.7", True),
        ("LinearLoss", "type='mmseg.OHEMPixelSampler', thresh=0.7", True),
        ("LinearLoss", "type='OHEMPixelSampler'", False),
        ("LinearLoss", "type='LinkOHEMPixelSampler', thresh=0.7", False),
    ],
)
def test_softmaxes_of_a_sampler(loss: str, sampler: str, warned: bool, head: str, tmp_path: Path) -> None:
    """Only a threshold of probabilities, and only after a loss whose link is another."""
    text = f"model = dict({head}=dict(loss_decode=dict(_delete_=True, type='{loss}'), sampler=dict({sampler})))\n"
    findings = list(check_model(foreign(tmp_path, text + "custom_imports = dict(imports=['gbseg.mm'])")))
    assert [f.where for f in bad(findings) if f.where in ("softmax", "imports")] == ["softmax"] * warned


def test_mmsegs_own_test_time_augmentation(tmp_path: Path) -> None:
    """It is in every config of MMSegmentation, so it is a note; after exp-GB it is the same."""
    for loss, expected in (("Pow3GBLoss", 1), ("ExpGBLoss", 0)):
        text = f"model = dict(decode_head=dict(loss_decode=dict(_delete_=True, type='{loss}')))"
        findings = list(check_model(foreign(tmp_path, text)))
        notes = [f for f in findings if f.level == "note" and "SegTTAModel, which averages softmaxes" in f.text]
        assert len(notes) == expected and all("LinkTTAModel" in note.remedy for note in notes)


def test_heads_of_queries(tmp_path: Path) -> None:
    """They predict by a softmax, and divide by the weights of labels. (The head itself needs mmdet.)"""

    def found(options: str) -> list[Finding]:
        head = f"dict(_delete_=True, type='Mask2FormerHead', num_classes=21, loss_cls=dict({options}))"
        return [f for f in check_model(foreign(tmp_path, f"model = dict(decode_head={head})")) if f.where == "softmax"]

    (finding,) = found("type='LinearLoss'")
    assert finding.level == "warning" and "by a softmax over the classes of a query, which LinearLoss does not" in finding.text
    (finding,) = found("type='ExpGBLoss', class_weight=[1.0] * 21 + [0.1]")
    assert "divides by the weights of its labels, while class_weight multiplies outputs" in finding.text
    assert "loss_cls=dict(class_weight_mode='labels')" in finding.remedy
    assert not found("type='ExpGBLoss', class_weight=[1.0] * 21 + [0.1], class_weight_mode='labels'")


@pytest.mark.parametrize(
    ("rate", "options", "warned"),
    [
        # docs/design.md's table (momentum 0.9) and results/subset/rate_sweep.csv: what was measured to train, and what diverged
        (0.001, "", False),
        (0.003, "", True),
        (0.003, "clip", False),
        (0.01, "clip", False),
        (0.03, "clip", False),
        (0.003, "max_delta=16", False),
        (0.1, "clip", True),
        (0.03, "targets=(0, 1)", False),
        (0.3, "targets=(0, 1)", True),
        (1e-4, "", False),
        # divided by t_pos twice
        (1e-4, "loss_weight=1 / 16", True),
    ],
)
def test_rates_of_expgb_against_what_was_measured(rate: float, options: str, warned: bool) -> None:
    # without its weights, which a fresh clone has not
    changes = {"optim_wrapper.optimizer.lr": rate, "model.backbone.weights": None}
    config = load_config(ROOT / "configs/subset/expgb.py", changes)
    if options != "clip":
        config.optim_wrapper.pop("clip_grad")
        config.model.decode_head.loss_decode.update(eval(f"dict({options})"))
    assert [f.where for f in bad(check_model(config))] == ["rate"] * warned


def test_the_remedy_of_a_high_rate_is_accepted(tmp_path: Path) -> None:
    """Whoever follows the advice gets no second warning."""
    config = foreign(tmp_path, EXPGB.format("", AUXILIARY) + GUARD)
    (finding,) = bad(check_model(config))
    weight, norm = re.search(r"loss_weight=([\d.]+)", finding.remedy)[1], re.search(r"max_norm=(\d+)", finding.remedy)[1]
    weighted = foreign(tmp_path, EXPGB.format(f", loss_weight={weight}", AUXILIARY) + GUARD)
    assert not bad(check_model(weighted))
    config.optim_wrapper.clip_grad = dict(max_norm=float(norm))
    assert not bad(check_model(config))


def installed(root: Path, name: str, version: str) -> None:
    """A distribution, as pip leaves it."""
    info = root / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("name", "version", "level", "text"),
    [
        ("mmcv", "2.1.0", "error", "mmcv 2.1.0 is installed beside onedl-mmcv"),
        ("mmsegmentation", "1.2.2", "error", "mmsegmentation 1.2.2 is installed beside onedl-mmsegmentation"),
        ("opencv-contrib-python", "4.8.0.76", "error", "two versions of OpenCV .*opencv-contrib-python 4.8.0.76"),
        ("rich", "99.0", "warning", "rich 99.0 is installed, gbseg was tried with .*<16"),
    ],
)
def test_packages(name: str, version: str, level: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not bad(check_packages())
    installed(tmp_path, name, version)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    only(check_packages(), level, text, "pip install")


def test_the_newer_opencv_is_advised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As numbers, 4.13 is newer than 4.9."""
    installed(tmp_path, "opencv-python", "4.9.0.80")
    installed(tmp_path, "opencv-contrib-python", "4.13.0.1")
    installed(tmp_path, "opencv-python-headless", "4.9.0.80")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (finding,) = [f for f in check_packages() if "two versions of OpenCV" in f.text]
    assert set(re.findall("==([0-9.]+)", finding.remedy)) == {"4.13.0.1"}


# compare.py lists the subset's other configs as its runs
SHIPPED = [*sorted((ROOT / "configs").glob("*.py")), ROOT / "configs/subset/compare.py"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_false_alarm_on_what_ships(path: Path, tmp_path: Path) -> None:
    """Where data are at hand nothing is wrong; where they are not, they are all that is missing."""
    config = load_config(path)
    if "prepare" in config:
        config.prepare.root = str(write_scenes(tmp_path / "scenes", train=4, val=2, size=(32, 32)))
        for split in ("train", "val", "test"):
            config[f"{split}_dataloader"].dataset.data_root = config.prepare.root
    problems = bad(examine(config))
    for finding in problems:
        assert finding.level == "error"
        assert finding.where.split(": ")[-1] in ("train data", "val/test data", "val data", "test data", "weights"), finding
        assert re.search(r"there is no (file|folder|list)", finding.text), finding
    if "prepare" in config:
        assert not problems


@pytest.mark.parametrize(("max_iters", "warmup"), [(2000, 50), (30, 1), (2, 1)])
def test_the_examples_warm_up_follows_the_length_of_the_training(max_iters: int, warmup: int, tmp_path: Path) -> None:
    """As its user sets it, by editing the file: the rate rises, falls and can be built."""
    root, path = folder(tmp_path), tmp_path / "mine.py"
    text = (ROOT / "configs/custom_example.py").read_text()
    text = text.replace('["_base_/', '["gbseg::_base_/').replace(', "_base_/', ', "gbseg::_base_/')
    path.write_text(text.replace("max_iters = 2000", f"max_iters = {max_iters}").replace("data/my_dataset", str(root)))
    config = load_config(path, {"model.backbone.weights": None})
    assert [(scheduler.begin, scheduler.end) for scheduler in config.param_scheduler] == [(0, warmup), (warmup, max_iters)]
    findings = list(examine(config))
    assert not bad(findings)
    assert [f.text for f in findings if f.where == "optimizer"] == ["AdamW and 2 schedulers of its rate build."]
    # a warm-up of its own that is longer than the training
    path.write_text(path.read_text().replace("max(1, max_iters // 40)", "50"))
    problems = bad(examine(load_config(path, {"model.backbone.weights": None})))
    if max_iters > 50:
        assert not problems
    else:
        (finding,) = problems
        assert (finding.level, finding.where) == ("error", "optimizer")
        assert (
            f"mine.py: param_scheduler[1]: end should be larger than begin, but got begin=50, end={max_iters}" in finding.text
        )


@pytest.mark.parametrize(
    ("key", "value", "level", "text"),
    [
        ("optim_wrapper.optimizer.typ", 1, "error", "optim_wrapper.optimizer: SGD takes no typ; is type meant"),
        ("optim_wrapper.type", "Nothing", "error", "optim_wrapper: there is no optim_wrapper called Nothing"),
        ("optim_wrapper.constructor", "Nothing", "error", "no optimizer wrapper constructor called Nothing"),
        ("train_cfg.typ", 1, "error", "train_cfg: IterBasedTrainLoop takes no typ; is type meant"),
        ("param_scheduler.0.typ", 1, "error", r"param_scheduler\[0\]: PolyLR takes no typ; is type meant"),
        (
            "train_dataloader.sampler.type",
            "Nothing",
            "error",
            "train_dataloader.sampler: there is no data sampler called Nothing",
        ),
        ("custom_imports", 5, "error", "custom_imports is 5"),
        # for a machine with a GPU, looked at without one
        ("optim_wrapper.type", "AmpOptimWrapper", "ok", "SGD and 1 schedulers of its rate build"),
    ],
)
def test_optimizer_schedule_and_settings(key: str, value: Any, level: str, text: str, tmp_path: Path) -> None:
    config = foreign(tmp_path, GUARD)
    assert not [finding for finding in examine(config) if finding.level == "error" and "data" not in finding.where]
    findings = list(examine(load_config(config.filename, {key: value})))
    assert any(finding.level == level and re.search(text, finding.text) for finding in findings), findings


@pytest.mark.parametrize("key", ["model", "train_dataloader", "optim_wrapper", "default_hooks", "train_cfg", "val_evaluator"])
@pytest.mark.parametrize("value", [5, "text", [1], {"a": 1}, None])
def test_the_doctor_survives_any_value(key: str, value: Any, tmp_path: Path) -> None:
    """It says that something is wrong, and goes on to the end."""
    config = foreign(tmp_path, GUARD)
    config[key] = value
    findings = list(examine(config))
    # without hooks, a loop or a set to evaluate on a config may be as it is meant
    loader = key == "train_dataloader"
    assert any(finding.level == "error" and (loader or "data" not in finding.where) for finding in findings) or value is None
    assert all("\n" not in finding.text for finding in findings)


def test_data_that_prepare_will_make_are_not_missing(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs/demo_expgb.py", {"prepare.root": str(tmp_path / "none")})
    assert not bad(examine(config))


@pytest.mark.parametrize(("end", "level"), [(40, "ok"), (41, "warning")])
def test_a_schedule_longer_than_the_training(end: int, level: str) -> None:
    """With max_iters lowered alone the rate would hardly fall; a schedule that ends earlier is as it is meant."""
    schedule = [dict(type="LinearLR", begin=0, end=5, by_epoch=False), dict(type="PolyLR", begin=5, end=end, by_epoch=False)]
    (finding,) = check_schedule(Config(dict(param_scheduler=schedule, train_cfg=dict(max_iters=40))))
    assert finding.level == level and f"iteration {end}" in finding.text
    assert ("begin=5, end=40, " in finding.remedy) == (level == "warning")
    epochs = Config(dict(param_scheduler=dict(type="MultiStepLR", end=end), train_cfg=dict(max_epochs=40)))
    assert [finding.level for finding in check_schedule(epochs)] == [level]
    assert not list(check_schedule(Config(dict(param_scheduler=schedule[:0], train_cfg=None))))
