"""The loss of a batch of segmentation logits and its gradient, against cross-entropy, focal loss and other ways to write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.inputs import EXP, IGNORE, TARGETS, compiled_cross_entropy, cross_entropy, derived, logits_and_labels, text
from benchmarks.memory import held, peak
from benchmarks.table import MIB, Row, Settings, by_contender
from benchmarks.timing import agree, measure, reason
from gbseg.boosting import CubicBoost
from gbseg.losses.functional import fused_boosted_loss
from gbseg.losses.modules import ExpGBLoss

BASELINE = "F.cross_entropy"
COPY, CLONE = "copy into a buffer", "x.detach().clone()"
SLOW = (
    "exp-GB, one-hot in PyTorch",
    "exp-GB, reference",
    "exp-GB, torch.compile",
    "mmseg FocalLoss",
    "mmseg FocalLoss, of one-hot labels",
)
SAME = ("exp-GB, reference", "exp-GB", "exp-GB, one-hot in PyTorch", "exp-GB, keep_gradient=False", "ExpGBLoss, checks labels")


def one_hot_expgb(x: Tensor, label: Tensor) -> Tensor:
    """exp-GB as one writes it down, without the constant of the targets, which has no gradient."""
    valid_mask = label != IGNORE
    target = TARGETS[1] * F.one_hot(torch.where(valid_mask, label, 0), x.shape[1]).movedim(-1, 1)
    loss = EXP.alpha * x.exp() - target * x
    return (loss.sum(1) * valid_mask).sum() / valid_mask.sum()


# imported when they are called, so that one that is not installed is left out and not all of them
@cache
def _mmseg(name: str, **options: Any) -> nn.Module:
    from mmseg.models import losses

    return getattr(losses, name)(**options)


def liger_cross_entropy(x: Tensor, label: Tensor) -> Tensor:
    """Liger-Kernel's, which takes rows of logits."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy(x.movedim(1, -1).flatten(0, -2), label.flatten(), ignore_index=IGNORE)


def losses(x: Tensor, label: Tensor) -> dict[str, Callable[[], Tensor]]:
    """What is compared, by name."""
    valid_mask = label != IGNORE
    # mmseg's Python path, which a CPU takes, turns integer labels into one-hot ones of a shape that it then fails on
    focal: tuple[Tensor, Tensor | None] = label, None
    if not x.is_cuda:
        one_hot = F.one_hot(torch.where(valid_mask, label, 0), x.shape[1]).movedim(-1, 1).to(x.dtype)
        focal = one_hot, valid_mask.flatten().to(x.dtype)
    module, pow3 = ExpGBLoss(EXP.alpha, TARGETS).to(x.device), CubicBoost(0.001, 0.4)

    def ours(**options: Any) -> Tensor:
        return fused_boosted_loss(x, label, EXP, TARGETS, ignore_index=IGNORE, **options)

    loss_by_name = {
        BASELINE: lambda: cross_entropy(x, label),
        "F.cross_entropy, torch.compile": lambda: compiled_cross_entropy()(x, label),
        "mmseg CrossEntropyLoss": lambda: _mmseg("CrossEntropyLoss", avg_non_ignore=True)(x, label, ignore_index=IGNORE),
        "mmseg FocalLoss" if x.is_cuda else "mmseg FocalLoss, of one-hot labels": lambda: _mmseg("FocalLoss")(x, *focal),
        "exp-GB, one-hot in PyTorch": lambda: one_hot_expgb(x, label),
        "exp-GB, reference": lambda: ours(impl="reference"),
        "exp-GB, torch.compile": lambda: ours(impl="compile"),
        "exp-GB": ours,
        "exp-GB, keep_gradient=False": lambda: ours(keep_gradient=False),
        "ExpGBLoss, checks labels": lambda: module(x, label, ignore_index=IGNORE),
        "pow3-GB": lambda: fused_boosted_loss(x, label, pow3, (0.0, 10.0), ignore_index=IGNORE),
    }
    if x.is_cuda:
        loss_by_name["Liger cross-entropy"] = lambda: liger_cross_entropy(x, label)
    return loss_by_name


def shapes(settings: Settings) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Of the logits, with their dtypes."""
    if settings.quick:
        return [((2, 21, 64, 64), torch.float32)]
    shapes_and_dtypes: list[tuple[tuple[int, ...], torch.dtype]] = [((4, 21, 321, 321), torch.float32)]
    if settings.device == "cuda":
        shapes_and_dtypes += [((16, 21, 512, 512), dtype) for dtype in (torch.float32, torch.bfloat16)]
    return shapes_and_dtypes


def run(settings: Settings) -> list[Row]:
    """Time and peak memory of forward and backward.

    The roofline is an ideal loss, which reads logits and labels once and writes the gradient once at the bandwidth that a copy
    into a buffer reaches in the same rounds. The forms that take many times as long have rounds of their own.
    """
    rows = []
    for shape, dtype in shapes(settings):
        x, label = logits_and_labels(shape, settings.device, dtype)
        derivatives = {name: derived(loss, x) for name, loss in losses(x, label).items()}
        agree(derivatives, SAME)
        data = x.detach()
        buffer = torch.empty_like(data)
        copies: dict[str, Callable[[], object]] = {CLONE: data.clone, COPY: partial(buffer.copy_, data)}
        # what takes ten times as long and as much memory would spoil the caches of the others
        fast = {name: way for name, way in derivatives.items() if name not in SLOW}
        timings = measure(fast | copies, settings.rounds, settings.device)
        names = [BASELINE, *(name for name in derivatives if name in SLOW)]
        slow = measure({name: derivatives[name] for name in names}, settings.rounds, settings.device)
        shown = text(shape, dtype)
        ideal_ms = 1e3 * timings[COPY].median * (2 * x.nbytes + label.nbytes) / (2 * x.nbytes)
        for row in by_contender("loss", shown, timings, BASELINE) + by_contender("loss", shown, slow, BASELINE)[1:]:
            if row.median_ms is not None and row.contender not in copies:
                row = replace(row, roofline_percent=100 * ideal_ms / row.median_ms)
            rows.append(row)
    return rows


def run_memory(settings: Settings) -> list[Row]:
    """Peak memory, and what is held afterwards: of the forward by its loss, for the backward; of both by the gradient."""
    rows = []
    for shape, dtype in shapes(settings):
        x, label = logits_and_labels(shape, settings.device, dtype)
        for name, loss in losses(x, label).items():
            for what, function in {"forward": loss, "forward and backward": derived(loss, x)}.items():
                try:
                    # what compiles or tunes at its first call holds more then
                    function()
                    most, rest = (take(function, settings.device) / MIB for take in (peak, held))
                    rows.append(Row(what, text(shape, dtype), name, peak_mib=most, held_mib=rest))
                except Exception as error:
                    rows.append(Row(what, text(shape, dtype), name, note=f"not run: {reason(error)}"))
    return rows
