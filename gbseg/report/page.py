"""``report.html``: one self-contained file. ``page.html`` beside this module is its template."""

import functools
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
from gbseg.report.label_overlay import VOID
from gbseg.report.matrix import row_shares
from gbseg.report.pictures import ERROR_COLOURS, Picture, jpeg_uri, panels

__all__ = ["TestReport", "render_page"]

CONFUSIONS = 12
DOT = 1.5  # width of a dot of the strip in percent IoU: closer dots are stacked
PANELS = ("image", "truth", "prediction", "errors")


@dataclass(frozen=True)
class TestReport:
    """The results of one test.

    Attributes:
        name: the name of what was tested.
        images: number of images.
        metrics: in percent, by name.
        scores: of the set, as fractions in 0..1.
        matrix: (C, C) counts, rows = label, columns = prediction.
        palette: (red, green, blue) of every class.
        intervals: confidence intervals of the scores; None without.
        reliability: the calibration of the confidences; None without.
        worst: pictures, worst first.
        best: pictures, best first.
        facts: further entries of the provenance section by name: config, checkpoint, network input, data.
        provenance: from `gbseg.report.run_provenance.provenance`.
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


def _percent(fraction: float | None, digits: int = 1) -> str:
    """Percent of a fraction; a dash where it is None or NaN."""
    return "-" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.{digits}f}"


def _strip(values: Sequence[float]) -> list[int]:
    """The row of each dot of the strip such that no dot covers another: the lowest free one; -1 for NaN."""
    rows = [-1] * len(values)
    ends: list[float] = []
    for i in sorted((i for i, value in enumerate(values) if not math.isnan(value)), key=lambda i: values[i]):
        row = next((row for row, end in enumerate(ends) if 100 * values[i] >= end), len(ends))
        ends[row : row + 1] = [100 * values[i] + DOT]
        rows[i] = row
    return rows


def _confusions(matrix: np.ndarray) -> list[tuple[int, int, int]]:
    """(label, prediction, pixels) of the pairs of different classes with the most wrong pixels."""
    wrong = np.array(matrix, dtype=np.int64)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:CONFUSIONS]
    pairs = (divmod(int(index), len(wrong)) for index in order)
    return [(i, j, int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def _most_confused(shares: np.ndarray) -> list[int | None]:
    """The class that each class is most often taken for; None below half a percent of its pixels."""
    others = np.nan_to_num(shares)
    np.fill_diagonal(others, 0)
    return [int(row.argmax()) if row.max() >= 0.005 else None for row in others]


def _card(picture: Picture, palette: Sequence[Sequence[int]], background: int | None) -> dict[str, Any]:
    """What the page shows of an image beside its name and score."""
    images, unreadable = [], ""
    try:
        images = panels(picture, palette, background)
    except ImageError as error:
        unreadable = str(error)
    valid = picture.label != VOID
    labelled = set(np.unique(picture.label[valid]).tolist())
    occurring = [i for i, value in enumerate(picture.iou) if not math.isnan(value)]
    return {
        "picture": picture,
        "wrong": float((picture.label != picture.prediction)[valid].mean()) if valid.any() else math.nan,
        "panels": [(kind, jpeg_uri(image), image.shape) for kind, image in zip(PANELS, images, strict=bool(images))],
        "unreadable": unreadable,
        "classes": sorted(labelled & set(occurring), key=lambda i: -picture.iou[i]),
        "spurious": [i for i in occurring if i not in labelled],
    }


def render_page(report: TestReport) -> str:
    """The page as HTML. Its images are ``data:`` URIs; its script sorts the table and counts the images that loaded.

    The card of an image that cannot be read says why instead of showing it.
    """
    templates = FileSystemLoader(Path(__file__).parent)
    options: dict[str, Any] = dict(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment = Environment(loader=templates, **options)
    environment.filters |= {"percent": _percent, "thousands": "{:,}".format, "css": lambda rgb: "rgb({} {} {})".format(*rgb)}
    shares, strip = row_shares(report.matrix), _strip(report.scores.iou)
    background = 0 if report.scores.class_names[0] == "background" else None
    sections = {"Worst images": report.worst, "Best images": report.best}
    card = functools.partial(_card, palette=report.palette, background=background)
    return environment.get_template("page.html").render(
        vars(report),
        report=report,
        names=report.scores.class_names,
        strip=strip,
        pixels=sum(report.scores.labelled) or math.nan,
        most_confused=_most_confused(shares),
        sections={title: list(map(card, pictures)) for title, pictures in sections.items() if pictures},
        error_colours={kind: rgb for kind, rgb in ERROR_COLOURS.items() if background == 0 or kind == "confused"},
        shares=shares.tolist(),
        confusions=_confusions(report.matrix),
    )
