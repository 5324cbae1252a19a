"""What the values of masks say about how they were made and how they are read.

C: number of classes; labels are 0..C-1 or the ignored one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from gbseg.doctor.finding import ERROR, OK, WARNING, Finding
from gbseg.palettes import VOC_PALETTE

__all__ = ["Masks", "judge"]

# what Pillow multiplies the numbers of a grey PNG with, by the name of how they are packed: 1, 2 and 4 bits a pixel
_SCALES = {"1": 1, "L;2": 85, "L;4": 17}


@dataclass
class Masks:
    """What was found in the masks of one data set.

    Attributes:
        count: how many were read.
        values: every value after the pipeline's `LoadAnnotations`, and the first file that has it.
        stored: every value as stored in the files.
        palette_as_colours: indexed PNGs that the pipeline reads as colours.
        colours: pictures in colours.
        misread: files whose class numbers the pipeline changes.
        jpegs: masks stored with loss.
        scaled: grey PNGs of 1, 2 or 4 bits whose numbers the pipeline reads scaled up to 0..255.
        narrow: grey PNGs of 1, 2 or 4 bits that it reads as they are stored.
        wide: masks of 16 or more bits with values above 255, which MMSegmentation cuts to 8 bits.
    """

    count: int = 0
    values: dict[int, str] = field(default_factory=dict)
    stored: set[int] = field(default_factory=set)
    palette_as_colours: list[str] = field(default_factory=list)
    colours: list[str] = field(default_factory=list)
    misread: list[str] = field(default_factory=list)
    scaled: list[str] = field(default_factory=list)
    narrow: list[str] = field(default_factory=list)
    jpegs: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)

    def add(self, path: str, read: np.ndarray, info: Mapping[str, Any]) -> None:
        """Take in one mask: its file, and what the pipeline's `LoadAnnotations` made of it, (H, W) or (H, W, 3)."""
        self.count += 1
        with Image.open(path) as image:
            kind, mode = image.format, image.mode
            # how the pixels are packed, which Pillow forgets when it has loaded them
            scale = _SCALES.get(image.tile[0][3]) if kind == "PNG" and image.tile else None
            stored = np.asarray(image)
        if scale is not None:
            stored = stored.astype(np.uint8) // scale
        if read.ndim != 2:
            (self.palette_as_colours if mode == "P" else self.colours).append(path)
            return
        if kind == "JPEG":
            self.jpegs.append(path)
        if stored.ndim == 2:
            if stored.dtype.itemsize > 1 and stored.max() > 255:
                self.wide.append(path)
            self.stored.update(np.unique(stored).astype(int).tolist())
            changed = info.get("reduce_zero_label") or info.get("label_map")
            same = np.array_equal(stored, read)
            if scale is not None:
                # pixels that were changed cannot be compared; all readers of the MM packages scale 2 and 4 bits
                (self.scaled if (scale > 1 if changed else not same) else self.narrow).append(path)
            elif mode in ("P", "L") and not changed and not same:
                self.misread.append(path)
        for value in np.unique(read).tolist():
            self.values.setdefault(int(value), path)


def judge(
    masks: Masks,
    classes: Sequence[str],
    count: int,
    ignored: int,
    reduced: bool,
    palette: Sequence[Sequence[int]],
    backend: str,
) -> Iterator[Finding]:
    """Findings on the labels of one data set, the most likely cause of each, in one sentence.

    Args:
        masks: what was read.
        classes: their names.
        count: C, the ``num_classes`` of the head.
        ignored: the head's ``ignore_index``.
        reduced: the data set's ``reduce_zero_label``.
        palette: (red, green, blue) of the classes.
        backend: ``imdecode_backend`` of the pipeline's `LoadAnnotations`.
    """
    where = "labels"
    pillow = "set imdecode_backend='pillow' in the pipeline's LoadAnnotations."
    for files, text, remedy in (
        (
            masks.palette_as_colours,
            f"are palette PNGs, which LoadAnnotations(imdecode_backend='{backend}') reads as colours instead of class numbers",
            pillow,
        ),
        (
            masks.colours,
            "hold colours instead of class numbers",
            "write the class number of every pixel into one channel (docs/your_own_data.md shows how).",
        ),
        (
            masks.misread,
            f"are read by LoadAnnotations(imdecode_backend='{backend}') as other numbers than are stored (a palette read as "
            "grey, as a rule)",
            pillow,
        ),
        (
            masks.scaled,
            f"are grey PNGs of fewer than 8 bits a pixel, whose numbers LoadAnnotations(imdecode_backend='{backend}') reads "
            "scaled up to 0..255",
            "write them again with 8 bits: what Pillow reads, // 17 where the file has 4 bits, // 85 where it has 2, and "
            ".astype('uint8') where it has 1.",
        ),
        (masks.jpegs, "are JPEGs, whose compression changes class numbers", "make them again as PNGs, from the source."),
        (masks.wide, "hold numbers above 255, which MMSegmentation cuts to 8 bits", "map them to class numbers below 255."),
    ):
        if files:
            yield Finding(ERROR, where, f"{len(files)} of {masks.count} masks (first {files[0]}) {text}.", remedy)
    wrong = (masks.palette_as_colours, masks.colours, masks.misread, masks.scaled, masks.jpegs, masks.wide)
    if any(wrong) or not masks.values:
        return
    if masks.narrow:
        yield Finding(
            WARNING,
            where,
            f"{len(masks.narrow)} of {masks.count} masks (first {masks.narrow[0]}) are grey PNGs of fewer than 8 bits a pixel: "
            "this pipeline reads them as they are stored, other readers scale them up to 0..255.",
            "write them again with 8 bits a pixel.",
        )
    yield _values(masks, classes, count, ignored, reduced, palette)


