"""The files of a test: ``scores.json``, ``confusion.png``, ``reliability.png`` and ``report.html``."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gbseg.files import write_atomically
from gbseg.report.matrix import draw_confusion, draw_reliability
from gbseg.report.page import TestReport, render_page

__all__ = ["TestReport", "scores_json", "write_test_report"]


def _strict(value: Any) -> Any:
    """A value as JSON can hold it: NumPy scalars as Python's, non-finite numbers as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value


def scores_json(report: TestReport) -> dict[str, Any]:
    """The report without its pictures, ready for strict JSON: metrics in percent, the rest as fractions; unknown is None."""
    scores, intervals = report.scores, report.intervals
    columns: dict[str, Sequence[Any]] = {"name": scores.class_names}
    columns |= {key: getattr(scores, key) for key in ("iou", "dice", "accuracy", "labelled", "predicted")}
    content: dict[str, Any] = {
        "name": report.name,
        **report.facts,
        "images": report.images,
        # those of the classes, which may have a prefix, are under "classes"
        "metrics": {name: value for name, value in report.metrics.items() if "/IoU/" not in f"/{name}"},
        "headline": scores.headline_classes,
        "absent": scores.absent,
    }
    if intervals is not None:
        columns["iou_interval"] = intervals.iou
    content["classes"] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    content["confusion_matrix"] = report.matrix.tolist()
    if intervals is not None:
        content["intervals"] = {key: value for key, value in dataclasses.asdict(intervals).items() if key != "iou"}
    if report.reliability is not None:
        content["calibration"] = dataclasses.asdict(report.reliability)
    return _strict(content | {"provenance": report.provenance})


def write_test_report(report: TestReport, folder: str | Path, page: bool = True) -> None:
    """Write the files, each atomically, and remove those of an earlier report that are not among them.

    Args:
        report: the results.
        folder: of the files.
        page: write ``report.html`` and ``confusion.png`` too; without, ``scores.json`` and ``reliability.png`` alone.

    Raises:
        gbseg.files.FileWriteError: a file could not be written.
    """
    reliability = report.reliability
    contents: dict[str, Callable[[], bytes] | None] = {
        "scores.json": lambda: (json.dumps(scores_json(report), indent=1, allow_nan=False) + "\n").encode(),
        "confusion.png": (lambda: draw_confusion(report.matrix, report.scores.class_names)) if page else None,
        "reliability.png": None if reliability is None else lambda: draw_reliability(reliability, report.name),
        # a file name need not be UTF-8
        "report.html": (lambda: render_page(report).encode(errors="backslashreplace")) if page else None,
    }
    # earlier files go first, then one is written after the other: if a later one fails, the scores are safe
    for name, make in sorted(contents.items(), key=lambda item: item[1] is not None):
        if make is None:
            (Path(folder) / name).unlink(missing_ok=True)
        else:
            write_atomically(make(), Path(folder) / name)
