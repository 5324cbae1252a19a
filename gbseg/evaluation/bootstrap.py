"""How much a set's IoU would vary with other images of the same kind: a percentile bootstrap over images.

N images, C classes, B resamples. IoU is not a mean over images, so it has no standard error to read off; a resample draws
N images with replacement, adds up their counts and computes the IoU of that set.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Intervals", "bootstrap_intervals", "resampled_iou"]

CHUNK = 100  # resamples at a time: bounds the memory, whatever N is


@dataclass(frozen=True)
class Intervals:
    """Confidence intervals, as fractions in 0..1; (NaN, NaN) for a class that does not occur in the set.

    Attributes:
        level: what share of such intervals should hold the true value.
        resamples: B.
        seed: of the resamples.
        miou: of the mean over the classes that occur.
        iou: of every class.
        headline_miou: of the mean over the headline classes that occur, None without a headline.
    """

    level: float
    resamples: int
    seed: int
    miou: tuple[float, float]
    iou: tuple[tuple[float, float], ...]
    headline_miou: tuple[float, float] | None = None


def resampled_iou(counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The IoU of every class in every resample.

    Args:
        counts: (N, 3, C) integers, for every image its correct, labelled and predicted pixels of every class.
        resamples: B.
        seed: of numpy's generator; the same seed and images give the same resamples, in any number of processes.

    Returns:
        (B, C) float64 in 0..1, NaN where a class occurs in neither labels nor predictions of a resample.
    """
    images, _, classes = counts.shape
    rng = np.random.default_rng(seed)
    flat = counts.reshape(images, 3 * classes).astype(np.float64)  # exact up to 2**53 pixels, and BLAS multiplies it
    parts = []
    for start in range(0, resamples, CHUNK):
        # how often every image is drawn: N draws with replacement
        drawn = rng.multinomial(images, np.full(images, 1 / images), size=min(CHUNK, resamples - start))
        hit, labelled, predicted = np.moveaxis((drawn @ flat).reshape(-1, 3, classes), 1, 0)
        with np.errstate(invalid="ignore"):
            parts.append(hit / (labelled + predicted - hit))
    return np.concatenate(parts)


def bootstrap_intervals(
    counts: np.ndarray,
    headline: Sequence[int] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Intervals:
    """Percentile bootstrap intervals of every IoU and their means over images.

    The ends are the (1 - level) / 2 and (1 + level) / 2 quantiles over the resamples. A class that a resample does not
    hold is left out of that resample's mean, as one that a set does not hold is left out of the set's, and of its own
    interval; so the interval of a class of very few images says little. Images are taken as independent draws: frames of one
    video are not.

    Args:
        counts: (N, 3, C) integers, for every image its correct, labelled and predicted pixels of every class.
        headline: indices of the headline classes.
        level: in 0..1.
        resamples: B, at least 1,000 for ends that do not wobble.
        seed: of the resamples.

    Raises:
        ValueError: fewer than two images, which say nothing of how images vary; counts of another shape; a level or a number
            of resamples that makes no sense.
    """
    if counts.ndim != 3 or counts.shape[1] != 3:
        raise ValueError(f"counts must be (images, 3, classes), not {counts.shape}")
    if len(counts) < 2:
        raise ValueError(f"a confidence interval over images needs at least two of them, not {len(counts)}")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"the level must lie between 0 and 1 and resamples be positive, not {level} and {resamples}")
    iou = resampled_iou(counts, resamples, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice|Mean of empty slice")
        ends = np.nanquantile(iou, ((1 - level) / 2, (1 + level) / 2), axis=0).T

        def of_mean(values: np.ndarray) -> tuple[float, float]:
            low, high = np.nanquantile(np.nanmean(values, axis=1), ((1 - level) / 2, (1 + level) / 2))
            return float(low), float(high)

        return Intervals(
            level=level,
            resamples=resamples,
            seed=seed,
            miou=of_mean(iou),
            iou=tuple((float(low), float(high)) for low, high in ends),
            headline_miou=None if headline is None else of_mean(iou[:, list(headline)]),
        )
