"""COCO's instance annotations, and the VOC label map that the instances of an image add up to.

H, W: height and width of an image in pixels. Coordinates of a polygon: x to the right, y downwards, pixel (0, 0) covers
0..1 in both.
"""

from __future__ import annotations

import contextlib
import json
from array import array
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

from gbseg.palettes import VOC_CLASSES

__all__ = ["CROWD", "VOC_LABELS", "Instance", "Picture", "draw", "read_instances"]

CROWD = 255
_RENAMED = {
    "airplane": "aeroplane",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "couch": "sofa",
    "tv": "tvmonitor",
}
_NOT_NEEDED = frozenset(("bbox", "area", "coco_url", "flickr_url", "date_captured", "license"))
_COCO_NAMES = {voc: coco for coco, voc in _RENAMED.items()}
# COCO's name of a category -> VOC's label
VOC_LABELS: dict[str, int] = {_COCO_NAMES.get(name, name): label for label, name in enumerate(VOC_CLASSES) if label}


class Instance(NamedTuple):
    """One object, or one crowd of them.

    Attributes:
        id: of the annotation.
        label: VOC's, 255 for a crowd.
        segmentation: polygons ``[[x0, y0, x1, y1, ...], ...]``, or a run-length code ``{"size": [H, W], "counts": ...}``
            with the counts as numbers or compressed to text.
    """

    id: int
    label: int
    segmentation: Any


class Picture(NamedTuple):
    """One image with what is annotated in it, of VOC's classes and crowds.

    Attributes:
        file_name: a plain name.
        height: in pixels.
        width: in pixels.
        instances: in the order of the file.
    """

    file_name: str
    height: int
    width: int
    instances: tuple[Instance, ...]

    @property
    def id(self) -> str:
        """What lists call it: the file's name without its suffix."""
        return PurePath(self.file_name).stem


