"""Runs through the MM stack and vectorised, their records, and what happens when they are interrupted or diverge."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS, on, write_mnist

from gbseg.files import lock_folder
from gbseg.mm.models import GBClsHead
from gbseg.mm.resumable_sampler import ResumableSampler
from gbseg.report.gradient_log import read_gradients
from reproduction import runs, worker
from reproduction.runs import Run, RunResult
from reproduction.worker import train_alone, train_folders, train_together

EPOCHS = 3
# every iteration's own loss in the log, so that an epoch's mean can be compared; neither is part of a run's key
LOGGED = {"default_hooks.logger.interval": 1, "log_processor.window_size": 1}


def run(mnist: Path, home: Path, config: str = "linear", rate: float = 0.1, seed: int = 0, **changes: object) -> Run:
    options = on(mnist) | LOGGED | changes.pop("options", {})
    settings = {"arm": config, "stage": "final", "epochs": EPOCHS, "amp": False, "together": False, "every": 1} | changes
    path = CONFIGS / f"classification/mnist_{config}.py"
    return Run(rate=rate, seed=seed, config=path, options=options, home=home, **settings)


@pytest.mark.parametrize("config", ["linear", "softmax"])
def test_runs_trained_together_are_the_runs_trained_alone(mnist: Path, tmp_path: Path, config: str) -> None:
    """Error and loss after every epoch, through two programs that share the data set, the network and the seeds."""
    settings = [(0.05, 1000), (0.2, 1001)]
    together = [run(mnist, tmp_path / "together", config, *one, together=True).write().parent for one in settings]
    train_together(together)
    curves = []
    for folder, one in zip(together, settings, strict=True):
        mine = RunResult(**json.loads((folder / "result.json").read_text()))
        its = train_alone(run(mnist, tmp_path / "alone", config, *one).write().parent)
        assert mine.steps == its.steps == [6, 12, 18]
        assert mine.metrics["accuracy/top1"] == pytest.approx(its.metrics["accuracy/top1"], abs=1e-4)
        assert mine.loss == pytest.approx(its.loss, rel=1e-4)
        assert mine.diverged is None and its.diverged is None
        curves.append(mine)
    # something was learnt, and not the same
    assert all(curve.metrics["accuracy/top1"][-1] > 30 for curve in curves)
    assert curves[0].metrics != curves[1].metrics and curves[0].loss != curves[1].loss
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.pth"))


def test_a_run_alone_that_diverges_is_a_result(mnist: Path, tmp_path: Path) -> None:
    """At once, before anything is logged, and later: the iteration is the one that the guard names."""
    silent = {"default_hooks.logger.interval": 50}
    at_once = run(mnist, tmp_path, rate=1e30, options=silent)
    result = train_alone(at_once.write().parent)
    assert at_once.result() == result
    assert result.diverged in (2, 3) and (result.steps, result.loss, result.metrics) == ([], [], {})
    # targets that grow the loss slowly past what a float holds
    later = run(mnist, tmp_path, rate=1.6, options=silent)
    result = train_alone(later.write().parent)
    iterations = later.resolved.train_cfg.max_iters
    assert result.diverged is not None and 3 < result.diverged <= iterations
    assert result.steps == [step for step in (6, 12, 18) if step < result.diverged]
    assert len(result.metrics.get("accuracy/top1", [])) == len(result.steps)


def test_trials_together_of_which_one_diverges(mnist: Path, tmp_path: Path) -> None:
    """Its result ends before the epoch in which that was; the other's is whole."""
    runs = [run(mnist, tmp_path, rate=rate, together=True) for rate in (1e30, 0.1)]
    train_folders([one.write().parent for one in runs], together=True)
    bad, good = (one.result() for one in runs)
    assert (bad.diverged, bad.steps, bad.metrics, bad.loss) == (6, [], {"accuracy/top1": []}, [])
    assert good.diverged is None and len(good.metrics["accuracy/top1"]) == EPOCHS


