"""The archive for VOC's server, read by tarfile and Pillow, and everything that may be wrong with one."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gbseg.data.masks import write_mask
from gbseg.evaluation.submission_archive import SubmissionError, pack_submission
from gbseg.files import FileWriteError

IDS = ["2008_000006", "2007_000032", "2010_000001"]
SIZES = {"2008_000006": (5, 7), "2007_000032": (8, 4), "2010_000001": (3, 3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in SIZES.items():
        write_mask(tmp_path / f"png/{name}.png", np.arange(np.prod(size)).reshape(size) % 21)
    return tmp_path / "png"


def test_the_archive(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "deep/results.tgz"
    pack_submission(folder, IDS, SIZES, archive)
    with tarfile.open(archive, "r:gz") as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png" for name in sorted(IDS)]
        for member in members:
            assert member.isfile() and member.mode == 0o644
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            name = Path(member.name).stem
            with Image.open(io.BytesIO(tar.extractfile(member).read())) as png:
                assert png.mode == "P"
                height, width = SIZES[name]
                np.testing.assert_array_equal(np.asarray(png), np.arange(height * width).reshape(height, width) % 21)
                assert png.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    # other times, another order: the same bytes
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    pack_submission(folder, IDS[::-1], SIZES, tmp_path / "again.tgz")
    assert (tmp_path / "again.tgz").read_bytes() == archive.read_bytes()
    # the time of packing, which two archives of one second share
    assert archive.read_bytes()[4:8] == bytes(4)


def _save(values: np.ndarray, mode: str = "P") -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        image = Image.fromarray(values)
        if mode == "P":
            image.putpalette([0, 0, 0, 128, 0, 0] * 128)
        image.save(folder / "2007_000032.png")

    return save


WRONG = {
    "missing": (lambda folder: (folder / "2007_000032.png").unlink(), "2007_000032", "is missing"),
    "extra": (lambda folder: (folder / "2007_000033.png").touch(), "2007_000033.png", "is not in the list: remove it"),
    "another file": (lambda folder: (folder / "notes.txt").touch(), "notes.txt", "is not in the list: remove it"),
    "damaged": (lambda folder: (folder / "2007_000032.png").write_bytes(b"\x89PNG"), "2007_000032", "cannot be decoded"),
    "size": (_save(np.zeros((4, 8), np.uint8)), "2007_000032", "is 8 x 4 pixels (width x height), its image 4 x 8"),
    "void": (_save(np.full((8, 4), 255, np.uint8)), "2007_000032", "holds the values [255]; classes are 0..20"),
    "class": (_save(np.full((8, 4), 21, np.uint8)), "2007_000032", "holds the values [21]; classes are 0..20"),
    "grey": (
        _save(np.zeros((8, 4), np.uint8), "L"),
        "2007_000032",
        "indexed ones (with a palette), as --submit and --out",
    ),
    "colours": (_save(np.zeros((8, 4, 3), np.uint8), "RGB"), "2007_000032", "has mode RGB"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_listed_and_nothing_is_packed(kind: str, folder: Path, tmp_path: Path) -> None:
    spoil, name, problem = WRONG[kind]
    spoil(folder)
    archive = tmp_path / "results.tgz"
    archive.write_bytes(b"an earlier one")
    with pytest.raises(SubmissionError) as caught:
        pack_submission(folder, IDS, SIZES, archive)
    [(result, said)] = caught.value.problems
    assert result == name
    assert problem in said
    assert f"no archive was written: 1 problem(s) with the predictions in {folder}:\n  {name}  " in str(caught.value)
    assert archive.read_bytes() == b"an earlier one"


def test_hidden_names_are_no_predictions(folder: Path, tmp_path: Path) -> None:
    """What a Mac or a notebook leaves is not packed, and no problem."""
    (folder / ".DS_Store").write_bytes(b"Bud1")
    (folder / ".ipynb_checkpoints").mkdir()
    pack_submission(folder, IDS, SIZES, tmp_path / "results.tgz")
    with tarfile.open(tmp_path / "results.tgz") as tar:
        assert sorted(Path(name).stem for name in tar.getnames()) == sorted(IDS)


def test_all_problems_are_listed_at_once(folder: Path, tmp_path: Path) -> None:
    (folder / "2007_000032.png").unlink()
    ids = [*IDS, "2008_000006", *(f"2011_{i:06d}" for i in range(30))]
    with pytest.raises(SubmissionError, match=r"32 problem\(s\).*\n.*is 2 times in the list\n") as caught:
        pack_submission(folder, ids, SIZES, tmp_path / "results.tgz")
    assert len(caught.value.problems) == 32
    missing = [line.split()[0] for line in str(caught.value).splitlines() if line.endswith("  is missing")]
    assert missing == ["2007_000032", *ids[4:]]
    assert not (tmp_path / "results.tgz").exists()


def test_a_place_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileWriteError, match=r"results\.tgz could not be written"):
        pack_submission(folder, IDS, SIZES, tmp_path / "file/results.tgz")
