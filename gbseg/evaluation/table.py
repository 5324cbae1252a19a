"""The scores of a set as a plain-text table for the log."""

import math
from collections.abc import Mapping

from gbseg.evaluation.bootstrap import Intervals
from gbseg.evaluation.confusion import Scores

__all__ = ["score_table"]


def _percent(fraction: float) -> str:
    return "     -" if math.isnan(fraction) else f"{100 * fraction:6.2f}"


def _brackets(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" [{100 * ends[0]:5.2f}, {100 * ends[1]:5.2f}]".ljust(17)


def score_table(images: int, scores: Scores, metrics: Mapping[str, float], intervals: Intervals | None = None) -> str:
    """A table with one line per class (IoU, Dice, accuracy, labelled pixels), then the metrics; headline classes have a star.

    Args:
        images: number of images.
        scores: of the set, fractions in 0..1.
        metrics: by name, in percent; names with a slash are left out.
        intervals: confidence intervals of the scores, in brackets behind the IoU.
    """
    width = max(6, *map(len, scores.class_names))
    headline = scores.headline_classes or ()
    digits = max(8, len(str(max(scores.labelled))))
    lines = [f"Scores of {images} images, percent" + (", * = in the headline" if headline else "")]
    if intervals is not None:
        lines[0] += f"; in brackets {100 * intervals.level:g}% of {intervals.resamples} bootstrap resamples of the images"
    class_ends = [None] * len(scores.iou) if intervals is None else intervals.iou
    room = " " * len(_brackets(class_ends[0]))
    lines.append(f"  {'class':<{width}}      IoU{room}    Dice     acc  {'pixels':>{digits}}")
    for index, name in enumerate(scores.class_names):
        line = f"  {name:<{width}} {'*' if name in headline else ' '} "
        if math.isnan(scores.iou[index]):
            lines.append(f"{line}absent")
            continue
        line += _percent(scores.iou[index]) + _brackets(class_ends[index])
        line += f"  {_percent(scores.dice[index])}  {_percent(scores.accuracy[index])}"
        lines.append(f"{line}  {scores.labelled[index]:>{digits}}")
    ends = {} if intervals is None else {"mIoU": intervals.miou, f"mIoU-{len(headline)}": intervals.headline_miou}
    for name, value in metrics.items():
        if "/" not in name:
            lines.append(f"  {name:<{width}}   {_percent(value / 100)}{_brackets(ends.get(name))}".rstrip())
    if scores.absent:
        lines.append(f"  left out of the means, in neither labels nor predictions: {', '.join(scores.absent)}")
    return "\n".join(lines)
