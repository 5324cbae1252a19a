"""Statistics of a list: against loops over pixels and scipy's connected components, and read back from the files."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from gbseg.data.masks import write_mask
from gbseg.data.statistics import dataset_statistics
from gbseg.report.statistics_figure import write_statistics

CLASSES = ["background", "cat", "dog", "never"]


def _write(root: Path, masks: dict[str, np.ndarray], name: str = "mine") -> None:
    (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
    (root / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{key}\n" for key in masks))
    for key, values in masks.items():
        write_mask(root / f"SegmentationClass/{key}.png", values)


@pytest.fixture
def masks() -> dict[str, np.ndarray]:
    """Blobs of three of four classes and void; one image has a single class."""
    random = np.random.default_rng(5)
    masks = {}
    for index in range(9):
        size = (int(random.integers(20, 50)), int(random.integers(20, 70)))
        noise = ndimage.gaussian_filter(random.normal(size=size), 1.5)
        values = np.digitize(noise, np.quantile(noise, [0.5, 0.7, 0.9])).astype(np.uint8)
        values[values == 3] = 255
        masks[f"b{8 - index}"] = values
    masks["all"] = np.full((7, 70), 2, np.uint8)
    return masks


@pytest.mark.parametrize("processes", [1, 2])
def test_counts(tmp_path: Path, masks: dict[str, np.ndarray], processes: int) -> None:
    """Pixels, images and void by loops; regions and their boxes by scipy with its own idea of a neighbour."""
    _write(tmp_path, masks)
    counts = dataset_statistics(tmp_path, "mine", CLASSES, processes=processes)
    assert counts.sizes.tolist() == [list(values.shape) for values in masks.values()]
    pixels, images, shared, regions = [0] * 4, [0] * 4, [0] * 4, []
    for values in masks.values():
        labelled = sum(int(value != 255) for value in values.ravel())
        for label in range(4):
            count = sum(int(value == label) for value in values.ravel())
            pixels[label] += count
            images[label] += count > 0
            shared[label] += labelled if count else 0
            numbered, _ = ndimage.label(values == label, structure=np.ones((3, 3)))
            for number, box in enumerate(ndimage.find_objects(numbered), 1):
                height, width = (side.stop - side.start for side in box)
                regions.append([label, int((numbered == number).sum()), height, width])
    assert counts.pixels.tolist() == pixels and counts.images.tolist() == images and counts.shared.tolist() == shared
    assert counts.void == sum(values.size for values in masks.values()) - sum(pixels)
    assert sorted(counts.regions.tolist()) == sorted(regions) and len(regions) > 50
    assert {counts.pixels.dtype, counts.images.dtype, counts.shared.dtype, counts.regions.dtype} == {np.dtype(np.int64)}


def test_derived(tmp_path: Path, masks: dict[str, np.ndarray]) -> None:
    """What is derived from the counts, pixel by pixel."""
    _write(tmp_path, masks)
    counts = dataset_statistics(tmp_path, "mine", CLASSES, processes=1)
    rows = counts.rows()
    for label in (0, 1, 2):
        # one entry a pixel: the area of the region that it lies in
        area_of_each_pixel = sorted(area for area in counts.areas(label).tolist() for _ in range(area))
        assert rows[label]["area_of_median_pixel"] == area_of_each_pixel[(len(area_of_each_pixel) - 1) // 2]
        assert rows[label]["share_of_pixels"] == pytest.approx(len(area_of_each_pixel) / counts.pixels.sum(), rel=1e-12)
        assert rows[label]["area_p25"] == np.percentile(counts.areas(label), 25)
    assert rows[3]["regions"] == 0 and rows[3]["area_p50"] is rows[3]["share_where_present"] is None
    objects = [region for region in counts.regions.tolist() if region[0] in (1, 2)]
    for side in (3, 20, 70):
        fitting = [region for region in objects if max(region[2:]) <= side]
        pixels = sum(region[1] for region in fitting) / sum(region[1] for region in objects)
        images = sum(max(values.shape) <= side for values in masks.values()) / len(masks)
        want = {"images": images, "regions": len(fitting) / len(objects), "object_pixels": pixels}
        assert counts.fitting(side) == pytest.approx(want, rel=1e-12)


def test_files(tmp_path: Path, masks: dict[str, np.ndarray]) -> None:
    """The numbers can be read back, the histogram holds every region in its bin, and the figure is one."""
    _write(tmp_path, masks)
    counts = dataset_statistics(tmp_path, "mine", CLASSES, processes=1)
    path = write_statistics(counts, tmp_path / "stats")
    content = json.loads((tmp_path / "stats/stats.json").read_text())
    with (tmp_path / "stats/stats.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == CLASSES and [int(row["pixels"]) for row in table] == counts.pixels.tolist()
    assert table[3]["area_p50"] == ""
    assert content["void"]["pixels"] == counts.void and content["images"] == 10
    assert content["pixels"] == sum(values.size for values in masks.values())
    assert (
        sum(size["images"] for size in content["sizes"]) == 10 and {"height": 7, "width": 70, "images": 1} in content["sizes"]
    )
    for label, row in enumerate(content["classes"]):
        bins = content["area_bins"]
        by_hand = [sum(low <= area < high for area in counts.areas(label)) for low, high in pairwise(bins)]
        assert row["area_histogram"] == by_hand
    with Image.open(path) as image:
        assert image.width == 1440 and np.asarray(image.convert("L")).std() > 10


@pytest.mark.parametrize("values", [np.full((5, 6), 255), np.zeros((1, 1), int), np.full((300, 200), 2)])
def test_degenerate_lists_are_drawn(tmp_path: Path, values: np.ndarray) -> None:
    """Nothing but void, one pixel, one class."""
    _write(tmp_path, {"a": values})
    counts = dataset_statistics(tmp_path, "mine", CLASSES, processes=1)
    assert write_statistics(counts, tmp_path / "stats").stat().st_size > 10_000
    assert "1 images" in counts.summary()


def test_many_classes(tmp_path: Path) -> None:
    """The figure stops at sixty, the table does not."""
    classes = [f"a class with a long name {number}" for number in range(150)]
    _write(tmp_path, {"a": np.repeat(np.arange(150), 150).reshape(150, 150)})
    path = write_statistics(dataset_statistics(tmp_path, "mine", classes, processes=1), tmp_path)
    with Image.open(path) as image:
        assert image.height < 3500
    assert len((tmp_path / "stats.csv").read_text().splitlines()) == 151


def test_which_masks(tmp_path: Path) -> None:
    """Those that the list is trained with: VOC's for VOC's own lists, for others SBD's where they were prepared."""
    _write(tmp_path, {"a": np.zeros((5, 5), int)}, "train_aug")
    assert dataset_statistics(tmp_path, "train_aug", processes=1).folder == "SegmentationClass"
    write_mask(tmp_path / "SegmentationClassAug/a.png", np.ones((5, 5), int))
    counts = dataset_statistics(tmp_path, "train_aug", processes=1)
    assert counts.folder == "SegmentationClassAug" and counts.pixels[1] == 25
    assert dataset_statistics(tmp_path, "train_aug", folder="SegmentationClass", processes=1).pixels[0] == 25
    _write(tmp_path, {"a": np.zeros((5, 5), int)}, "train")
    assert dataset_statistics(tmp_path, "train", processes=1).folder == "SegmentationClass"


def test_wrong_inputs(tmp_path: Path) -> None:
    """A list or a mask that is missing or wrong ends in a sentence, never in a number."""
    with pytest.raises(FileNotFoundError, match=r"there is no list .*mine\.txt"):
        dataset_statistics(tmp_path, "mine")
    _write(tmp_path, {"a": np.full((5, 5), 21), "b": np.zeros((5, 5), int)})
    with pytest.raises(ValueError, match=r"1 of 2 masks cannot be counted.*a\.png holds 21, which is no class"):
        dataset_statistics(tmp_path, "mine", processes=2)
    (tmp_path / "SegmentationClass/a.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png is missing"):
        dataset_statistics(tmp_path, "mine", processes=1)
    path = tmp_path / "ImageSets/Segmentation/mine.txt"
    path.write_text("\ufeffb\r\n\n", encoding="utf-8")
    assert dataset_statistics(tmp_path, "mine", processes=1).pixels[0] == 25
    path.write_text("b\nb\n")
    with pytest.raises(ValueError, match="line 2 names b again"):
        dataset_statistics(tmp_path, "mine")
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        dataset_statistics(tmp_path, "mine")
