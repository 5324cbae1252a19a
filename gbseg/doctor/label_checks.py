"""What the values of masks say about how they were made and how they are read.

C: number of classes; valid labels are 0..C-1 and the ignored one.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from gbseg.doctor.finding import ERROR, WARNING, Finding
from gbseg.palettes import VOC_PALETTE

__all__ = ["Masks", "judge"]

# the factor by which Pillow multiplies the numbers of a grey PNG of 1, 2 or 4 bits a pixel, by the name of the packing
_SCALES = {"1": 1, "L;2": 85, "L;4": 17}

_USE_PILLOW = "set imdecode_backend='pillow' in the pipeline's LoadAnnotations."

# problem -> level, text behind "N of M masks (first FILE)", remedy; {loader} is the pipeline's transform
_PROBLEMS = {
    "palette read as colours": (
        ERROR,
        "are palette PNGs, which {loader} reads as colours instead of class numbers",
        _USE_PILLOW,
    ),
    "stored as colours": (
        ERROR,
        "hold colours instead of class numbers",
        "write the class number of every pixel into one channel (docs/your_own_data.md shows how).",
    ),
    "numbers changed": (
        ERROR,
        "are read by {loader} as other numbers than are stored (a palette read as grey, as a rule)",
        _USE_PILLOW,
    ),
    "numbers scaled": (
        ERROR,
        "are grey PNGs of fewer than 8 bits a pixel, whose numbers {loader} reads scaled up to 0..255",
        "write them again with 8 bits: what Pillow reads, // 17 where the file has 4 bits, // 85 where it has 2, and "
        ".astype('uint8') where it has 1.",
    ),
    "JPEG": (ERROR, "are JPEGs, whose compression changes class numbers", "make them again as PNGs, from the source."),
    "more than 8 bits": (
        ERROR,
        "hold numbers above 255, which MMSegmentation cuts to 8 bits",
        "map them to class numbers below 255.",
    ),
    "fewer than 8 bits": (
        WARNING,
        "are grey PNGs of fewer than 8 bits a pixel: this pipeline reads them as they are stored, other readers scale them up "
        "to 0..255",
        "write them again with 8 bits a pixel.",
    ),
}


@dataclass
class Masks:
    """The masks of one data set.

    Attributes:
        classes: names of the classes.
        num_classes: C, that of the head.
        ignore_index: that of the head.
        reduce_zero_label: that of the data set.
        palette: (red, green, blue) of the classes.
        backend: ``imdecode_backend`` of the pipeline's ``LoadAnnotations``.
        count: how many were read.
        values: every value after the pipeline's ``LoadAnnotations``, and the first file that has it.
        stored: every value as stored in the files.
        files: the files that have a problem, by the problem's key.
    """

    classes: Sequence[str]
    num_classes: int
    ignore_index: int
    reduce_zero_label: bool
    palette: Sequence[Sequence[int]]
    backend: str
    count: int = 0
    values: dict[int, str] = field(default_factory=dict)
    stored: set[int] = field(default_factory=set)
    files: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, path: str, read: np.ndarray, info: Mapping[str, Any]) -> None:
        """Add a mask: its file, and what the pipeline's ``LoadAnnotations`` made of it, (H, W) or (H, W, 3)."""
        self.count += 1
        with Image.open(path) as image:
            kind, mode = image.format, image.mode
            # how the pixels are packed, which Pillow forgets once it has loaded them
            scale = _SCALES.get(str(image.tile[0][3])) if kind == "PNG" and image.tile else None
            stored = np.asarray(image)
        if scale is not None:
            stored = stored.astype(np.uint8) // scale
        if read.ndim != 2:
            self.files["palette read as colours" if mode == "P" else "stored as colours"].append(path)
            return
        if kind == "JPEG":
            self.files["JPEG"].append(path)
        if stored.ndim == 2:
            if stored.dtype.itemsize > 1 and stored.max() > 255:
                self.files["more than 8 bits"].append(path)
            self.stored.update(np.unique(stored).astype(int).tolist())
            remapped = info.get("reduce_zero_label") or info.get("label_map")
            same = np.array_equal(stored, read)
            if scale is not None:
                # remapped pixels cannot be compared; all readers of the MM packages scale 2 and 4 bits
                scaled = scale > 1 if remapped else not same
                self.files["numbers scaled" if scaled else "fewer than 8 bits"].append(path)
            elif mode in ("P", "L") and not remapped and not same:
                self.files["numbers changed"].append(path)
        for value in np.unique(read).tolist():
            self.values.setdefault(int(value), path)


def judge(masks: Masks) -> Iterator[Finding]:
    """Findings on the labels of one data set: one sentence each, with the most likely cause."""
    loader = f"LoadAnnotations(imdecode_backend='{masks.backend}')"
    findings = []
    for problem, (level, text, remedy) in _PROBLEMS.items():
        if files := masks.files[problem]:
            text = f"{len(files)} of {masks.count} masks (first {files[0]}) {text.format(loader=loader)}."
            findings.append(Finding(level, "labels", text, remedy))
    errors = [finding for finding in findings if finding.level == ERROR]
    yield from errors or findings
    if masks.values and not errors:
        yield _judge_values(masks)


