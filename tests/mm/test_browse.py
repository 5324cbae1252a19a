"""Contact sheets show, pixel for pixel, what the first iterations of a training get."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from PIL import Image, ImageDraw

from gbseg.data.scenes import write_scenes
from gbseg.mm.config import load_config
from gbseg.mm.resumable_sampler import SeededDataset
from gbseg.mm.sample_browser import browse, iter_samples
from gbseg.palettes import VOC_PALETTE
from gbseg.report.sheet import Cell, contact_sheet

ROOT = Path(__file__).parents[2]
SIZE = (48, 64)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "voc", train=8, val=2, size=SIZE)


def demo(scenes: Path) -> Config:
    config = load_config(ROOT / "configs/demo_expgb.py")
    config.prepare = None
    for split in ("train", "val", "test"):
        config[f"{split}_dataloader"].dataset.data_root = str(scenes)
    config.train_dataloader.batch_size = 3
    return config


def first_batches(config: Config, count: int) -> list[dict]:
    """The batches of a training by `ResumableIterLoop`: mmengine's own loader, over the data set that the loop wraps."""
    init_default_scope("mmseg")
    loader = {**config.train_dataloader, "dataset": dict(type=SeededDataset, dataset=config.train_dataloader.dataset)}
    batches = iter(Runner.build_dataloader(loader, seed=config.randomness.seed))
    return [next(batches) for _ in range(count)]


