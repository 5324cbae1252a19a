"""How fast an error falls: when it first reaches a value, and the area under its curve. n measured points of a run."""

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["area_under", "first_below"]


def _curve(steps: ArrayLike, error: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(steps, np.float64), np.asarray(error, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"a curve is as many steps as errors, got {x.shape} and {y.shape}")
    if not (np.diff(x) > 0).all():
        raise ValueError(f"the steps of a curve must rise, got {x.tolist()}")
    return x, y


def first_below(steps: ArrayLike, error: ArrayLike, target: float, *, interpolate: bool = False) -> int | float | None:
    """The first step with an error of at most ``target``.

    A point that is NaN or infinite (a run that diverged) does not reach the target; a point before it may.

    Args:
        steps: (n,) rising, in iterations or epochs.
        error: (n,) lower is better; of an accuracy, its negative or its complement.
        target: in the error's unit.
        interpolate: where the straight line from the point before crosses the target, for curves whose steps are few. Without,
            the answer is a measured step: between two measurements the error is not known.

    Returns:
        The step, a measured one in the type that it has in ``steps``; None where the target is never reached, also where
        n = 0.

    Raises:
        ValueError: ``steps`` do not rise or are not as many as the errors, or the target is NaN.
    """
    x, y = _curve(steps, error)
    if np.isnan(target):
        raise ValueError("a target of NaN is never reached by anything; give a number")
    below = np.flatnonzero(np.isfinite(y) & (y <= target))
    if not len(below):
        return None
    first = int(below[0])
    if interpolate and first and np.isfinite(y[first - 1]):
        share = (y[first - 1] - target) / (y[first - 1] - y[first])
        return float(x[first - 1] + share * (x[first] - x[first - 1]))
    return np.asarray(steps)[first].item()


def area_under(steps: ArrayLike, error: ArrayLike, start: float | None = None, end: float | None = None) -> float | None:
    """The integral of the error from ``start`` to ``end``, straight lines between the measured points.

    Runs are comparable over the same range only: a run that stopped while its error was still large would otherwise have the
    smallest area. Divided by ``end - start`` it is the mean error.

    Args:
        steps: (n,) rising, in iterations or epochs.
        error: (n,) the error at these steps.
        start: where the area begins; None: at the first point.
        end: where it ends; None: at the last point.

    Returns:
        The area, in the error's unit times the steps'. None, and no number, where the points do not cover the range (the run
        ended early), where a point that it needs is NaN or infinite (the run diverged), or where the range is empty.

    Raises:
        ValueError: ``steps`` do not rise or are not as many as the errors.
    """
    x, y = _curve(steps, error)
    if not len(x):
        return None
    low, high = x[0] if start is None else start, x[-1] if end is None else end
    if not x[0] <= low < high <= x[-1]:
        return None
    # the points around the range decide its ends
    needed = slice(np.searchsorted(x, low, "right") - 1, np.searchsorted(x, high, "left") + 1)
    if not np.isfinite(y[needed]).all():
        return None
    inside = x[(x > low) & (x < high)]
    grid = np.concatenate([[low], inside, [high]])
    return float(np.trapezoid(np.interp(grid, x[needed], y[needed]), grid))
