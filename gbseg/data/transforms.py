"""Transforms that the MM packages do not have."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

__all__ = ["ChannelGain"]


@TRANSFORMS.register_module()
class ChannelGain(BaseTransform):
    """Multiply every channel by a gain of its own, U(low, high), as PixelNet's authors do; clipped to 0..255.

    Args:
        low: smallest gain.
        high: largest gain.

    Raises:
        ValueError: not ``0 < low <= high``.
    """

    def __init__(self, low: float = 0.8, high: float = 1.3) -> None:
        if not 0 < low <= high:
            raise ValueError(f"ChannelGain needs 0 < low <= high, got low={low}, high={high}.")
        self.low, self.high = low, high

    def transform(self, results: dict) -> dict:
        """Change ``results['img']``, (H, W, C) uint8."""
        gain = np.random.uniform(self.low, self.high, results["img"].shape[2])  # noqa: NPY002  (mmengine seeds the global one)
        results["img"] = np.clip(results["img"] * gain + 0.5, 0, 255).astype(np.uint8)
        return results
