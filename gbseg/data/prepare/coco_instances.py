"""COCO's instance annotations, and the VOC label map that they give for an image.

H, W: height and width of an image in pixels. Polygons: x to the right, y downwards; pixel (0, 0) covers 0..1 in both.
"""

import contextlib
import json
from array import array
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from gbseg._moved import add_moved_names
from gbseg.palettes import VOC_CLASSES

__all__ = ["CROWD", "VOC_LABELS", "CocoFault", "CocoImage", "Instance", "draw_mask", "read_instances"]

#: Label of crowds, which training ignores.
CROWD = 255
_COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
_UNUSED_KEYS = frozenset(("bbox", "area", "coco_url", "flickr_url", "date_captured", "license"))
#: COCO's name of a category -> VOC's label.
VOC_LABELS: dict[str, int] = {_COCO_NAMES.get(name, name): label for label, name in enumerate(VOC_CLASSES) if label}


class Instance(NamedTuple):
    """One object, or one crowd of objects.

    Attributes:
        id: id of the annotation.
        label: label of VOC, 255 for a crowd.
        segmentation: polygons ``[[x0, y0, x1, y1, ...], ...]``, or a run-length code ``{"size": [H, W], "counts": ...}``
            whose counts are a list of numbers or compressed to a string.
    """

    id: int
    label: int
    segmentation: Any


class CocoImage(NamedTuple):
    """One image with its annotated objects of VOC's classes and its crowds.

    Attributes:
        file_name: name of the image file, without folders.
        height: height in pixels.
        width: width in pixels.
        instances: objects and crowds, in the order of the annotation file.
    """

    file_name: str
    height: int
    width: int
    instances: tuple[Instance, ...]

    @property
    def id(self) -> str:
        """The id that lists use: the file name without its suffix."""
        return PurePath(self.file_name).stem


class CocoFault(NamedTuple):
    """An entry of the annotation file that is broken.

    Attributes:
        text: which one, and what is wrong.
        image: id of the image that cannot be used for it; None if the entry is of no image that is listed.
    """

    text: str
    image: int | None


def read_instances(path: str | Path, faults: list[CocoFault] | None = None) -> list[CocoImage]:
    """Read ``instances_*.json``: every image, sorted by id, with its instances of the 20 VOC classes and its crowds.

    Instances of other categories are left out: they are background, or part of the VOC object that they lie on (food on a
    dining table), as in the usual pre-training on COCO. Crowds of all categories are kept.

    Args:
        path: the file.
        faults: gets every broken entry. Their images are left out, not the entry alone: without it, an object would be
            background. By default broken entries are an error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no file of instances, or has broken entries; the message says where.
    """
    broken: list[CocoFault] = []
    images = _read_instances(path, broken)
    if faults is None and broken:
        more = f", and {len(broken) - 10:,} more" if len(broken) > 10 else ""
        raise ValueError(f"{path}: {'; '.join(fault.text for fault in broken[:10])}{more}; {_REMEDY}")
    if faults is not None:
        faults += broken
    return images


_REMEDY = "get it again (annotations_trainval2017.zip)"


