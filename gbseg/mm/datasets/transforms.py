"""Transforms of our own: the colour augmentation of PixelNet's authors, and a reproducible ``Albu``."""

import random
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from gbseg.mm.compat import Albu

__all__ = ["ChannelGain", "SeededAlbu"]


@TRANSFORMS.register_module()
class ChannelGain(BaseTransform):
    """Multiply each channel by a random gain from U(low, high), as PixelNet's authors do, and clip to 0..255.

    Args:
        low: smallest gain.
        high: largest gain.

    Raises:
        ValueError: ``0 < low <= high`` does not hold.
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


@TRANSFORMS.register_module()
class SeededAlbu(Albu):
    """mmseg's ``Albu``, seeded from numpy's global generator. Refuses settings that would make wrong labels.

    Albumentations 2 has random generators of its own, seeded by the operating system, which mmengine's seeds do not reach:
    with plain ``Albu`` no run can be repeated, and the forked workers of a data loader, with copies of the same generators,
    draw the same numbers. (`gbseg.mm.resumable_sampler.SeededDataset` also fixes that for plain ``Albu``.)

    Args:
        transforms: configs of albumentations' transforms, as mmseg's ``Albu`` takes them.
        ignore_index: the ignored label, which new area must get.
        settings: other arguments of mmseg's ``Albu``.

    Raises:
        ImportError: albumentations is not installed.
        ValueError: a transform would give new area the label of a class (``fill_mask``), or would interpolate between class
            indices (``mask_interpolation`` is not 0, nearest neighbour).
    """

    def __init__(self, transforms: list[dict], ignore_index: int = 255, **settings: Any) -> None:
        if find_spec("albumentations") is None:
            raise ImportError('SeededAlbu needs albumentations: pip install "gbseg[albu]".')
        super().__init__(transforms, **settings)
        for transform in _leaves(self.aug):
            name = type(transform).__name__
            # None keeps the labels (CoarseDropout); borders that repeat or mirror the image need no filling
            fill = getattr(transform, "fill_mask", None)
            if fill is not None and getattr(transform, "border_mode", 0) == 0 and set(np.ravel(fill)) != {ignore_index}:
                raise ValueError(
                    f"SeededAlbu: {name} gives new area the label {fill}, which is a class; add fill_mask={ignore_index} "
                    "(the ignored label) to its settings."
                )
            if getattr(transform, "mask_interpolation", 0) != 0:
                raise ValueError(
                    f"SeededAlbu: {name} has mask_interpolation={transform.mask_interpolation}, which mixes class numbers into "
                    "others; use 0 (nearest neighbour)."
                )
            if getattr(transform, "area_for_downscale", None) == "image_mask":
                raise ValueError(
                    f"SeededAlbu: {name} has area_for_downscale='image_mask', which averages class numbers; use 'image'."
                )

    def transform(self, results: dict) -> dict:
        """Change ``img``, (H, W, 3) uint8 BGR, and ``gt_seg_map``, (H, W), alike; sets ``img_shape``."""
        seed = np.random.randint(2**32, dtype=np.uint64)  # noqa: NPY002  (mmengine and SeededDataset seed the global one)
        self.aug.set_random_state(np.random.default_rng(seed), random.Random(int(seed)))
        results = super().transform(results)
        results["img_shape"] = results["img"].shape[:2]
        return results


def _leaves(transform: Any) -> Iterator[Any]:
    children = getattr(transform, "transforms", None)
    if children is None:
        yield transform
        return
    for child in children:
        yield from _leaves(child)
