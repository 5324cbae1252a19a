"""A config's way to `gbseg.losses.fuse_resize`."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead

from gbseg.losses import fuse_resize

__all__ = ["FuseResizeHook"]


@HOOKS.register_module()
class FuseResizeHook(Hook):
    """`fuse_resize` for all decode heads of the model, auxiliary ones included.

    Raises:
        ValueError: a head cannot be changed, or there is none.
    """

    def before_run(self, runner: Runner) -> None:
        """Change the heads, before anything runs."""
        heads = [module for module in runner.model.modules() if isinstance(module, BaseDecodeHead)]
        if not heads:
            raise ValueError(f"FuseResizeHook: {type(runner.model).__name__} has no decode head of MMSegmentation's.")
        for head in heads:
            fuse_resize(head)
