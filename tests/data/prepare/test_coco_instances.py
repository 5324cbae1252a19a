"""COCO's instances as label maps: against a painter by loops, pycocotools' own COCO class and OpenCV's polygons."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from coco_tiny import NAMES, VOC_ORDER, Box, annotation, compressed, painted, run_lengths, write_coco
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from gbseg.data.prepare.coco_instances import VOC_LABELS, CocoFault, CocoImage, Instance, draw_mask, read_instances
from gbseg.palettes import VOC_CLASSES

SIZE = (40, 60)
# id, category, boxes, form: a cup on a table, a person on a sofa, equal areas, crowds under and beside instances
ENTRIES: list[tuple[int, int, list[Box], str]] = [
    (11, 67, [(2, 2, 30, 20)], "polygon"),
    (12, 47, [(4, 4, 9, 9)], "polygon"),
    (13, 63, [(20, 10, 50, 35)], "polygon"),
    (14, 1, [(25, 12, 35, 30), (40, 12, 45, 20)], "polygon"),
    (15, 17, [(0, 25, 10, 35)], "polygon"),
    (10, 18, [(5, 25, 15, 35)], "polygon"),
    (16, 1, [(28, 8, 60, 22)], "crowd"),
    (17, 55, [(0, 36, 20, 40)], "compressed crowd"),
    (18, 5, [(50, 30, 60, 40)], "rle"),
]


def test_names() -> None:
    """Every VOC class has COCO's name for it, in the order of the official ids that the usual recipes list."""
    assert [VOC_LABELS[NAMES[key]] for key in VOC_ORDER] == list(range(1, 21)) and len(VOC_LABELS) == 20
    same = {name for name in VOC_CLASSES if name in VOC_LABELS}
    assert len(same) == 14 and all(VOC_CLASSES[VOC_LABELS[name]] == name for name in same)


@pytest.mark.parametrize("order", [1, -1])
def test_overlaps(tmp_path: Path, order: int) -> None:
    """Boxes whose sides are pixel borders: every pixel as the rules say, whatever the order of the annotations."""
    entries = [annotation(key, 7, category, boxes, SIZE, form) for key, category, boxes, form in ENTRIES[::order]]
    write_coco(tmp_path, "val", {7: (SIZE, entries)})
    (picture,) = read_instances(tmp_path / "annotations/instances_val2017.json")
    values = draw_mask(picture)
    assert (values == painted(ENTRIES, SIZE)).all()
    # the cup is table, the sofa's part under the person is person, the cat is on top of the dog or the other way round by id
    assert values[5, 5] == VOC_CLASSES.index("diningtable") and values[15, 30] == VOC_CLASSES.index("person")
    assert values[30, 7] == VOC_CLASSES.index("cat") and values[9, 55] == 255 and values[15, 42] == VOC_CLASSES.index("person")


def test_polygons_as_the_others_draw_them(tmp_path: Path) -> None:
    """Stars of any shape: exactly pycocotools' annToMask, and OpenCV's fillPoly but for a line of pixels at the outline."""
    random, size, stars = np.random.default_rng(3), (120, 160), []
    for key in range(1, 31):
        angles = np.sort(random.uniform(0, 2 * np.pi, 9))
        radius = random.uniform(12, 50, 9)
        centre = random.uniform((40, 40), (120, 80))
        points = np.clip(np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None] + centre, 0, (160, 120)).round(2)
        star = annotation(key, key, 17, [(0, 0, 1, 1)], size)
        star["segmentation"] = [points.ravel().tolist()]
        stars.append((key, points, star))
    write_coco(tmp_path, "val", {key: (size, [star]) for key, _, star in stars})
    path = tmp_path / "annotations/instances_val2017.json"
    coco = COCO(path)
    for picture, (key, points, _) in zip(read_instances(path), stars, strict=True):
        values = draw_mask(picture)
        assert set(np.unique(values)) == {0, 8}
        assert ((values == 8) == coco.annToMask(coco.loadAnns(key)[0]).astype(bool)).all()
        # fixed point coordinates with 8 bits behind the point; OpenCV's pixel (0, 0) has its centre at (0, 0)
        filled = cv2.fillPoly(np.zeros(size, np.uint8), [np.rint((points - 0.5) * 256).astype(np.int32)], 1, shift=8)
        outline = cv2.polylines(np.zeros(size, np.uint8), [np.rint(points - 0.5).astype(np.int32)], True, 1, thickness=3)
        assert ((values == 8) == filled.astype(bool))[outline == 0].all()
        assert 0.9 < (values == 8).sum() / filled.sum() < 1.1


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_run_lengths(height: int, width: int, seed: int, share: float) -> None:
    """Any set of pixels comes back, from counts as numbers and from pycocotools' compressed ones."""
    values = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    for segmentation in (run_lengths(values), compressed(values)):
        assert (draw_mask(CocoImage("a.jpg", height, width, (Instance(1, 3, segmentation),))) == 3 * values).all()


def test_points_and_lines_enclose_nothing() -> None:
    """A polygon of two points beside a real one, which pycocotools alone would take for a box."""
    box = array("d", [2, 2, 6, 2, 6, 5, 2, 5])
    values = draw_mask(CocoImage("a.jpg", 10, 12, (Instance(1, 3, [array("d", [0, 0, 9, 9]), box]),)))
    assert (values == 3).sum() == 12 and (values[2:5, 2:6] == 3).all()


