"""How many pixels each class has in the masks of a data set, and the class weights that follow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations
from mmengine.registry import TRANSFORMS, DefaultScope

from gbseg.mm.datasets.sample_checks import CheckedLoader

__all__ = ["WEIGHTINGS", "class_weights", "count_labels", "load_labels"]

WEIGHTINGS = ("inverse", "median")


def load_labels(dataset: Any, idx: int) -> np.ndarray:
    """The label map of an image as the data set's pipeline loads it, before its other transforms.

    Args:
        dataset: a data set of MMSegmentation's kind, which has ``get_data_info``.
        idx: the image's index.

    Raises:
        ValueError: the image has no mask, or `gbseg.mm.datasets.sample_checks.CheckedLoader` refuses it.
    """
    info = dataset.get_data_info(idx)
    if not info.get("seg_map_path"):
        raise ValueError(f"{info.get('img_path')} has no mask, so its classes are unknown: give data_prefix a seg_map_path.")
    transforms = getattr(getattr(dataset, "pipeline", None), "transforms", ())
    loader = next((step for step in transforms if isinstance(step, LoadAnnotations | CheckedLoader)), None)
    if loader is None:
        with DefaultScope.overwrite_default_scope("mmseg"):
            loader = TRANSFORMS.build(dict(type="LoadAnnotations", imdecode_backend="pillow"))
    loaded: Any = loader.transform({**info, "seg_fields": []})
    labels: np.ndarray = loaded["gt_seg_map"]
    return labels


def count_labels(dataset: Any, num_classes: int) -> np.ndarray:
    """(N, C) int64: the pixels of each class in each of N images; other labels are ignored."""
    counts = np.zeros((len(dataset), num_classes), np.int64)
    for idx in range(len(dataset)):
        counts[idx] = np.bincount(load_labels(dataset, idx).ravel(), minlength=num_classes)[:num_classes]
    return counts


def class_weights(counts: np.ndarray, weighting: str = "median") -> np.ndarray:
    """Weights that make rare classes count more, for ``class_weight`` of a loss.

    With ``n_c`` the pixels of class c in all images, and ``m_c`` the labelled pixels of the images in which c occurs:

    * 'inverse': ``w_c = sum_k n_k / (K n_c)``, over the K classes that occur: every class has the same share of the weight;
    * 'median': ``w_c = median_k(f_k) / f_c`` with ``f_c = n_c / m_c``, median frequency balancing (Eigen and Fergus, 2015).

    A class that does not occur has the weight 1.

    Args:
        counts: (N, C), from `count_labels`.
        weighting: 'inverse' or 'median'.

    Returns:
        (C,) float64.

    Raises:
        ValueError: there is no such weighting, or no pixel has a label.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"there is no weighting {weighting!r}: it is one of {', '.join(WEIGHTINGS)}.")
    pixels = counts.sum(0)
    present = pixels > 0
    if not present.any():
        raise ValueError("no pixel has a label, so there are no frequencies of classes.")
    where_present = ((counts > 0) * counts.sum(1, keepdims=True)).sum(0)
    weights = np.ones(len(pixels))
    if weighting == "inverse":
        weights[present] = pixels.sum() / (present.sum() * pixels[present])
    else:
        frequencies = pixels[present] / where_present[present]
        weights[present] = np.median(frequencies) / frequencies
    return weights


def weights_table(names: Sequence[str], counts: np.ndarray, weights: np.ndarray) -> str:
    """A line for each class: its share of the labelled pixels, the images in which it occurs, and its weight."""
    width = max(map(len, names))
    shares, images = 100 * counts.sum(0) / counts.sum(), (counts > 0).sum(0)
    lines = [f"{'class':{width}}  % of pixels  images  weight"]
    for name, share, number, weight in zip(names, shares, images, weights, strict=True):
        lines.append(f"{name:{width}}  {share:11.3f}  {number:6}  {f'{weight:.4f}' if number else '1 (absent)'}")
    return "\n".join(lines)