def test_an_interrupted_run_goes_on(mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its last checkpoint, to the numbers of one that was not interrupted, and the time of both starts counts."""
    hook = dict(type="GradientStatsHook", layers=["backbone.layers.1"], interval=1, histograms=[0, 12])
    options = {"custom_hooks": [hook]}
    straight = run(mnist, tmp_path / "whole", options=options).write().parent
    whole = train_alone(straight)
    time.sleep(1)  # mmengine names visualizers by the run and the second, and these are three starts of one run
    folder = run(mnist, tmp_path / "cut", options=options).write().parent

    class Killed(BaseException):
        pass

    steps = iter(range(9))
    plain = GBClsHead.loss

    def loss(*arguments: object, **settings: object) -> dict[str, torch.Tensor]:
        if next(steps, None) is None:
            raise Killed
        return plain(*arguments, **settings)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(GBClsHead, "loss", loss)
        train_alone(folder)
    assert not (folder / "result.json").exists() and list(folder.glob("iter_6*"))
    first = float((folder / "seconds").read_text())
    (torn,) = folder.glob("*/gradients.jsonl")
    torn.write_text(torn.read_text() + '{"iter": 9, "nor')
    time.sleep(1)
    result = train_alone(folder)
    assert result.metrics == whole.metrics and result.steps == whole.steps
    assert result.loss == pytest.approx(whole.loss)
    assert result.seconds > first > 0
    # iterations 6 to 8 were run twice
    mine, its = read_gradients(folder), read_gradients(straight)
    assert mine.superseded == 3 and mine.iterations.tolist() == its.iterations.tolist() == list(range(18))
    for layer, values in its.rms.items():
        np.testing.assert_array_equal(mine.rms[layer], values)
    assert list(mine.histograms) == [0, 12]
    assert not list(folder.glob("*.pth"))


def test_trials_of_another_set_of_runs_start_anew(mnist: Path, tmp_path: Path) -> None:
    """20 trials that were interrupted do not stand in the way of two of them; their state stays until they are done."""
    runs = [run(mnist, tmp_path / "a", seed=seed, together=True, epochs=10) for seed in range(3)]
    folders = [one.write().parent for one in runs]
    train_together(folders[:1])
    for folder in folders:
        (folder / "result.json").unlink(missing_ok=True)
    kept: list[Path] = []
    plain = worker.train_trials

    def killed(*arguments: object, **settings: object) -> None:
        plain(*arguments, **settings)
        kept.append(settings["state"])
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "train_trials", killed)
        with pytest.raises(KeyboardInterrupt):
            train_together(folders)
    assert kept[0].exists()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    train_together(folders[:2])
    assert runs[1].result() is not None and runs[2].result() is None
    # and the three go on with their own: all of their epochs are in it, so that none is trained again
    elsewhere = [tmp_path / "b" / folder.name for folder in folders]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumableSampler, "order", None)
        train_together(elsewhere)
    assert all(len(json.loads((folder / "result.json").read_text())["loss"]) == 10 for folder in elsewhere)
    assert not list(tmp_path.rglob("together*"))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"config": "softmax"}, "differ in nothing but the learning rate and the seed"),
        ({"options": {"train_dataloader.dataset.flip": True}}, None, r"no train_dataloader\.dataset\.flip, got True"),
        ({"options": {"train_dataloader.dataset.pad": 2}}, None, r"no train_dataloader\.dataset\.pad, got 2"),
        ({"options": {"train_dataloader.sampler.shuffle": False}}, None, r"no train_dataloader\.sampler"),
        ({"options": {"custom_hooks": [dict(type="ChannelsLastHook")]}}, None, "no custom_hooks.*train them alone"),
        ({"options": {"optim_wrapper.optimizer.momentum": 0.9}}, None, "plain SGD at a fixed rate"),
        ({"amp": True}, None, "plain SGD at a fixed rate"),
        ({"options": {"model.neck": dict(type="GlobalAveragePooling")}}, None, r"no model\.neck"),
        ({"options": {"model.head.loss.reduction": "sum"}}, None, r"no model\.head\.loss\.reduction, got 'sum'"),
    ],
)
def test_what_cannot_be_trained_together(
    mnist: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], first: dict, second: dict | None, message: str
) -> None:
    """Rather than to leave out what the vectorised trials do not know."""
    pair = [run(mnist, tmp_path, seed=seed, **(first if second is None or not seed else second)) for seed in range(2)]
    folders = [one.write().parent for one in pair]
    with pytest.raises(RuntimeError, match=f"ValueError: runs trained together .*{message}"):
        train_folders(folders, together=True)
    # a process of the grid has its log there
    assert "Traceback" in capfd.readouterr().err
    assert not any(one.result() for one in pair)


def test_a_run_that_another_process_trains_is_left_alone(mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(mnist, tmp_path).write().parent
    monkeypatch.setattr(worker, "lock_folder", lambda folder, timeout: lock_folder(folder, timeout=min(timeout, 0.1)))
    with lock_folder(folder), pytest.raises(RuntimeError, match="another process"):
        train_folders([folder], together=False)
    assert not (folder / "result.json").exists()
    # and what that one has finished in the meantime is not trained again
    (folder / "result.json").write_text("finished elsewhere")
    train_folders([folder], together=False)
    assert (folder / "result.json").read_text() == "finished elsewhere"


def test_the_loss_of_a_run_is_the_mean_between_validations(mnist: Path, tmp_path: Path) -> None:
    """Of what was logged: here every iteration's, read by json alone."""
    folder = run(mnist, tmp_path).write().parent
    result = train_alone(folder)
    lines = [json.loads(line) for path in folder.glob("*/vis_data/scalars.json") for line in path.read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line and "lr" in line]
    assert len(losses) == 6 * EPOCHS
    assert result.loss == pytest.approx(np.reshape(losses, (EPOCHS, 6)).mean(1))


def test_other_classes_than_the_heads(mnist: Path, tmp_path: Path) -> None:
    """Trained together as alone: said before the first step."""
    for together in (True, False):
        one = run(mnist, tmp_path, together=together, options={"model.head.num_classes": 12})
        with pytest.raises(RuntimeError, match="data have 10 classes and the head has num_classes=12"):
            train_folders([one.write().parent], together=together)


def test_other_data_in_the_same_place(tmp_path: Path) -> None:
    """As many images with one other pixel: a result is not taken for one of theirs."""
    here = write_mnist(tmp_path / "mnist")
    one = run(here, tmp_path, epochs=1)
    train_folders([one.write().parent], together=False)
    assert one.result() is not None
    images = here / "MNIST/raw/t10k-images-idx3-ubyte"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    # a process looks at a set once
    runs._inspect_dataset.cache_clear()
    with pytest.raises(ValueError, match=rf"{one.key} holds a run on other data \(600 images, checksum .* than there are now"):
        one.result()
