"""Verification: every kind of damage, put into a sound data set one by one, is found, named and nothing else is."""

from __future__ import annotations

import argparse
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gbseg.cli.data_checks import add_checks, check
from gbseg.data.layout import read_list
from gbseg.data.masks import write_mask
from gbseg.data.prepare.verify import Problem, verify_dataset
from gbseg.palettes import VOC_CLASSES

IDS = ["2007_000001", "2007_000002", "2008_000003", "2008_000004"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound data set: two images of VOC, two of SBD, one of the test set."""
    root, random = tmp_path / "VOC[2012]", np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for key in [*IDS, "2012_000009"]:
        size = (int(random.integers(40, 60)), int(random.integers(60, 80)))
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(root / "JPEGImages" / f"{key}.jpg")
        if key in IDS:
            values = random.choice([*range(21), 255], size).astype(np.uint8)
            write_mask(root / "SegmentationClassAug" / f"{key}.png", values)
            if key.startswith("2007"):
                # VOC's own are indexed, one may be grey
                Image.fromarray(values).save(root / "SegmentationClass" / f"{key}.png")
    lists = {"train": IDS[:1], "val": IDS[1:2], "train_aug": [IDS[0], *IDS[2:]], "test": ["2012_000009"]}
    for name, ids in lists.items():
        (root / "ImageSets/Segmentation" / f"{name}.txt").write_text("".join(f"{key}\n" for key in ids))
    return root


@pytest.mark.parametrize("processes", [1, 2])
def test_sound(root: Path, processes: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is found where nothing is wrong, and the counts say what was looked at."""
    verification = verify_dataset(root, processes=processes)
    assert not verification.problems and verification.report() == 0
    assert (verification.images, verification.masks, verification.unlabelled) == (5, 6, ("test",))
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "5 images, 6 masks" in out
    assert "test (1 ids, no masks), train (1 ids), train_aug (3 ids), val (1 ids)" in out


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def _turn(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)


def _paint(value: int) -> Callable[[Path], None]:
    def paint(path: Path) -> None:
        with Image.open(path) as image:
            values = np.array(image)
        values[3, 4:7] = value
        Image.fromarray(values).save(path)

    return paint


def _widen(more: int) -> Callable[[Path], None]:
    def widen(path: Path) -> None:
        with Image.open(path) as image:
            values = np.array(image).astype(np.uint16)
        values[3, 4] += more
        Image.fromarray(values).save(path)

    return widen


def _colours(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("RGB").save(path)


def _resize(path: Path) -> None:
    with Image.open(path) as image:
        image.transpose(Image.Transpose.TRANSPOSE).save(path)


def _append(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(path.read_text() + text)


JPG, CLASS, AUG, TRAIN = "JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation/train_aug.txt"


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        (f"{JPG}/{IDS[2]}.jpg", _cut, "cannot be decoded: image file is truncated"),
        (f"{JPG}/{IDS[2]}.jpg", lambda path: path.write_bytes(b""), "cannot be decoded"),
        (f"{JPG}/{IDS[2]}.jpg", lambda path: path.write_text("<html>404</html>"), "cannot be decoded"),
        (f"{JPG}/{IDS[2]}.jpg", _turn, "is stored turned (EXIF orientation 6)"),
        (f"{JPG}/2012_000009.jpg", Path.unlink, "is missing, but test names it"),
        (f"{AUG}/{IDS[2]}.png", Path.unlink, "is missing, but train_aug names it"),
        (f"{AUG}/{IDS[0]}.png", Path.unlink, "is missing, but train, train_aug name it"),
        (f"{CLASS}/{IDS[0]}.png", Path.unlink, "is missing, but train names it"),
        (f"{AUG}/{IDS[2]}.png", _cut, "cannot be decoded"),
        (f"{AUG}/{IDS[2]}.png", _colours, "has mode RGB"),
        (f"{AUG}/{IDS[2]}.png", _widen(256), ", which do not fit into the 8 bits of a label"),
        (f"{AUG}/{IDS[2]}.png", _resize, "pixels, its image"),
        (f"{AUG}/{IDS[2]}.png", _paint(21), "3 pixels with values that are no class: 21"),
        (f"{CLASS}/{IDS[0]}.png", _paint(254), "3 pixels with values that are no class: 254"),
        (TRAIN, _append(f"{IDS[3]}\n"), f"line 4 names {IDS[3]} again, as line 3 does"),
        (TRAIN, _append(f"\n{IDS[1]}\n"), "line 4 is blank"),
        (TRAIN, _append(f"{IDS[1]} 1\n"), "line 4 has several columns"),
        (TRAIN, _append(f"{IDS[1]}.jpg\n"), "line 4 has a suffix"),
        (TRAIN, _append(f"../{JPG}/{IDS[1]}\n"), "line 4 is no id but a path"),
        (TRAIN, _append("./x\n"), "line 4 is no id but a path"),
        (TRAIN, lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()), "line 1 begins with a byte order mark"),
        (TRAIN, lambda path: path.write_text(""), "is empty"),
        (TRAIN, lambda path: path.write_bytes(b"\xff\xfe\x00"), "is no text"),
    ],
)
def test_damage(root: Path, file: str, damage: Callable[[Path], None], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One damage, one line of the table: its file, what is wrong, a remedy; and the exit status is 1."""
    damage(root / file)
    verification = verify_dataset(root, processes=1)
    assert [problem.file for problem in verification.problems] == [file]
    assert words in verification.problems[0].what and verification.problems[0].remedy
    assert verification.report() == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(file in line and words in line and verification.problems[0].remedy in line for line in lines)
    assert "1 problem in" in lines[-1]


def test_all_at_once(root: Path) -> None:
    """Several kinds of damage are all listed, sorted by file, whatever the number of processes."""
    _cut(root / JPG / f"{IDS[0]}.jpg")
    _paint(99)(root / AUG / f"{IDS[3]}.png")
    (root / JPG / f"{IDS[2]}.jpg").unlink()
    problems = verify_dataset(root, processes=2).problems
    assert problems == verify_dataset(root, processes=1).problems == tuple(sorted(problems))
    assert [(problem.file, problem.what.split(",")[0]) for problem in problems] == [
        (f"{JPG}/{IDS[0]}.jpg", problems[0].what),
        (f"{JPG}/{IDS[2]}.jpg", "is missing"),
        (f"{AUG}/{IDS[2]}.png", "has no image"),
        (f"{AUG}/{IDS[3]}.png", "3 pixels with values that are no class: 99"),
    ]


def test_a_folder_that_was_forgotten(root: Path) -> None:
    """It is one line, not thousands; and without SegmentationClassAug the lists need SegmentationClass."""
    shutil.rmtree(root / AUG)
    problems = verify_dataset(root, processes=1).problems
    assert [problem.file for problem in problems] == [f"{CLASS}/{IDS[2]}.png", f"{CLASS}/{IDS[3]}.png"]
    shutil.rmtree(root / CLASS)
    problems = verify_dataset(root, processes=1).problems
    assert Problem(TRAIN, f"none of its 3 files is in {CLASS} (first {IDS[0]}.png)", problems[0].remedy) == problems[0]


def test_other_classes(root: Path) -> None:
    """The classes and the ignored value are the caller's."""
    assert not verify_dataset(root, VOC_CLASSES, 255, 1).problems
    wrong = verify_dataset(root, ["background", "thing"], 255, 1).problems
    assert len(wrong) == 6 and all("0 (background) to 1 (thing)" in problem.remedy for problem in wrong)
    assert len(verify_dataset(root, VOC_CLASSES, 254, 1).problems) == 6
    with pytest.raises(ValueError, match="at least one class"):
        verify_dataset(root, [])
    with pytest.raises(ValueError, match="cannot be -1"):
        verify_dataset(root, VOC_CLASSES, -1)


def test_no_data_set(tmp_path: Path) -> None:
    """The folder that was meant is named."""
    with pytest.raises(FileNotFoundError, match=r"ImageSets/Segmentation does not exist.*VOCdevkit/VOC2012"):
        verify_dataset(tmp_path)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no list"):
        verify_dataset(tmp_path)


def test_a_terminal_and_a_pipe(root: Path) -> None:
    """In a pipe a problem is one line, however long; names that look like rich's markup stay as they are."""
    long = "x" * 150
    (root / TRAIN).write_text("\n".join([*IDS, f"{long}[bold]"]) + "\n")
    pipe = io.StringIO()
    assert verify_dataset(root, processes=1).report(pipe) == 1
    assert sum(f"{long}[bold].jpg" in line for line in pipe.getvalue().splitlines()) == 1
    with pytest.MonkeyPatch.context() as patch:
        screen = io.StringIO()
        patch.setattr(screen, "isatty", lambda: True)
        patch.setenv("COLUMNS", "100")
        patch.setenv("NO_COLOR", "1")
        patch.setenv("TERM", "dumb")
        verify_dataset(root, processes=1).report(screen)
    assert max(map(len, screen.getvalue().splitlines()[:-1])) <= 100


def test_lists_of_windows(tmp_path: Path) -> None:
    """Line ends of Windows and a last line without one are no fault."""
    (tmp_path / "a.txt").write_bytes(b"2007_000001\r\n2007_000002")
    assert [(line.number, line.id, line.fault) for line in read_list(tmp_path / "a.txt")] == [
        (1, "2007_000001", ""),
        (2, "2007_000002", ""),
    ]


def test_links_to_folders(root: Path, tmp_path: Path) -> None:
    """What lies behind a link is looked at; a circle and a lost folder are problems, hidden names are none."""
    sound = verify_dataset(root, processes=1)
    for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClassAug", ".png")):
        (tmp_path / "disk" / folder).mkdir(parents=True)
        for key in IDS[2:]:
            (root / folder / f"{key}{suffix}").rename(tmp_path / "disk" / folder / f"{key}{suffix}")
        (root / folder / "site2").symlink_to(tmp_path / "disk" / folder)
        (root / folder / ".ipynb_checkpoints").mkdir()
        (root / folder / f".ipynb_checkpoints/x-checkpoint{suffix}").write_bytes(b"")
        (root / folder / f"._x{suffix}").write_bytes(b"Mac OS X")
    lists = {"train_aug": [IDS[0], *(f"site2/{key}" for key in IDS[2:])]}
    for name, ids in lists.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{key}\n" for key in ids))
    linked = verify_dataset(root, processes=1)
    assert linked.problems == () and (linked.images, linked.masks) == (sound.images, sound.masks)
    (tmp_path / f"disk/JPEGImages/{IDS[2]}.jpg").write_bytes(b"")
    (tmp_path / "disk/JPEGImages/round").symlink_to(root)
    (root / "JPEGImages/site3").symlink_to("/not/mounted")
    found = {problem.file: problem.what for problem in verify_dataset(root, processes=1).problems}
    assert found.pop(f"JPEGImages/site2/{IDS[2]}.jpg").startswith("cannot be decoded")
    assert found == {
        "JPEGImages/site2/round": f"is a link to a folder that holds it ({root})",
        "JPEGImages/site3": "is a link to /not/mounted, which does not exist",
    }
    # an image that is missing while its mask is there
    (tmp_path / f"disk/JPEGImages/{IDS[3]}.jpg").unlink()
    named = {problem.file: problem.what for problem in verify_dataset(root, processes=1).problems}
    assert named[f"SegmentationClassAug/site2/{IDS[3]}.png"] == "has no image"


def test_sixteen_bits_whose_numbers_fit(root: Path) -> None:
    _widen(0)(root / f"{AUG}/{IDS[2]}.png")
    assert verify_dataset(root, processes=1).problems == ()


def test_the_limit_of_pixels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images and masks, ours and not Pillow's; the command has an option for it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert verify_dataset(root, processes=1).problems == ()
    problems = verify_dataset(root, processes=1, max_pixels=20).problems
    assert {problem.file.partition("/")[0] for problem in problems} == {JPG, CLASS, AUG}
    for problem in problems:
        assert re.match(r"has \d+ x \d+ pixels; at most 20 can be read: .* --max-pixels N", problem.what)
    with pytest.raises(ValueError, match="max_pixels is the most pixels of an image or a mask, not 0"):
        verify_dataset(root, max_pixels=0)
    arguments = argparse.ArgumentParser()
    add_checks(arguments)
    options = ["--verify", "--processes", "1", "--max-pixels"]
    assert [check(arguments.parse_args([*options, str(limit)]), root, ()) for limit in (20, 10**6)] == [1, 0]
