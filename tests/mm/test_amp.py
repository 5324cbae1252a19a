"""Mixed precision on a CPU, and the rewriting of configs for either device."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")
import engine_tiny as tiny
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from gbseg.mm.amp import CpuAmpOptimWrapper, enable_amp


def _cfg(**wrapper: Any) -> Config:
    return Config({"optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1}, "clip_grad": {"max_norm": 5}, **wrapper}})


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with a GPU, as far as a config can tell."""

    def claim(bfloat16: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16 or including_emulation)

    return claim


def test_cpu_wrapper() -> None:
    """The forward pass is in bfloat16; parameters, gradients and the step are not."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = OPTIM_WRAPPERS.build({"type": "CpuAmpOptimWrapper", "optimizer": optimizer, "clip_grad": {"max_norm": 1.0}})
    before = model.weight.detach().clone()
    with wrapper.optim_context(model):
        y = model(torch.randn(4, 3))
    assert y.dtype == torch.bfloat16
    assert model(torch.randn(4, 3)).dtype == torch.float32
    wrapper.update_params(y.float().square().sum())
    assert model.weight.dtype == torch.float32
    assert not torch.equal(before, model.weight)


def test_cpu_run(tmp_path: Path) -> None:
    """A whole run: killed, resumed, and the same bit for bit."""
    amp = {"optim_wrapper.type": "CpuAmpOptimWrapper"}
    assert tiny.run(tmp_path / "one", **amp) == 0
    assert tiny.run(tmp_path / "two", kill=("after_train_iter", 7), **amp) == -9
    assert tiny.run(tmp_path / "two", resume=True, **amp) == 0
    assert tiny.differences(tiny.result(tmp_path / "one"), tiny.result(tmp_path / "two")) == []
    assert tiny.run(tmp_path / "full") == 0
    assert tiny.differences(tiny.result(tmp_path / "one")["state_dict"], tiny.result(tmp_path / "full")["state_dict"]) != []


@pytest.mark.parametrize("kind", [None, "OptimWrapper", "AmpOptimWrapper", CpuAmpOptimWrapper])
def test_config_on_a_cpu(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only CUDA knows goes, everything else stays."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = _cfg(paramwise_cfg={"bias_lr_mult": 2.0}, accumulative_counts=3)
    if kind is not None:
        cfg.optim_wrapper["type"] = kind
    if kind == "AmpOptimWrapper":
        cfg.optim_wrapper.update(dtype="float16", loss_scale="dynamic")
    enable_amp(cfg)
    assert cfg.optim_wrapper == {
        "type": "CpuAmpOptimWrapper",
        "optimizer": {"type": "SGD", "lr": 0.1},
        "clip_grad": {"max_norm": 5},
        "paramwise_cfg": {"bias_lr_mult": 2.0},
        "accumulative_counts": 3,
    }


@pytest.mark.parametrize(
    ("bfloat16", "dtype", "scale"), [(True, "bfloat16", {"enabled": False}), (False, "float16", "dynamic")]
)
def test_config_on_a_gpu(cuda: Any, bfloat16: bool, dtype: str, scale: Any) -> None:
    """bfloat16 without scaling where the GPU has it, else float16 with it; what the config says has the last word."""
    cuda(bfloat16)
    cfg = _cfg()
    enable_amp(cfg)
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
    assert (cfg.optim_wrapper.dtype, cfg.optim_wrapper.loss_scale) == (dtype, scale)
    assert cfg.optim_wrapper.clip_grad == {"max_norm": 5}
    cfg = _cfg(type="mmengine.AmpOptimWrapper", dtype="float16", loss_scale=512.0)
    enable_amp(cfg)
    assert (cfg.optim_wrapper.dtype, cfg.optim_wrapper.loss_scale) == ("float16", 512.0)


def test_errors() -> None:
    """No optimizer, or one with a precision of its own."""
    with pytest.raises(ValueError, match="no optim_wrapper"):
        enable_amp(Config({}))
    with pytest.raises(ValueError, match="not with ApexOptimWrapper"):
        enable_amp(_cfg(type="ApexOptimWrapper"))