def _values(
    masks: Masks, classes: Sequence[str], count: int, ignored: int, reduced: bool, palette: Sequence[Sequence[int]]
) -> Finding:
    where, found = "labels", set(masks.values)
    used = found - {ignored}
    beyond = sorted(value for value in used if value >= count)
    first = f"first {masks.values[beyond[0]]}" if beyond else ""
    if masks.stored and masks.stored <= {0, 255} and 255 in masks.stored and count <= 2:
        if ignored == 255:
            return Finding(
                ERROR,
                where,
                f"these are 0/255 binary masks: all {masks.count} hold 0 and 255 only, and ignore_index is 255, so "
                f"the foreground ({classes[-1] if classes else 'class 1'}) is never trained and never counted.",
                "write the foreground as 1: mask // 255.",
            )
        return Finding(
            ERROR,
            where,
            f"these are 0/255 binary masks: the foreground is 255, and {count} classes are 0..{count - 1}.",
            "write the foreground as 1: mask // 255.",
        )
    if not used:
        return Finding(
            ERROR,
            where,
            f"all pixels of all {masks.count} masks are {ignored}, which is ignored.",
            "look at them: gbseg browse.",
        )
    if beyond:
        # a palette's colours as brightness; 0 and 255 say nothing
        telling = used - {0, 255}
        if len(telling) > 1 and any(telling <= _greys(colours) for colours in (palette, VOC_PALETTE[:21])):
            return Finding(
                ERROR,
                where,
                f"the values {_listed(beyond)} ({first}) are the brightness of the palette's colours: palettes were read as "
                "grey and stored so.",
                "go back to the palette PNGs, and read them with Pillow (or imdecode_backend='pillow'), never as grey.",
            )
        if beyond == [count] and 0 not in found and not reduced:
            return Finding(
                ERROR,
                where,
                f"labels are off by one: they go 1..{count} ({first}), and {count} classes are 0..{count - 1}.",
                "subtract one from every mask, or set reduce_zero_label=True in every dataset of the config, which does that "
                "and ignores 0.",
            )
        if beyond == [count]:
            return Finding(
                ERROR,
                where,
                f"labels are off by one: {count} occurs ({first}) beside 0, and {count} classes are 0..{count - 1}.",
                f"if 0 is a class, there are {count + 1}: name it in classes and set num_classes={count + 1}; if 0 means "
                "'no label', set reduce_zero_label=True in every dataset.",
            )
        return Finding(
            ERROR,
            where,
            f"the labels {_listed(beyond)} ({first}) are no class: {count} classes are 0..{count - 1}, ignored is {ignored}.",
            "correct the masks, or classes and num_classes; pixels that should not count get the ignored label.",
        )
    if reduced and 0 in masks.stored and classes and classes[0].lower() in ("background", "bg"):
        return Finding(
            WARNING,
            where,
            f"reduce_zero_label=True ignores the label 0 and makes 1 the class {classes[0]!r}, but 0 occurs in the masks and "
            "looks like that class.",
            "set reduce_zero_label=False if the masks' 0 is the background.",
        )
    if found == masks.stored == {0, 255} and count > 2:
        return Finding(
            WARNING,
            where,
            f"all {masks.count} masks hold 0 and 255 (ignored) only, of {count} classes: 0/255 binary masks, with num_classes "
            "and classes of another config? Their foreground is never trained and never counted.",
            "if they are, write the foreground as 1 (mask // 255), and set num_classes=2 and two classes.",
        )
    if len(used) == 1 and count > 1:
        (only,) = used
        return Finding(
            WARNING,
            where,
            f"{only} ({classes[only] if only < len(classes) else 'a class'}) is the only class in all {masks.count} masks, of "
            f"{count} classes.",
            "look at them: gbseg browse.",
        )
    if 0 not in found and count > 2 and not reduced:
        return Finding(
            WARNING,
            where,
            f"0 ({classes[0] if classes else 'the first class'}) occurs in none of {masks.count} masks, while "
            f"{_listed(sorted(used))} do: perhaps labels start at 1.",
            "if 1 is the first class, subtract one, or set reduce_zero_label=True.",
        )
    also = f" and {ignored} (ignored)" if ignored in found else ""
    return Finding(OK, where, f"{masks.count} masks hold {_listed(sorted(used))}{also} of {count} classes.")


def _greys(palette: Sequence[Sequence[int]]) -> set[int]:
    """Brightness of every colour by ITU-R BT.601, as Pillow and OpenCV round it."""
    found = set()
    for red, green, blue in palette:
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        found |= {int(grey), int(grey + 0.5)}
    return found


def _listed(values: Sequence[int]) -> str:
    if len(values) > 2 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]}..{values[-1]}"
    return ", ".join(map(str, values[:12])) + (", ..." if len(values) > 12 else "")
