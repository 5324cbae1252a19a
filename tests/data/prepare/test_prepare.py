"""From archives in the real layouts to masks and lists: whole, killed, damaged, and with official figures enforced."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from real_layouts import SBD_NAME, VOC_NAME, Layouts, Server, build, in_child, md5_of, serving, start_child, tree_of, write_tar

from gbseg.cli import main
from gbseg.data.prepare import archives, sbd
from gbseg.data.prepare import voc as prepare
from gbseg.data.prepare.voc import NOVAL, SBD_ARCHIVE, VOC_ARCHIVE, Source, prepare_voc
from gbseg.files import lock_folder
from gbseg.palettes import VOC_PALETTE


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    return build(tmp_path_factory.mktemp("given"))


@pytest.fixture
def server(given: Layouts) -> Iterator[Server]:
    with serving() as running:
        for path in (given.voc_tar, given.sbd_tar, given.noval):
            running.files[path.name] = path.read_bytes()
        yield running


@pytest.fixture(scope="module")
def whole(given: Layouts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file after an uninterrupted run."""
    root = tmp_path_factory.mktemp("whole")
    prepare_voc(root, given.voc_tar, given.sbd_tar, verify=False)
    return tree_of(root)


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for every disk of the machine, for the sake of power cuts."""
    monkeypatch.setattr(os, "sync", lambda: None)


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_what_comes_out(given: Layouts, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One command: masks, images and lists as the definitions say; a second one changes nothing, not even a time."""
    arguments = ["prepare-voc", str(tmp_path), "--voc-tar", str(given.voc_tar), "--sbd-tar", str(given.sbd_tar)]
    arguments += ["--no-verify", "--processes", "2"]
    assert main(arguments) == 0
    voc = tmp_path / "VOCdevkit/VOC2012"
    sbd, own = given.sbd_train | given.sbd_val, given.train | given.val
    masks = {path.stem: path for path in (voc / "SegmentationClassAug").iterdir()}
    assert set(masks) == sbd | own
    for name, path in masks.items():
        with Image.open(path) as image:
            assert image.getpalette() == [value for colour in VOC_PALETTE for value in colour]
            # VOC's own labels win
            np.testing.assert_array_equal(np.array(image), given.voc_masks[name] if name in own else given.sbd_masks[name])
    for name in own:
        assert masks[name].read_bytes() == (voc / "SegmentationClass" / f"{name}.png").read_bytes()
        assert not masks[name].samefile(voc / "SegmentationClass" / f"{name}.png")
    assert {p.stem: p.read_bytes() for p in (voc / "JPEGImages").iterdir()} == given.images
    lists = {path.stem: path.read_text() for path in (voc / "ImageSets/Segmentation").iterdir()}
    expected = {
        "train": given.train,
        "val": given.val,
        "trainval": own,
        "sbd_train": given.sbd_train,
        "sbd_val": given.sbd_val,
        "aug": sbd - own,
        "train_aug": (given.train | sbd) - given.val,
        "trainaug": (given.train | sbd) - given.val,
    }
    for name, ids in expected.items():
        assert lists.pop(name) == "".join(f"{image_id}\n" for image_id in sorted(ids))
    assert set(lists) == {"paper_train", "paper_val"}
    assert sorted((lists["paper_train"] + lists["paper_val"]).split()) == sorted(given.sbd_train)
    said = capsys.readouterr().out
    assert "warning: train_aug has 48 ids instead of 10,582" in said
    for line in ("sbd_train             37                   3", "train_aug             48                   0"):
        assert line in said
    before, times = tree_of(tmp_path), _times(tmp_path)
    assert main(arguments) == 0
    assert tree_of(tmp_path) == before and _times(tmp_path) == times
    said = capsys.readouterr().out
    assert "(0 copied now), 40 of SBD (0 converted now)" in said and "lists: " in said and "none written now" in said


