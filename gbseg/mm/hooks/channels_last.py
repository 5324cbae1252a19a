"""The channels-last memory format, in which convolutions are fastest."""

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

__all__ = ["ChannelsLastHook"]


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Convert the model to ``torch.channels_last`` before anything runs.

    Convolutions with such weights also give channels-last features. Values change by rounding only. Checkpoints are loaded
    into the memory format that the model has.
    """

    def before_run(self, runner: Runner) -> None:
        """Convert the model in place."""
        runner.model.to(memory_format=torch.channels_last)
