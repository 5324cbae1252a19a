"""A small COCO in the real layout and format, and an independent painter of what its masks should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

# the official ids; the first twenty in the order of VOC's classes, as the DeepLab and torchvision recipes list them
VOC_ORDER = [5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72]
NAMES = {
    1: "person",
    2: "bicycle",
    3: "car",
    4: "motorcycle",
    5: "airplane",
    6: "bus",
    7: "train",
    8: "truck",
    9: "boat",
    16: "bird",
    17: "cat",
    18: "dog",
    19: "horse",
    20: "sheep",
    21: "cow",
    22: "elephant",
    44: "bottle",
    47: "cup",
    55: "orange",
    62: "chair",
    63: "couch",
    64: "potted plant",
    65: "bed",
    67: "dining table",
    72: "tv",
    73: "laptop",
}

Box = tuple[int, int, int, int]  # x0, y0, x1, y1; pixels x0..x1-1, y0..y1-1


def polygon(box: Box) -> list[float]:
    x0, y0, x1, y1 = map(float, box)
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def filled(boxes: list[Box], size: tuple[int, int]) -> np.ndarray:
    values = np.zeros(size, np.uint8)
    for x0, y0, x1, y1 in boxes:
        values[y0:y1, x0:x1] = 1
    return values


def run_lengths(values: np.ndarray) -> dict:
    """COCO's uncompressed code by a loop: column by column, lengths of 0, 1, 0, ..."""
    counts, current = [0], 0
    for value in values.T.ravel().tolist():
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    return {"size": list(values.shape), "counts": counts}


def compressed(values: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(values))
    return {"size": list(values.shape), "counts": code["counts"].decode()}


def annotation(key: int, image: int, category: int, boxes: list[Box], size: tuple[int, int], form: str = "polygon") -> dict:
    """One annotation with every key that COCO's have. Crowds are coded by run lengths, as in COCO."""
    values = filled(boxes, size)
    segmentation = {
        "polygon": lambda: [polygon(box) for box in boxes],
        "crowd": lambda: run_lengths(values),
        "rle": lambda: compressed(values),
        "compressed crowd": lambda: compressed(values),
    }[form]()
    ys, xs = np.nonzero(values)
    x, y = int(xs.min()), int(ys.min())
    return {
        "segmentation": segmentation,
        "area": float(values.sum()),
        "iscrowd": int("crowd" in form),
        "image_id": image,
        "bbox": [x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1],
        "category_id": category,
        "id": key,
    }


def painted(entries: list[tuple[int, int, list[Box], str]], size: tuple[int, int]) -> np.ndarray:
    """What the mask must be, pixel by pixel: of the instances that cover it the smallest, then the one with the higher id; a
    crowd where no instance is; else background. Entries are (annotation id, category, boxes, form).
    """
    result = np.zeros(size, np.uint8)
    for y in range(size[0]):
        for x in range(size[1]):
            best: tuple[int, int] | None = None
            for key, category, boxes, form in entries:
                if not any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes):
                    continue
                if "crowd" in form:
                    if best is None:
                        result[y, x] = 255
                elif category in VOC_ORDER:
                    area = int(filled(boxes, size).sum())
                    if best is None or (-area, key) > best:
                        best = (-area, key)
                        result[y, x] = VOC_ORDER.index(category) + 1
    return result


def write_coco(root: Path, split: str, pictures: dict[int, tuple[tuple[int, int], list[dict]]], seed: int = 0) -> None:
    """``annotations/instances_<split>2017.json`` and ``<split>2017/<12 digits>.jpg``; pictures: id -> size, annotations."""
    random = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / f"{split}2017").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for key, (size, entries) in pictures.items():
        name = f"{key:012d}.jpg"
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(root / f"{split}2017" / name)
        url = {"coco_url": f"http://images.cocodataset.org/{split}2017/{name}", "flickr_url": "", "date_captured": ""}
        images.append({"license": 4, "file_name": name, **url, "height": size[0], "width": size[1], "id": key})
        annotations += entries
    content = {
        "info": {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017},
        "licenses": [{"id": 4, "name": "Attribution License", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": [{"supercategory": "thing", "id": key, "name": name} for key, name in NAMES.items()],
    }
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
