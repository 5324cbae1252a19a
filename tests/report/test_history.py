"""Histories read back from what MMEngine's own backend, log processor and runner wrote."""

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmengine")
from mmengine.visualization import LocalVisBackend

from gbseg.report.history import read_history


def _write(work_dir: Path, stamp: str, lines: list[dict]) -> Path:
    """Write lines as LoggerHook does: `step` beside what the log processor put in."""
    folder = work_dir / stamp / "vis_data"
    backend = LocalVisBackend(str(folder))
    for line in lines:
        backend.add_scalars(
            {key: value for key, value in line.items() if key != "step"}, step=line["step"], file_path=f"{stamp}.json"
        )
    return folder / "scalars.json"


def _train(step: int, loss: float, **more: float) -> dict:
    return {"lr": 0.1 / step, "data_time": 0.1, "loss": loss, "loss_ce": loss, "time": 0.2, "iter": step, "step": step, **more}


def _val(step: int, **metrics: float) -> dict:
    return {**metrics, "data_time": 0.1, "time": 0.2, "step": step}


def test_read_back(tmp_path: Path) -> None:
    """Every number comes back, training and validation apart, a metric that is missing once as NaN."""
    lines = [_train(10, 3.5), _train(20, 2.5), _val(20, mIoU=40.5), _train(30, 1.5), _train(40, 1.25)]
    lines.append(_val(40, **{"mIoU": 41.5, "IoU/cat": np.float64(7)}))
    _write(tmp_path, "20260101_000000", lines)
    history = read_history(tmp_path)
    assert history.train_steps.tolist() == [10, 20, 30, 40] and history.train_steps.dtype == np.int64
    assert history.loss.tolist() == [3.5, 2.5, 1.5, 1.25] and history.loss.dtype == np.float64
    assert history.lr.tolist() == [0.1 / 10, 0.1 / 20, 0.1 / 30, 0.1 / 40]
    assert history.val_steps.tolist() == [20, 40] and not history.val_in_epochs
    assert list(history.metrics) == ["mIoU", "IoU/cat"]
    np.testing.assert_equal(history.metrics["mIoU"], [40.5, 41.5])
    np.testing.assert_equal(history.metrics["IoU/cat"], [math.nan, 7.0])
    assert history.sources == ("20260101_000000",) and history.superseded == 0
    assert history.last_step == 40 and history.diverged_at is None


def test_resumed(tmp_path: Path) -> None:
    """Where two starts overlap the later one wins, and what the earlier one did beyond it does not come back."""
    first = [_train(10, 9), _train(20, 8), _val(20, mIoU=1), _train(30, 7), _train(40, 6), _val(40, mIoU=2), _train(50, 5)]
    _write(tmp_path, "20260101_000000", first)
    _write(tmp_path, "20260102_000000", [_train(30, 70), _train(40, 60), _val(40, mIoU=20)])
    history = read_history(tmp_path)
    assert history.train_steps.tolist() == [10, 20, 30, 40] and history.loss.tolist() == [9, 8, 70, 60]
    assert history.val_steps.tolist() == [20, 40] and history.metrics["mIoU"].tolist() == [1, 20]
    assert history.superseded == 4
    assert history.sources == ("20260101_000000", "20260102_000000")


def test_evaluation_only(tmp_path: Path) -> None:
    """An evaluation in the same folder is no part of the training, and is the history where there is no training."""
    _write(tmp_path, "20260102_000000", [_val(0, mIoU=99)])
    assert read_history(tmp_path).metrics["mIoU"].tolist() == [99]
    assert read_history(tmp_path).last_step == 0
    _write(tmp_path, "20260101_000000", [_train(10, 9), _val(10, mIoU=1)])
    assert read_history(tmp_path).val_steps.tolist() == [10]
    assert read_history(tmp_path).sources == ("20260101_000000",)


def test_truncated(tmp_path: Path) -> None:
    """Half a last line, which a killed run leaves, is passed over; damage elsewhere is named with its place."""
    path = _write(tmp_path, "20260101_000000", [_train(10, 9), _train(20, 8)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-15] + b"\xc3")
    assert read_history(tmp_path).train_steps.tolist() == [10]
    path.write_bytes(b'{"loss": 1, "it\n' + whole)
    with pytest.raises(ValueError, match=r"scalars.json, line 1 of 3 is not a JSON object"):
        read_history(tmp_path)
    path.write_bytes(b'{"loss": 1, "it')
    with pytest.raises(ValueError, match="no complete line"):
        read_history(tmp_path)


def test_diverged(tmp_path: Path) -> None:
    """A loss that is NaN or infinite is kept and dates the divergence."""
    _write(tmp_path, "20260101_000000", [_train(10, 9), _train(20, math.inf), _train(30, math.nan)])
    history = read_history(tmp_path)
    np.testing.assert_equal(history.loss, [9, math.inf, math.nan])
    assert history.diverged_at == 20


def test_epochs(tmp_path: Path) -> None:
    """Validations numbered by epochs are known as such, those numbered by iterations are not taken for them."""
    by_epoch = [_train(50, 3, epoch=1), _train(100, 2, epoch=1), _val(1, mIoU=1), _train(150, 2, epoch=2), _val(2, mIoU=3)]
    _write(tmp_path / "epochs", "20260101_000000", by_epoch)
    history = read_history(tmp_path / "epochs")
    assert history.val_in_epochs and history.val_steps.tolist() == [1, 2]
    by_iteration = [{**line, "step": 100 * line["step"]} if "mIoU" in line else line for line in by_epoch]
    _write(tmp_path / "iterations", "20260101_000000", by_iteration)
    assert not read_history(tmp_path / "iterations").val_in_epochs


def test_hierarchy(tmp_path: Path) -> None:
    """Keys of a log processor with log_with_hierarchy=True lose their train/ and val/."""
    lines = [{"train/loss": 2.0, "train/lr": 0.5, "iter": 10, "step": 10}, {"val/mIoU": 3.0, "step": 10}]
    _write(tmp_path, "20260101_000000", lines)
    history = read_history(tmp_path)
    assert history.loss.tolist() == [2.0] and history.lr.tolist() == [0.5] and history.metrics["mIoU"].tolist() == [3.0]


def test_nothing_to_read(tmp_path: Path) -> None:
    """A missing folder, a folder without logs and a line without a step each say so."""
    with pytest.raises(FileNotFoundError, match=r"no folder .*gone"):
        read_history(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="no run has logged anything"):
        read_history(tmp_path)
    path = _write(tmp_path, "20260101_000000", [_train(10, 9)])
    path.write_text('{"loss": 1.0, "lr": 1.0}\n')
    with pytest.raises(ValueError, match="no whole number as its step"):
        read_history(tmp_path)
