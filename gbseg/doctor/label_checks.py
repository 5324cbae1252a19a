"""What the values of masks say about how they were made and how they are read.

C: number of classes; valid labels are 0..C-1 and the ignored one.
"""

import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gbseg.data.images import open_image
from gbseg.data.lists import abbreviate
from gbseg.data.masks import label_fault, stored_numbers
from gbseg.doctor.finding import ERROR, Finding
from gbseg.palettes import VOC_PALETTE

__all__ = ["Masks", "judge"]

# problem -> level, text and remedy
_PROBLEMS = tomllib.loads(Path(__file__).with_name("label_problems.toml").read_text(encoding="utf-8"))


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
        takes_ignored: whether the data set has the argument ``ignored``.
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
    takes_ignored: bool = False
    count: int = 0
    values: dict[int, str] = field(default_factory=dict)
    stored: set[int] = field(default_factory=set)
    files: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, path: str, read: np.ndarray, info: Mapping[str, Any]) -> None:
        """Add a mask: its file, and what the pipeline's ``LoadAnnotations`` made of it, (H, W) or (H, W, 3)."""
        self.count += 1
        with open_image(path) as image:
            remapped = bool(info.get("reduce_zero_label") or info.get("label_map"))
            fault = label_fault(image, read, remapped)
        if fault:
            self.files[fault].append(path)
        if read.ndim != 2:
            return
        with open_image(path) as image:
            stored = stored_numbers(image)[0]
        if stored.ndim == 2:
            self.stored.update(np.unique(stored).astype(int).tolist())
        for value in np.unique(read).tolist():
            self.values.setdefault(int(value), path)


def judge(masks: Masks) -> Iterator[tuple[Finding, Sequence[str]]]:
    """Findings on the labels of one data set: one sentence each, with the most likely cause.

    Yields:
        The finding, and what of its remedy is a change of the config, as label_problems.toml has it.
    """
    loader = f"LoadAnnotations(imdecode_backend='{masks.backend}')"
    findings = []
    for problem, finding in _PROBLEMS.items():
        if paths := masks.files.get(problem):
            text = f"{len(paths)} of {masks.count} masks (first {paths[0]}) {finding['text'].format(loader=loader)}."
            findings.append((Finding(finding["level"], "labels", text, finding["remedy"]), finding.get("changes", ())))
    errors = [finding for finding in findings if finding[0].level == ERROR]
    yield from errors or findings
    if masks.values and not errors:
        yield _judge_values(masks)


def _judge_values(masks: Masks) -> tuple[Finding, Sequence[str]]:
    classes, num_classes, ignore_index = masks.classes, masks.num_classes, masks.ignore_index
    used = sorted(set(masks.values) - {ignore_index})
    invalid = [value for value in used if value >= num_classes]
    # as the files have them; reducing makes them one less
    void = ", ".join(str(value + masks.reduce_zero_label) for value in invalid) + ("," if len(invalid) == 1 else "")
    where = "in every dataset of the config" if masks.takes_ignored else "in every dataset, of type FolderSegmentation"
    details = {
        "ignoring": f"set ignored=({void}) {where}",
        "last_class": num_classes - 1,
        "one_more": num_classes + 1,
        "used": _listed(used),
        "used_name": classes[used[0]] if used and used[0] < len(classes) else "a class",
        "first_name": classes[0] if classes else "the first class",
        "last_name": classes[-1] if classes else "class 1",
        "invalid": _listed(invalid),
        "first": f"first {masks.values[invalid[0]]}" if invalid else "",
        "ignored": f" and {ignore_index} (ignored)" if ignore_index in masks.values else "",
    }
    finding = _PROBLEMS[_diagnose(masks, set(used), invalid)]
    text, remedy = (finding[key].format(**vars(masks), **details) for key in ("text", "remedy"))
    return Finding(finding["level"], "labels", text, remedy), finding.get("changes", ())


def _diagnose(masks: Masks, used: set[int], invalid: Sequence[int]) -> str:
    """The name of the most likely problem of the values, or 'valid'."""
    values, stored, classes, num_classes = set(masks.values), masks.stored, masks.classes, masks.num_classes
    if stored <= {0, 255} and 255 in stored and num_classes <= 2:
        return "binary masks, foreground ignored" if masks.ignore_index == 255 else "binary masks"
    if not used:
        return "all ignored"
    if invalid:
        # the brightness of a palette's colours; 0 and 255 occur in any mask
        telling = used - {0, 255}
        if len(telling) > 1 and any(telling <= _brightness(colours) for colours in (masks.palette, VOC_PALETTE[:21])):
            return "palette stored as grey"
        if invalid != [num_classes]:
            return "no class"
        return "behind the last class" if 0 in values or masks.reduce_zero_label else "off by one, without 0"
    if masks.reduce_zero_label and 0 in stored and classes and classes[0].lower() in ("background", "bg"):
        return "background ignored"
    if values == stored == {0, 255} and num_classes > 2:
        return "binary masks of many classes"
    if len(used) == 1 and num_classes > 1:
        return "a single class"
    return "starts at 1" if 0 not in values and num_classes > 2 and not masks.reduce_zero_label else "valid"


def _brightness(palette: Sequence[Sequence[int]]) -> set[int]:
    """Brightness of every colour by ITU-R BT.601, as Pillow and OpenCV round it."""
    exact = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in palette]
    return {int(grey + rounding) for grey in exact for rounding in (0, 0.5)}


def _listed(values: Sequence[int]) -> str:
    if len(values) > 2 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]}..{values[-1]}"
    return abbreviate([str(value) for value in values], 12)
