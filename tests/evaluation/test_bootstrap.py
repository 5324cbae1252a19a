"""Bootstrap intervals against a loop over resamples, SciPy's bootstrap, and how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from gbseg.evaluation.bootstrap import bootstrap_distribution, bootstrap_intervals, percentile_interval, resampled_iou


def _counts(seed: int, images: int = 40, classes: int = 5) -> np.ndarray:
    """Correct, labelled and predicted pixels of images that differ much; the last class is in a few of them alone."""
    rng = np.random.default_rng(seed)
    labelled = rng.integers(0, 200, (images, classes))
    labelled[images // 8 :, -1] = 0
    quality = rng.random((images, 1))
    hit = np.floor(labelled * quality).astype(np.int64)
    predicted = hit + np.where(labelled > 0, rng.integers(0, 50, (images, classes)), 0)
    return np.stack((hit, labelled, predicted), axis=1)


def _iou(counts: np.ndarray) -> np.ndarray:
    hit, labelled, predicted = counts.sum(0)
    with np.errstate(invalid="ignore"):
        return hit / (labelled + predicted - hit)


def test_against_a_loop_over_the_same_resamples() -> None:
    """Every resample is a set of images whose counts add up; its mean leaves out the classes that it does not hold."""
    counts = _counts(0, images=12)
    iou = resampled_iou(counts, 230, seed=3)
    rng = np.random.default_rng(3)
    expected = []
    for size in (100, 100, 30):
        for times in rng.multinomial(12, [1 / 12] * 12, size=size):
            chosen = [image for image, count in enumerate(times) for _ in range(count)]
            assert len(chosen) == 12
            expected.append(_iou(counts[chosen]))
    np.testing.assert_allclose(iou, np.array(expected), rtol=1e-14)
    missing = np.isnan(iou[:, -1])
    assert 0 < missing.sum() < 230  # one image of twelve holds the last class

    result = bootstrap_intervals(counts, headline=[0, 4], resamples=230, seed=3)
    means = [np.mean([value for value in row if not math.isnan(value)]) for row in expected]
    assert result.miou == pytest.approx(np.percentile(means, (2.5, 97.5)), rel=1e-12)
    heads = [np.mean([row[i] for i in (0, 4) if not math.isnan(row[i])]) for row in expected]
    assert result.headline_miou == pytest.approx(np.percentile(heads, (2.5, 97.5)), rel=1e-12)
    last = [row[-1] for row in expected if not math.isnan(row[-1])]
    assert result.iou[-1] == pytest.approx(np.percentile(last, (2.5, 97.5)), rel=1e-12)


def test_against_scipy() -> None:
    """The ends are those of SciPy's percentile bootstrap, within what two sets of resamples differ by."""
    counts = _counts(1)
    result = bootstrap_intervals(counts, resamples=4000, level=0.9)
    reference = stats.bootstrap(
        (np.arange(len(counts)),),
        lambda chosen: np.nanmean(_iou(counts[chosen.astype(int)])),
        n_resamples=4000,
        confidence_level=0.9,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(5),
    ).confidence_interval
    width = reference.high - reference.low
    assert width > 0.05
    assert result.miou == pytest.approx((reference.low, reference.high), abs=0.05 * width)


@pytest.mark.parametrize("sizes", [(4,), (9,), (5, 7)])
def test_statistics_against_scipy(sizes: tuple[int, ...]) -> None:
    """Of any statistic of trials: the same resamples as SciPy's, so the same ends."""
    rng = np.random.default_rng(7)
    samples = [rng.random(size) + 1 for size in sizes]

    def ratio(first: np.ndarray, second: np.ndarray | float = 1.0, axis: int = 1) -> np.ndarray:
        return np.median(first, axis=axis) / (np.median(second, axis=axis) if isinstance(second, np.ndarray) else second)

    resampled = bootstrap_distribution(
        lambda *drawn: ratio(*(sample[index] for sample, index in zip(samples, drawn, strict=True))), sizes, 3000, seed=2
    )
    reference = stats.bootstrap(samples, ratio, n_resamples=3000, method="percentile", rng=np.random.default_rng(2))
    np.testing.assert_array_equal(resampled, reference.bootstrap_distribution)
    assert percentile_interval(resampled) == pytest.approx(tuple(reference.confidence_interval), rel=1e-14)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of sets drawn from a large one, about 95 in 100 have intervals that hold the large one's mIoU."""
    world = _counts(2, images=4000, classes=3)[:, :, :2]
    truth = _iou(world).mean()
    rng = np.random.default_rng(6)
    held = 0
    for trial in range(200):
        low, high = bootstrap_intervals(world[rng.integers(0, 4000, 80)], resamples=300, seed=trial).miou
        held += low <= truth <= high
    # 190 of 200 expected, standard deviation 3; percentile intervals of 80 images are a little narrow
    assert 178 <= held <= 199


def test_seed_and_absent_classes() -> None:
    """The same seed gives the same ends; a class without a pixel has none."""
    counts = _counts(3)
    counts[:, :, 2] = 0
    first = bootstrap_intervals(counts)
    assert repr(first) == repr(bootstrap_intervals(counts))
    assert repr(first) != repr(bootstrap_intervals(counts, seed=1))
    assert all(math.isnan(end) for end in first.iou[2])
    assert not any(math.isnan(end) for end in (*first.miou, *first.iou[0], *first.iou[4]))
    assert first.headline_miou is None and first.resamples >= 1000


def test_wrong_input() -> None:
    """Too few images and counts of another shape are refused."""
    with pytest.raises(ValueError, match="at least two of them, not 1"):
        bootstrap_intervals(_counts(0)[:1])
    with pytest.raises(ValueError, match=r"\(images, 3, classes\), not \(40, 5\)"):
        bootstrap_intervals(_counts(0)[:, 0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_intervals(_counts(0), level=95)
