"""A config's way to `gbseg.losses.fuse_resize`."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead

from gbseg.losses import BoostedLoss, fuse_resize

__all__ = ["FuseResizeHook"]


@HOOKS.register_module()
class FuseResizeHook(Hook):
    """`fuse_resize` for all decode heads of the model that have a boosted loss, auxiliary ones included.

    A head with other losses, as auxiliary heads keep theirs, stays as it is.

    Raises:
        ValueError: a head with a boosted loss cannot be changed, or there is none.
    """

    def before_run(self, runner: Runner) -> None:
        """Change the heads, before anything runs."""
        heads = [module for module in runner.model.modules() if isinstance(module, BaseDecodeHead)]
        heads = [head for head in heads if any(isinstance(module, BoostedLoss) for module in head.modules())]
        if not heads:
            name = type(runner.model).__name__
            raise ValueError(f"FuseResizeHook: {name} has no decode head of MMSegmentation's with a boosted loss.")
        for head in heads:
            fuse_resize(head)
