"""The report page in a browser, and the other files of a test, read back by somebody else's readers."""

import json
import math
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gbseg.data.scenes import write_scenes
from gbseg.evaluation import Calibration, scores
from gbseg.evaluation.bootstrap import bootstrap_intervals
from gbseg.evaluation.confusion import confusion_matrix
from gbseg.palettes import VOC_CLASSES, VOC_PALETTE
from gbseg.report.page import TestReport
from gbseg.report.pictures import Picture
from gbseg.report.run_provenance import provenance
from gbseg.report.test_report import write_test_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


FILES = {"scores.json", "confusion.png", "reliability.png", "report.html"}


def _scene_report(root: Path, with_everything: bool = True) -> TestReport:
    """A test of six generated scenes by a network that shifts every object, and takes cats for dogs."""
    write_scenes(root, train=0, val=6, size=(60, 80))
    matrix, counts, pictures, calibration = 0, [], [], Calibration()
    for position, name in enumerate((root / "ImageSets/Segmentation/val.txt").read_text().split()):
        label = np.asarray(Image.open(root / f"SegmentationClass/{name}.png"))
        prediction = np.roll(np.where(label == 255, 0, label), position * 3, axis=1)
        prediction = np.where(prediction == 8, 12, prediction).astype(np.uint8)
        one = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(label.copy()), 21)
        matrix = matrix + one
        counts.append(torch.stack((one.diagonal(), one.sum(1), one.sum(0))).numpy())
        computed = scores(one, VOC_CLASSES)
        path = str(root / f"JPEGImages/{name}.jpg")
        pictures.append(Picture(computed.miou, position, name, path, label, prediction, computed.iou))
        logits = 3.0 * torch.nn.functional.one_hot(torch.from_numpy(prediction).long(), 21).permute(2, 0, 1).float()
        calibration.update(logits, logits.softmax(0), torch.from_numpy(label.copy()))
    pictures.sort(key=lambda picture: picture.rank)
    headline = ["background", "cat", "dog"]
    result = scores(matrix, VOC_CLASSES, headline)
    metrics = {"mIoU": 100 * result.miou, "mIoU-3": 100 * result.headline_miou, "aAcc": 100 * result.pixel_accuracy}
    metrics |= {"mAcc": 100 * result.macc, "fwIoU": 100 * result.fwiou, "mDice": 100 * result.mdice}
    return TestReport(
        name="scenes <shifted> & $taken",
        images=6,
        metrics=metrics | ({"ECE": 100 * calibration.reliability().ece} if with_everything else {}),
        scores=result,
        matrix=matrix.numpy(),
        palette=[list(colour) for colour in VOC_PALETTE],
        intervals=bootstrap_intervals(np.stack(counts), [0, 8, 12], resamples=200) if with_everything else None,
        reliability=calibration.reliability() if with_everything else None,
        worst=pictures[:3],
        best=pictures[:2:-1],
        facts={"config": "configs/demo.py", "network input": "224 x 224"},
        provenance=provenance("tools/test.py configs/demo.py weights.pth --ci"),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[TestReport, Path]:
    root = tmp_path_factory.mktemp("report")
    report = _scene_report(root / "voc")
    write_test_report(report, root / "test")
    assert {path.name for path in (root / "test").iterdir()} == FILES
    return report, root / "test"


class _Reader(HTMLParser):
    """Everything that a page would load, and its text by the element it stands in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images = 0
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data.strip()


def test_page_needs_no_other_file(written: tuple[TestReport, Path]) -> None:
    """All that it would load is inside it, and names are text, not markup."""
    text = (written[1] / "report.html").read_text()
    reader = _Reader(text)
    assert reader.images == 6 * 4
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in reader.links)
    assert not re.search(r"url\(|@import|https?://", re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text))
    assert "scenes &lt;shifted&gt; &amp; $taken" in text and "<shifted>" not in text


def test_page_table(written: tuple[TestReport, Path]) -> None:
    """The table holds every class's numbers, in the order of the classes; the matrix holds the shares of the rows."""
    report, folder = written
    rows = _Reader((folder / "report.html").read_text()).rows
    names = [row[0].rstrip("*") for row in rows[1:22]]
    iou = dict(zip(VOC_CLASSES, report.scores.iou, strict=True))
    assert names == list(VOC_CLASSES) and report.scores.absent
    for row, name in zip(rows[1:], names, strict=False):
        index = VOC_CLASSES.index(name)
        expected = "-" if math.isnan(iou[name]) else f"{100 * iou[name]:.1f}"
        assert row[2] == expected
        assert row[4] == ("-" if expected == "-" else f"{100 * report.scores.dice[index]:.1f}")
    heat = {row[0]: row[1:] for row in rows[23:]}
    assert set(heat) == set(VOC_CLASSES)
    shares = report.matrix / report.matrix.sum(1, keepdims=True).clip(1)
    for i, name in enumerate(VOC_CLASSES):
        assert heat[name] == [f"{100 * share:.0f}" if share >= 0.005 else "" for share in shares[i]]


def test_scores_json(written: tuple[TestReport, Path]) -> None:
    """The file is strict JSON and holds everything, unrounded; what is not known is null."""
    report, folder = written

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    computed = json.loads((folder / "scores.json").read_text(), parse_constant=refuse)
    np.testing.assert_array_equal(computed["confusion_matrix"], report.matrix)
    assert computed["metrics"] == report.metrics and computed["images"] == 6 and computed["network input"] == "224 x 224"
    for row, name, iou in zip(computed["classes"], VOC_CLASSES, report.scores.iou, strict=True):
        assert row["name"] == name and row["iou"] == (None if math.isnan(iou) else iou)
    assert computed["absent"] == list(report.scores.absent) and computed["headline"] == ["background", "cat", "dog"]
    assert report.intervals and computed["intervals"]["miou"] == list(report.intervals.miou)
    assert report.reliability and computed["calibration"]["ece"] == report.reliability.ece
    assert computed["provenance"]["versions"]["torch"] == torch.__version__


def test_metrics_of_any_name_and_type(written: tuple[TestReport, Path], tmp_path: Path) -> None:
    """A prefix of the metric and NumPy's numbers change nothing on the page and nothing in the file but the names."""
    report, folder = written
    metrics = {f"voc/{name}": value for name, value in report.metrics.items()}
    classes = {f"voc/IoU/{name}": 1.0 for name in VOC_CLASSES} | {"IoU/cat": 1.0}
    more = {"voc/mIoU/low": np.float32(0.5), "n": np.int64(3), "none": np.float32("nan")}
    write_test_report(replace(report, metrics=metrics | classes | more), tmp_path)
    computed = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    assert computed == metrics | {"voc/mIoU/low": 0.5, "n": 3, "none": None}
    assert (tmp_path / "report.html").read_text() == (folder / "report.html").read_text()


def test_tiles(written: tuple[TestReport, Path]) -> None:
    """Beside the mean stand the headline, accuracy and the like, as the scores have them."""
    report, folder = written
    text = (folder / "report.html").read_text()
    computed = re.findall(r'<div><b class="number">([\d.]+)</b> ([\w-]+)<span', text)
    s = report.scores
    assert s.headline_miou and report.reliability
    values = {"mIoU-3": s.headline_miou, "aAcc": s.pixel_accuracy, "mAcc": s.macc, "fwIoU": s.fwiou, "mDice": s.mdice}
    values["ECE"] = report.reliability.ece
    assert {name: value for value, name in computed} == {name: f"{100 * value:.1f}" for name, value in values.items()}


def test_pictures_that_cannot_be_read(written: tuple[TestReport, Path], tmp_path: Path) -> None:
    """The page says so in their place; a name that is no UTF-8 is shown with its bytes escaped."""
    report, _ = written
    image = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.jpg"))
    shutil.copy(report.worst[0].path or "", image)
    (tmp_path / "text.jpg").write_text("no image")
    worst = [
        report.worst[0]._replace(name=image.stem, path=str(image)),
        report.worst[1]._replace(path=str(tmp_path / "text.jpg")),
        report.worst[2]._replace(path=None),
    ]
    write_test_report(replace(report, worst=worst), tmp_path / "test")
    text = (tmp_path / "test/report.html").read_text()
    assert _Reader(text).images == 4 * 4
    assert '<img src="data:image/jpeg' in text[text.index("<span>caf\\udce9</span>") :].split("</article>")[0]
    assert f"not shown: {tmp_path}/text.jpg cannot be read as an image" in text
    assert f"not shown: {worst[2].name} has no img_path" in text


def test_what_an_earlier_report_left(written: tuple[TestReport, Path], tmp_path: Path) -> None:
    """A folder holds the files of one report, however little was asked for."""
    report, _ = written
    write_test_report(report, tmp_path)
    (tmp_path / "mine.txt").touch()
    write_test_report(replace(report, reliability=None), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"reliability.png"} | {"mine.txt"}
    write_test_report(report, tmp_path, page=False)
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json", "reliability.png", "mine.txt"}


def test_figures(written: tuple[TestReport, Path]) -> None:
    """The figures are PNGs; a darker cell is a larger share."""
    with Image.open(written[1] / "confusion.png") as image:
        assert image.format == "PNG" and min(image.size) > 1000
        grey = np.asarray(image.convert("L"))
    assert np.asarray(Image.open(written[1] / "reliability.png")).std() > 10
    # the cells: 21 x 21 of 62 pixels, right of the class names and above the lower margin of 30
    side = round(0.31 * 200 * 21)
    cells = grey[-30 - side : -30, -30 - side : -30]
    corner = [[int(cells[int((r + 0.12) * side / 21), int((c + 0.12) * side / 21)]) for c in range(21)] for r in range(21)]
    matrix = written[0].matrix
    for r in np.flatnonzero(matrix.sum(1)):
        shades = np.array(corner[r])
        assert shades[matrix[r].argmax()] == shades.min() and shades[matrix[r] == 0].min() > 240


def test_page_of_less(tmp_path: Path) -> None:
    """Without intervals, calibration, pictures and headline the page still opens, and says nothing of them."""
    report = _scene_report(tmp_path / "voc", with_everything=False)
    bare: dict[str, Any] = {**vars(report), "worst": [], "best": [], "provenance": {}}
    write_test_report(TestReport(**bare), tmp_path / "test")
    text = (tmp_path / "test/report.html").read_text()
    assert "interval" not in _Reader(text).rows[0] and 'id="calibration"' not in text and "Worst images" not in text
    assert not (tmp_path / "test/reliability.png").exists()


def _browser() -> str:
    computed = next(filter(None, map(shutil.which, BROWSERS)), None)
    if computed is None and os.environ.get("GBSEG_REQUIRE_BROWSER") == "1":
        pytest.fail(f"GBSEG_REQUIRE_BROWSER=1, and there is no {' or '.join(BROWSERS)}")
    if computed is None:
        pytest.skip("no browser to open the page with: apt-get install chromium")
    return computed


def _run_browser(page: Path, home: Path, *options: str) -> str:
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={home}", *options]
    done = subprocess.run([_browser(), *arguments, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_table_is_sorted_by_clicks(written: tuple[TestReport, Path], tmp_path: Path) -> None:
    """The best IoU first, by one click, and back to the order of the classes, or its reverse, by more."""
    report, folder = written
    text = (folder / "report.html").read_text()
    present = [i for i in range(21) if not math.isnan(report.scores.iou[i])]
    best_first = sorted(present, key=lambda i: -report.scores.iou[i])
    for clicks, expected in (([1], best_first), ([1, 1], best_first[::-1]), ([1, 0], present), ([0], present[::-1])):
        script = "".join(f"document.querySelectorAll('.classes th button')[{i}].click();" for i in clicks)
        (tmp_path / "page.html").write_text(text.replace("</body>", f"<script>{script}</script></body>"))
        dom = _run_browser(tmp_path / "page.html", tmp_path / "home", "--dump-dom")
        names = [row[0].rstrip("*") for row in _Reader(dom).rows[1:22]]
        assert [VOC_CLASSES.index(name) for name in names if VOC_CLASSES.index(name) in present] == expected


def test_page_opens_in_a_browser(written: tuple[TestReport, Path], tmp_path: Path) -> None:
    """Chromium opens the page from a file, decodes all of its images, runs its script and paints it."""
    page = written[1] / "report.html"
    dom = _run_browser(page, tmp_path / "home", "--virtual-time-budget=5000", "--dump-dom")
    # the page itself counts the images whose naturalWidth is above zero, once everything has loaded
    assert re.search(r"<html[^>]* data-images=\"24/24\"", dom), dom[:300]
    shot = tmp_path / "page.png"
    _run_browser(page, tmp_path / "home", "--window-size=900,2600", f"--screenshot={shot}")
    with Image.open(shot) as image:
        assert image.size == (900, 2600)
        pixels = np.asarray(image.convert("RGB"))
    # photographs and overlays have thousands of colours, a blank page or an error page a handful
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5000
    saturated = pixels.max(2).astype(int) - pixels.min(2) > 60
    assert 0.02 < saturated.mean() < 0.9
