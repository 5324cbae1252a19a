"""``report.html``: one file without a link to any other. ``page.html`` beside this module is its template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gbseg.data.images import ImageError
from gbseg.evaluation.bootstrap import Intervals
from gbseg.evaluation.calibration import Reliability
from gbseg.evaluation.confusion import Scores
from gbseg.report.matrix import row_shares
from gbseg.report.overlay import VOID
from gbseg.report.pictures import ERROR_COLOURS, Picture, jpeg_uri, panels

__all__ = ["TestReport", "render_page"]

MATRIX_CLASSES = 200  # with more, the page lists the largest confusions alone
CONFUSIONS = 12
DOT = 1.5  # width of a dot of the strip in percent IoU: closer ones are stacked
PANELS = ("image", "truth", "prediction", "errors")


@dataclass(frozen=True)
class TestReport:
    """Everything that is known of one test.

    Attributes:
        name: of what was tested.
        images: how many there were.
        metrics: by name, in percent.
        scores: of the set, fractions in 0..1.
        matrix: (C, C) counts, rows = label, columns = prediction.
        palette: (red, green, blue) of every class.
        intervals: of the scores, if any.
        reliability: of the confidences, if asked for.
        worst: pictures, worst first.
        best: pictures, best first.
        facts: what else is to be known, by name: config, checkpoint, network input, data.
        provenance: from `gbseg.report.provenance`.
    """

    __test__ = False  # its name is not one of a pytest class

    name: str
    images: int
    metrics: dict[str, float]
    scores: Scores
    matrix: Any
    palette: list[list[int]]
    intervals: Intervals | None = None
    reliability: Reliability | None = None
    worst: list[Picture] = field(default_factory=list)
    best: list[Picture] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def _css(colour: Sequence[int]) -> str:
    return "rgb({} {} {})".format(*map(int, colour))


def _number(value: float | None, digits: int = 1) -> str:
    """Percent of a fraction; a dash for what is not known."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def _strip(values: Sequence[float]) -> list[int]:
    """The row of each dot of the strip, so that none covers another: the lowest one that is free there; -1 for NaN."""
    rows = [-1] * len(values)
    ends: list[float] = []
    for i in sorted((i for i, value in enumerate(values) if not math.isnan(value)), key=lambda i: values[i]):
        row = next((row for row, end in enumerate(ends) if 100 * values[i] >= end), len(ends))
        ends[row : row + 1] = [100 * values[i] + DOT]
        rows[i] = row
    return rows


def _classes(report: TestReport) -> list[dict[str, Any]]:
    scores, shares = report.scores, row_shares(report.matrix)
    rows, pixels = _strip(scores.iou), sum(scores.labelled)
    found = []
    for i, name in enumerate(scores.class_names):
        others = np.nan_to_num(shares[i].copy())
        others[i] = 0
        worst = int(others.argmax())
        interval = None if report.intervals is None or math.isnan(scores.iou[i]) else report.intervals.iou[i]
        found.append(
            {
                "name": name,
                "colour": _css(report.palette[i]),
                "iou": scores.iou[i],
                "interval": interval,
                "dice": scores.dice[i],
                "accuracy": scores.accuracy[i],
                "share": scores.labelled[i] / pixels if pixels else math.nan,
                "row": rows[i],
                "headline": name in (scores.headline_classes or ()),
                "absent": math.isnan(scores.iou[i]),
                "confused": {"name": scores.class_names[worst], "share": others[worst]} if others[worst] >= 0.005 else None,
            }
        )
    return found


def _confusions(report: TestReport) -> list[dict[str, Any]]:
    """The pairs of different classes between which the most pixels went wrong."""
    names, matrix = report.scores.class_names, np.array(report.matrix, dtype=np.int64)
    shares = row_shares(matrix)
    np.fill_diagonal(matrix, 0)
    found = []
    for flat in np.argsort(matrix, axis=None, kind="stable")[::-1][:CONFUSIONS]:
        i, j = (int(index) for index in np.unravel_index(flat, matrix.shape))
        if matrix[i, j]:
            colours = _css(report.palette[i]), _css(report.palette[j])
            found.append(
                {
                    "label": names[i],
                    "prediction": names[j],
                    "pixels": int(matrix[i, j]),
                    "share": shares[i, j],
                    "colours": colours,
                }
            )
    return found


def _picture(picture: Picture, report: TestReport) -> dict[str, Any]:
    names = report.scores.class_names
    background = 0 if names[0] == "background" else None
    images, unreadable = [], ""
    try:
        images = panels(picture, report.palette, background)
    except ImageError as error:
        unreadable = str(error)
    kept = picture.label != VOID
    labelled = set(np.unique(picture.label[kept]).tolist())
    occurring = [i for i, value in enumerate(picture.iou) if not math.isnan(value)]
    there = sorted(labelled & set(occurring), key=lambda i: -picture.iou[i])
    return {
        "name": picture.name,
        "score": picture.score,
        "wrong": float((picture.label != picture.prediction)[kept].mean()) if kept.any() else math.nan,
        "panels": [
            {"kind": kind, "uri": jpeg_uri(image), "size": image.shape[1::-1]}
            for kind, image in zip(PANELS, images, strict=bool(images))
        ],
        "unreadable": unreadable,
        "classes": [{"name": names[i], "colour": _css(report.palette[i]), "iou": picture.iou[i]} for i in there],
        "spurious": [names[i] for i in occurring if i not in labelled],
    }


def _tiles(report: TestReport) -> list[dict[str, Any]]:
    """The figures beside the headline number."""
    scores = report.scores
    tiles = [
        ("aAcc", scores.pixel_accuracy, "pixels that are right"),
        ("mAcc", scores.macc, "mean accuracy of the classes"),
        ("fwIoU", scores.fwiou, "IoU weighted by pixels"),
        ("mDice", scores.mdice, "mean Dice of the classes"),
    ]
    if report.reliability:
        tiles.append(("ECE", report.reliability.ece, "calibration error"))
    found = [{"name": name, "value": value, "meaning": meaning, "interval": None} for name, value, meaning in tiles]
    if scores.headline_classes:
        headline = {"name": f"mIoU-{len(scores.headline_classes)}", "value": scores.headline_miou}
        headline |= {"meaning": ", ".join(scores.headline_classes)}
        found.insert(0, headline | {"interval": report.intervals.headline_miou if report.intervals else None})
    return found


def render_page(report: TestReport) -> str:
    """The page as text. Its images are ``data:`` URIs; its script sorts the table and counts the images that loaded.

    An image that cannot be read is left out, and its card says why.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _number, "thousands": lambda value: f"{value:,}"}
    count = len(report.scores.class_names)
    shares = row_shares(report.matrix)
    background = report.scores.class_names[0] == "background"
    return environment.get_template("page.html").render(
        report=report,
        scores=report.scores,
        intervals=report.intervals,
        classes=_classes(report),
        tiles=_tiles(report),
        rows=1 + max(_strip(report.scores.iou)),
        sections=[
            (title, [_picture(picture, report) for picture in pictures])
            for title, pictures in (("Worst images", report.worst), ("Best images", report.best))
            if pictures
        ],
        error_colours={kind: _css(colour) for kind, colour in ERROR_COLOURS.items() if background or kind == "confused"},
        matrix=shares.tolist() if count <= MATRIX_CLASSES else [],
        confusions=_confusions(report),
        reliability=report.reliability,
        provenance=report.provenance,
    )
