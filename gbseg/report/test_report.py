"""What a test leaves behind: ``scores.json``, ``confusion.png``, ``reliability.png`` and ``report.html``."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from gbseg.files import write_atomically
from gbseg.report.matrix import draw_confusion, draw_reliability
from gbseg.report.page import TestReport, render_page

__all__ = ["TestReport", "scores_json", "write_test_report"]


FILES = ("scores.json", "confusion.png", "reliability.png", "report.html")


def _strict(value: Any) -> Any:
    """JSON has no NaN: what is not known is null; nor has it NumPy's numbers."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return value


def scores_json(report: TestReport) -> dict[str, Any]:
    """The report without its pictures, ready for strict JSON: metrics in percent, all else as fractions, unknown is None."""
    scores, intervals = report.scores, report.intervals
    classes = [
        {
            "name": name,
            "iou": scores.iou[i],
            "dice": scores.dice[i],
            "accuracy": scores.accuracy[i],
            "labelled": scores.labelled[i],
            "predicted": scores.predicted[i],
            **({} if intervals is None else {"iou_interval": intervals.iou[i]}),
        }
        for i, name in enumerate(scores.class_names)
    ]
    found: dict[str, Any] = {
        "name": report.name,
        **report.facts,
        "images": report.images,
        # those of the classes, which a prefix may stand before, are below
        "metrics": {name: value for name, value in report.metrics.items() if "/IoU/" not in f"/{name}"},
        "headline": scores.headline_classes,
        "absent": scores.absent,
        "classes": classes,
        "confusion_matrix": report.matrix.tolist(),
    }
    if intervals is not None:
        kept = ("level", "resamples", "seed", "miou", "headline_miou")
        found["intervals"] = {key: getattr(intervals, key) for key in kept}
    if report.reliability is not None:
        found["calibration"] = dataclasses.asdict(report.reliability)
    return _strict(found | {"provenance": report.provenance})


def write_test_report(report: TestReport, folder: str | Path, page: bool = True) -> None:
    """Write the files, each atomically, and remove those of an earlier report that are not among them.

    Args:
        report: what is known.
        folder: of the files.
        page: write ``report.html`` and ``confusion.png``; without, ``scores.json`` and ``reliability.png`` alone.

    Raises:
        FileWriteError: a file could not be written.
    """
    folder = Path(folder)
    files = {"scores.json": lambda: (json.dumps(scores_json(report), indent=1, allow_nan=False) + "\n").encode()}
    if page:
        files["confusion.png"] = lambda: draw_confusion(report.matrix, report.scores.class_names)
    if report.reliability is not None:
        files["reliability.png"] = lambda: draw_reliability(report.reliability, report.name)
    if page:
        # a file's name need not be UTF-8
        files["report.html"] = lambda: render_page(report).encode(errors="backslashreplace")
    for name in FILES:
        if name not in files:
            (folder / name).unlink(missing_ok=True)
    # one by one, the scores first: whatever may be wrong with the others, they are safe by then
    for name, make in files.items():
        write_atomically(make(), folder / name)
