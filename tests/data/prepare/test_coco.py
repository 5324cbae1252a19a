"""COCO prepared as a data set: masks, links and list as they must be, continued after a kill, and refused where it is wrong."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from coco_tiny import Box, annotation, painted, write_coco
from PIL import Image

import gbseg.data.prepare.coco
from gbseg.cli import main
from gbseg.data.masks import encode_mask
from gbseg.data.prepare.coco import prepare_coco
from gbseg.files import lock_folder, temporary_path

Entry = tuple[int, int, list[Box], str]


def _random_entries(count: int, size: tuple[int, int], seed: int) -> dict[int, list[Entry]]:
    """Images with up to five annotations each: boxes of any category, now and then a crowd; some images without."""
    random = np.random.default_rng(seed)
    result: dict[int, list[Entry]] = {}
    key = 0
    for image in range(count):
        result[1000 - 3 * image] = entries = []
        for _ in range(int(random.integers(0, 6))):
            key += 7
            x, y = int(random.integers(0, size[1] - 12)), int(random.integers(0, size[0] - 12))
            box = (x, y, int(random.integers(x + 1, size[1] + 1)), int(random.integers(y + 1, size[0] + 1)))
            category = int(random.choice([1, 3, 17, 18, 67, 72, 47, 22]))
            entries.append((key, category, [box], str(random.choice(["polygon", "polygon", "rle", "crowd"]))))
    return result


@pytest.fixture
def coco(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Twelve images of train and five of val, and the masks that they must get, by id."""
    size, masks = (30, 44), {}
    for split, count in (("train", 12), ("val", 5)):
        entries = _random_entries(count, size, count)
        if split == "val":
            entries = {key + 5000: value for key, value in entries.items()}
        pictures = {
            image: (size, [annotation(key, image, category, boxes, size, form) for key, category, boxes, form in annotations])
            for image, annotations in entries.items()
        }
        write_coco(tmp_path / "coco", split, pictures)
        masks |= {f"{image:012d}": painted(annotations, size) for image, annotations in entries.items()}
    return tmp_path / "coco", masks


