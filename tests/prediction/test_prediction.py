"""tools/predict.py: which images are meant, what is written, and what is never overwritten."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_segmentors import write_segmentor

from gbseg.cli import main
from gbseg.palettes import VOC_CLASSES
from gbseg.prediction.image_files import Job, find_images, plan_outputs
from gbseg.prediction.segmenter import Segmenter

RNG = np.random.default_rng(0)


def _write(path: Path, shape: tuple[int, ...] = (20, 30, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(cv2.resize(RNG.integers(0, 256, (5, 6, *shape[2:]), dtype=np.uint8), shape[1::-1])).save(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return list(map(str, write_segmentor(tmp_path_factory.mktemp("model"))))


def test_files_folders_and_globs(tmp_path: Path) -> None:
    a, b, c = (_write(tmp_path / name) for name in ("in/b.JPG", "in/a.png", "in/sub/c.png"))
    (tmp_path / "in/notes.txt").write_text("no image")
    strange = _write(tmp_path / "in/sub/[1].png")
    folder = str(tmp_path / "in")
    assert find_images([folder]) == [b, a]
    assert find_images([f"{folder}/*.png", str(a), f"{folder}/../in/b.JPG"]) == [b, a]
    assert find_images([f"{folder}/**/*.png"]) == [b, *sorted([c, strange])]
    assert find_images([str(strange)]) == [strange]
    # whoever names a file means it
    assert find_images([f"{folder}/notes.txt"]) == [tmp_path / "in/notes.txt"]
    assert sorted(find_images([f"{folder}/**"])) == sorted([a, b, c, strange, tmp_path / "in/notes.txt"])
    with pytest.raises(FileNotFoundError, match=r"none\*\.jpg is no file, no folder, and matches nothing"):
        find_images([folder, f"{folder}/none*.jpg"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"the folder .*empty holds no image \(\.bmp, "):
        find_images([str(tmp_path / "empty")])


def test_a_folder_called_like_an_image(model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It and a dead link are said and make the exit status 1, the others are predicted; names with a dot are skipped."""
    good = _write(tmp_path / "in/a.jpg", (30, 30, 3))
    (tmp_path / "in/x.jpg").mkdir()
    (tmp_path / "in/lost.png").symlink_to("/not/mounted.png")
    (tmp_path / "in/me.png").symlink_to("me.png")
    (tmp_path / "in/._a.jpg").write_bytes(b"Mac OS X")
    named = [good, *(tmp_path / "in" / name for name in ("lost.png", "me.png", "x.jpg"))]
    assert find_images([str(tmp_path / "in")]) == find_images([f"{tmp_path}/in/*"]) == named
    assert main(["predict", *model, str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    said = capsys.readouterr()
    assert "1 of 4 predictions" in said.out and "3 of 4 images failed" in said.err
    assert "in/x.jpg cannot be read as an image: [Errno 21] Is a directory" in said.err
    assert "in/lost.png is missing" in said.err


def test_where_predictions_go(tmp_path: Path) -> None:
    images = [_write(tmp_path / name) for name in ("in/a.png", "in/b.c.jpg")]
    out = tmp_path / "out"
    assert plan_outputs(images, out) == [Job(images[0], out / "a.png"), Job(images[1], out / "b.c.png")]
    everything = plan_outputs(images, out, overlay=True, probabilities=True)[0].outputs
    assert everything == [out / "a.png", out / "overlay/a.png", out / "probabilities/a.npz"]
    with pytest.raises(ValueError, match=r"in/a\.png is one of the images, and its prediction would overwrite it"):
        plan_outputs(images, tmp_path / "in", overwrite=True)
    # by another name of the folder as well
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(ValueError, match="would overwrite it"):
        plan_outputs(images, tmp_path / "link", overwrite=True)
    for other in ("in/a.jpg", "elsewhere/A.png"):
        _write(tmp_path / other)
        with pytest.raises(ValueError, match=r"a\.png and .*[aA]\.(jpg|png) would both be written as"):
            plan_outputs([*images, tmp_path / other], out)
    _write(out / "overlay/b.c.png")
    assert plan_outputs(images, out)
    with pytest.raises(FileExistsError, match=r"overlay/b\.c\.png exist\(s\): --overwrite replaces them"):
        plan_outputs(images, out, overlay=True)
    assert plan_outputs(images, out, overlay=True, overwrite=True)


def test_the_command(model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Good, grey and damaged files in one folder: everything that can be predicted is, and the exit status says the rest."""
    good, grey = _write(tmp_path / "in/good.png"), _write(tmp_path / "in/grey.png", (9, 7))
    (tmp_path / "in/bad [x].jpg").write_bytes(b"no image")
    cut = _write(tmp_path / "in/cut.png")
    cut.write_bytes(cut.read_bytes()[:-40])
    out = tmp_path / "out"
    options = ["--out", str(out), "--device", "cpu"]
    assert main([*model, str(tmp_path / "in"), *options, "--overlay", "--probabilities"], command="predict") == 1
    captured = capsys.readouterr()
    assert f"2 of 4 predictions are in {out}" in captured.out
    assert "2 of 4 images failed:" in captured.err
    for name in ("bad [x].jpg", "cut.png"):
        # when it comes, and in the summary
        assert captured.err.count(f"{name} cannot be read as an image") == 2
    segmenter = Segmenter(*model, "cpu")
    for image in (good, grey):
        expected = segmenter(image)
        with Image.open(out / f"{image.stem}.png") as png:
            assert png.mode == "P"
            np.testing.assert_array_equal(np.asarray(png), expected.labels)
        with Image.open(out / f"overlay/{image.stem}.png") as png:
            # the legend is below
            height, width = expected.labels.shape
            np.testing.assert_array_equal(np.asarray(png)[:height, :width], expected.overlay())
            assert png.height > height
        with np.load(out / f"probabilities/{image.stem}.npz") as stored:
            np.testing.assert_array_equal(stored["probabilities"], expected.probabilities)
            assert tuple(stored["classes"]) == VOC_CLASSES
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == [
        "good.npz",
        "good.png",
        "good.png",
        "grey.npz",
        "grey.png",
        "grey.png",
    ]
    before = (out / "good.png").read_bytes()
    assert main([*model, str(good), *options], command="predict") == 1
    assert "exist(s): --overwrite" in capsys.readouterr().err
    assert main([*model, str(good), *options, "--overwrite", "--tta"], command="predict") == 0
    assert (out / "good.png").read_bytes() != before
    assert main([*model, str(tmp_path / "nothing*"), *options], command="predict") == 1
    assert "matches nothing" in capsys.readouterr().err
