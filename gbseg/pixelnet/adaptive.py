"""Dense prediction that evaluates only some pixels, as PixelNet's "any subset of pixels" allows.

Labels change at few pixels: a coarse grid is evaluated first, and then, level by level, only what lies where labels differ or
the decision is close. All other logits are interpolated.

Shapes: C classes, P points, H x W the image, h x w the grid of a level.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["adaptive_logits", "check_grid"]


def check_grid(coarse: object, margin: object) -> None:
    """Refuse settings of `adaptive_logits` that make no sense.

    Raises:
        ValueError: ``coarse`` is no power of 2, or ``margin`` is negative.
    """
    if not (isinstance(coarse, int) and coarse >= 1 and coarse & (coarse - 1) == 0):
        raise ValueError(f"coarse is the spacing of the first grid in pixels, a power of 2, got {coarse!r}.")
    if not (isinstance(margin, int | float) and margin >= 0):
        raise ValueError(f"margin is a difference of probabilities and must be >= 0, got {margin!r}.")


def _uncertain(logits: Tensor, probabilities: Callable[[Tensor], Tensor], margin: float) -> Tensor:
    """(h, w) whether labels differ within the 3 x 3 grid points around, or the two likeliest classes are close."""
    label = logits.argmax(0)[None, None].to(torch.float32)
    highest, lowest = F.max_pool2d(label, 3, 1, 1), -F.max_pool2d(-label, 3, 1, 1)
    differ = (highest != lowest)[0, 0]
    if len(logits) < 2:
        return differ
    first, second = probabilities(logits).topk(2, dim=0).values
    return differ | (first - second < margin)


def _grid(size: tuple[int, int], step: int) -> tuple[int, int]:
    """Rows and columns of a grid over the image; the last of each may stand for a place beyond it."""
    return tuple(-(-(side - 1) // step) + 1 for side in size)


def _pixels(place: Tensor, step: int, size: tuple[int, int]) -> Tensor:
    """The pixels of grid points; at the border for those beyond it."""
    return torch.stack([(place[:, axis] * step).clamp(max=side - 1) for axis, side in enumerate(size)], dim=1)


def adaptive_logits(
    evaluate: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    probabilities: Callable[[Tensor], Tensor],
    coarse: int = 8,
    margin: float = 0.2,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits of an image from a coarse grid and what its labels leave open.

    Every ``coarse``-th pixel of every ``coarse``-th row is evaluated, and the spacing is halved until it is 1. Each time, a
    point of the new grid is evaluated if, in the logits interpolated so far, one of its eight neighbours has another label, or
    its two likeliest classes are less than ``margin`` apart in probability.

    Args:
        evaluate: logits (P, C) at points (P, 2), (row, column), in the order of rows.
        size: (H, W).
        probabilities: of logits (C, h, w), by the loss's link.
        coarse: spacing of the first grid, a power of 2; 1 evaluates every pixel.
        margin: 0..1; 0 looks at labels only, and above 1 every pixel is evaluated.
        device: of the points.

    Returns:
        (C, H, W) logits and (H, W) whether a pixel was evaluated.

    Raises:
        ValueError: see `check_grid`.
    """
    check_grid(coarse, margin)
    step = coarse
    place = torch.ones(_grid(size, step), dtype=torch.bool, device=device).nonzero()
    logits = evaluate(_pixels(place, step, size)).T.reshape(-1, *_grid(size, step))
    seen = torch.ones_like(logits[0], dtype=torch.bool)
    while step > 1:
        step //= 2
        rows, columns = _grid(size, step)
        finer = [2 * side - 1 for side in seen.shape]
        known = seen.new_zeros(finer)
        grown = F.interpolate(logits[None], finer, mode="bilinear", align_corners=True)[0]
        # an interpolation at its own nodes may be off by a rounding
        grown[:, ::2, ::2], known[::2, ::2] = logits, seen
        logits, seen = grown[:, :rows, :columns], known[:rows, :columns]
        wanted = _uncertain(logits, probabilities, margin) & ~seen
        place = wanted.nonzero()
        if len(place):
            logits[:, wanted] = evaluate(_pixels(place, step, size)).T
        seen = seen | wanted
    return logits, seen
