"""Classifiers through the commands: several processes are one, bfloat16, resume, and what a test of the checkpoint says."""

from __future__ import annotations

import gzip
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFIG = "configs/classification/mnist_softmax.py"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST's four files with images of ten noisy patterns: learnable, not perfectly."""
    folder = tmp_path_factory.mktemp("mnist")
    random = np.random.default_rng(0)
    patterns = random.integers(0, 256, (10, 28, 28))
    for stem, count in (("train", 600), ("t10k", 200)):
        labels = random.integers(0, 10, count)
        pixels = np.clip(patterns[labels] + random.normal(0, 90, (count, 28, 28)), 0, 255)
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))
    return folder


def command(tool: str, digits: Path, *arguments: object, processes: int = 0, **options: object) -> str:
    """Run a tool from the checkout, and return all that it said."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes] if processes else []
    more = ["--launcher", "pytorch"] if processes else []
    options = {f"{loader}_dataloader.dataset.data_root": digits for loader in ("train", "val", "test")} | options
    line = [sys.executable, *start, f"tools/{tool}.py", CONFIG, *arguments, *more, "--cfg-options"]
    done = subprocess.run(
        [str(part) for part in [*line, *(f"{key}={value}" for key, value in options.items())]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def train(digits: Path, work_dir: Path, iterations: int, *arguments: object, batch: int = 100, processes: int = 0) -> str:
    return command(
        "train",
        digits,
        "--work-dir",
        work_dir,
        *arguments,
        processes=processes,
        **{
            "train_cfg.max_iters": iterations,
            "train_cfg.val_interval": 6,
            "train_dataloader.batch_size": batch,
            "optim_wrapper.optimizer.lr": 0.05,
        },
    )


def weights(work_dir: Path, iteration: int) -> dict[str, torch.Tensor]:
    return torch.load(work_dir / f"iter_{iteration}.pth", weights_only=False)["state_dict"]


@pytest.fixture(scope="module")
def alone(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    work_dir = tmp_path_factory.mktemp("alone")
    return work_dir, train(digits, work_dir, 12)


def test_two_processes_are_one_with_the_whole_batch(digits: Path, alone: tuple[Path, str], tmp_path: Path) -> None:
    """Half of the batch each: weights up to the order of sums, and the same score over all test images."""
    said = train(digits, tmp_path, 12, batch=50, processes=2)
    found, expected = weights(tmp_path, 12), weights(alone[0], 12)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6, msg=name)
    scores = [re.findall(r"accuracy/top1: ([\d.]+)  accuracy/top5: ([\d.]+)", text) for text in (said, alone[1])]
    assert scores[0] == scores[1] and len(scores[0]) == 2


def test_bfloat16_trains(digits: Path, alone: tuple[Path, str], tmp_path: Path) -> None:
    """--amp gives other weights, near those of float32, and they are float32."""
    train(digits, tmp_path, 12, "--amp")
    found, expected = weights(tmp_path, 12)["head.fc.weight"], weights(alone[0], 12)["head.fc.weight"]
    start = found.dtype, torch.equal(found, expected)
    assert start == (torch.float32, False)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.03)


def test_the_test_says_what_the_logits_say(digits: Path, alone: tuple[Path, str]) -> None:
    """Top-1 and top-5 of tools/test.py against matrix products in float64."""
    state = {name: value.double().numpy() for name, value in weights(alone[0], 12).items()}
    raw = {}
    for kind, skip in (("images-idx3", 16), ("labels-idx1", 8)):
        raw[kind] = np.frombuffer(gzip.decompress((digits / f"t10k-{kind}-ubyte.gz").read_bytes())[skip:], np.uint8)
    x = raw["images-idx3"].reshape(200, 784) / 255
    for layer in (1, 3):
        x = np.maximum(x @ state[f"backbone.layers.{layer}.weight"].T + state[f"backbone.layers.{layer}.bias"], 0)
    logits = x @ state["head.fc.weight"].T + state["head.fc.bias"]
    rank = (logits > logits[np.arange(200), raw["labels-idx1"]][:, None]).sum(1)
    said = command("test", digits, alone[0] / "iter_12.pth", work_dir=alone[0] / "test")
    expected = f"accuracy/top1: {100 * (rank < 1).mean():.4f}  accuracy/top5: {100 * (rank < 5).mean():.4f}"
    assert expected in said and 10 < 100 * (rank < 1).mean() < 100