def cut(sheet: np.ndarray, place: tuple[int, int], size: tuple[int, int], scale: int, panel: int = 0) -> np.ndarray:
    """A panel of a sheet at one pixel a pixel; every enlarged pixel must be of one colour."""
    left, top = place[0] + panel * (size[1] * scale + 6), place[1]
    shown = sheet[top : top + size[0] * scale, left : left + size[1] * scale]
    blocks = shown.reshape(size[0], scale, size[1], scale, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    return blocks[:, 0, :, 0]


@pytest.mark.parametrize("foreign", [False, True], ids=["pixelnet", "normalised-padded-rgb"])
def test_the_sheet_shows_what_training_gets(
    foreign: bool, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, size = demo(scenes), SIZE
    if foreign:
        # what mmseg's configs do: RGB, normalised, padded below and on the right
        size = (64, 96)
        config.model.data_preprocessor = dict(
            type="SegDataPreProcessor",
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
            size=size,
            pad_val=0,
            seg_pad_val=255,
        )
    places = []
    monkeypatch.setattr("gbseg.mm.sample_browser.contact_sheet", lambda *a: places.extend(contact_sheet(*a)))
    (path,) = browse(config, tmp_path, number=6, scale=2)
    sheet = np.asarray(Image.open(path))
    assert len(places) == 6
    inputs = [image.numpy() for batch in first_batches(config, 2) for image in batch["inputs"]]
    labels = [s.gt_sem_seg.data[0].numpy() for batch in first_batches(config, 2) for s in batch["data_samples"]]
    colours = np.array(VOC_PALETTE, np.uint8)
    for number, (place, image, label) in enumerate(zip(places, inputs, labels, strict=True)):
        shown = cut(sheet, place, size, 2)
        np.testing.assert_array_equal(shown[: SIZE[0], : SIZE[1]], image.transpose(1, 2, 0)[..., ::-1], f"image {number}")
        padded = np.full(size, 255, np.uint8)
        padded[: SIZE[0], : SIZE[1]] = label
        if foreign:
            # zero behind the normalisation is the mean colour
            assert (shown[SIZE[0] :] == (124, 116, 104)).all()
        blended = cut(sheet, place, size, 2, 1).astype(float)
        colour = np.where((padded == 255)[..., None], 255, colours[padded])
        np.testing.assert_allclose(blended, 0.4 * shown + 0.6 * colour, atol=0.5001)


def test_the_marked_pixels_are_those_that_the_heads_sampler_draws(scenes: Path, tmp_path: Path) -> None:
    config = demo(scenes)
    config.model.decode_head.sampler = dict(type="BalancedPixelSampler", num=90)
    cells = [cell for cell, _ in zip(iter_samples(config, seed=5), range(6), strict=False)]
    places = contact_sheet(cells, tmp_path / "sheet.png", VOC_PALETTE[:21], [str(i) for i in range(21)], scale=1)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    head = MODELS.build(config.model).decode_head
    config.randomness.seed = 5
    for number, batch in enumerate(first_batches(config, 2)):
        labels = torch.stack([s.gt_sem_seg.data[0] for s in batch["data_samples"]])
        torch.manual_seed(5 + number)
        points, _ = head.sampler(labels, 21, 255)
        for one in range(3):
            marked = cut(sheet, places[3 * number + one], SIZE, 1, 2)
            where = np.zeros(SIZE, bool)
            where[tuple(points[one].T.numpy())] = True
            assert where.sum() == 90
            np.testing.assert_array_equal(marked[where], np.array(VOC_PALETTE)[labels[one].numpy()[where]])
            # the rest is pale grey, which no class is
            assert (marked[~where] >= 190).all()
            assert (marked[~where].max(-1) == marked[~where].min(-1)).all()


def test_one_image_many_times_varies_by_augmentation_alone(scenes: Path) -> None:
    config = demo(scenes)
    cells = [cell for cell, _ in zip(iter_samples(config, image="train_000005", seed=1), range(8), strict=False)]
    assert {cell.caption[0] for cell in cells} == {"train_000005.jpg"}
    assert len({cell.image.tobytes() for cell in cells}) == 8
    flipped = ["flipped" in cell.caption[1] for cell in cells]
    assert 0 < sum(flipped) < 8
    truth = np.asarray(Image.open(scenes / "SegmentationClass/train_000005.png"))
    for cell, turned in zip(cells, flipped, strict=True):
        np.testing.assert_array_equal(cell.label, truth[:, ::-1] if turned else truth)


def test_validation_images_come_unchanged_and_all_pixels_count(scenes: Path, tmp_path: Path) -> None:
    config = demo(scenes)
    config.model.test_cfg.input = (32, 40)
    cells = list(iter_samples(config, "val"))
    assert [cell.caption[0] for cell in cells] == ["val_000000.jpg", "val_000001.jpg"]
    assert cells[0].points is None
    assert cells[0].caption[1] == "48 x 64 > 32 x 40"
    # OpenCV's and Pillow's decoders of JPEG may differ by a level or two
    truth = np.asarray(Image.open(scenes / "JPEGImages/val_000000.jpg")).astype(int)
    assert np.abs(cells[0].image[..., ::-1].astype(int) - truth).max() <= 3
    # more samples than there are: the list ends; pages of one
    pages = browse(config, tmp_path, "val", number=5, per_page=1)
    assert [page.name for page in pages] == ["val_01.png", "val_02.png"]


def test_browse_replaces_and_removes_its_own_sheets_alone(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {name: name.encode() for name in ("train_my_figure.png", "train_000000.png", "val_02.png", "notes.json")}
    for name, content in own.items():
        (tmp_path / name).write_bytes(content)

    def listed() -> list[str]:
        assert {name: (tmp_path / name).read_bytes() for name in own} == own
        names = sorted(p.name for p in tmp_path.iterdir() if p.name not in own)
        assert json.loads((tmp_path / "sheets.json").read_text()) == [name for name in names if name != "sheets.json"]
        return names

    browse(demo(scenes), tmp_path, number=3, per_page=1)
    browse(demo(scenes), tmp_path, "val", number=1)
    assert listed() == ["sheets.json", "train_01.png", "train_02.png", "train_03.png", "val_01.png"]
    before = (tmp_path / "train_01.png").read_bytes()
    # nothing goes before what replaces it is there
    with monkeypatch.context() as broken:
        broken.setattr("gbseg.mm.sample_browser.contact_sheet", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            browse(demo(scenes), tmp_path, number=1, seed=7)
    assert listed() == ["sheets.json", "train_01.png", "train_02.png", "train_03.png", "val_01.png"]
    browse(demo(scenes), tmp_path, number=1, seed=7)
    assert listed() == ["sheets.json", "train_01.png", "val_01.png"]
    assert (tmp_path / "train_01.png").read_bytes() != before
    with pytest.raises(ValueError, match=r"val_02\.png is not a sheet of an earlier gbseg browse: name another --out"):
        browse(demo(scenes), tmp_path, "val", number=2, per_page=1)
    assert listed() == ["sheets.json", "train_01.png", "val_01.png"]


@pytest.mark.parametrize("content", ['{"train": 1}', '["train_01.png", "../mine.png"]', "[1]", "no json", "\udcff"])
def test_a_list_of_sheets_of_anybody_elses_is_left_alone(content: str, scenes: Path, tmp_path: Path) -> None:
    index, mine = tmp_path / "out/sheets.json", tmp_path / "mine.png"
    index.parent.mkdir()
    mine.touch()
    index.write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"sheets\.json is not the list of sheets .*: name another --out"):
        browse(demo(scenes), index.parent, number=1)
    assert index.read_text(errors="surrogateescape") == content
    assert mine.exists()
    assert [p.name for p in index.parent.iterdir()] == ["sheets.json"]


def test_labels_that_are_no_class_and_unlabelled_images_are_shown(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    label = np.full((8, 8), 3, np.uint8)
    places = contact_sheet(
        [Cell(image, label), Cell(image)], tmp_path / "sheet.png", [(0, 0, 0), (255, 0, 0)], ["a", "b"], scale=4
    )
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert (cut(sheet, places[0], (8, 8), 4, 1) == np.rint(0.6 * np.array([255, 0, 255]))).all()
    assert (cut(sheet, places[1], (8, 8), 4, 1) == 255).all()


def test_a_label_255_that_is_not_the_ignored_one_is_called_so(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = demo(scenes)
    config.model.decode_head.ignore_index = 0
    config.model.decode_head.sampler = None
    texts: list[str] = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *a: texts.append(a[2]) or draw(*a))
    browse(config, tmp_path, "val")
    truth = [np.asarray(Image.open(path)) for path in sorted((scenes / "SegmentationClass").glob("val_*.png"))]
    assert any((mask == 255).any() for mask in truth)
    assert [text for text in texts if "no class" in text] == ["254, 255 or no byte: no class"]
    assert "ignored" in texts


def test_a_model_without_a_head_and_a_config_without_a_model_are_shown(scenes: Path) -> None:
    config = demo(scenes)
    config.model.decode_head = None
    assert next(iter_samples(config)).points is None
    config.pop("model")
    image = next(iter_samples(config, "val")).image
    assert image.shape == (*SIZE, 3)


def test_what_does_not_exist_is_said(scenes: Path, tmp_path: Path) -> None:
    config = demo(scenes)
    with pytest.raises(ValueError, match="no image 'cat': the list has 8, from train_000000"):
        browse(config, tmp_path, image="cat")
    with pytest.raises(ValueError, match="at least 1, not 0"):
        browse(config, tmp_path, number=0)
    config.test_dataloader = None
    with pytest.raises(ValueError, match=r"demo_expgb\.py has no test_dataloader"):
        browse(config, tmp_path, "test")
    with pytest.raises(ValueError, match="at least one sample"):
        contact_sheet([], tmp_path / "x.png", [], [])
    assert not list(tmp_path.iterdir())
