"""Mixed precision: what mmengine has for CUDA, and the same for a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

__all__ = ["CpuAmpOptimWrapper", "enable_amp"]

_WRAPPERS = ("OptimWrapper", "AmpOptimWrapper", "CpuAmpOptimWrapper")


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """`OptimWrapper` whose forward pass runs under ``torch.autocast('cpu', torch.bfloat16)``.

    mmengine's `AmpOptimWrapper` refuses a CPU. bfloat16 has the exponents of float32, so that no loss scaling is needed;
    float16 would need it, and is slow on a CPU. Takes the arguments of `OptimWrapper`.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass of one iteration in mixed precision, and the gradient accumulation of `OptimWrapper`."""
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield


def enable_amp(cfg: Config) -> None:
    """Rewrite ``cfg.optim_wrapper`` in place for mixed precision on the device at hand; all other keys stay.

    On CUDA `AmpOptimWrapper`, with bfloat16 and no loss scaling where the GPU computes in it, else with float16 and dynamic
    scaling; on a CPU `CpuAmpOptimWrapper`. A ``dtype`` or ``loss_scale`` that the config gives is kept on CUDA.

    Raises:
        ValueError: there is no ``optim_wrapper``, or it is of a type that has a precision of its own (Apex, DeepSpeed).
    """
    wrapper = cfg.get("optim_wrapper")
    if wrapper is None:
        raise ValueError("--amp: the config has no optim_wrapper to run in mixed precision")
    kind = wrapper.get("type", "OptimWrapper")
    name = kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
    if name not in _WRAPPERS:
        raise ValueError(f"--amp works with optim_wrapper.type one of {', '.join(_WRAPPERS)}, not with {name}")
    if not torch.cuda.is_available():
        wrapper["type"] = "CpuAmpOptimWrapper"
        for key in ("dtype", "loss_scale", "use_fsdp"):
            wrapper.pop(key, None)
        return
    wrapper["type"] = "AmpOptimWrapper"
    # including emulation, older GPUs claim bfloat16 too, and are slower in it than in float32
    fast = torch.cuda.is_bf16_supported(including_emulation=False)
    wrapper.setdefault("dtype", "bfloat16" if fast else "float16")
    wrapper.setdefault("loss_scale", {"enabled": False} if wrapper["dtype"] in ("bfloat16", torch.bfloat16) else "dynamic")