def _judge_values(masks: Masks) -> Finding:
    classes, num_classes, ignore_index = masks.classes, masks.num_classes, masks.ignore_index
    reduce_zero_label = masks.reduce_zero_label
    values = set(masks.values)
    used = values - {ignore_index}
    invalid = sorted(value for value in used if value >= num_classes)
    first = f"first {masks.values[invalid[0]]}" if invalid else ""
    if masks.stored and masks.stored <= {0, 255} and 255 in masks.stored and num_classes <= 2:
        text = f"these are 0/255 binary masks: the foreground is 255, and {num_classes} classes are 0..{num_classes - 1}."
        if ignore_index == 255:
            text = (
                f"these are 0/255 binary masks: all {masks.count} hold 0 and 255 only, and ignore_index is 255, so "
                f"the foreground ({classes[-1] if classes else 'class 1'}) is never trained and never counted."
            )
        return Finding.error("labels", text, "write the foreground as 1: mask // 255.")
    if not used:
        text = f"all pixels of all {masks.count} masks are {ignore_index}, which is ignored."
        return Finding.error("labels", text, "look at them: gbseg browse.")
    if invalid:
        # the brightness of a palette's colours; 0 and 255 occur in any mask
        telling = used - {0, 255}
        if len(telling) > 1 and any(telling <= _brightness(colours) for colours in (masks.palette, VOC_PALETTE[:21])):
            return Finding.error(
                "labels",
                f"the values {_listed(invalid)} ({first}) are the brightness of the palette's colours: palettes were read as "
                "grey and stored so.",
                "go back to the palette PNGs, and read them with Pillow (or imdecode_backend='pillow'), never as grey.",
            )
        if invalid != [num_classes]:
            return Finding.error(
                "labels",
                f"the labels {_listed(invalid)} ({first}) are no class: {num_classes} classes are 0..{num_classes - 1}, "
                f"ignored is {ignore_index}.",
                "correct the masks, or classes and num_classes; pixels that should not count get the ignored label.",
            )
        if 0 not in values and not reduce_zero_label:
            return Finding.error(
                "labels",
                f"labels are off by one: they go 1..{num_classes} ({first}), and {num_classes} classes are "
                f"0..{num_classes - 1}.",
                "subtract one from every mask, or set reduce_zero_label=True in every dataset of the config, which does that "
                "and ignores 0.",
            )
        return Finding.error(
            "labels",
            f"labels are off by one: {num_classes} occurs ({first}) beside 0, and {num_classes} classes are "
            f"0..{num_classes - 1}.",
            f"if 0 is a class, there are {num_classes + 1}: name it in classes and set num_classes={num_classes + 1}; if 0 "
            "means 'no label', set reduce_zero_label=True in every dataset.",
        )
    if reduce_zero_label and 0 in masks.stored and classes and classes[0].lower() in ("background", "bg"):
        return Finding.warning(
            "labels",
            f"reduce_zero_label=True ignores the label 0 and makes 1 the class {classes[0]!r}, but 0 occurs in the masks and "
            "looks like that class.",
            "set reduce_zero_label=False if the masks' 0 is the background.",
        )
    if values == masks.stored == {0, 255} and num_classes > 2:
        return Finding.warning(
            "labels",
            f"all {masks.count} masks hold 0 and 255 (ignored) only, of {num_classes} classes: 0/255 binary masks, with "
            "num_classes and classes of another config? Their foreground is never trained and never counted.",
            "if they are, write the foreground as 1 (mask // 255), and set num_classes=2 and two classes.",
        )
    if len(used) == 1 and num_classes > 1:
        (label,) = used
        name = classes[label] if label < len(classes) else "a class"
        text = f"{label} ({name}) is the only class in all {masks.count} masks, of {num_classes} classes."
        return Finding.warning("labels", text, "look at them: gbseg browse.")
    if 0 not in values and num_classes > 2 and not reduce_zero_label:
        return Finding.warning(
            "labels",
            f"0 ({classes[0] if classes else 'the first class'}) occurs in none of {masks.count} masks, while "
            f"{_listed(sorted(used))} do: perhaps labels start at 1.",
            "if 1 is the first class, subtract one, or set reduce_zero_label=True.",
        )
    ignored = f" and {ignore_index} (ignored)" if ignore_index in values else ""
    return Finding.ok("labels", f"{masks.count} masks hold {_listed(sorted(used))}{ignored} of {num_classes} classes.")


def _brightness(palette: Sequence[Sequence[int]]) -> set[int]:
    """Brightness of every colour by ITU-R BT.601, as Pillow and OpenCV round it."""
    exact = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in palette]
    return {int(grey + rounding) for grey in exact for rounding in (0, 0.5)}


def _listed(values: Sequence[int]) -> str:
    if len(values) > 2 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]}..{values[-1]}"
    return ", ".join(map(str, values[:12])) + (", ..." if len(values) > 12 else "")