SMALL = run_lengths(np.eye(4, 6, dtype=np.uint8))


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([], "no polygon"),
        ([[1, 1, 3, 1]], "no polygon of three or more points"),
        ([[1, 1, 3, 1, 3, 3, 2]], "damaged polygon"),
        ([["a", "b", "c", "d", "e", "f"]], "damaged polygon"),
        ([None], "damaged polygon"),
        ([[1, 1, float("nan"), 1, 3, 3]], "far outside"),
        ([[1, 1, 1e9, 1, 3, 3]], "far outside"),
        (None, "no segmentation"),
        ("x", "no segmentation"),
        ({"size": [4, 6]}, "no segmentation"),
        ({**SMALL, "size": [6, 4]}, r"of size \[6, 4\], and its image is \[4, 6\]"),
        ({**SMALL, "counts": SMALL["counts"][:-1]}, "covers 16 of 24 pixels"),
        ({**SMALL, "counts": [*SMALL["counts"], 1]}, "covers 25 of 24 pixels"),
        ({**SMALL, "counts": [-1, *SMALL["counts"][1:]]}, "no numbers from 0 on"),
        ({**SMALL, "counts": [0.5]}, "no numbers from 0 on"),
        ({**SMALL, "counts": None}, "no numbers from 0 on"),
        ({**SMALL, "counts": ""}, "covers 0 of 24 pixels"),
        ({**SMALL, "counts": compressed(np.eye(4, 6, dtype=np.uint8))["counts"][:-2]}, "damaged run-length code"),
        ({**SMALL, "counts": "ooo"}, "ends in the middle"),
        ({**SMALL, "counts": "\x00"}, "holds"),
    ],
)
def test_damaged_segmentations(segmentation: object, words: str, tmp_path: Path) -> None:
    """Each is refused with the image and the annotation; pycocotools alone fills some of them with foreign memory."""
    entry = annotation(5, 7, 17, [(0, 0, 3, 3)], (4, 6))
    entry["segmentation"] = segmentation
    write_coco(tmp_path, "val", {7: ((4, 6), [entry])})
    (picture,) = read_instances(tmp_path / "annotations/instances_val2017.json")
    with pytest.raises(ValueError, match=rf"^000000000007.jpg: annotation 5 .*{words}"):
        draw_mask(picture)


def _without(*keys: str) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for key in keys[:-1]:
            content = content[key][0]
        del content[keys[-1]]

    return change


def _with(kind: str, key: str, value: object) -> Callable[[dict], None]:
    return lambda content: content[kind][0].update({key: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("images"), "it has no 'images'"),
        (_without("annotations", "iscrowd"), "annotation 5 has no 'iscrowd'"),
        (_without("images", "height"), "image 7 has no 'height'"),
        (_with("images", "width", "60"), "image 7 has width='60', which is no int"),
        (_with("images", "height", 0), "said to be 60 x 0 pixels"),
        (_with("images", "file_name", "../../evil.jpg"), "no plain file name"),
        (_with("images", "id", 8), "annotation 5 is of image 7, which is not listed"),
        (_with("annotations", "category_id", 91), "of category 91, which is not listed"),
        (_with("categories", "name", "human"), "categories are not COCO's: person missing"),
        (lambda content: content["images"].append({**content["images"][0], "id": 9}), "would share a mask"),
    ],
)
def test_files_that_are_not_coco(change: Callable[[dict], None], words: str, tmp_path: Path) -> None:
    """What is missing or contradicts itself is named with the file."""
    write_coco(tmp_path, "val", {7: (SIZE, [annotation(5, 7, 17, [(0, 0, 3, 3)], SIZE)])})
    path = tmp_path / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words) as caught:
        read_instances(path)
    assert str(path) in str(caught.value)


def test_every_broken_entry_is_named(tmp_path: Path) -> None:
    """All in one message, ten of many; with a list for them, the whole images remain."""
    entries = {7 + k: (SIZE, [annotation(5 + k, 7 + k, 17, [(0, 0, 3, 3)], SIZE)]) for k in range(14)}
    write_coco(tmp_path, "val", entries)
    path = tmp_path / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"].append(dict(content["images"][13], id=99))
    for entry in content["annotations"][:12]:
        entry["category_id"] = 91
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"annotation 5 is of category 91.*; annotation 14 is.*, and 4 more; get it again"):
        read_instances(path)
    faults: list[CocoFault] = []
    (image,) = read_instances(path, faults)
    assert image.id == f"{7 + 12:012d}" and [fault.image for fault in faults] == [*range(7, 19), 20, 99]


def test_damaged_files(tmp_path: Path) -> None:
    """Cut off, no JSON, no text, not there."""
    write_coco(tmp_path, "val", {7: (SIZE, [annotation(5, 7, 17, [(0, 0, 3, 3)], SIZE)])})
    path = tmp_path / "annotations/instances_val2017.json"
    whole = path.read_bytes()
    for content, words in ((whole[:-200], "is damaged at character"), (b"\xff\xfe", "is damaged"), (b"[]", "has no 'images'")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_instances(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="unpack annotations_trainval2017"):
        read_instances(path)
