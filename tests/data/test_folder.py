"""Folders of images and masks: what belongs together, what is refused, and the example config that trains on them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg")
from mmengine.registry import DATASETS, init_default_scope

import gbseg.mm.datasets.segmentation
from gbseg.cli import main
from gbseg.palettes import default_palette

ROOT = Path(__file__).parents[2]
CLASSES = dict(classes=("sky", "road"))
PIPELINE = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", imdecode_backend="pillow"), dict(type="PackSegInputs")]


def fill(root: Path, *names: str, masks: str = "masks/{}.png") -> None:
    """One image a name, and a mask whose labels tell which."""
    for number, name in enumerate(names):
        image, mask = root / "images" / name, root / masks.format(str(Path(name).with_suffix("")))
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (200, 10 * number, 0)).save(image)
        Image.fromarray(np.full((4, 6), number, np.uint8)).save(mask)


def build(root: Path, **options: Any) -> gbseg.mm.datasets.segmentation.FolderSegmentation:
    init_default_scope("mmseg")
    return DATASETS.build(
        dict(type="FolderSegmentation", data_root=str(root), **{"metainfo": CLASSES, "pipeline": PIPELINE, **options})
    )


@pytest.mark.parametrize("masks", ["masks/{}.png", "masks/{}_label.png", "images/{}_label.png"])
def test_every_image_gets_the_mask_of_its_name(masks: str, tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.PNG", "deep/er/c.tif", "d.v2.jpeg", masks=masks)
    (tmp_path / "images/notes.txt").touch()
    folders = dict(img_path="images", seg_map_path=masks.split("/")[0])
    metainfo = {"classes": ("sky", "road", "tree", "car")}
    dataset = build(tmp_path, data_prefix=folders, seg_map_suffix=masks.partition("{}")[2], metainfo=metainfo)
    samples = [sample["data_samples"] for sample in dataset]
    assert [Path(s.img_path).name for s in samples] == ["a.jpg", "b.PNG", "d.v2.jpeg", "c.tif"]
    assert [int(s.gt_sem_seg.data.unique()) for s in samples] == [0, 1, 3, 2]
    assert dataset.metainfo["classes"] == metainfo["classes"]
    assert dataset.metainfo["palette"] == default_palette(dataset.metainfo["classes"])


def test_a_list_chooses_and_orders(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.png", "sub/c.jpg")
    (tmp_path / "val.txt").write_text("sub/c.jpg\n\na\n")
    dataset = build(tmp_path, ann_file="val.txt", metainfo={**CLASSES, "palette": [[1, 2, 3], [4, 5, 6]]})
    assert [Path(dataset.get_data_info(i)["img_path"]).name for i in range(len(dataset))] == ["c.jpg", "a.jpg"]
    assert dataset.metainfo["palette"] == [[1, 2, 3], [4, 5, 6]]


def test_images_alone(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    (sample,) = build(tmp_path, data_prefix=dict(img_path="images"), pipeline=[PIPELINE[0], PIPELINE[2]])
    assert "gt_sem_seg" not in sample["data_samples"]


def _unlist(root: Path) -> None:
    (root / "list.txt").write_text("a\nz\n")


@pytest.mark.parametrize(
    ("damage", "options", "error", "message"),
    [
        (
            lambda r: (r / "masks/b.png").unlink(),
            {},
            FileNotFoundError,
            "1 of 2 listed files are missing, first {}/masks/b.png",
        ),
        (lambda r: (r / "masks").rename(r / "labels"), {}, FileNotFoundError, "there is no folder {}/masks for masks"),
        (lambda r: (r / "images").rename(r / "img"), {}, FileNotFoundError, "there is no folder {}/images for images"),
        (lambda r: None, {"img_suffix": ".bmp"}, FileNotFoundError, "{}/images names no image (suffixes looked for: .bmp)"),
        (lambda r: fill(r, "a.png"), {}, ValueError, "{}/images/a.jpg and {}/images/a.png have one name"),
        (
            _unlist,
            {"ann_file": "list.txt"},
            FileNotFoundError,
            "1 of the 2 names in {}/list.txt have no image in {}/images, first z",
        ),
        (lambda r: None, {"ann_file": "no.txt"}, FileNotFoundError, "there is no list {}/no.txt"),
        (lambda r: None, {"metainfo": {}}, ValueError, "names every class, got None"),
        (lambda r: None, {"metainfo": {"classes": "sky"}}, ValueError, "names every class, got 'sky'"),
    ],
)
def test_what_is_wrong_is_named(damage: Callable, options: dict, error: type[Exception], message: str, tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.jpg")
    damage(tmp_path)
    with pytest.raises(error, match=re.escape(message.replace("{}", str(tmp_path)))):
        build(tmp_path, **options)


def test_the_page_of_the_docs_trains_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The script of docs/your_own_data.md makes the folder that configs/custom_example.py expects, and it trains on it."""
    page = (ROOT / "docs/your_own_data.md").read_text(encoding="utf-8")
    script = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    script = script.replace('("train", 60), ("val", 20)', '("train", 6), ("val", 2)')
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    options = {
        "model.backbone.weights": None,
        "model.backbone.width": 0.05,
        "model.backbone.frozen_stages": 0,
        "model.decode_head.in_channels": "(3,6,13,26,26)",
        "model.decode_head.hidden": "(8,8)",
        "model.decode_head.sampler.num": 40,
        "model.test_cfg.input": "(32,32)",
        "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False,
        "val_dataloader.num_workers": 0,
        "val_dataloader.persistent_workers": False,
        "train_cfg.max_iters": 3,
        "default_hooks.checkpoint.interval": 3,
        "default_hooks.logger.interval": 1,
    }
    monkeypatch.chdir(tmp_path)
    arguments = [
        str(ROOT / "configs/custom_example.py"),
        "--cfg-options",
        *(f"{key}={value}" for key, value in options.items()),
    ]
    assert main(arguments, command="train") == 0
    output = capfd.readouterr().out
    for name in ("background", "disc", "square"):
        assert f"IoU/{name}" in output
    assert "OVERLAP" not in output
    state = torch.load(tmp_path / "work_dirs/custom_example/iter_3.pth", weights_only=False)["state_dict"]
    assert len(state["decode_head.linears.2.bias"]) == 3
