"""Percentile bootstrap intervals: of a set's IoU over its images, and of any statistic over independent trials.

N observations (images or trials), C classes, B resamples. IoU is not a mean over images, so it has no standard error to read
off; a resample draws N images with replacement, adds up their counts and computes the IoU of that set.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Intervals", "bootstrap_distribution", "bootstrap_intervals", "percentile_interval", "resampled_iou"]

CHUNK = 100  # resamples of images at a time: bounds the memory, whatever N is


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


def bootstrap_distribution(
    statistic: Callable[..., np.ndarray],
    sizes: Sequence[int],
    resamples: int,
    seed: int = 0,
    *,
    multiplicities: bool = False,
    chunk: int | None = None,
) -> np.ndarray:
    """Evaluate a statistic on resamples of one or more independent samples, each drawn with replacement.

    Args:
        statistic: called with one array a sample, b <= B rows each, and returns one row of results a row. An array holds the
            indices of the drawn observations, (b, N); with ``multiplicities`` how often each observation was drawn, (b, N).
        sizes: N of every sample.
        resamples: B.
        seed: of numpy's generator; the same seed and arguments give the same resamples.
        multiplicities: for statistics of sums, which are one matrix product then.
        chunk: how many resamples the statistic gets at a time, which bounds the memory; None for all.

    Returns:
        (B, ...) what the statistic returned.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, chunk or resamples):
        rows = min(chunk or resamples, resamples - start)
        if multiplicities:
            draws = [rng.multinomial(n, np.full(n, 1 / n), size=rows) for n in sizes]
        else:
            draws = [rng.integers(0, n, (rows, n)) for n in sizes]
        parts.append(statistic(*draws))
    return np.concatenate(parts)


def percentile_interval(distribution: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The (1 - level) / 2 and (1 + level) / 2 quantiles of a statistic over the resamples, NaN left out.

    Args:
        distribution: (B,) from `bootstrap_distribution`.
        level: in 0..1.

    Returns:
        The lower and the upper end; NaN where all values are.
    """
    values = distribution[~np.isnan(distribution)]
    if not len(values):
        return np.nan, np.nan
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def resampled_iou(counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The IoU of every class in every resample.

    Args:
        counts: (N, 3, C) integers: correct, labelled and predicted pixels of every class in every image.
        resamples: B.
        seed: of numpy's generator; the same seed and images give the same resamples, in any number of processes.

    Returns:
        (B, C) float64 in 0..1, NaN where a class occurs in neither labels nor predictions of a resample.
    """
    images, _, classes = counts.shape
    flat = counts.reshape(images, 3 * classes).astype(np.float64)  # exact up to 2**53 pixels, and BLAS multiplies it

    def iou(drawn: np.ndarray) -> np.ndarray:
        hit, labelled, predicted = np.moveaxis((drawn @ flat).reshape(-1, 3, classes), 1, 0)
        with np.errstate(invalid="ignore"):
            return hit / (labelled + predicted - hit)

    return bootstrap_distribution(iou, [images], resamples, seed, multiplicities=True, chunk=CHUNK)


def bootstrap_intervals(
    counts: np.ndarray,
    headline: Sequence[int] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Intervals:
    """Percentile bootstrap intervals of every IoU and their means over images.

    A class that does not occur in a resample is left out of that resample's mean and of its own interval, as an absent class
    is left out of the mean of a set; the interval of a class of very few images therefore says little. Images are taken as
    independent draws, which the frames of one video are not.

    Args:
        counts: (N, 3, C) integers: correct, labelled and predicted pixels of every class in every image.
        headline: indices of the headline classes.
        level: in 0..1.
        resamples: B, at least 1,000 for stable ends.
        seed: of the resamples.

    Raises:
        ValueError: there are fewer than two images, ``counts`` has another shape, ``level`` is not between 0 and 1, or
            ``resamples`` is not positive.
    """
    if counts.ndim != 3 or counts.shape[1] != 3:
        raise ValueError(f"counts must be (images, 3, classes), not {counts.shape}")
    if len(counts) < 2:
        raise ValueError(f"a confidence interval over images needs at least two of them, not {len(counts)}")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"the level must lie between 0 and 1 and resamples be positive, not {level} and {resamples}")
    iou = resampled_iou(counts, resamples, seed)

    def of_mean(values: np.ndarray) -> tuple[float, float]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice")
            return percentile_interval(np.nanmean(values, axis=1), level)

    of_classes = tuple(percentile_interval(values, level) for values in iou.T)
    of_headline = None if headline is None else of_mean(iou[:, list(headline)])
    return Intervals(level, resamples, seed, of_mean(iou), of_classes, of_headline)
