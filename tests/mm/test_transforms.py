"""ChannelGain against numpy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mmcv")
from mmengine.registry import TRANSFORMS

from gbseg.mm.datasets.transforms import ChannelGain


def _gained(image: np.ndarray, **settings: float) -> np.ndarray:
    before = image.copy()
    results = TRANSFORMS.build({"type": "ChannelGain", **settings})({"img": image, "other": 1})
    assert results["other"] == 1
    # a cached image must not change under its owner
    np.testing.assert_array_equal(image, before)
    return results["img"]


def test_gains_against_numpy() -> None:
    """One gain a channel, U(0.8, 1.3) of numpy's global generator, rounded to nearest and clipped."""
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.random.seed(3)  # noqa: NPY002  (mmengine seeds the global generator)
    actual = _gained(image)
    np.random.seed(3)  # noqa: NPY002
    gains = np.random.uniform(0.8, 1.3, 3)  # noqa: NPY002
    assert len(set(gains)) == 3
    exact = image.astype(np.float64) * gains
    assert actual.dtype == np.uint8
    assert (np.abs(actual - exact.clip(0, 255)) <= 0.5 + 1e-9).all()
    assert (actual[exact > 255] == 255).all()


def test_bounds_and_distribution() -> None:
    """Gains fill the whole range, evenly; channels are independent."""
    np.random.seed(0)  # noqa: NPY002
    gains = np.stack([_gained(np.full((1, 1, 3), 180, np.uint8))[0, 0] for _ in range(1500)]) / 180
    assert gains.min() == pytest.approx(0.8, abs=0.01)
    assert gains.max() == pytest.approx(1.3, abs=0.01)
    quarters = np.histogram(gains, np.linspace(0.7999, 1.3001, 5))[0] / gains.size
    np.testing.assert_allclose(quarters, 0.25, atol=0.03)
    assert np.abs(np.corrcoef(gains.T) - np.eye(3)).max() < 0.1


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_fixed_gain(gain: float, channels: int) -> None:
    """low = high multiplies every channel of any number by it; 1 changes nothing."""
    image = np.random.default_rng(0).integers(0, 256, (5, 4, channels)).astype(np.uint8)
    expected = np.minimum(np.floor(image * gain + 0.5), 255)
    np.testing.assert_array_equal(_gained(image, low=gain, high=gain), expected)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.1, 1), (1.2, 1.1), (float("nan"), 1), (1, float("nan"))])
def test_wrong_gains(low: float, high: float) -> None:
    """The message names both."""
    with pytest.raises(ValueError, match=f"0 < low <= high, got low={low}, high={high}"):
        ChannelGain(low, high)
