"""Dense prediction that evaluates only some pixels, as PixelNet's "any subset of pixels" allows.

Labels change at few pixels. A coarse grid is evaluated first, and then, level by level, only pixels near which labels differ or
whose two likeliest classes are close. All other logits are interpolated.

Shapes: C classes, P points, H x W the image, h x w the grid of a level.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["adaptive_logits", "check_grid"]


def check_grid(coarse: object, margin: object) -> None:
    """Check the settings of `adaptive_logits`.

    Raises:
        ValueError: ``coarse`` is not a power of 2, or ``margin`` is negative.
    """
    if not (isinstance(coarse, int) and coarse >= 1 and coarse & (coarse - 1) == 0):
        raise ValueError(f"coarse is the spacing of the first grid in pixels, a power of 2, got {coarse!r}.")
    if not (isinstance(margin, int | float) and margin >= 0):
        raise ValueError(f"margin is a difference of probabilities and must be >= 0, got {margin!r}.")


def _uncertain(logits: Tensor, probabilities: Callable[[Tensor], Tensor], margin: float) -> Tensor:
    """(h, w): whether labels differ among the 3 x 3 neighbours, or the two likeliest classes are close."""
    label = logits.argmax(0)[None, None].to(torch.float32)
    highest, lowest = F.max_pool2d(label, 3, 1, 1), -F.max_pool2d(-label, 3, 1, 1)
    differ = (highest != lowest)[0, 0]
    if len(logits) < 2:
        return differ
    first, second = probabilities(logits).topk(2, dim=0).values
    return differ | (first - second < margin)


def _grid(size: tuple[int, int], step: int) -> tuple[int, int]:
    """Rows and columns of a grid over the image; the last of each may lie beyond its border."""
    height, width = size
    return -(-(height - 1) // step) + 1, -(-(width - 1) // step) + 1


def _pixels(grid_points: Tensor, step: int, size: tuple[int, int]) -> Tensor:
    """The pixels of grid points, clamped to the image."""
    return torch.stack([(grid_points[:, axis] * step).clamp(max=side - 1) for axis, side in enumerate(size)], dim=1)


def adaptive_logits(
    evaluate: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    probabilities: Callable[[Tensor], Tensor],
    coarse: int = 8,
    margin: float = 0.2,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits of an image, evaluated on a coarse grid and then only where the labels are uncertain.

    Every ``coarse``-th pixel of every ``coarse``-th row is evaluated, and the spacing is halved until it is 1. Each time, a
    point of the new grid is evaluated if, in the logits interpolated so far, one of its eight neighbours has another label, or
    its two likeliest classes are less than ``margin`` apart in probability.

    Args:
        evaluate: gives logits (P, C) at points (P, 2), (row, column), sorted by rows.
        size: (H, W).
        probabilities: gives the probabilities of logits (C, h, w) by the loss's link.
        coarse: spacing of the first grid, a power of 2; 1 evaluates every pixel.
        margin: 0..1; 0 looks at labels only, and above 1 every pixel is evaluated.
        device: device of the points.

    Returns:
        (C, H, W) logits and (H, W) whether a pixel was evaluated.

    Raises:
        ValueError: ``coarse`` is not a power of 2, or ``margin`` is negative.
    """
    check_grid(coarse, margin)
    step = coarse
    grid_points = torch.ones(_grid(size, step), dtype=torch.bool, device=device).nonzero()
    logits = evaluate(_pixels(grid_points, step, size)).T.reshape(-1, *_grid(size, step))
    evaluated = torch.ones_like(logits[0], dtype=torch.bool)
    while step > 1:
        step //= 2
        rows, columns = _grid(size, step)
        doubled = [2 * side - 1 for side in evaluated.shape]
        upsampled = F.interpolate(logits[None], doubled, mode="bilinear", align_corners=True)[0]
        upsampled_mask = evaluated.new_zeros(doubled)
        # interpolation may be off by a rounding error at the nodes themselves
        upsampled[:, ::2, ::2], upsampled_mask[::2, ::2] = logits, evaluated
        logits, evaluated = upsampled[:, :rows, :columns], upsampled_mask[:rows, :columns]
        selected = _uncertain(logits, probabilities, margin) & ~evaluated
        grid_points = selected.nonzero()
        if len(grid_points):
            logits[:, selected] = evaluate(_pixels(grid_points, step, size)).T
        evaluated = evaluated | selected
    return logits, evaluated
