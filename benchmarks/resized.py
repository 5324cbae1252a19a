"""Logits upsampled eight times and their loss: at once, class by class, against one after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from benchmarks.inputs import EXP, IGNORE, TARGETS, cross_entropy, derived, logits_and_labels, text
from benchmarks.table import Row, Settings, by_contender
from benchmarks.timing import agree, measure
from gbseg.losses.functional import fused_boosted_loss
from gbseg.losses.resize import boosted_resize_loss, upsample

BASELINE = "F.interpolate, F.cross_entropy"


def resized_cross_entropy(x: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of the logits upsampled to the labels' size."""
    return cross_entropy(upsample(x, tuple(label.shape[1:]), False), label)


@cache
def _compiled() -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(resized_cross_entropy, dynamic=False)


def run(settings: Settings) -> list[Row]:
    """Time and peak memory of forward and backward."""
    shape, side = ((1, 21, 16, 16), 64) if settings.quick else ((4, 21, 64, 64), 512)
    size = (side, side)
    x, label = logits_and_labels(shape, settings.device, size=size)
    losses = {
        BASELINE: lambda: resized_cross_entropy(x, label),
        "F.interpolate, F.cross_entropy, torch.compile": lambda: _compiled()(x, label),
        "F.interpolate, exp-GB": lambda: fused_boosted_loss(upsample(x, size, False), label, EXP, TARGETS, ignore_index=IGNORE),
        "exp-GB, boosted_resize_loss": lambda: boosted_resize_loss(x, label, EXP, TARGETS, ignore_index=IGNORE),
    }
    ways = {name: derived(loss, x) for name, loss in losses.items()}
    agree(ways, ("F.interpolate, exp-GB", "exp-GB, boosted_resize_loss"))
    timings = measure(ways, settings.rounds, settings.device)
    return by_contender("resized", f"{text(shape)} to {side}x{side}", timings, BASELINE)