def read_instances(path: str | Path) -> list[Picture]:
    """Read ``instances_*.json``: every image, sorted by id, with its instances of the 20 VOC classes and its crowds.

    Instances of other categories are left out: they are background, or part of the VOC object that they lie on (food on a
    dining table), as in the usual pre-training on COCO. A crowd is kept whatever its category.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or no file of instances; the message says where.
    """
    path = Path(path)
    how = "get it again (annotations_trainval2017.zip)"
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_hook=_compact)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there are no annotations {path}: unpack annotations_trainval2017.zip there") from error
    except json.JSONDecodeError as error:
        size = path.stat().st_size
        raise ValueError(f"{path} ({size:,} bytes) is damaged at character {error.pos:,} ({error.msg}): {how}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {how}") from error
    try:
        return _pictures(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {how}") from error


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry without what is not needed here, and with polygons as arrays, which take a quarter of the memory of lists. What
    is no polygon stays as it is, to be refused later.
    """
    if isinstance(entry.get("segmentation"), list):
        with contextlib.suppress(TypeError, OverflowError):
            entry["segmentation"] = [array("d", polygon) for polygon in entry["segmentation"]]
    for key in _NOT_NEEDED.intersection(entry):
        del entry[key]
    return entry


def _get(entry: Any, key: str, kind: type, what: str) -> Any:
    if not isinstance(entry, Mapping) or key not in entry:
        raise ValueError(f"{what} has no {key!r}")
    if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
        raise ValueError(f"{what} has {key}={str(entry[key])[:40]!r}, which is no {kind.__name__}")
    return entry[key]


def _pictures(content: Any) -> list[Picture]:
    images, annotations, categories = (_get(content, key, list, "it") for key in ("images", "annotations", "categories"))
    labels: dict[int, int | None] = {}
    for entry in categories:
        labels[_get(entry, "id", int, "a category")] = VOC_LABELS.get(_get(entry, "name", str, "a category"))
    if absent := set(VOC_LABELS.values()) - set(labels.values()):
        names = ", ".join(name for name, label in VOC_LABELS.items() if label in absent)
        raise ValueError(f"its categories are not COCO's: {names} missing")
    instances: dict[int, list[Instance]] = {_get(entry, "id", int, "an image"): [] for entry in images}
    for entry in annotations:
        key = _get(entry, "id", int, "an annotation")
        what = f"annotation {key}"
        image, category = _get(entry, "image_id", int, what), _get(entry, "category_id", int, what)
        if image not in instances:
            raise ValueError(f"{what} is of image {image}, which is not listed")
        if category not in labels:
            raise ValueError(f"{what} is of category {category}, which is not listed")
        label = CROWD if _get(entry, "iscrowd", int, what) else labels[category]
        if label is not None:
            instances[image].append(Instance(key, label, entry.get("segmentation")))
    pictures = []
    for entry in images:
        what = f"image {entry['id']}"
        name = _get(entry, "file_name", str, what)
        height, width = _get(entry, "height", int, what), _get(entry, "width", int, what)
        # whatever a file says, nothing is read or written outside the folders
        if name != PurePath(name).name or not PurePath(name).stem or not name.isprintable():
            raise ValueError(f"{what} has the name {name[:80]!r}, which is no plain file name")
        if not (0 < height <= 2**15 and 0 < width <= 2**15):
            raise ValueError(f"{what} is said to be {width} x {height} pixels")
        pictures.append(Picture(name, height, width, tuple(instances[entry["id"]])))
    pictures.sort(key=lambda picture: picture.id)
    for one, other in pairwise(pictures):
        if one.id == other.id:
            raise ValueError(f"it lists {one.file_name} and {other.file_name}, which would share a mask")
    return pictures


def draw(picture: Picture) -> np.ndarray:
    """The VOC label map of an image, (H, W) uint8: 0 background, 1..20, 255 in crowds.

    Instances overlap in COCO (a person on a sofa): they are painted by falling area, measured in pixels of their own masks, and
    at the same area by rising annotation id, so the smaller one is on top. Crowds are painted first: their outline is coarse,
    and an object that was outlined by itself is known better.

    Raises:
        ValueError: a segmentation is damaged; the message names the image and the annotation.
    """
    values = np.zeros((picture.height, picture.width), np.uint8)
    masks = []
    for instance in picture.instances:
        try:
            code = _run_lengths(instance.segmentation, picture.height, picture.width)
        except ValueError as error:
            raise ValueError(f"{picture.file_name}: annotation {instance.id} {error}") from error
        masks.append((instance.label != CROWD, -int(coco_mask.area(code)), instance.id, instance.label, code))
    for *_, label, code in sorted(masks, key=lambda entry: entry[:3]):
        values[coco_mask.decode(code) != 0] = label
    return values


def _run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Pycocotools' compressed run-length code of a segmentation. It is checked here: pycocotools reads what is too short
    on into foreign memory.
    """
    if isinstance(segmentation, list):
        limit = 2 * max(height, width)
        for polygon in segmentation:
            if not isinstance(polygon, array) or not polygon or len(polygon) % 2:
                raise ValueError(f"has a damaged polygon (x, y, x, y, ... are expected, not {str(polygon)[:60]})")
            # NaN is not <= anything
            if not all(abs(value) <= limit for value in polygon):
                raise ValueError(f"has a polygon far outside of its image of {width} x {height} pixels")
        # one or two points enclose nothing, and pycocotools takes four numbers for a box
        polygons = [list(polygon) for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            raise ValueError("has no polygon of three or more points")
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("has no segmentation: neither polygons nor a run-length code")
    size, counts = segmentation["size"], segmentation["counts"]
    if size != [height, width]:
        raise ValueError(f"has a run-length code of size {str(size)[:40]}, and its image is [{height}, {width}]")
    if isinstance(counts, str):
        counts = _decompress(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("has a damaged run-length code: its counts are no numbers from 0 on")
    if sum(counts) != height * width:
        raise ValueError(f"has a damaged run-length code: it covers {sum(counts):,} of {height * width:,} pixels")
    return coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)


def _decompress(text: str) -> list[int]:
    """The counts of COCO's compressed run-length code.

    A number is written in groups of 5 bits, lowest first, one character (48 + group) each, with 32 added to all but the last
    and the sign in the last one's 16; from the third count on it is the difference to the count before the previous one.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError(f"has a damaged run-length code: it holds {character!r}")
        number |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = shift = 0
    if shift:
        raise ValueError("has a damaged run-length code: it ends in the middle of a number")
    return counts
