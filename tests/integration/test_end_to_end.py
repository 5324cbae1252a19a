"""The commands on generated scenes: train, be killed, resume, diverge, evaluate, compare."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from sklearn.metrics import confusion_matrix

from gbseg.data.scenes import write_scenes
from gbseg.mm.config import load_config
from gbseg.palettes import VOC_CLASSES
from gbseg.prediction.testing import test as evaluate

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared/data"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "voc", train=12, val=3, size=(48, 64))


def tiny(scenes: Path, **keys: object) -> list[str]:
    """The demo's config, as small as it can be and still be PixelNet with everything on."""
    options = {
        "prepare.root": scenes,
        "prepare.train": 12,
        "prepare.val": 3,
        "prepare.size": "(48,64)",
        "train_dataloader.dataset.data_root": scenes,
        "val_dataloader.dataset.data_root": scenes,
        "test_dataloader.dataset.data_root": scenes,
        "model.backbone.width": 0.05,
        "model.decode_head.in_channels": "(3,6,13,26,26)",
        "model.decode_head.hidden": "(8,8)",
        "model.decode_head.sampler.num": 50,
        "train_dataloader.batch_size": 2,
        "train_cfg.max_iters": 12,
        "train_cfg.val_interval": 6,
        "default_hooks.checkpoint.interval": 3,
        "default_hooks.logger.interval": 1,
        **keys,
    }
    return ["--cfg-options", *(f"{key}={value}" for key, value in options.items())]


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # a suite that was itself started in the background ignores Ctrl-C, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(*arguments: object) -> tuple[int, str]:
    process = start(*arguments)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The two runs of the demo, uninterrupted."""
    work = tmp_path_factory.mktemp("work") / "whole"
    code, output = run("tools/train.py", "configs/demo_expgb.py", "--work-dir", work, *tiny(scenes))
    assert code == 0, output
    return work, output


def test_the_demo_ends_in_a_table_curves_and_predictions(trained: tuple[Path, str]) -> None:
    work, output = trained
    for name in ("curve.png", "predictions.png", "comparison.md"):
        assert str(work / name) in output
        assert (work / name).stat().st_size > 0
    table = output[output.rindex("mIoU: softmax") :] if "mIoU: softmax" in output else output[-2000:]
    assert "expgb" in table and "reaches" in table
    with Image.open(work / "curve.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 10
    # both runs validated at iterations 6 and 12
    rows = (work / "comparison.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in rows[1:3]] == ["6", "12"]


def test_the_terminal_shows_what_matters_and_the_log_file_everything(trained: tuple[Path, str]) -> None:
    """Config, environment and hooks are in each run's log, and the terminal names that file instead."""
    _, output = trained
    assert "Could not import" not in output
    logs = re.findall(r"are logged in (\S+\.log)", output)
    assert len(logs) == 2
    for words in ("System environment:", "Config:\n", "Hooks will be executed", "Iter(val)", "3 images, percent"):
        assert all(words in Path(log).read_text() for log in logs), words
        assert (words in output) == words.startswith(("Iter", "3")), words


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_weights_bit_for_bit(scenes: Path, trained: tuple[Path, str]) -> None:
    whole, _ = trained
    work = whole.parent / "killed"
    command = ("tools/train.py", "configs/demo_expgb.py", "--work-dir", work, *tiny(scenes))
    process = start(*command)
    # killed in the middle of the second run, some time after its first checkpoint
    deadline = time.monotonic() + 300
    while not (work / "expgb/iter_6.pth").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (work / "expgb/iter_12.pth").exists()
    code, output = run(*command, "--resume")
    assert code == 0, output
    for name in ("softmax", "expgb"):
        a, b = (torch.load(folder / name / "iter_12.pth", weights_only=False) for folder in (whole, work))
        assert a["state_dict"].keys() == b["state_dict"].keys()
        for key, value in a["state_dict"].items():
            assert torch.equal(value, b["state_dict"][key]), key
    assert (work / "comparison.csv").read_text() == (whole / "comparison.csv").read_text()


@pytest.mark.slow
def test_testing_leaves_the_config_of_the_training_alone(trained: tuple[Path, str], tmp_path: Path) -> None:
    """The config that training left, also one that says resume, is tested and is byte for byte what it was."""
    folder = tmp_path / "run"
    shutil.copytree(trained[0] / "expgb", folder)
    config = folder / "demo_expgb.py"
    config.write_text(config.read_text().replace("resume = False", "resume = True"))
    before = config.read_bytes()
    code, output = run("tools/test.py", config, folder / "iter_12.pth", "--work-dir", folder, "--ci", "50", "--calibration")
    assert code == 0 and "Expected calibration error: " in output, output
    assert config.read_bytes() == before and b"resume = True" in before


