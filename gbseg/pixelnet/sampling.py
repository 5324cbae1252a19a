"""Which pixels a training step uses (PixelNet: 2,000 per image, uniform over the labelled ones, without replacement).

Shapes: N images of H x W pixels, P points per image.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BalancedPixelSampler", "PixelSampler", "Samples", "UniformPixelSampler"]


class Samples(NamedTuple):
    """Sampled pixels.

    Attributes:
        points: (N, P, 2) int64, (row, column).
        label: (N, P) their labels; the ignored index at every point of an image without a labelled pixel.
    """

    points: Tensor
    label: Tensor


class PixelSampler(ABC):
    """Samples ``num`` labelled pixels per image without replacement, on the device of the labels, without synchronising.

    An image with n < P labelled pixels repeats them in turn (each floor(P/n) or ceil(P/n) times); an image with none gives
    points whose label is the ignored index. Random numbers come from torch's global generator. A pixel with an invalid label
    is sampled before all others, so that the loss sees it and can refuse it.

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
        """Random keys (N, H*W) in (-inf, 0] for labels (N, H*W) in 0..C-1; the pixels with the largest keys are sampled."""

    def __call__(self, label: Tensor, num_classes: int, ignore_index: int = 255) -> Samples:
        """Sample pixels of labels (N, H, W).

        Args:
            label: (N, H, W).
            num_classes: C.
            ignore_index: label of the pixels that are not sampled.

        Raises:
            ValueError: the labels are not (N, H, W), or have no pixels.
        """
        if label.ndim != 3 or label.numel() == 0:
            raise ValueError(f"labels to sample from are (N, H, W) with at least one pixel, got shape {tuple(label.shape)}.")
        count, _, width = label.shape
        flat = label.reshape(count, -1)
        labelled = flat != ignore_index
        valid_mask = labelled & (flat >= 0) & (flat < num_classes)
        keys = self.keys(torch.where(valid_mask, flat, 0).long(), num_classes)
        keys = torch.where(valid_mask, keys, torch.where(labelled, torch.inf, -torch.inf))
        sampled = keys.topk(min(self.num, flat.shape[1]), dim=1).indices
        # labelled pixels come first; if there are fewer than num, repeat them in turn
        available = labelled.sum(1, keepdim=True).clamp(min=1, max=sampled.shape[1])
        turn = torch.arange(self.num, device=label.device).unsqueeze(0) % available
        index = sampled.gather(1, turn)
        points = torch.stack([index // width, index % width], dim=-1)
        return Samples(points, flat.gather(1, index))


class UniformPixelSampler(PixelSampler):
    """Samples every labelled pixel of an image with the same probability, as the authors of PixelNet do."""

    def keys(self, label: Tensor, num_classes: int) -> Tensor:
        """The negative of uniform numbers: an order in which every pixel comes first equally often."""
        return -torch.rand(label.shape, device=label.device)


class BalancedPixelSampler(PixelSampler):
    """Samples every class of an image with the same probability at the first draw, and its pixels uniformly.

    Weighted sampling without replacement (Efraimidis and Spirakis, 2006): the largest ``ln(u) / w`` with ``u`` uniform in
    (0, 1) and a weight ``w`` of one over the number of the image's pixels of that class.
    """

    def keys(self, label: Tensor, num_classes: int) -> Tensor:
        """``ln(u) * (number of pixels of the class)``."""
        ones = torch.ones_like(label)
        sizes = torch.zeros(label.shape[0], num_classes, dtype=label.dtype, device=label.device).scatter_add(1, label, ones)
        # 1 - rand is in (0, 1], so the logarithm is finite
        return torch.log1p(-torch.rand(label.shape, device=label.device)) * sizes.gather(1, label)
