"""Gradient records joined over several starts of a run; what is wrong in a file is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gbseg.report.gradient_log import read_gradients


def _line(iteration: int, rms: float, **more: object) -> dict:
    normaliser = {"median": 1.0, "mean": 2.0, "min": 0.5, "max": 3.0}
    return {"iter": iteration, "epoch": iteration / 100, "rms/head.fc": rms, "normaliser": normaliser, **more}


def _write(work_dir: Path, stamp: str, lines: list[dict]) -> Path:
    path = work_dir / stamp / "gradients.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_joined(tmp_path: Path) -> None:
    """A later start drops what lies behind its beginning, also records of iterations that it has not come to again."""
    histogram = {"low": -6.0, "high": 10.0, "counts": [3, 0, 1, 4]}
    first = [{"start": 0}, _line(0, 1.0, histogram=histogram), _line(50, 2.0), _line(100, 3.0), _line(150, 4.0)]
    _write(tmp_path, "20260101_000000", first)
    # from a checkpoint at 120; killed before 150 came again
    _write(tmp_path, "20260102_000000", [{"start": 120}, _line(130, 5.0)])
    _write(tmp_path, "20260103_000000", [{"start": 125}])
    result = read_gradients(tmp_path)
    assert result.iterations.tolist() == [0, 50, 100] and result.iterations.dtype == np.int64
    assert result.rms["head.fc"].tolist() == [1.0, 2.0, 3.0] and result.superseded == 2
    assert result.epochs.tolist() == [0, 0.5, 1.0]
    assert result.histograms[0].edges.tolist() == [-6, -2, 2, 6, 10] and result.histograms[0].counts.tolist() == [3, 0, 1, 4]
    assert result.sources == ("20260101_000000", "20260102_000000", "20260103_000000")
    epochs, rms = result.rms_by_epoch("head.fc")
    assert epochs.tolist() == [1, 2] and rms.tolist() == pytest.approx([math.sqrt(2.5), 3.0])
    for statistic, value in (("median", 1.0), ("mean", 2.0), ("min", 0.5), ("max", 3.0)):
        assert result.normaliser(statistic).tolist() == pytest.approx([math.exp(value)] * 3)
    assert read_gradients(tmp_path / "20260101_000000").iterations.tolist() == [0, 50, 100, 150]


def test_diverged(tmp_path: Path) -> None:
    """Infinities and NaN come back as they are, and no mean hides them; a layer that is not in every record is NaN there."""
    lines = [_line(0, 1.0), _line(50, math.inf), _line(100, math.nan), _line(200, 2.0, **{"rms/late": 7.0})]
    lines[2]["normaliser"] = {"median": 800.0, "mean": math.inf, "min": 1.0, "max": math.inf}
    _write(tmp_path, "20260101_000000", lines)
    result = read_gradients(tmp_path)
    np.testing.assert_equal(result.rms["head.fc"], [1, math.inf, math.nan, 2])
    np.testing.assert_equal(result.rms["late"], [math.nan] * 3 + [7])
    np.testing.assert_equal(result.rms_by_epoch("head.fc")[1], [math.inf, math.nan, 2])
    assert result.normaliser("median")[2] == math.inf and result.ln_normaliser["median"][2] == 800


def test_damaged(tmp_path: Path) -> None:
    """Half a last line is passed over; anything else that is wrong is named with its place."""
    path = _write(tmp_path, "20260101_000000", [{"start": 0}, _line(0, 1.0), _line(50, 2.0)])
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert read_gradients(tmp_path).iterations.tolist() == [0]
    path.write_text("{" + whole)
    with pytest.raises(ValueError, match=r"gradients.jsonl, line 1 of 3 is not a JSON object"):
        read_gradients(tmp_path)
    path.write_text('{"epoch": 1}\n' + whole)
    with pytest.raises(ValueError, match=r"gradients.jsonl: a line is none of GradientStatsHook's"):
        read_gradients(tmp_path)
    path.write_text('{"start": 0}\n')
    with pytest.raises(ValueError, match="nothing was recorded yet"):
        read_gradients(tmp_path)


def test_nothing_to_read(tmp_path: Path) -> None:
    """What is missing, and what there is instead."""
    with pytest.raises(FileNotFoundError, match=r"no folder .*gone"):
        read_gradients(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="GradientStatsHook"):
        read_gradients(tmp_path)
    _write(tmp_path, "20260101_000000", [_line(0, 1.0)])
    result = read_gradients(tmp_path)
    with pytest.raises(ValueError, match=r"no gradients of 'fc' were recorded; there are head\.fc"):
        result.rms_by_epoch("fc")
    with pytest.raises(ValueError, match="'average' was not recorded; there are median, mean, min, max"):
        result.normaliser("average")
