"""Transforms of our own: a resize that keeps labels in place, PixelNet's colour augmentation, and a reproducible ``Albu``."""

import random
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
from mmcv.image import rescale_size
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from gbseg.data.masks import resize_mask
from gbseg.mm.compat import Albu, LabelResize

__all__ = ["ChannelGain", "ResizeAligned", "SeededAlbu"]

INTER_NEAREST, INTER_NEAREST_EXACT = 0, 6  # OpenCV's numbers, which albumentations takes


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
class ResizeAligned(LabelResize):
    """mmseg's ``Resize``, which gives every pixel the label under its centre (`gbseg.data.masks.nearest_exact`).

    mmseg's own takes the label under the pixel's upper left corner (OpenCV's ``INTER_NEAREST``), while the image is
    interpolated by centres: from 500 to 224 pixels, labels lie 1.1 pixels of the image too far right and down on average. The
    image and all arguments are those of ``Resize``. ``RandomResize`` and ``RandomChoiceResize`` take it as their
    ``resize_type='ResizeAligned'``.
    """

    def resize_labels(self, results: dict) -> None:
        """Resize the label maps to the size that mmcv gives the image."""
        for key in results.get("seg_fields", []):
            labels = results.get(key)
            if labels is not None:
                height, width = labels.shape[:2]
                scale = results["scale"]
                new_width, new_height = rescale_size((width, height), scale) if self.keep_ratio else scale
                results[key] = resize_mask(labels, (new_height, new_width))


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
        ValueError: a transform would give new area or dropped pixels the label of a class (``fill_mask``,
            ``mask_drop_value``), or would interpolate between class indices (``mask_interpolation`` is neither 0 nor 6, nearest
            neighbour).
    """

    def __init__(self, transforms: list[dict], ignore_index: int = 255, **settings: Any) -> None:
        if find_spec("albumentations") is None:
            raise ImportError('SeededAlbu needs albumentations: pip install "gbseg[albu]".')
        super().__init__(transforms, **settings)
        for transform in _leaves(self.aug):
            name = type(transform).__name__
            for setting in ("fill_mask", "mask_drop_value"):
                # None keeps the labels
                label = getattr(transform, setting, None)
                if label is not None and _fills(transform) and set(np.ravel(label)) != {ignore_index}:
                    area = "new area" if setting == "fill_mask" else "dropped pixels"
                    raise ValueError(
                        f"SeededAlbu: {name} gives {area} the label {label}, which is a class; add {setting}={ignore_index} "
                        "(the ignored label) to its settings."
                    )
            if name == "GridElasticDeform":
                raise ValueError(
                    "SeededAlbu: GridElasticDeform gives new area the label 0, which is a class, and no setting changes that; "
                    f"use ElasticTransform or GridDistortion with fill_mask={ignore_index}."
                )
            if getattr(transform, "mask_interpolation", INTER_NEAREST) not in (INTER_NEAREST, INTER_NEAREST_EXACT):
                raise ValueError(
                    f"SeededAlbu: {name} has mask_interpolation={transform.mask_interpolation}, which mixes class numbers into "
                    "others; use 0 (nearest neighbour; 6 where it resizes)."
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


def _fills(transform: Any) -> bool:
    """Whether a transform of albumentations with these settings may give new area a value."""
    # borders that repeat or mirror the image need no filling
    if getattr(transform, "border_mode", 0) != 0:
        return False
    if type(transform).__name__ == "CropAndPad":
        sides = [side for side in (transform.px, transform.percent) if side is not None]
        # nested: a range of each side
        return any(value > 0 for side in sides for value in _numbers(side))
    # a crop that never pads; crops of what was turned (Rotate's crop_border, Perspective) keep some new area at their borders
    return getattr(transform, "pad_if_needed", True)


def _numbers(value: Any) -> Iterator[float]:
    for item in value if isinstance(value, list | tuple) else ():
        yield from _numbers(item)
    if not isinstance(value, list | tuple):
        yield value


def _leaves(transform: Any) -> Iterator[Any]:
    children = getattr(transform, "transforms", None)
    if children is None:
        yield transform
        return
    for child in children:
        yield from _leaves(child)