@pytest.mark.slow
def test_an_interrupted_training_says_how_to_go_on(scenes: Path, tmp_path: Path) -> None:
    """Ctrl-C ends in a sentence, without a traceback of the process or its workers, and with a checkpoint."""
    config = ["configs/demo_expgb.py", "--work-dir", tmp_path, *tiny(scenes, **{"train_cfg.max_iters": 10**6})]
    process = start("tools/train.py", *config)
    assert process.stdout is not None
    for line in process.stdout:
        if "Iter(train)" in line:
            break
    process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, output
    checkpoint = tmp_path / "softmax/interrupted.pth"
    assert re.search(rf"gbseg: stopped by SIGINT after iteration \d+; --resume goes on from {checkpoint}\.", output), output
    assert checkpoint.exists()
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_rate_that_is_too_high_stops_with_the_iteration_the_term_and_the_rate(scenes: Path, tmp_path: Path) -> None:
    options = tiny(scenes, **{"optim_wrapper.optimizer.lr": 1e8})
    options += ["optim_wrapper.optimizer.type=SGD", "train_cfg.max_iters=30", "default_hooks.checkpoint.interval=1"]
    # one run: the demo's config without its list of runs
    one = tmp_path / "one.py"
    one.write_text(f"_base_ = ['{ROOT / 'configs/demo_expgb.py'}']\nruns = None\n")
    code, output = run("tools/train.py", one, "--work-dir", tmp_path / "work", *options)
    assert code == 1, output
    message = output[output.rindex("gbseg: ") :]
    assert "loss_expgb" in message
    assert "iteration" in message
    assert "learning rate" in message
    # whatever was written before it is finite
    for file in (tmp_path / "work").glob("iter_*.pth"):
        for key, value in torch.load(file, weights_only=False)["state_dict"].items():
            assert bool(torch.isfinite(value).all()), (file, key)


@pytest.mark.parametrize("real", [False, True], ids=["scenes", "real-subset"])
def test_scores_equal_those_of_the_pngs_that_are_written(real: bool, scenes: Path, tmp_path: Path) -> None:
    if real and not REAL.is_dir():
        pytest.skip("the real VOC subset is not beside this checkout (../shared/data)")
    if real:
        config = load_config(ROOT / "configs/subset/expgb.py", {"train_dataloader.num_workers": 0})
        root = REAL / "VOCdevkit/VOC2012"
        config.test_dataloader.dataset.update(data_root=str(root), indices=6)
        config.test_dataloader.update(num_workers=0, persistent_workers=False)
        config.model.backbone.weights = str(REAL / "vgg16/vgg16_conv_bgr_caffe.safetensors")
        count = 6
    else:
        config = load_config(ROOT / "configs/demo_expgb.py")
        config.pop("runs")
        config.model.test_cfg.input = (40, 56)
        config.test_dataloader.dataset.data_root = str(scenes)
        root, count = scenes, 3
        config.test_evaluator.headline = ("background", "cat", "dog")
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    # an output layer that predicts many classes
    torch.nn.init.normal_(model.decode_head.linears[-1].weight)
    checkpoint = tmp_path / "weights.pth"
    torch.save({"state_dict": model.state_dict(), "meta": {}}, checkpoint)
    shown = tmp_path / "shown"
    found = evaluate(config, checkpoint, out=tmp_path / "out", show_dir=shown, work_dir=tmp_path / "work")

    names = (root / "ImageSets/Segmentation/val.txt").read_text().split()[:count]
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.png")) == sorted(names)
    assert sorted(p.stem for p in shown.glob("*.png")) == sorted(names)
    matrix = np.zeros((21, 21), np.int64)
    for name in names:
        truth = np.asarray(Image.open(root / f"SegmentationClass/{name}.png"))
        with Image.open(tmp_path / f"out/{name}.png") as png:
            assert png.mode == "P"
            prediction = np.asarray(png)
        assert prediction.shape == truth.shape
        kept = truth != 255
        matrix += confusion_matrix(truth[kept], prediction[kept], labels=range(21))
    with np.errstate(invalid="ignore"):
        iou = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    assert len(np.unique(np.nonzero(matrix)[1])) > 2, "a prediction of one class would test little"
    assert found["mIoU"] == pytest.approx(100 * np.nanmean(iou), abs=1e-10)
    headline = [VOC_CLASSES.index(name) for name in config.test_evaluator.headline]
    assert found[f"mIoU-{len(headline)}"] == pytest.approx(100 * np.nanmean(iou[headline]), abs=1e-10)
    assert found["aAcc"] == pytest.approx(100 * np.trace(matrix) / matrix.sum(), abs=1e-10)


@pytest.mark.slow
def test_missing_data_and_weights_say_where_they_were_looked_for(tmp_path: Path) -> None:
    options = ["--cfg-options", f"train_dataloader.dataset.data_root={tmp_path}/nowhere"]
    code, output = run("tools/train.py", "configs/pixelnet_expgb.py", "--work-dir", tmp_path / "w", *options)
    message = output[output.rindex("gbseg: ") :]
    assert code == 1
    assert f"{tmp_path}/nowhere" in message
    assert "tools/prepare_voc.py" in message
    code, output = run("tools/test.py", "configs/pixelnet_expgb.py", tmp_path / "none.pth")
    assert code == 1
    assert "there is no checkpoint" in output
    config = load_config(ROOT / "configs/subset/expgb.py")
    config.model.backbone.weights = str(tmp_path / "vgg.safetensors")
    init_default_scope("mmseg")
    with pytest.raises(FileNotFoundError, match=r"vgg\.safetensors.*weights=torchvision"):
        MODELS.build(config.model).init_weights()
