"""The last layer of a classifier with very many classes and its loss: in blocks of classes, against one after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.inputs import EXP, TARGETS, derived
from benchmarks.table import Row, Settings, by_contender
from benchmarks.timing import agree, measure
from gbseg.losses.functional import fused_boosted_loss
from gbseg.losses.linear import boosted_linear_loss

BASELINE = "F.linear, F.cross_entropy"


def run(settings: Settings) -> list[Row]:
    """Time and peak memory of forward and backward, with the gradients of features (N, D) and weight (C, D)."""
    rows, width, classes = (64, 32, 2000) if settings.quick else (256, 256, 100_000)
    torch.manual_seed(0)
    features = torch.randn(rows, width).to(settings.device).requires_grad_()
    # as a layer begins: logits of about the size of the features
    weight = (torch.randn(classes, width) / width**0.5).to(settings.device).requires_grad_()
    label = torch.randint(classes, (rows,)).to(settings.device)
    losses = {
        BASELINE: lambda: F.cross_entropy(F.linear(features, weight), label),
        "F.linear, exp-GB": lambda: fused_boosted_loss(F.linear(features, weight), label, EXP, TARGETS),
        "exp-GB, boosted_linear_loss": lambda: boosted_linear_loss(features, weight, None, label, EXP, TARGETS),
    }
    ways = {name: derived(loss, features, weight) for name, loss in losses.items()}
    agree(ways, ("F.linear, exp-GB", "exp-GB, boosted_linear_loss"))
    timings = measure(ways, settings.rounds, settings.device)
    return by_contender("linear", f"{rows}x{width} by {classes}x{width}", timings, BASELINE)
