"""Which images are kept, and what is painted over them."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from gbseg.data.images import ImageError
from gbseg.palettes import VOC_PALETTE
from gbseg.report.pictures import ERROR_COLOURS, Picture, Ranking, error_map, panels

EMPTY = np.zeros((1, 1), np.uint8)


def _pictures(scores: list[float]) -> list[Picture]:
    return [Picture(score, i, f"{i}", f"{i}.jpg", EMPTY, EMPTY, ()) for i, score in enumerate(scores)]


def test_ranking_keeps_the_worst_and_the_best() -> None:
    """One at a time, and merged from two processes, it keeps what sorting everything would; ties go by position."""
    scores = np.random.default_rng(0).integers(0, 6, 50).astype(float).tolist()
    pictures = _pictures(scores)
    expected = sorted(pictures, key=lambda p: (p.score, p.position))
    assert expected[3].score == expected[4].score and expected[-4].score == expected[-5].score, "no ties, no test of them"
    for processes in (1, 2, 3):
        parts = [Ranking(4) for _ in range(processes)]
        for number, picture in enumerate(pictures):
            ranking = parts[number % processes]
            if ranking.wants(picture.score, picture.position):
                ranking.add(picture)
            assert len(ranking.kept) <= 8
        merged = Ranking(4)
        merged.add(*(picture for part in parts for picture in part.kept))
        assert [p.position for p in merged.worst] == [p.position for p in expected[:4]]
        assert [p.position for p in merged.best] == [p.position for p in expected[:-5:-1]]
    # a picture that would not be kept is not even fetched
    assert not merged.wants(expected[25].score, 25) and merged.wants(-1.0, 50) and merged.wants(99.0, 50)


def test_ranking_of_few() -> None:
    """Of fewer images than places none is shown twice; nor one without a class; k = 0 keeps none."""
    ranking = Ranking(3)
    ranking.add(*_pictures([0.5, 0.1, 0.9]))
    assert [p.score for p in ranking.worst] == [0.1, 0.5] and [p.score for p in ranking.best] == [0.9]
    assert not ranking.wants(float("nan"), 3) and not Ranking(0).wants(0.5, 3)


def test_error_map() -> None:
    """Every wrong pixel has the colour of its kind of error, every right one is grey, void is dark."""
    label = np.array([[0, 0, 5, 5, 5, 255, 255]], np.uint8)
    prediction = np.array([[0, 7, 5, 0, 7, 0, 5]], np.uint8)
    image = np.full((1, 7, 3), 100, np.uint8)
    kinds = [None, "invented", None, "missed", "confused", "void", "void"]
    for background in (0, None):
        result = error_map(image, label, prediction, background)
        for pixel, kind in zip(result[0], kinds, strict=True):
            if kind is None:
                assert pixel.tolist() == [190] * 3
            elif kind == "void":
                assert pixel.tolist() == [96] * 3
            else:
                colour = ERROR_COLOURS["confused" if background is None else kind]
                assert pixel[::-1].tolist() == [round(0.2 * 190 + 0.8 * channel) for channel in colour]


def test_panels(tmp_path: Path) -> None:
    """Four panels of the page's size whatever the image's; labels keep their edges; the background stays to be seen."""
    image = np.full((30, 40, 3), 200, np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    label = np.zeros((30, 40), np.uint8)
    label[:, 20:] = 15
    picture = Picture(0.5, 0, "a", str(tmp_path / "a.png"), label, np.zeros_like(label), ())
    result = panels(picture, VOC_PALETTE)
    assert [panel.shape for panel in result] == [(360, 480, 3)] * 4
    truth, prediction = result[1], result[2]
    assert (truth[:, :240] == round(0.65 * 200)).all()
    assert truth[0, 240, ::-1].tolist() == [round(0.35 * 200 + 0.65 * channel) for channel in VOC_PALETTE[15]]
    assert (truth[:, 240:] == truth[0, 240]).all()
    assert (prediction == round(0.65 * 200)).all()
    with pytest.raises(ImageError, match=r"gone\.png cannot be read as an image"):
        panels(picture._replace(path=str(tmp_path / "gone.png")), VOC_PALETTE)
    with pytest.raises(ImageError, match="a has no img_path"):
        panels(picture._replace(path=None), VOC_PALETTE)
