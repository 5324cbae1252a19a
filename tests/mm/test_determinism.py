"""``gbseg train --seed N --deterministic``: what decides the weights, and what the provenance says about it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import engine_tiny
import pytest
import torch
from engine_tiny import SERVER
from torch import Tensor

from gbseg.config_files import ConfigError
from gbseg.mm.training import _set_options, build_runner, train


def _train(folder: Path, threads: int, workers: int, options: dict[str, Any], changes: dict[str, Any]) -> None:
    folder.mkdir()
    with Path(folder, "out.txt").open("w") as sys.stdout:
        sys.stderr = sys.stdout
        torch.set_num_threads(threads)
        config = engine_tiny.config(folder, workers=workers, **changes)
        train(config, folder, **options)
        seen = {"cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"), "on": torch.are_deterministic_algorithms_enabled()}
        Path(folder, "seen.json").write_text(json.dumps(seen))


def _weights(folder: Path, threads: int = 1, workers: int = 0, changes: dict[str, Any] | None = None, **options: Any) -> dict:
    process = SERVER.Process(target=_train, args=(folder, threads, workers, options, changes or {}))
    process.start()
    process.join(200)
    assert process.exitcode == 0, Path(folder, "out.txt").read_text()
    return torch.load(folder / "iter_12.pth", weights_only=False)["state_dict"]  # type: ignore[no-any-return]


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_the_same_weights(tmp_path: Path) -> None:
    """Twice, and with workers; another seed gives others. The options reach the run and its provenance.

    Without the options: ``train`` has no argument ``seed``; without ``_set_options`` the second seed changes nothing.
    """
    options = {"seed": 7, "deterministic": True}
    one = _weights(tmp_path / "one", **options)
    assert _equal(one, _weights(tmp_path / "two", **options))
    assert _equal(one, _weights(tmp_path / "workers", workers=2, **options))
    assert not _equal(one, _weights(tmp_path / "seed", seed=8))
    record = json.loads((tmp_path / "one/provenance.json").read_text())
    assert record["seed"] == 7
    assert record["arithmetic"] == {"threads": 1, "processes": 1, "deterministic": True}
    assert json.loads((tmp_path / "one/seen.json").read_text()) == {"cublas": ":4096:8", "on": True}
    assert json.loads((tmp_path / "seed/seen.json").read_text()) == {"cublas": None, "on": False}


@pytest.mark.slow
def test_threads_are_in_the_provenance(tmp_path: Path) -> None:
    """The number of threads changes the order of sums, and so the last bits: it is written down."""
    _weights(tmp_path / "two", threads=2, seed=7)
    assert json.loads((tmp_path / "two/provenance.json").read_text())["arithmetic"]["threads"] == 2


def test_scaled_rate(tmp_path: Path) -> None:
    """MMEngine's linear rule where the config or the option asks for it; the option needs to know the batch.

    Without ``_set_options``: the rate stays 0.02, and a config without ``base_batch_size`` is an assertion's traceback.
    """
    config = engine_tiny.config(tmp_path, auto_scale_lr={"base_batch_size": 16}, max_iters=1)
    rates = []
    for enable in (False, True):
        _set_options(config, False, None, False, enable)
        runner = build_runner(config, tmp_path / str(enable))
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        rates += runner.optim_wrapper.get_lr()["lr"]
    assert rates == [0.02, 0.02 * 4 / 16]
    config.pop("auto_scale_lr")
    with pytest.raises(ConfigError, match=r"needs auto_scale_lr = dict\(base_batch_size=N\)"):
        train(config, tmp_path / "none", auto_scale_lr=True)
