"""tools/test.py --submit: VOC's test list, which has no labels, predicted and packed."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image
from tiny_segmentors import write_segmentor

from gbseg.cli import main
from gbseg.data.masks import write_mask
from gbseg.data.scenes import write_scenes
from gbseg.mm.config import load_config, without_annotations
from gbseg.prediction.segmenter import Segmenter
from gbseg.prediction.submission import Submission, prepare_submission
from gbseg.prediction.testing import test as evaluate


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As VOC's test archive lies: a list and images, and labels of other images only."""
    root = write_scenes(tmp_path_factory.mktemp("scenes") / "voc", train=1, val=3, size=(40, 56))
    lists = root / "ImageSets/Segmentation"
    names = (lists / "val.txt").read_text().split()
    (lists / "val.txt").rename(lists / "test.txt")
    for name in names:
        (root / f"SegmentationClass/{name}.png").unlink()
    return root


@pytest.mark.parametrize("way", ["plain", "tta pipeline", "own list"])
def test_archive_of_the_test_list(way: str, voc: Path, tmp_path: Path) -> None:
    extra = ""
    if way == "tta pipeline":
        extra = """tta_model = dict(_delete_=True, type='SegTTAModel')
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[
    [dict(type='Resize', scale_factor=1.0, keep_ratio=True)], [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])]"""
    change = ("Segmentation/val.txt", "Segmentation/mine.txt") if way == "own list" else ("", "")
    config, checkpoint = write_segmentor(tmp_path, data=voc, extra=extra, change=change)
    names = (voc / "ImageSets/Segmentation/test.txt").read_text().split()
    if way == "own list":
        # a config whose own test set has no labels keeps its list
        text = config.read_text().replace("dict(type='LoadAnnotations', imdecode_backend='pillow'), ", "")
        config.write_text(text)
        names = names[:2]
        (voc / "ImageSets/Segmentation/mine.txt").write_text("\n".join(names))
    archive, work = tmp_path / "results.tgz", tmp_path / "work"
    # what an earlier run left does not count
    (work / "submission").mkdir(parents=True)
    (work / "submission/old.png").touch()
    assert evaluate(load_config(config), checkpoint, work_dir=work, submit=archive, tta=way == "tta pipeline") == {}
    segmenter = Segmenter(config, checkpoint, "cpu")
    with tarfile.open(archive) as tar:
        assert [Path(name).stem for name in tar.getnames()] == sorted(names)
        for member in tar:
            with Image.open(io.BytesIO(tar.extractfile(member).read())) as png:
                labels = np.asarray(png)
            np.testing.assert_array_equal(labels, segmenter(voc / f"JPEGImages/{Path(member.name).stem}.jpg").labels)
    assert not (work / "submission").exists()


def test_an_incomplete_prediction_is_not_packed(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, checkpoint = write_segmentor(tmp_path, data=voc, change=("ann_file=", "indices=2, ann_file="))
    # which an earlier checkpoint has predicted, is not packed with the predictions of this one
    for name in (voc / "ImageSets/Segmentation/test.txt").read_text().split():
        write_mask(tmp_path / f"out/{name}.png", np.zeros((40, 56), np.uint8))
    arguments = [str(config), str(checkpoint), "--work-dir", str(tmp_path / "work"), "--submit", str(tmp_path / "r.tgz")]
    assert main([*arguments, "--out", str(tmp_path / "out")], command="test") == 1
    missing = (voc / "ImageSets/Segmentation/test.txt").read_text().split()[2]
    assert (
        f"no archive was written: 1 problem(s) with the predictions in {tmp_path}/out:\n  {missing}  is missing"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "r.tgz").exists()
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_sizes_are_those_of_upright_images(tmp_path: Path) -> None:
    """As the loader turns them: an image taken upright is stored lying, with a note of that."""
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x112] = orientation
        Image.new("RGB", (30, 20)).save(tmp_path / f"{orientation}.jpg", exif=exif)
        loaded = LoadImageFromFile()({"img_path": str(tmp_path / f"{orientation}.jpg")})["img"]
        write_mask(tmp_path / f"out/{orientation}.png", np.zeros(loaded.shape[:2], np.uint8))
    ids = tuple(map(str, range(1, 9)))
    submission = Submission(tmp_path / "r.tgz", tmp_path / "out", ids, tuple(tmp_path / f"{i}.jpg" for i in ids), False)
    submission.pack()
    with tarfile.open(tmp_path / "r.tgz") as tar:
        assert len(tar.getnames()) == 8


def test_what_is_wrong_is_said_before_anything_is_predicted(voc: Path, tmp_path: Path) -> None:
    file, _ = write_segmentor(tmp_path, data=voc)

    def prepare(archive: str = "r.tgz", ids: str | None = None, out: Path | None = None, **options: object) -> None:
        prepare_submission(load_config(file, options), tmp_path / archive, ids, out, tmp_path)

    with pytest.raises(ValueError, match=r"give it a name like results\.tgz, not r\.zip"):
        prepare("r.zip")
    with pytest.raises(FileNotFoundError, match=r"there is no list .*/none\.txt\. VOC's test images and their list come from"):
        prepare(ids="none.txt")
    with pytest.raises(FileNotFoundError, match=r"there is no list .*nowhere/ImageSets/Segmentation/test\.txt\. VOC's test"):
        prepare(**{"test_dataloader.dataset.data_root": str(tmp_path / "nowhere")})
    (voc / "strange.txt").write_text("a\n../b\n")
    (voc / "empty.txt").write_text("\n")
    (voc / "twice.txt").write_text("a\na\n")
    faults = {"strange.txt": r"line 2 is no id but a path: '\.\./b'", "empty.txt": "has no ids", "twice.txt": "names a again"}
    for name, message in faults.items():
        with pytest.raises(ValueError, match=message):
            prepare(ids=name)
    shutil.copy(voc / "ImageSets/Segmentation/test.txt", voc / "more.txt")
    with (voc / "more.txt").open("a") as more:
        more.write("\n2099_000001\n")
    with pytest.raises(FileNotFoundError, match=r"1 of the 4 images of more\.txt are missing, first .*2099_000001\.jpg"):
        prepare(ids="more.txt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/keep.me").touch()
    with pytest.raises(ValueError, match=r"out holds 1 file\(s\) that are not of .*test\.txt, first keep\.me: name an empty"):
        prepare(out=tmp_path / "out")
    two = {"test_dataloader.dataset.metainfo": dict(classes=["a", "b"], palette=[[0, 0, 0], [1, 1, 1]])}
    with pytest.raises(ValueError, match="VOC's 21 classes; the config's test set has a, b"):
        prepare(**two)


def test_pipelines_without_annotations() -> None:
    load, pack, labels = (dict(type=name) for name in ("LoadImageFromFile", "PackSegInputs", "LoadAnnotations"))
    nested = [load, dict(type="TestTimeAug", transforms=[[dict(type="Resize"), dict(type="Pad")], [labels], [pack]])]
    assert without_annotations([load, labels, pack]) == [load, pack]
    assert without_annotations(nested)[1]["transforms"] == [[dict(type="Resize"), dict(type="Pad")], [pack]]
    assert len(nested[1]["transforms"]) == 3
