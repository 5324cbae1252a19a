"""A training that is told to stop ends after its step, with a checkpoint from which it goes on as if nothing had been."""

import argparse
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")
import engine_tiny as tiny
from test_epoch_loop import BY_EPOCH, EPOCHS

from gbseg.cli.common_options import duration
from gbseg.mm.hooks.stop import SIGNALS

SIGTERM = int(signal.SIGTERM)


@pytest.mark.parametrize(
    ("text", "seconds"), [("3h50m", 13800), ("90s", 90), ("1d12h", 129600), ("2.5h", 9000), ("45", 45), ("1h", 3600)]
)
def test_duration(text: str, seconds: float) -> None:
    """As people write it."""
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-5", "3 hours", "h", "3x", "3h50", "1h-5m"])
def test_no_duration(text: str) -> None:
    """The message shows what is meant."""
    with pytest.raises(argparse.ArgumentTypeError, match="no time such as 3h50m"):
        duration(text)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of runs that nobody stopped."""
    base = tmp_path_factory.mktemp("undisturbed")
    for name, options in {"iter": {}, "epoch": EPOCHS, "by epoch": BY_EPOCH}.items():
        assert tiny.run(base / name, **options) == 0
    return {name: tiny.result(base / name) for name in ("iter", "epoch")} | {
        "by epoch": tiny.result(base / "by epoch", name="epoch_4.pth")
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS[:2])
def test_each_signal(undisturbed: dict, tmp_path: Path, name: str) -> None:
    """The step is finished and saved, and the exit status tells the signal. Without the hook, the process dies at once."""
    number = getattr(signal, name)
    assert tiny.run(tmp_path, kill=("forward", 5), kill_signal=number, stop={}) == 128 + number, tiny.output(tmp_path)
    assert f"{name}: training stops after this step" in tiny.output(tmp_path)
    assert f"stopped by {name} after iteration 5; --resume goes on from" in tiny.output(tmp_path)
    assert torch.load(tmp_path / "interrupted.pth", weights_only=False)["meta"]["iter"] == 5
    assert tiny.run(tmp_path, resume=True, stop={}) == 0
    assert tiny.differences(undisturbed["iter"], tiny.result(tmp_path)) == []
    assert not (tmp_path / "interrupted.pth").exists()


# tests/faults/run.py has every signal at every stage
STAGES = [("backward", 5, 0), ("after_train_iter", 6, 2), ("after_val_iter", 12, 2)]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "at", "workers"), STAGES)
def test_each_stage(undisturbed: dict, tmp_path: Path, stage: str, at: int, workers: int) -> None:
    """Of a step, of a validation, and after a regular checkpoint of the same iteration."""
    assert tiny.run(tmp_path, kill=(stage, at), kill_signal=SIGTERM, stop={}, workers=workers) == 143, tiny.output(tmp_path)
    # a signal after the hook has looked is seen by it at the next step
    assert tiny.run(tmp_path, resume=True, stop={}, workers=workers) == 0
    assert tiny.differences(undisturbed["iter"], tiny.result(tmp_path)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loop", "stage", "at"), [("by epoch", "forward", 4), ("epoch", "forward", 6), ("by epoch", "after_val_iter", 6)]
)
def test_epochs(undisturbed: dict, tmp_path: Path, loop: str, stage: str, at: int) -> None:
    """In the middle of an epoch, at its end, and in its validation; iterations 3, 6, 9 and 12 end an epoch."""
    options = {"epoch": EPOCHS, "by epoch": BY_EPOCH}[loop]
    assert tiny.run(tmp_path, kill=(stage, at), kill_signal=SIGTERM, stop={}, **options) == 143, tiny.output(tmp_path)
    assert tiny.run(tmp_path, resume=True, stop={}, **options) == 0
    name = "epoch_4.pth" if loop == "by epoch" else "iter_12.pth"
    assert tiny.differences(undisturbed[loop], tiny.result(tmp_path, name=name)) == []


@pytest.mark.slow
def test_again_and_again(undisturbed: dict, tmp_path: Path) -> None:
    """A time limit of almost nothing: one iteration a run, and the status of ``timeout``."""
    runs = 0
    while (status := tiny.run(tmp_path, resume=True, stop={"stop_after": 0.001})) == 124:
        runs += 1
    assert status == 0 and 10 <= runs <= 14
    assert tiny.differences(undisturbed["iter"], tiny.result(tmp_path)) == []


@pytest.mark.slow
def test_what_was_ignored_stays_ignored(undisturbed: dict, tmp_path: Path) -> None:
    """As SIGHUP is under ``nohup``. Without the look at the former handler, the run ends after iteration 5."""
    hangup = int(signal.SIGHUP)
    assert tiny.run(tmp_path, kill=("forward", 5), kill_signal=hangup, stop={}, ignored=hangup) == 0
    assert tiny.differences(undisturbed["iter"], tiny.result(tmp_path)) == []


@pytest.mark.slow
def test_twice(tmp_path: Path) -> None:
    """A second signal ends at once, without a checkpoint; one that a launcher passes on at the same time does not."""
    process = tiny.start(tmp_path, stop={}, pause=8.0)
    _wait_for(tmp_path, "Checkpoints will be saved to")
    time.sleep(1.5)
    for pause in (0.1, 1.2, 0):
        _signal(process, SIGTERM)
        time.sleep(pause)
    process.join(5)
    assert process.exitcode == 128 + SIGTERM
    assert tiny.output(tmp_path).count("SIGTERM: training stops after this step") == 1
    assert not list(tmp_path.glob("*.pth"))


def _signal(process: Any, number: int) -> None:
    import os

    os.kill(process.pid, number)


def _wait_for(work_dir: Path, text: str) -> None:
    for _ in range(600):
        if (work_dir / "out.txt").exists() and text in tiny.output(work_dir):
            return
        time.sleep(0.1)
    raise AssertionError(tiny.output(work_dir))