def _read_instances(path: str | Path, faults: list[CocoFault]) -> list[CocoImage]:
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            return _parse_images(json.load(file, object_hook=_compact), faults)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there are no annotations {path}: unpack annotations_trainval2017.zip there") from error
    except json.JSONDecodeError as error:
        size = path.stat().st_size
        raise ValueError(f"{path} ({size:,} bytes) is damaged at character {error.pos:,} ({error.msg}): {_REMEDY}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {_REMEDY}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {_REMEDY}") from error


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop unused keys, and store polygons as arrays, which take a quarter of the memory of lists.

    What is no polygon stays as it is, to be refused later.
    """
    if isinstance(entry.get("segmentation"), list):
        with contextlib.suppress(TypeError, OverflowError):
            entry["segmentation"] = [array("d", polygon) for polygon in entry["segmentation"]]
    for key in _UNUSED_KEYS.intersection(entry):
        del entry[key]
    return entry


def _get(entry: Any, key: str, kind: type, what: str) -> Any:
    """A value of the annotation file; a ValueError if it is missing or of another type."""
    if not isinstance(entry, Mapping) or key not in entry:
        raise ValueError(f"{what} has no {key!r}")
    if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
        raise ValueError(f"{what} has {key}={str(entry[key])[:40]!r}, which is no {kind.__name__}")
    return entry[key]


def _parse_images(content: Any, faults: list[CocoFault]) -> list[CocoImage]:
    images, annotations, categories = (_get(content, key, list, "it") for key in ("images", "annotations", "categories"))
    labels: dict[int, int | None] = {}
    for entry in categories:
        labels[_get(entry, "id", int, "a category")] = VOC_LABELS.get(_get(entry, "name", str, "a category"))
    if absent := set(VOC_LABELS.values()) - set(labels.values()):
        names = ", ".join(name for name, label in VOC_LABELS.items() if label in absent)
        raise ValueError(f"its categories are not COCO's: {names} missing")
    coco_images: dict[int, CocoImage] = {}
    instances: dict[int, list[Instance]] = {}
    for entry in images:
        key = entry.get("id") if isinstance(entry, Mapping) else None
        try:
            key = _get(entry, "id", int, "an image")
            if key in instances:
                raise ValueError(f"image {key} is listed twice")
            # annotations of a broken image are no further faults
            instances[key] = []
            coco_images[key] = _parse_image(entry, key)
        except ValueError as error:
            faults.append(CocoFault(str(error), key if type(key) is int else None))
    for entry in annotations:
        try:
            key = _get(entry, "id", int, "an annotation")
            what = f"annotation {key}"
            image, category = _get(entry, "image_id", int, what), _get(entry, "category_id", int, what)
            if image not in instances:
                raise ValueError(f"{what} is of image {image}, which is not listed")
            if category not in labels:
                raise ValueError(f"{what} is of category {category}, which is not listed")
            label = CROWD if _get(entry, "iscrowd", int, what) else labels[category]
        except ValueError as error:
            faults.append(CocoFault(str(error), _listed_image(entry, instances)))
            continue
        if label is not None:
            instances[image].append(Instance(key, label, entry.get("segmentation")))
    images_by_id: dict[str, list[int]] = {}
    for key, coco_image in coco_images.items():
        images_by_id.setdefault(coco_image.id, []).append(key)
    for keys in images_by_id.values():
        if len(keys) > 1:
            first, second, *_ = (coco_images[key].file_name for key in keys)
            faults += [CocoFault(f"it lists {first} and {second}, which would share a mask", key) for key in keys]
    broken = {fault.image for fault in faults}
    whole = [image._replace(instances=tuple(instances[key])) for key, image in coco_images.items() if key not in broken]
    return sorted(whole, key=lambda image: image.id)


def _listed_image(entry: Any, instances: Mapping[int, object]) -> int | None:
    """The image of an annotation that is broken, if it is one of those listed."""
    image = entry.get("image_id") if isinstance(entry, Mapping) else None
    return image if type(image) is int and image in instances else None


def _parse_image(entry: Any, key: int) -> CocoImage:
    """An image, without its instances."""
    what = f"image {key}"
    name = _get(entry, "file_name", str, what)
    height, width = _get(entry, "height", int, what), _get(entry, "width", int, what)
    # names must not lead outside of the folders
    if name != PurePath(name).name or not PurePath(name).stem or not name.isprintable():
        raise ValueError(f"{what} has the name {name[:80]!r}, which is no plain file name")
    if not (0 < height <= 2**15 and 0 < width <= 2**15):
        raise ValueError(f"{what} is said to be {width} x {height} pixels")
    return CocoImage(name, height, width, ())


def draw_mask(image: CocoImage) -> np.ndarray:
    """The VOC label map of an image, (H, W) uint8: 0 background, 1..20 the classes, 255 in crowds.

    Instances overlap in COCO (a person on a sofa). They are painted by decreasing area of their masks in pixels, and at equal
    area by increasing annotation id, so that the smaller one is on top. Crowds are painted first, because their outline is
    coarse.

    Raises:
        ValueError: segmentations are damaged; the message names the image and all of them.
    """
    labels = np.zeros((image.height, image.width), np.uint8)
    masks, faults = [], []
    for instance in image.instances:
        try:
            code = _run_lengths(instance.segmentation, image.height, image.width)
        except ValueError as error:
            faults.append(f"annotation {instance.id} {error}")
            continue
        masks.append((instance.label != CROWD, -int(coco_mask.area(code)), instance.id, instance.label, code))
    if faults:
        raise ValueError(f"{image.file_name}: {'; '.join(faults)}")
    for *_, label, code in sorted(masks, key=lambda mask: mask[:3]):
        labels[coco_mask.decode(code) != 0] = label
    return labels


def _run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """The compressed run-length code of a segmentation, for pycocotools.

    It is checked here, because pycocotools reads beyond the end of a code that is too short.
    """
    if isinstance(segmentation, list):
        limit = 2 * max(height, width)
        for polygon in segmentation:
            if not isinstance(polygon, array) or not polygon or len(polygon) % 2:
                raise ValueError(f"has a damaged polygon (x, y, x, y, ... are expected, not {str(polygon)[:60]})")
            # written so that NaN fails, too
            if not all(abs(value) <= limit for value in polygon):
                raise ValueError(f"has a polygon far outside of its image of {width} x {height} pixels")
        # one or two points enclose nothing, and pycocotools would take four numbers for a box
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

    A number is a sequence of groups of 5 bits, lowest first, each a character of code 48 + group; 32 is added to all groups but
    the last, in which 16 is the sign. From the fourth count on, the number is the difference to the count before the previous.
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


add_moved_names(__name__)
