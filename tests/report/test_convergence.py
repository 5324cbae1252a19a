"""First steps and areas, against loops and scipy's interpolation on random curves; what is never reached is no number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.interpolate import interp1d

from gbseg.report.convergence import area_under, first_below

CURVES = st.lists(st.tuples(st.integers(1, 50), st.sampled_from([*range(12), math.nan, math.inf])), max_size=12)


def _curve(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return np.cumsum([gap for gap, _ in points], dtype=int).tolist(), [value for _, value in points]


@given(CURVES, st.integers(-1, 12))
@settings(max_examples=200, deadline=None)
def test_first_below(points: list[tuple[int, float]], target: int) -> None:
    """The loop over the points that stops at the first one that is low enough."""
    steps, error = _curve(points)
    expected = None
    for step, value in zip(steps, error, strict=True):
        if not math.isnan(value) and value <= target:
            expected = step
            break
    assert first_below(steps, error, target) == expected


@given(CURVES, st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=200, deadline=None)
def test_area_of_ranges(points: list[tuple[int, float]], start: int, end: int) -> None:
    """A sum over unit steps, or None where the range is not covered or a point that matters is not finite."""
    steps, error = _curve(points)
    result = area_under(steps, error, start, end)
    if len(steps) < 2 or not steps[0] <= start < end <= steps[-1]:
        assert result is None
        return
    total = 0.0
    for step in range(start, end):
        # the pieces of the curve are straight, and begin and end at whole steps
        piece = next(k for k in range(len(steps) - 1) if steps[k] <= step < steps[k + 1])
        slope = (error[piece + 1] - error[piece]) / (steps[piece + 1] - steps[piece])
        total += error[piece] + slope * (step + 0.5 - steps[piece])
    assert result is None if not math.isfinite(total) else result == pytest.approx(total)


def test_area_of_all() -> None:
    """Without a range from the first to the last point; ends between points as scipy integrates."""
    steps, error = [10, 20, 50, 60], [90.0, 40.0, 31.0, 33.0]
    assert area_under(steps, error) == 650 + 1065 + 320
    expected = quad(interp1d(steps, error), 12.5, 57.25, points=[20, 50])[0]
    assert area_under(steps, error, 12.5, 57.25) == pytest.approx(expected, rel=1e-9)
    # points outside the range do not matter
    assert area_under([5, *steps], [math.nan, *error], 10, 60) == 2035
    assert area_under([5, *steps], [math.nan, *error], 9, 60) is None


def test_types_and_nothing() -> None:
    """Iterations stay whole, epochs do not become so; none of nothing."""
    assert isinstance(first_below(np.array([500, 1000]), [30.0, 20.0], 25), int)
    assert first_below([0.5, 1.5], [30.0, 20.0], 25) == 1.5
    assert first_below([], [], 25) is None and area_under([], []) is None and area_under([5], [1.0]) is None


def test_interpolated() -> None:
    """The straight line to the first point below the target; a point that diverged has no line."""
    steps, error = [10, 20, 40], [8.0, 6.0, 2.0]
    result = [first_below(steps, error, target, interpolate=True) for target in (9, 7, 6, 3, 2, 1)]
    assert result == [10, 15, 20, 35, 40, None]
    assert first_below(steps, [8.0, math.nan, 2.0], 3, interpolate=True) == 40


def test_refused() -> None:
    """Curves that are none."""
    for function in (lambda x, y: first_below(x, y, 0), area_under):
        with pytest.raises(ValueError, match="as many steps as errors"):
            function([1, 2], [1.0])
        with pytest.raises(ValueError, match=r"must rise, got \[2.0, 1.0\]"):
            function([2, 1], [1.0, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        first_below([1], [1.0], math.nan)
