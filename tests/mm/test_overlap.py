"""Training on images that are evaluated on is said loudly, through the real path of training; else nothing is said."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("mmseg")
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from gbseg.data.scenes import write_scenes
from gbseg.mm.config import load_config
from gbseg.mm.hooks.train_test_overlap import find_overlap, image_paths
from gbseg.mm.training import train

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared/data"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_scenes(tmp_path_factory.mktemp("scenes") / "voc", train=6, val=4, size=(32, 32))
    lists = root / "ImageSets/Segmentation"
    (lists / "some_val.txt").write_text((lists / "train.txt").read_text() + "val_000001\nval_000003\n")
    return root


def tiny(scenes: Path, train_list: str, val_list: str, test_list: str | None = None) -> Config:
    config = load_config(ROOT / "configs/demo_expgb.py")
    for key in ("runs", "compare", "prepare"):
        config.pop(key)
    for split, name in (("train", train_list), ("val", val_list), ("test", test_list or val_list)):
        config[f"{split}_dataloader"].dataset.update(data_root=str(scenes), ann_file=f"ImageSets/Segmentation/{name}.txt")
    config.model.backbone.width = 0.05
    config.model.decode_head.update(in_channels=(3, 6, 13, 26, 26), hidden=(4, 4))
    config.model.decode_head.sampler.num = 10
    config.train_dataloader.batch_size = 2
    config.train_cfg.update(max_iters=1, val_interval=5, val_begin=9)
    config.param_scheduler = None
    config.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    return config


def test_the_counts_the_ids_and_what_it_means(scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tiny(scenes, "some_val", "val"), tmp_path)
    printed = capfd.readouterr()
    for text in (printed.out + printed.err, next(tmp_path.glob("*/*.log")).read_text()):
        assert "TRAINING AND EVALUATION OVERLAP: 2 of the 4 images of the val/test list are also among the 8" in text
        assert "(val_000001, val_000003)" in text
        assert "not a held-out score" in text
        assert text.count("!" * 100) == 2
    # a warning and no error: it has trained
    assert (tmp_path / "iter_1.pth").is_file()


@pytest.mark.parametrize(("val", "test"), [("val", "train"), ("train", "val")])
def test_both_lists_are_looked_at(val: str, test: str, scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tiny(scenes, "train", val, test), tmp_path)
    text = capfd.readouterr().out
    assert text.count("TRAINING AND EVALUATION OVERLAP") == 1
    assert f"6 of the 6 images of the {'val' if val == 'train' else 'test'} list" in text


def test_nothing_is_said_without_overlap_and_a_missing_test_set_does_not_hinder(
    scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tiny(scenes, "train", "val", "nothing"), tmp_path)
    assert "OVERLAP" not in capfd.readouterr().out
    assert (tmp_path / "iter_1.pth").is_file()


def test_wrapped_data_sets_and_links_and_names(scenes: Path, tmp_path: Path) -> None:
    init_default_scope("mmseg")
    settings = tiny(scenes, "train", "val")
    one, other = settings.train_dataloader.dataset, settings.val_dataloader.dataset
    both = DATASETS.build(dict(type="ConcatDataset", datasets=[one, dict(type="RepeatDataset", dataset=other, times=3)]))
    assert [path.stem for path in image_paths(both)] == [f"train_{n:06d}" for n in range(6)] + [
        f"val_{n:06d}" for n in range(4)
    ]
    # a linked folder is the same folder; equal names in folders of their own are different images
    (tmp_path / "linked").symlink_to(scenes)
    files = image_paths(DATASETS.build(other))
    linked = [tmp_path / "linked" / path.relative_to(scenes) for path in files]
    overlap = find_overlap(files, linked, "val")
    assert overlap is not None
    assert len(overlap.shared) == 4
    assert find_overlap([Path("a/0001.png")], [Path("b/0001.png")], "val") is None
    # except VOC's ids, which name one photograph wherever it lies
    assert find_overlap([Path("sbd/img/2008_000002.jpg")], [Path("voc/JPEGImages/2008_000002.jpg")], "val") is not None


def test_on_the_fields_lists() -> None:
    """The field's train_aug holds nothing of VOC val; with seven of its images, those are found."""
    splits = SHARED / "splits"
    if not splits.is_dir():
        pytest.skip("the field's lists are not beside this checkout (../shared/data/splits)")
    lists = {
        path.stem: [Path("JPEGImages", f"{name}.jpg") for name in path.read_text().split()] for path in splits.glob("*.txt")
    }
    assert find_overlap(lists["train_aug"], lists["val"], "val") is None
    overlap = find_overlap(lists["train_aug"] + lists["val"][:7], lists["val"], "val")
    assert overlap is not None
    assert (len(overlap.shared), overlap.trained, overlap.evaluated) == (7, 10_589, 1_449)
