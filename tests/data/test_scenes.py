"""The generated scenes: same seed, same bytes; VOC's layout to the letter; nobody's data overwritten; colour is not enough."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from gbseg.data import scenes
from gbseg.data.scenes import draw_scene, write_scenes
from gbseg.palettes import VOC_CLASSES, VOC_PALETTE

SMALL = {"train": 3, "val": 2, "size": (48, 64)}


def _contents(root: Path) -> dict[str, bytes]:
    """Every file below `root`, temporary ones included."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _stems(root: Path, split: str) -> list[str]:
    return (root / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set that write_scenes draws when nothing is asked for."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "VOC2012")


@pytest.fixture(scope="module")
def arrays(default: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (N, H, W, 3) as cv2 reads them and label maps (N, H, W) as PIL reads them, by split."""
    arrays = {}
    for split in ("train", "val"):
        images = [cv2.imread(str(default / "JPEGImages" / f"{stem}.jpg")) for stem in _stems(default, split)]
        masks = [np.array(Image.open(default / "SegmentationClass" / f"{stem}.png")) for stem in _stems(default, split)]
        arrays[split] = np.stack(images), np.stack(masks)
    return arrays


def test_same_bytes(tmp_path: Path) -> None:
    """One seed gives the same files in two processes; another seed shares no image and no mask with it."""
    data = Path(scenes.__file__).parent
    # the other process goes round gbseg's own import: torch and the MM packages take ten times as long as the scenes
    code = f"""
import sys, types
for name, folder in (("gbseg", {str(data.parent)!r}), ("gbseg.data", {str(data)!r})):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from gbseg.data.scenes import write_scenes
write_scenes({str(tmp_path / "there")!r}, **{SMALL!r}, seed=3)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    same_seed = _contents(write_scenes(tmp_path / "here", **SMALL, seed=3))
    assert same_seed == _contents(tmp_path / "there")
    other_seed = _contents(write_scenes(tmp_path / "other", **SMALL, seed=4))
    assert same_seed.keys() == other_seed.keys()
    assert all(same_seed[name] != other_seed[name] for name in same_seed if name.startswith(("JPEG", "SegmentationClass")))


def test_independent_scenes(tmp_path: Path) -> None:
    """A scene is the same however many others are drawn, and no two of a set are."""
    small = _contents(write_scenes(tmp_path / "few", **SMALL))
    large = _contents(write_scenes(tmp_path / "many", **(SMALL | {"train": 5, "val": 4})))
    shared = [name for name in small if name.startswith(("JPEG", "SegmentationClass"))]
    assert len(shared) == 10 and all(small[name] == large[name] for name in shared)
    assert len({large[name] for name in large if name.startswith("JPEG")}) == 9


def test_class_shares(arrays: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """All 21 classes and 255 are in both splits; background is about two thirds, and no class is rare."""
    for split in ("train", "val"):
        assert set(np.unique(arrays[split][1])) == {*range(21), 255}
    share = np.bincount(arrays["train"][1].ravel(), minlength=256) / arrays["train"][1].size
    assert 0.6 < share[0] < 0.7
    assert share[1:21].max() < 3 * share[1:21].min()


def test_sizes() -> None:
    """Any size, odd ones too, gives uint8 arrays of that size."""
    for size in ((112, 112), (96, 150), (33, 47)):
        image, label = draw_scene(np.random.default_rng(0), size)
        assert image.shape == (*size, 3) and image.dtype == np.uint8 and image.std() > 10
        assert label.shape == size and label.dtype == np.uint8


def test_files_hold_the_scenes(arrays: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """A PNG read through PIL is exactly the label map that was drawn, a JPEG nearly the image."""
    for number, split in enumerate(("train", "val")):
        for index in (0, 7):
            stream = np.random.default_rng(np.random.SeedSequence([0, number, index]))
            image, label = draw_scene(stream, (128, 160))
            np.testing.assert_array_equal(arrays[split][1][index], label)
            error = np.abs(arrays[split][0][index].astype(float) - image)  # quality 95, colour at half the resolution
            assert error.mean() < 8


def test_palette(default: Path) -> None:
    """Every PNG is indexed and carries VOC's 256 colours."""
    assert (VOC_PALETTE[1], VOC_PALETTE[15], VOC_PALETTE[255]) == ((128, 0, 0), (192, 128, 128), (224, 224, 192))
    assert len(VOC_CLASSES) == 21 and len(set(VOC_PALETTE)) == 256
    for path in (default / "SegmentationClass").iterdir():
        mask = Image.open(path)
        assert mask.mode == "P" and mask.size == (160, 128)
        assert mask.getpalette() == [value for colour in VOC_PALETTE for value in colour]


def test_borders(arrays: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """No two neighbours, across or down, have different labels unless one is 255."""
    for _, masks in arrays.values():
        for labels, neighbours in ((masks[:, 1:], masks[:, :-1]), (masks[:, :, 1:], masks[:, :, :-1])):
            assert ((labels == neighbours) | (labels == 255) | (neighbours == 255)).all()
        assert 0.04 < (masks == 255).mean() < 0.1  # a border of two pixels, no more


def test_lists_and_stamp(default: Path) -> None:
    """The lists name exactly the files that are there, and the stamp has their hash."""
    ids = _stems(default, "train") + _stems(default, "val")
    assert len(_stems(default, "train")) == 240 and len(ids) == len(set(ids)) == 300
    expected = {f"JPEGImages/{stem}.jpg" for stem in ids} | {f"SegmentationClass/{stem}.png" for stem in ids}
    expected |= {"ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt"}
    files = _contents(default)
    assert files.keys() == expected | {"scenes.json"}
    stamp = json.loads(files["scenes.json"])
    assert stamp["arguments"] == {"format": 2, "train": 240, "val": 60, "size": [128, 160], "seed": 0}
    assert stamp["sha256"] == hashlib.sha256(b"".join(files[name] for name in sorted(expected))).hexdigest()


def test_second_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set that is there is neither drawn nor touched again."""
    root = write_scenes(tmp_path / "set", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(scenes, "draw_scene", lambda *_: pytest.fail("drawn again"))
    assert write_scenes(str(root), **SMALL) == root
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.parametrize("changed", [{"train": 4}, {"val": 3}, {"size": (64, 48)}, {"seed": 1}])
def test_other_arguments(tmp_path: Path, changed: dict) -> None:
    """Scenes drawn with other arguments are refused, and stay as they are."""
    root = write_scenes(tmp_path, **SMALL)
    before = _contents(root)
    with pytest.raises(FileExistsError, match=r"other arguments: scenes\.json says .*asked for is"):
        write_scenes(root, **(SMALL | changed))
    assert _contents(root) == before


@pytest.mark.parametrize("name", ["JPEGImages", "SegmentationClass", "ImageSets"])
def test_foreign_data(tmp_path: Path, name: str) -> None:
    """A folder with any part of VOC's layout that was not generated is refused, and stays as it is."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "2007_000032").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=f"holds {name} but no scenes.json"):
        write_scenes(tmp_path, **SMALL)
    assert _contents(tmp_path) == {f"{name}/2007_000032": b"mine"}


def test_unreadable_stamp(tmp_path: Path) -> None:
    """A stamp that says nothing does not count as one of ours."""
    for text in ("{", "[]", "{}"):
        (tmp_path / "scenes.json").write_text(text)
        with pytest.raises(FileExistsError, match="nothing readable"):
            write_scenes(tmp_path, **SMALL)
        assert _contents(tmp_path) == {"scenes.json": text.encode()}


@pytest.mark.parametrize("stop", [0, 2, 4])
def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """The same call finishes an interrupted set to the bytes of a whole one; another call is refused."""
    drawn = 0

    def interrupted(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        nonlocal drawn
        if drawn == stop:
            raise KeyboardInterrupt
        drawn += 1
        return draw_scene(rng, size)

    with monkeypatch.context() as patch:
        patch.setattr(scenes, "draw_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(tmp_path / "set", **SMALL)
    assert not (tmp_path / "set" / "scenes.json").exists()
    with pytest.raises(FileExistsError, match=r"scenes\.partial\.json says"):
        write_scenes(tmp_path / "set", **SMALL, seed=1)
    assert _contents(write_scenes(tmp_path / "set", **SMALL)) == _contents(write_scenes(tmp_path / "whole", **SMALL))


def test_a_write_that_fails(tmp_path: Path) -> None:
    """A size limit that the second image's bytes exceed (a real refusal of the kernel): what is there is whole."""
    expected = _contents(write_scenes(tmp_path / "whole", **SMALL))
    sizes = [len(expected[f"JPEGImages/train_{index:06d}.jpg"]) for index in range(SMALL["train"])]
    limit = max(sizes[0], len(expected["SegmentationClass/train_000000.png"]))
    assert sizes[1] > limit, "the second image no longer is larger than all before it: choose another seed"
    script = (
        "import resource, signal, sys; from gbseg.data.scenes import write_scenes\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"write_scenes(sys.argv[1], **{SMALL})"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "set"], capture_output=True, text=True, timeout=120, check=False
    )
    assert "train_000001.jpg could not be written: File too large" in run.stderr
    left = _contents(tmp_path / "set")
    assert left.pop("scenes.partial.json") and len(left) == 2
    assert all(expected[name] == data for name, data in left.items())
    assert _contents(write_scenes(tmp_path / "set", **SMALL)) == expected


@pytest.mark.parametrize("wrong", [{"train": -1}, {"val": -1}, {"seed": -1}, {"size": (31, 64)}])
def test_out_of_range(tmp_path: Path, wrong: dict) -> None:
    """Arguments out of range raise before anything is written."""
    with pytest.raises(ValueError, match="must be 0 or more, sides 32 or more"):
        write_scenes(tmp_path / "set", **(SMALL | wrong))
    assert not (tmp_path / "set").exists()


def _mean_iou(truth: np.ndarray, predicted: np.ndarray) -> float:
    table = np.bincount(truth.astype(int) * 21 + predicted, minlength=441).reshape(21, 21)
    return float((np.diag(table) / np.maximum(table.sum(0) + table.sum(1) - np.diag(table), 1)).mean())


def test_colour_alone(arrays: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """No rule on a single pixel's colour comes near: neither the nearest class mean nor a full table of colours."""
    (image, label), (val_image, val_label) = (
        (images[:, ::2, ::2], labels[:, ::2, ::2]) for images, labels in (arrays["train"], arrays["val"])
    )
    labelled, val_labelled = label < 255, val_label < 255
    colour, label = image[labelled].astype(np.float32), label[labelled]
    val_colour, val_label = val_image[val_labelled].astype(np.float32), val_label[val_labelled]

    count = np.bincount(label, minlength=21)
    means = np.stack([np.bincount(label, colour[:, channel], 21) for channel in range(3)], axis=1) / count[:, None]
    # the square of a pixel's distance to a mean, less the pixel's own square
    nearest = ((means**2).sum(axis=1) - 2 * val_colour @ means.T).argmin(axis=1)
    assert _mean_iou(val_label, nearest) < 0.1

    # the best that any rule on one pixel's colour can do, 16 steps a channel, with and without the classes' frequencies
    code, val_code = (pixels.astype(int) // 16 @ (256, 16, 1) for pixels in (colour, val_colour))
    table = np.bincount(code * 21 + label, minlength=4096 * 21).reshape(4096, 21)
    for weight in (1, 1 / count):
        assert _mean_iou(val_label, (table * weight).argmax(axis=1)[val_code]) < 0.2
