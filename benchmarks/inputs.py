"""Logits and labels for the benchmarks, and the losses that several of them time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gbseg.boosting import ExponentialBoost

__all__ = ["EXP", "IGNORE", "TARGETS", "compiled_cross_entropy", "cross_entropy", "derived", "logits_and_labels", "text"]

IGNORE, IGNORED = 255, 0.05
EXP, TARGETS = ExponentialBoost(0.1), (0.0, 16.0)


def segmentation_labels(images: int, classes: int, size: tuple[int, int]) -> Tensor:
    """(N, H, W) labels: regions, and one pixel in twenty ignored, along curves, as outlines of objects are."""
    labels = F.interpolate(torch.randint(classes, (images, 1, 4, 4)).double(), size)[:, 0].long()
    # a smooth random field is close to 0 along curves
    distance = F.interpolate(torch.randn(images, 1, 6, 6), size, mode="bicubic")[:, 0].abs()
    few = max(1, round(IGNORED * distance.numel()))
    return labels.masked_fill(distance <= distance.flatten().kthvalue(few).values, IGNORE)


def logits_and_labels(
    shape: tuple[int, ...], device: str, dtype: torch.dtype = torch.float32, size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Standard normal logits (N, C) or (N, C, h, w) that want a gradient, and labels, (N, H, W) of another ``size`` if given.

    Rows (N, C) have random labels, none of them ignored.
    """
    torch.manual_seed(0)
    x = torch.randn(shape).to(device, dtype).requires_grad_()
    classes = shape[1]
    label = torch.randint(classes, shape[:1]) if len(shape) == 2 else segmentation_labels(shape[0], classes, size or shape[2:])
    return x, label.to(device)


def text(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> str:
    """A shape for the table: '4x21x321x321', and the dtype where it is not float32."""
    name = "x".join(map(str, shape))
    return name if dtype == torch.float32 else f"{name} {str(dtype).removeprefix('torch.')}"


def derived(loss: Callable[[], Tensor], *inputs: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """The forward and the backward of a loss: its gradients in ``inputs``."""
    return lambda: torch.autograd.grad(loss(), inputs)


def cross_entropy(x: Tensor, label: Tensor) -> Tensor:
    """PyTorch's, over what is not ignored; rows with more classes than 255 have nothing that is."""
    return F.cross_entropy(x, label, ignore_index=IGNORE if x.ndim > 2 else -100)


@cache
def compiled_cross_entropy() -> Callable[[Tensor, Tensor], Tensor]:
    """The same under `torch.compile`, for each shape on its own."""
    return torch.compile(cross_entropy, dynamic=False)
