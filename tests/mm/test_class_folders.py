"""Folders of classes against torchvision's ImageFolder, and what is wrong with them said."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from gbseg.mm.datasets.class_folders import ClassFolders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(("n03", "n01", "n02")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for k in range(number + 1):
            Image.new("RGB", (4, 4)).save(tmp_path / "train" / name / f"{name}_{k}.JPEG", format="JPEG")
    return tmp_path


def test_as_torchvision_reads_it(root: Path) -> None:
    """The classes are counted, not assumed; paths and labels are ImageFolder's."""
    (root / "train/n02/notes.txt").write_text("no image")
    ours, theirs = ClassFolders(data_root=str(root), data_prefix="train"), ImageFolder(root / "train")
    infos = [ours.get_data_info(k) for k in range(len(ours))]
    assert [(info["img_path"], info["gt_label"]) for info in infos] == theirs.samples
    assert list(ours.metainfo["classes"]) == theirs.classes == ["n01", "n02", "n03"]


def test_what_is_missing(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no \S+/val with one folder of images a class.*prepare_imagenet"):
        ClassFolders(data_root=str(root), data_prefix="val")
    (root / "val").mkdir()
    (root / "val/flat.JPEG").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"there is no \S+/val with one folder of images a class"):
        ClassFolders(data_root=str(root), data_prefix="val")
    (root / "train/n05").mkdir()
    (root / "train/n04").mkdir()
    with pytest.raises(ValueError, match=r"train: 2 of the 5 classes have no images \(n04, n05\)\. Remove"):
        ClassFolders(data_root=str(root), data_prefix="train")
    (root / "val/n01").mkdir()
    with pytest.raises(ValueError, match=r"val: Found 0 files"):
        ClassFolders(data_root=str(root), data_prefix="val")
    with pytest.raises(ValueError, match=r"number of subfolders \(5\) doesn't match the number of specified classes \(2\)"):
        ClassFolders(data_root=str(root), data_prefix="train", metainfo=dict(classes=["a", "b"]))


def test_held_out(root: Path) -> None:
    """The two parts are the whole, without overlap, and the same whatever is asked for first."""
    settings = dict(data_root=str(root), data_prefix="train", held_out=2)
    tune, held = ClassFolders(part="tune", **settings), ClassFolders(part="held_out", **settings)
    paths = [[one.get_data_info(k)["img_path"] for k in range(len(one))] for one in (tune, held)]
    assert len(paths[1]) == 2 and sorted(paths[0] + paths[1]) == [path for path, _ in ImageFolder(root / "train").samples]
    assert tune.metainfo["classes"] == held.metainfo["classes"] == ("n01", "n02", "n03")
    with pytest.raises(ValueError, match=r"part='tune' needs held_out in 1\.\.5, got 6"):
        ClassFolders(part="tune", **{**settings, "held_out": 6})
    with pytest.raises(ValueError, match="part is 'all', 'tune' or 'held_out', got 'val'"):
        ClassFolders(part="val", **settings)


def test_links_and_hidden_names(root: Path) -> None:
    """Links to classes and to sub-folders are as good as folders; names with a dot are no classes and no images."""
    train, elsewhere = root / "train", root / "elsewhere"
    (train / "n02").rename(elsewhere)
    (train / "n02").symlink_to("../elsewhere")
    (root / "more").mkdir()
    Image.new("RGB", (4, 4)).save(root / "more/site2.JPEG")
    (train / "n01/site2").symlink_to("../../more")
    for hidden in (".ipynb_checkpoints", "n01/.ipynb_checkpoints"):
        (train / hidden).mkdir()
        Image.new("RGB", (4, 4)).save(train / hidden / "n01_0-checkpoint.jpg")
    (train / "n01/._n01_0.JPEG").write_bytes(b"Mac OS X")
    (train / ".DS_Store").write_bytes(b"Bud1")
    dataset = ClassFolders(data_root=str(root), data_prefix="train")
    infos = [dataset.get_data_info(k) for k in range(len(dataset))]
    names = [(Path(info["img_path"]).relative_to(train).as_posix(), info["gt_label"]) for info in infos]
    assert names == [
        ("n01/n01_0.JPEG", 0), ("n01/n01_1.JPEG", 0), ("n01/site2/site2.JPEG", 0),
        ("n02/n02_0.JPEG", 1), ("n02/n02_1.JPEG", 1), ("n02/n02_2.JPEG", 1),
        ("n03/n03_0.JPEG", 2),
    ]  # fmt: skip
    assert dataset.metainfo["classes"] == ("n01", "n02", "n03")


def test_links_that_cannot_be_followed(root: Path) -> None:
    """MMPretrain goes around a circle 40 times, and forgets a class whose disk is not mounted."""
    (root / "train/n01/round").symlink_to("..")
    with pytest.raises(ValueError, match=r"train/n01/round is a link to \S+/train, which holds the link itself"):
        ClassFolders(data_root=str(root), data_prefix="train")
    (root / "train/n01/round").unlink()
    (root / "train/n04").symlink_to("/not/mounted")
    with pytest.raises(ValueError, match="train/n04 is a link to /not/mounted, which does not exist"):
        ClassFolders(data_root=str(root), data_prefix="train")
