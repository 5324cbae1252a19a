"""Mixed precision on CUDA (mmengine's wrapper) and on a CPU."""

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
    """mmengine's ``OptimWrapper`` with the forward pass under ``torch.autocast('cpu', torch.bfloat16)``.

    mmengine's ``AmpOptimWrapper`` refuses a CPU. bfloat16 has the exponent range of float32, so no loss scaling is needed;
    float16 would need it, and is slow on a CPU. Takes the arguments of ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The context of the forward pass: autocast inside ``OptimWrapper``'s own context for gradient accumulation."""
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield


def enable_amp(cfg: Config) -> None:
    """Change ``cfg.optim_wrapper`` in place to mixed precision; all other keys stay.

    On CUDA ``AmpOptimWrapper``, with bfloat16 and no loss scaling if the GPU supports it, else with float16 and dynamic loss
    scaling; on a CPU `CpuAmpOptimWrapper`. On CUDA, ``dtype`` and ``loss_scale`` of the config take precedence.

    Raises:
        ValueError: there is no ``optim_wrapper``, or its type has a precision of its own (Apex, DeepSpeed).
    """
    wrapper = cfg.get("optim_wrapper")
    if wrapper is None:
        raise ValueError("--amp: the config has no optim_wrapper to run in mixed precision")
    wrapper_type = wrapper.get("type", "OptimWrapper")
    name = wrapper_type.rpartition(".")[2] if isinstance(wrapper_type, str) else wrapper_type.__name__
    if name not in _WRAPPERS:
        raise ValueError(f"--amp works with optim_wrapper.type one of {', '.join(_WRAPPERS)}, not with {name}")
    if not torch.cuda.is_available():
        wrapper["type"] = "CpuAmpOptimWrapper"
        for key in ("dtype", "loss_scale", "use_fsdp"):
            wrapper.pop(key, None)
        return
    wrapper["type"] = "AmpOptimWrapper"
    # older GPUs emulate bfloat16, which is slower than float32
    bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    wrapper.setdefault("dtype", "bfloat16" if bfloat16 else "float16")
    wrapper.setdefault("loss_scale", {"enabled": False} if wrapper["dtype"] in ("bfloat16", torch.bfloat16) else "dynamic")
