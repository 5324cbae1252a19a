"""How time and memory of the loss grow with the batch, the classes and the side of the images."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from benchmarks.inputs import EXP, IGNORE, TARGETS, cross_entropy, derived, logits_and_labels, text
from benchmarks.table import Row, Settings, by_contender
from benchmarks.timing import measure
from gbseg.losses.functional import fused_boosted_loss

BASELINE = "F.cross_entropy"
CLASSES = (2, 21, 150, 1000, 10_000, 100_000)

# what grows -> (its size, the logits' shape) of every point
Points = dict[str, list[tuple[int, tuple[int, ...]]]]


def points(quick: bool) -> Points:
    """The logits of every point."""
    if quick:
        return {
            "batch": [(size, (size, 21, 16, 16)) for size in (1, 2)],
            "classes, 2^12 logits": [(size, (2**12 // size, size)) for size in (2, 64)],
            "classes, 8 rows": [(size, (8, size)) for size in (2, 64)],
            "image side": [(size, (1, 21, size, size)) for size in (16, 32)],
        }
    return {
        "batch": [(size, (size, 21, 128, 128)) for size in (1, 2, 4, 8, 16)],
        "classes, 2^22 logits": [(size, (2**22 // size, size)) for size in CLASSES],
        "classes, 64 rows": [(size, (64, size)) for size in CLASSES],
        "image side": [(size, (1, 21, size, size)) for size in (64, 128, 256, 512, 1024)],
    }


def contenders(x: Tensor, label: Tensor) -> dict[str, Callable[[], object]]:
    """What is compared, by name."""
    ignored = IGNORE if x.ndim > 2 else None
    return {
        BASELINE: derived(lambda: cross_entropy(x, label), x),
        "exp-GB": derived(lambda: fused_boosted_loss(x, label, EXP, TARGETS, ignore_index=ignored), x),
    }


def run(settings: Settings) -> list[Row]:
    """Time and peak memory of forward and backward at every point."""
    rows = []
    for what, each in points(settings.quick).items():
        for size, shape in each:
            ways = contenders(*logits_and_labels(shape, settings.device))
            rows += by_contender(what, text(shape), measure(ways, settings.rounds, settings.device), BASELINE, size=size)
    return rows