def test_downloads(given: Layouts, server: Server, tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Both archives and the optional list from mirrors; with both archives given nothing is asked for."""
    mirrors = {"voc": server.url, "sbd": server.url + SBD_NAME, "noval": server.url}
    server.drop_after = 60_000
    prepare_voc(tmp_path, mirrors=mirrors, verify=False, noval=True)
    tree = tree_of(tmp_path)
    assert tree.pop(VOC_NAME) == given.voc_tar.read_bytes() and tree.pop(SBD_NAME) == given.sbd_tar.read_bytes()
    assert tree.pop("train_noval.txt") == given.noval.read_bytes()
    assert tree.pop("VOCdevkit/VOC2012/ImageSets/Segmentation/sbd_train_noval.txt") == given.noval.read_bytes()
    assert tree == whole
    asked = len(server.asked)
    assert asked > 4
    # the archives lie in the data folder now
    for folder in ("VOCdevkit", "benchmark_RELEASE"):
        shutil.rmtree(tmp_path / folder)
    prepare_voc(tmp_path, mirrors=mirrors, verify=False)
    assert len(server.asked) == asked and {k: v for k, v in tree_of(tmp_path).items() if "/" in k} == whole


@pytest.mark.parametrize("layout", ["torchvision", "beside", "inside"])
def test_unpacked_folders(given: Layouts, tmp_path: Path, whole: dict[str, bytes], layout: str) -> None:
    """Already unpacked, in torchvision's layout, in a folder without VOCdevkit, or given as VOC2012 itself: no archive."""
    prepare_voc(tmp_path / "a", given.voc_tar, given.sbd_tar, verify=False)
    voc, sbd = tmp_path / "a/VOCdevkit/VOC2012", tmp_path / "a/benchmark_RELEASE/dataset"
    shutil.rmtree(voc / "SegmentationClassAug")
    root = tmp_path / "b"
    subfolders = {"torchvision": ("VOCdevkit/VOC2012", "sbd"), "beside": ("VOC2012", "dataset"), "inside": (".", "sbd")}
    for folder, subfolder in zip((voc, sbd), subfolders[layout], strict=True):
        (root / subfolder).parent.mkdir(parents=True, exist_ok=True)
        folder.rename(root / subfolder)
    voc_folder = prepare_voc(root, verify=False)
    assert voc_folder.samefile(root / subfolders[layout][0])
    tree = {k: v for k, v in tree_of(voc_folder).items() if not k.startswith("sbd/")}
    assert tree == {k.removeprefix("VOCdevkit/VOC2012/"): v for k, v in whole.items() if k.startswith("VOCdevkit")}


# what shows that a stage has begun
STAGES = {
    "downloading VOC": "*.tar.part",
    "downloading SBD": "*.tgz.part",
    "unpacking VOC": ".VOC*.gbseg-unpacking/*/*",
    "unpacking SBD": ".bench*.gbseg-unpacking/*/*",
    "copying": "*/*/SegmentationClassAug/*.png",
    "converting": "*/*/SegmentationClassAug/????_0001*.png",
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random(
    given: Layouts,
    server: Server,
    tmp_path: Path,
    whole: dict[str, bytes],
    processes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL somewhere in each stage, in one folder after the other and all in one; then once more: the same bytes."""
    mirrors = {"voc": server.url, "sbd": server.url}
    # the archives are small, and every stage shall be met
    server.pause, encode, inside = 0.001, sbd.encode_mask, archives._only_inside
    monkeypatch.setattr(sbd, "encode_mask", lambda values: time.sleep(0.02) or encode(values))
    monkeypatch.setattr(archives, "_only_inside", lambda *given: time.sleep(0.003) or inside(*given))
    whole = {**whole, VOC_NAME: server.files[VOC_NAME], SBD_NAME: server.files[SBD_NAME]}
    rng = random.Random(processes)

    def run(root: Path) -> None:
        prepare_voc(root, mirrors=mirrors, verify=False, processes=processes)

    def run_and_kill(root: Path, sign: str) -> bool:
        process, pipe = start_child(lambda: run(root))
        while process.is_alive():
            # a folder may be moved away while it is looked into
            with contextlib.suppress(FileNotFoundError):
                if any(root.glob(sign)):
                    break
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        killed = not pipe.poll()
        process.kill()
        process.join()
        return killed

    for stage, sign in STAGES.items():
        assert run_and_kill(tmp_path / stage, sign)
        run_and_kill(tmp_path / "all", sign)
    for root in (*(tmp_path / stage for stage in list(STAGES)[processes - 1 :: 2]), tmp_path / "all"):
        assert in_child(lambda root=root: run(root)) == ""
        assert tree_of(root) == whole
        # nothing hidden is left either
        assert not list(root.rglob(".*"))


@pytest.mark.slow
def test_killed_at_every_rename(given: Layouts, tmp_path: Path, whole: dict[str, bytes]) -> None:
    """The moments that time hardly meets: right before each of the renames that matter."""

    def killed(root: Path, number: int) -> None:
        count, replace, rename = iter(range(10**6)), os.replace, os.rename

        def dying(real: object) -> object:
            def call(*names: object) -> None:
                if next(count) == number:
                    os.kill(os.getpid(), 9)
                real(*names)  # type: ignore[operator]

            return call

        os.replace, os.rename = dying(replace), dying(rename)  # type: ignore[assignment]
        prepare_voc(root, given.voc_tar, given.sbd_tar, verify=False, processes=1)

    # four of unpacking, one image, 15 masks of VOC, 40 of SBD, seven lists
    for number in [0, 1, 2, 3, 4, 5, 12, 40, 60, 63]:
        root = tmp_path / str(number)
        assert in_child(lambda root=root, number=number: killed(root, number)) is None
        lists = {path.stem for path in root.rglob("*.txt") if path.parent.name == "Segmentation"}
        # lists of what is not there yet are not there either
        assert number >= 60 or lists <= {"train", "val", "trainval"}
        prepare_voc(root, given.voc_tar, given.sbd_tar, verify=False, processes=1)
        assert tree_of(root) == whole and not list(root.rglob(".*"))
    assert in_child(lambda: killed(tmp_path / "x", 67)) == ""


def test_official_files() -> None:
    """The figures of the sources are those that torchvision has."""
    from torchvision.datasets import SBDataset
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    voc = DATASET_YEAR_DICT["2012"]
    assert (VOC_ARCHIVE.name, VOC_ARCHIVE.md5, SBD_ARCHIVE.name) == (voc["filename"], voc["md5"], SBDataset.filename)
    assert (SBD_ARCHIVE.url, SBD_ARCHIVE.md5) == (SBDataset.url, SBDataset.md5)
    assert (NOVAL.name, NOVAL.md5) == (SBDataset.voc_split_filename, SBDataset.voc_split_md5)


def test_wrong_md5(given: Layouts, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Given or downloaded, it is refused with both sums before anything is unpacked."""
    assert main([str(tmp_path), "--voc-tar", str(given.voc_tar), "--sbd-tar", str(given.sbd_tar)], "prepare-voc") == 1
    said = capsys.readouterr().err
    assert f"{given.voc_tar} has the MD5 {md5_of(given.voc_tar.read_bytes())}, the official file has {VOC_ARCHIVE.md5}" in said
    assert "--no-verify" in said and not list(tmp_path.iterdir())
    assert main([str(tmp_path), "--voc-mirror", server.url], "prepare-voc") == 1
    assert f"the official file has {VOC_ARCHIVE.md5}; it is kept as {tmp_path}/{VOC_NAME}.wrong" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [f"{VOC_NAME}.wrong"]


def test_official_counts(
    given: Layouts, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the right MD5s, lists of other counts are an error, and no mask or list is written."""
    for name, path in (("VOC_ARCHIVE", given.voc_tar), ("SBD_ARCHIVE", given.sbd_tar), ("NOVAL", given.noval)):
        monkeypatch.setattr(prepare, name, Source(server.url + path.name, md5_of(path.read_bytes())))
    assert main([str(tmp_path), "--noval"], "prepare-voc") == 1
    said = capsys.readouterr().err
    for words in ("train has 8 ids instead of 1,464; val has 7 ids instead of 1,449", "sbd_train_noval has 34 ids instead of"):
        assert words in said
    assert not list(tmp_path.rglob("*Aug")) and not list(tmp_path.rglob("*aug.txt"))
    monkeypatch.setattr(prepare, "NOVAL", Source(server.url + given.noval.name, "0" * 32))
    assert main([str(tmp_path), "--noval"], "prepare-voc") == 1
    assert f"train_noval.txt has the MD5 {md5_of(given.noval.read_bytes())}, the official" in capsys.readouterr().err


def _fails(capsys: pytest.CaptureFixture, root: Path, voc: Path, sbd: Path) -> str:
    """What the command says, which is one sentence and no traceback; nothing half-written or hidden is there."""
    arguments = [str(root), "--voc-tar", str(voc), "--sbd-tar", str(sbd), "--no-verify", "--processes", "2"]
    assert main(arguments, "prepare-voc") == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("gbseg: ") and "\n" not in said
    assert not list(root.rglob(".*")) and not list(root.rglob("aug.txt"))
    for path in root.rglob("*.png"):
        Image.open(path).load()
    return said


def test_bad_archives(given: Layouts, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Cut short, climbing out, exchanged, missing."""
    cut = tmp_path / "cut.tgz"
    cut.write_bytes(given.sbd_tar.read_bytes()[:-2000])
    assert f"{cut} is damaged or cut short" in _fails(capsys, tmp_path / "a", given.voc_tar, cut)
    write_tar(tmp_path / "climbing.tar", {"VOCdevkit/../../evil": b"x"})
    assert "climbing.tar holds 'VOCdevkit/../..'" in _fails(capsys, tmp_path / "b", tmp_path / "climbing.tar", given.sbd_tar)
    assert not list(tmp_path.rglob("evil"))
    assert "VOC 2012 is still not there" in _fails(capsys, tmp_path / "c", given.sbd_tar, given.voc_tar)
    assert "there is no archive" in _fails(capsys, tmp_path / "d", tmp_path / "none.tar", given.sbd_tar)


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A corrupt .mat, an image that neither has, a mask and a list that are not right; mended, the command goes on."""
    given = build(tmp_path / "given", no_image="2007_000100")
    root = tmp_path / "a"
    said = _fails(capsys, root, given.voc_tar, given.sbd_tar)
    assert "JPEGImages nor" in said and "has the images of 1 ids (2007_000100)" in said
    assert not list(root.rglob("SegmentationClassAug"))
    voc, sbd = root / "VOCdevkit/VOC2012", root / "benchmark_RELEASE/dataset"
    (voc / "JPEGImages" / "2007_000100.jpg").write_bytes(given.images["2007_000100"])
    mat = sbd / "cls" / "2008_000101.mat"
    good = mat.read_bytes()
    mat.write_bytes(good[:-20])
    said = _fails(capsys, root, given.voc_tar, given.sbd_tar)
    assert f"1 of 40 labels of SBD could not be converted: {mat} is damaged" in said
    mat.write_bytes(good)
    mask = voc / "SegmentationClass" / f"{min(given.val)}.png"
    png = mask.read_bytes()
    mask.unlink()
    assert f"lacks the masks of 1 ids ({min(given.val)})" in _fails(capsys, root, given.voc_tar, given.sbd_tar)
    mask.write_bytes(png)
    names = (sbd / "val.txt").read_bytes()
    (sbd / "val.txt").write_bytes(names + b"2007_0001 1\n")
    assert "val.txt, line 15 has several columns: '2007_0001 1'" in _fails(capsys, root, given.voc_tar, given.sbd_tar)
    (sbd / "val.txt").write_bytes(names)
    prepare_voc(root, verify=False)
    assert (voc / "ImageSets/Segmentation/aug.txt").is_file()


@pytest.mark.parametrize("limit", [0, 1000, 20_000])
def test_full_disk(given: Layouts, tmp_path: Path, limit: int) -> None:
    """Unpacking stops in a sentence and gives the room back; later the same folder is finished."""
    error = in_child(lambda: prepare_voc(tmp_path / "a", given.voc_tar, given.sbd_tar, verify=False), limit=limit)
    if limit < 20_000:
        assert error and error.startswith("FileWriteError: ") and "File too large" in error and str(tmp_path) in error
        assert tree_of(tmp_path / "a") == {}
    else:
        assert error == ""


def test_full_disk_later(given: Layouts, tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Unpacked already: the file that does not fit is named and not there, the lists are not either."""
    prepare_voc(tmp_path, given.voc_tar, given.sbd_tar, verify=False)
    voc = tmp_path / "VOCdevkit/VOC2012"
    shutil.rmtree(voc / "SegmentationClassAug")
    (voc / "ImageSets/Segmentation/train_aug.txt").unlink()
    error = in_child(lambda: prepare_voc(tmp_path, verify=False, processes=2), limit=1000)
    assert error and "SegmentationClassAug/" in error and "could not be written: File too large" in error
    assert not (voc / "ImageSets/Segmentation/train_aug.txt").exists()
    for path in (voc / "SegmentationClassAug").iterdir():
        Image.open(path).load()
    prepare_voc(tmp_path, verify=False)
    assert tree_of(tmp_path) == whole


def test_what_the_user_had(given: Layouts, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """VOC's lists keep their order and line ends; another trainaug.txt is kept aside; SBD's masks of VOC's images give way."""
    prepare_voc(tmp_path, given.voc_tar, given.sbd_tar, verify=False)
    voc = tmp_path / "VOCdevkit/VOC2012"
    sets = voc / "ImageSets/Segmentation"
    before = tree_of(tmp_path)
    mine = "\r\n".join(sorted(given.val, reverse=True)).encode()
    (sets / "val.txt").write_bytes(mine)
    (sets / "trainaug.txt").write_bytes(b"2007_000001\n")
    (sets / "trainval.txt").unlink()
    name = min(given.val)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(voc / "SegmentationClassAug" / f"{name}.png")
    capsys.readouterr()
    prepare_voc(tmp_path, verify=False)
    assert "(1 copied now)" in (said := capsys.readouterr().out)
    assert f"warning: {sets}/trainaug.txt was another list, now at {sets}/trainaug.txt.old1" in said
    tree = tree_of(tmp_path)
    assert tree.pop(f"{sets.relative_to(tmp_path)}/trainaug.txt.old1") == b"2007_000001\n"
    assert tree == {**before, f"{sets.relative_to(tmp_path)}/val.txt": mine}
    (sets / "trainval.txt").write_bytes(b"2007_000001\n")
    with pytest.raises(ValueError, match=r"trainval\.txt is not train and val together"):
        prepare_voc(tmp_path)


def test_two_at_once(given: Layouts, tmp_path: Path) -> None:
    """The second waits a moment for the first, then says so."""
    error = pytest.raises(RuntimeError, match=f"another process prepares {tmp_path}")
    with lock_folder(tmp_path), error, lock_folder(tmp_path, 0.2):
        pass
    with lock_folder(tmp_path, 0):
        pass
    with pytest.raises(ValueError, match="at least 1, not 0"):
        prepare_voc(tmp_path, given.voc_tar, given.sbd_tar, processes=0)


@pytest.mark.slow
def test_killed_while_moving(given: Layouts, tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Into a folder that was there before, files are moved one by one; those that were not yet are, though VOC is found."""
    prepare_voc(tmp_path, given.voc_tar, given.sbd_tar, verify=False)
    for number, path in enumerate(sorted((tmp_path / "VOCdevkit/VOC2012/JPEGImages").iterdir())):
        if number % 2:
            rest = tmp_path / f".{VOC_NAME}.gbseg-unpacked" / path.relative_to(tmp_path)
            rest.parent.mkdir(parents=True, exist_ok=True)
            path.rename(rest)
    prepare_voc(tmp_path, verify=False)
    assert tree_of(tmp_path) == whole and not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("damage", ["mask", "image"])
def test_what_an_interrupted_copy_leaves_is_not_passed_on(given: Layouts, tmp_path: Path, damage: str) -> None:
    """A mask of VOC that is cut is named; an empty image is taken from SBD again, where SBD has it."""
    voc = prepare_voc(tmp_path, given.voc_tar, given.sbd_tar, verify=False)
    if damage == "mask":
        mask = sorted((voc / "SegmentationClass").iterdir())[0]
        mask.write_bytes(mask.read_bytes()[:100])
        with pytest.raises(
            ValueError, match=rf"{voc}/SegmentationClass lacks the masks of 1 ids \({mask.stem}\), or has them in"
        ):
            prepare_voc(tmp_path, verify=False)
        return
    name = (voc / "ImageSets/Segmentation/sbd_val.txt").read_text().split()[0]
    image = voc / f"JPEGImages/{name}.jpg"
    image.write_bytes(b"")
    prepare_voc(tmp_path, verify=False)
    assert image.read_bytes() == (tmp_path / f"benchmark_RELEASE/dataset/img/{name}.jpg").read_bytes() != b""


def test_a_disk_that_is_really_full(
    given: Layouts, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str], whole: dict[str, bytes]
) -> None:
    """The command says what to do; nothing is half there under a final name, and with room it goes on."""
    # room for VOC, not for SBD
    root = small_disk(600)
    arguments = [str(root), "--voc-tar", str(given.voc_tar), "--sbd-tar", str(given.sbd_tar), "--no-verify"]
    assert main(["prepare-voc", *arguments]) == 1
    said = capsys.readouterr().err
    assert re.search(rf"{given.sbd_tar} holds files of 0\.\d MiB, and 0\.\d MiB are free in {root}; nothing was unpacked", said)
    assert "Make room first; what is done stays done, the same command continues." in said
    left = tree_of(root)
    assert left and all(whole[name] == data for name, data in left.items())
    subprocess.run(["mount", "-o", "remount,size=8m", str(root)], check=True)
    assert main(["prepare-voc", *arguments]) == 0
    assert tree_of(root) == whole
