"""The memory layout in which convolutions are fastest."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

__all__ = ["ChannelsLastHook"]


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Lay the convolutions' weights out channels last, before anything runs.

    PyTorch's convolutions follow their weights, so the features become channels last too. Values stay what they are up to
    rounding. Checkpoints are loaded into the layout that the model has.
    """

    def before_run(self, runner: Runner) -> None:
        """Convert the model in place."""
        runner.model.to(memory_format=torch.channels_last)
