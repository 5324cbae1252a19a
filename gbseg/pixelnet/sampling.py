"""Which pixels a training step looks at (PixelNet: 2,000 an image, uniform over the labelled ones, without replacement).

Shapes: N images of H x W pixels, P points an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BalancedPixelSampler", "PixelSampler", "Samples", "UniformPixelSampler"]


class Samples(NamedTuple):
    """Sampled pixels.

    Attributes:
        points: (N, P, 2) int64, (row, column).
        label: (N, P) labels there; the ignored index at every point of an image without a labelled pixel.
    """

    points: Tensor
    label: Tensor


class PixelSampler(ABC):
    """Draws ``num`` labelled pixels an image without replacement, on the device of the labels, without synchronising.

    An image with fewer labelled pixels repeats them in turn (each floor(P/n) or ceil(P/n) times); one with none gives
    points whose label is the ignored index. Draws come from torch's global generator. A label that is no class is drawn
    before all others, so that the loss sees it and can refuse it.

    Args:
        num: P.

    Raises:
        ValueError: ``num < 1``.
    """

    def __init__(self, num: int = 2000) -> None:
        if num < 1:
            raise ValueError(f"{type(self).__name__}: num is the number of pixels an image and must be >= 1, got {num}.")
        self.num = num

    @abstractmethod
    def keys(self, label: Tensor, num_classes: int) -> Tensor:
        """Random keys (N, H*W) in (-inf, 0] for labels (N, H*W) in 0..C-1; the pixels with the largest are drawn."""

    def __call__(self, label: Tensor, num_classes: int, ignore_index: int = 255) -> Samples:
        """Draw from labels (N, H, W).

        Raises:
            ValueError: not (N, H, W), or without pixels.
        """
        if label.ndim != 3 or label.numel() == 0:
            raise ValueError(f"labels to sample from are (N, H, W) with at least one pixel, got shape {tuple(label.shape)}.")
        count, _, width = label.shape
        flat = label.reshape(count, -1)
        labelled = flat != ignore_index
        known = labelled & (flat >= 0) & (flat < num_classes)
        keys = self.keys(torch.where(known, flat, 0).long(), num_classes)
        keys = torch.where(known, keys, torch.where(labelled, torch.inf, -torch.inf))
        drawn = keys.topk(min(self.num, flat.shape[1]), dim=1).indices
        # the labelled pixels stand in front; where there are fewer than num, go round them again
        available = labelled.sum(1, keepdim=True).clamp(min=1, max=drawn.shape[1])
        turn = torch.arange(self.num, device=label.device).unsqueeze(0) % available
        index = drawn.gather(1, turn)
        points = torch.stack([index // width, index % width], dim=-1)
        return Samples(points, flat.gather(1, index))


class UniformPixelSampler(PixelSampler):
    """Every labelled pixel of an image with the same probability, as the authors of PixelNet do."""

    def keys(self, label: Tensor, num_classes: int) -> Tensor:
        """The negative of uniform numbers: an order in which every pixel comes first equally often."""
        return -torch.rand(label.shape, device=label.device)


class BalancedPixelSampler(PixelSampler):
    """Every class that an image shows with the same probability at the first draw, its pixels uniformly.

    Weighted sampling without replacement (Efraimidis and Spirakis, 2006): the largest ``ln(u) / w`` with ``u`` uniform in
    (0, 1) and a weight ``w`` of one over the number of the image's pixels of that class.
    """

    def keys(self, label: Tensor, num_classes: int) -> Tensor:
        """``ln(u) * (number of pixels of the class)``."""
        ones = torch.ones_like(label)
        sizes = torch.zeros(label.shape[0], num_classes, dtype=label.dtype, device=label.device).scatter_add(1, label, ones)
        # 1 - rand is in (0, 1], so the logarithm is finite
        return torch.log1p(-torch.rand(label.shape, device=label.device)) * sizes.gather(1, label)
