"""A small MNIST in the real files' layout, and claims that are small enough for it."""

from __future__ import annotations

import copy
import struct
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from reproduction import grid

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


def write_idx(path: Path, values: np.ndarray) -> None:
    """The format of MNIST's files: zero, zero, 8 for bytes, dimensions, each as big-endian uint32, the bytes."""
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def write_mnist(root: Path, train: int = 600, test: int = 200) -> Path:
    """Ten blobs at ten places, in noise that hides some of them."""
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    row, column = np.mgrid[:28, :28]
    for stem, count in (("train", train), ("t10k", test)):
        labels = random.integers(0, 10, count)
        angle = 2 * np.pi * labels / 10
        y, x = 14 + 7 * np.sin(angle), 14 + 7 * np.cos(angle)
        distance = (row - y[:, None, None]) ** 2 + (column - x[:, None, None]) ** 2
        pixels = 220 * np.exp(-distance / 12) + 30 * np.abs(random.standard_normal((count, 28, 28)))
        write_idx(folder / f"{stem}-images-idx3-ubyte", pixels.clip(0, 255))
        write_idx(folder / f"{stem}-labels-idx1-ubyte", labels)
    return root


@pytest.fixture(scope="session")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mnist(tmp_path_factory.mktemp("mnist"))


def on(mnist: Path) -> dict[str, object]:
    """The options that make a config of MNIST use the generated one."""
    return {
        "train_dataloader.dataset.data_root": str(mnist),
        "val_dataloader.dataset.data_root": str(mnist),
        "val_dataloader.batch_size": 100,
    }


_parsed = lru_cache(maxsize=None)(Config.fromfile)


@pytest.fixture
def parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every config file is read once: reading them takes most of the time in tests that train nothing."""
    monkeypatch.setattr(Config, "fromfile", staticmethod(lambda path: copy.deepcopy(_parsed(path))))


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for claim files, beside which all committed configs are found; `load_claim` reads there."""
    folder = tmp_path / "configs"
    (folder / "reproduction").mkdir(parents=True)
    for name in ("classification", "_base_"):
        (folder / name).symlink_to(CONFIGS / name)
    monkeypatch.setattr(grid, "CONFIGS", folder)
    return folder / "reproduction"