def _enough(masks: dict[str, np.ndarray], least: int) -> list[str]:
    return sorted(key for key, values in masks.items() if ((values > 0) & (values < 255)).sum() >= least)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_whole(coco: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two splits by the command: every mask, link and list; a second run changes no file, not even its time."""
    root, masks = coco
    out = tmp_path / "out"
    counts = sorted(int(((values > 0) & (values < 255)).sum()) for values in masks.values())
    least = counts[len(counts) // 2]  # exactly as many as one of the images has
    kept = _enough(masks, least)
    assert 0 < len(kept) < len(masks)
    command = [str(root), "--out", str(out), "--min-pixels", str(least), "--processes", "2", "--verify", "--stats"]
    assert main(["prepare-coco", *command]) == 0
    said = capsys.readouterr().out
    listed = []
    for split, total in (("train", 12), ("val", 5)):
        content = (out / f"ImageSets/Segmentation/coco_{split}.txt").read_text()
        ids = content.split()
        assert content == "".join(f"{key}\n" for key in sorted(ids))
        assert f"{len(ids)} of {total} images have {least} or more" in said
        assert (out / f"stats/coco_{split}/stats.png").exists()
        listed += ids
    assert sorted(listed) == kept
    assert {path.stem for path in (out / "SegmentationClass").iterdir()} == set(kept)
    assert f"{len(kept)} images, {len(kept)} masks" in said and "no problem" in said
    for key in kept:
        with Image.open(out / f"SegmentationClass/{key}.png") as file:
            assert file.mode == "P" and (np.array(file) == masks[key]).all()
        link = out / f"JPEGImages/{key}.jpg"
        assert link.is_symlink() and not link.readlink().is_absolute()
        split = "train" if int(key) <= 1000 else "val"
        assert link.resolve() == (root / f"{split}2017/{key}.jpg").resolve()
    before = {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in out.rglob("*") if path.parent != out / "stats"}
    assert main(["prepare-coco", *command[:-2]]) == 0
    after = {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in out.rglob("*") if path.parent != out / "stats"}
    assert before == after
    # the whole of it may move
    shutil.move(tmp_path, tmp_path.with_name("moved"))
    assert all(path.is_file() for path in (tmp_path.with_name("moved") / "out/JPEGImages").iterdir())


@pytest.mark.parametrize("how", ["hardlink", "copy"])
def test_other_ways_to_the_images(coco: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, how: str) -> None:
    """Hard links are the same file, copies are not, both replace the links of an earlier run; COCO's own files stay."""
    root, masks = coco
    before = _files(root)
    prepare_coco(root, tmp_path / "out", "val", 1, "symlink", 1)
    prepare_coco(root, tmp_path / "out", "val", 1, how, 1)  # type: ignore[arg-type]
    paths = sorted((tmp_path / "out/JPEGImages").iterdir())
    assert [path.stem for path in paths] == [key for key in _enough(masks, 1) if int(key) > 1000]
    for path in paths:
        source = root / "val2017" / path.name
        assert not path.is_symlink() and path.samefile(source) == (how == "hardlink")
        assert path.read_bytes() == source.read_bytes()
    times = [path.stat().st_mtime_ns for path in paths]
    prepare_coco(root, tmp_path / "out", "val", 1, how, 1)  # type: ignore[arg-type]
    assert times == [path.stat().st_mtime_ns for path in paths]
    prepare_coco(root, tmp_path / "out", "val", 1, "symlink", 1)
    assert all(path.is_symlink() and path.exists() for path in paths)
    assert _files(root) == before


def test_a_folder_that_is_linked_as_a_whole(coco: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """JPEGImages as a link to COCO's own folder is left as it is: a link to an image must not replace the image."""
    root, _ = coco
    before = _files(root)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/JPEGImages").symlink_to(root / "val2017")
    prepare_coco(root, tmp_path / "out", "val", 1, "symlink", 1)
    assert _files(root) == before
    assert not any(path.is_symlink() for path in (root / "val2017").iterdir())


def _until_the_fourth(root: Path, out: Path, processes: int) -> None:
    write = gbseg.data.prepare.coco.write_atomically

    def slow(data: bytes, path: Path, durable: bool = True) -> None:
        write(data, path, durable)
        if path.suffix == ".png" and len(list(path.parent.glob("*.png"))) >= 4:
            # as a kill in the middle of a write leaves it
            temporary_path(path).write_bytes(b"half")
            (out / "ready").touch()
            time.sleep(60)

    gbseg.data.prepare.coco.write_atomically = slow
    prepare_coco(root, out, "train", 1, "symlink", processes)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_started_again(coco: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, processes: int) -> None:
    """SIGKILL in the middle: no list, no half file under a final name; started again: the bytes of a run without a kill."""
    root, _ = coco
    out = tmp_path / "out"
    out.mkdir()
    process = multiprocessing.get_context("fork").Process(target=_until_the_fourth, args=(root, out, processes))
    process.start()
    deadline = time.monotonic() + 60
    while not (out / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    # its workers notice within half a second
    time.sleep(1)
    (out / "ready").unlink()
    done = list((out / "SegmentationClass").glob("*.png"))
    assert 4 <= len(done) < 9 and not list((out / "ImageSets/Segmentation").iterdir())
    assert len(list((out / "SegmentationClass").iterdir())) > len(done)
    times = {path: path.stat().st_mtime_ns for path in done}
    prepare_coco(root, out, "train", 1, "symlink", 2)
    assert all(path.stat().st_mtime_ns == when for path, when in times.items())
    prepare_coco(root, tmp_path / "other", "train", 1, "symlink", 1)
    assert _files(out) == _files(tmp_path / "other")


def test_a_damaged_mask_is_made_again(coco: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """One that cannot be read, and one of another size."""
    root, masks = coco
    prepare_coco(root, tmp_path / "out", "val", 1, "symlink", 1)
    paths = sorted((tmp_path / "out/SegmentationClass").iterdir())[:2]
    paths[0].write_bytes(paths[0].read_bytes()[:60])
    paths[1].write_bytes(encode_mask(np.zeros((9, 9), np.uint8)))
    prepare_coco(root, tmp_path / "out", "val", 1, "symlink", 1)
    for path in paths:
        assert (np.array(Image.open(path)) == masks[path.stem]).all()


def test_settings_are_never_mixed(coco: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """Another threshold, other annotations, masks without settings, VOC's own folder: nothing is touched."""
    root, _ = coco
    out = tmp_path / "out"
    prepare_coco(root, out, "val", 1, "symlink", 1)
    before = _files(out)
    with pytest.raises(ValueError, match=r"made with other settings \(min_pixels 1 there, 2 now\).*--out"):
        prepare_coco(root, out, "val", 2, "symlink", 1)
    annotations = root / "annotations/instances_val2017.json"
    content = annotations.read_text()
    annotations.write_text(content + " ")
    with pytest.raises(ValueError, match="sha256"):
        prepare_coco(root, out, "val", 1, "symlink", 1)
    annotations.write_text(content)
    assert _files(out) == before
    (out / "coco_val.json").write_text("{")
    with pytest.raises(ValueError, match=r"coco_val\.json is damaged"):
        prepare_coco(root, out, "val", 1, "symlink", 1)
    (out / "coco_val.json").unlink()
    with pytest.raises(ValueError, match="is there already and nothing says how it was made"):
        prepare_coco(root, out, "val", 1, "symlink", 1)
    (tmp_path / "voc/ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "voc/ImageSets/Segmentation/train.txt").touch()
    with pytest.raises(ValueError, match="holds VOC itself"):
        prepare_coco(root, tmp_path / "voc", "val", 1, "symlink", 1)


def test_images_and_annotations_that_are_wrong(
    coco: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is named in one message, the others are done, there is no list; repaired and started again it is complete."""
    root, masks = coco
    out, keys = tmp_path / "out", [key for key in _enough(masks, 1) if int(key) <= 1000]
    missing, text, resized = (root / f"train2017/{key}.jpg" for key in keys[:3])
    contents = [path.read_bytes() for path in (missing, text, resized)]
    missing.unlink()
    text.write_text("404")
    Image.fromarray(np.zeros((44, 30, 3), np.uint8)).save(resized)
    annotations = root / "annotations/instances_train2017.json"
    content = annotations.read_text()
    broken = json.loads(content)
    key = next(entry for entry in broken["annotations"] if entry["image_id"] == int(keys[3]))
    key["segmentation"] = {"size": [1, 1], "counts": [1]}
    annotations.write_text(json.dumps(broken))
    command = ["prepare-coco", str(root), "--out", str(out), "--splits", "train", "--min-pixels", "1", "--processes", "2"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "4 of 12 images of COCO train could not be prepared" in said
    for words in (
        f"{missing} is missing: unpack train2017.zip",
        f"{text} is no image",
        f"{resized} is 30 x 44 pixels, the annotations say 44 x 30",
        f"{keys[3]}.jpg: annotation {key['id']} has a run-length code of size [1, 1]",
    ):
        assert words in said
    assert not (out / "ImageSets/Segmentation/coco_train.txt").exists()
    assert {path.stem for path in (out / "SegmentationClass").iterdir()} == set(keys[4:])
    for path, data in zip((missing, text, resized), contents, strict=True):
        path.write_bytes(data)
    annotations.write_text(content)
    shutil.rmtree(out)
    assert main(command) == 0
    assert (out / "ImageSets/Segmentation/coco_train.txt").read_text().split() == keys


def test_broken_annotations_are_listed_and_left_out(
    coco: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One broken annotation does not hide the others: all are listed, and their images, not they alone, can be left out."""
    root, masks = coco
    keys, out = [key for key in _enough(masks, 1) if int(key) <= 1000], tmp_path / "out"
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    of = {key: [entry for entry in content["annotations"] if entry["image_id"] == int(key)] for key in keys}
    several = next(key for key in keys if len(of[key]) > 1)
    others = [key for key in keys if key != several]
    for entry in of[several][:2]:
        entry["segmentation"] = [[1.0, 2.0, 3.0]]
    del of[others[0]][0]["iscrowd"]
    of[others[1]][0]["category_id"] = 99
    next(entry for entry in content["images"] if entry["id"] == int(others[2]))["width"] = "wide"
    (root / f"train2017/{others[3]}.jpg").write_text("404")
    stray = [
        {**of[others[4]][0], "id": 70_001, "image_id": 424242},
        {**of[others[4]][0], "id": 70_002, "image_id": "?"},
        "no entry",
    ]
    content["annotations"] += stray
    path.write_text(json.dumps(content))
    faults = [
        f"image {int(others[2])} has width='wide', which is no int",
        f"annotation {of[others[0]][0]['id']} has no 'iscrowd'",
        f"annotation {of[others[1]][0]['id']} is of category 99, which is not listed",
        "annotation 70001 is of image 424242, which is not listed",
        "annotation 70002 has image_id='?', which is no int",
        "an annotation has no 'id'",
        f"{several}.jpg: "
        + "; ".join(
            f"annotation {entry['id']} has a damaged polygon (x, y, x, y, ... are expected, not array('d', [1.0, 2.0, 3.0]))"
            for entry in of[several][:2]
        ),
        f"{root}/train2017/{others[3]}.jpg is no image: unpack train2017.zip again",
    ]
    command = ["prepare-coco", str(root), "--out", str(out), "--splits", "train", "--min-pixels", "1", "--processes", "1"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "5 of 12 images of COCO train could not be prepared" in said and "leave them out by --skip-broken" in said
    assert all(f"\n  {fault}\n" in said for fault in faults)
    listed = out / "coco_train_broken.txt"
    assert sorted(listed.read_text().splitlines()) == sorted(faults) and f"{listed} lists them all:" in said
    assert not (out / "ImageSets/Segmentation/coco_train.txt").exists()
    assert main([*command, "--skip-broken", "--verify"]) == 0
    said = capsys.readouterr().out
    assert "of 12 images have 1 or more pixels" in said and f"5 images are broken and left out: {listed} lists why" in said
    left = [key for key in keys if key not in (several, *others[:4])]
    assert (out / "ImageSets/Segmentation/coco_train.txt").read_text().split() == left
    for key in left:
        assert (np.array(Image.open(out / f"SegmentationClass/{key}.png")) == masks[key]).all()


def test_wrong_arguments(coco: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in a sentence, before anything is written."""
    root, _ = coco
    for arguments, words in (
        ([str(tmp_path / "none")], "there are no images"),
        ([str(root), "--min-pixels", "0"], "min_pixels must be at least 1"),
        ([str(root), "--min-pixels", "100000"], "lower --min-pixels"),
        ([str(root), "--processes", "0"], "at least 1, not 0"),
    ):
        assert main(["prepare-coco", *arguments, "--out", str(tmp_path / words)]) == 1
        assert words in capsys.readouterr().err
    with pytest.raises(ValueError, match="train and val, not 'test'"):
        prepare_coco(root, tmp_path / "out", "test")
    with pytest.raises(ValueError, match="symlink, hardlink, copy"):
        prepare_coco(root, tmp_path / "out", "val", 1, "move")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    (root / "annotations/instances_val2017.json").unlink()
    assert main(["prepare-coco", str(root), "--out", str(tmp_path / "out")]) == 1
    assert "there are no annotations" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "train was begun although val cannot be done"


def test_another_file_is_in_the_way(coco: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """An image of the user's own under COCO's name is not overwritten; a dangling link is."""
    root, masks = coco
    first, second = [key for key in _enough(masks, 1) if int(key) > 1000][:2]
    folder = tmp_path / "out/JPEGImages"
    folder.mkdir(parents=True)
    (folder / f"{first}.jpg").write_bytes(b"mine")
    (folder / f"{second}.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(ValueError, match="is another file than"):
        prepare_coco(root, tmp_path / "out", "val", 1, "symlink", 1)
    assert (folder / f"{first}.jpg").read_bytes() == b"mine"
    assert (folder / f"{second}.jpg").resolve() == (root / f"val2017/{second}.jpg").resolve()


def test_two_at_once(coco: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    """The second one would remove the first one's temporary files: it waits for it, then says so."""
    root, _ = coco
    with lock_folder(tmp_path), pytest.raises(RuntimeError, match=f"another process prepares {tmp_path}"):
        prepare_coco(root, tmp_path, "train", 1, "symlink", 1)
    assert not (tmp_path / "SegmentationClass").exists()
