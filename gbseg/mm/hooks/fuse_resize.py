"""MMSegmentation's decode heads without their large logits: enlargement, loss and accuracy class by class."""

from __future__ import annotations

from types import MethodType
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from gbseg.losses.modules import BoostedLoss
from gbseg.losses.resize import resized_accuracy

__all__ = ["FuseResizeHook", "fuse_resize"]


def loss_by_feat(self: nn.Module, seg_logits: Tensor, batch_data_samples: list[Any]) -> dict[str, Tensor]:
    """`BaseDecodeHead.loss_by_feat` without the enlarged logits."""
    label = self._stack_batch_gt(batch_data_samples).squeeze(1)
    losses: dict[str, Tensor] = {}
    for loss in _losses(self):
        value = loss.resized(seg_logits, label, ignore_index=self.ignore_index, align_corners=self.align_corners)
        losses[loss.loss_name] = losses[loss.loss_name] + value if loss.loss_name in losses else value
    # of one number, as MMSegmentation's is
    losses["acc_seg"] = resized_accuracy(seg_logits, label, self.ignore_index, self.align_corners).view(1)
    return losses


def _losses(head: nn.Module) -> list[nn.Module]:
    return list(head.loss_decode) if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]


def _is_boosted(loss: nn.Module) -> bool:
    """Whether what the loss computes is known, and not another's by a method of its own."""
    kind = type(loss)
    return isinstance(loss, BoostedLoss) and kind.compute is BoostedLoss.compute and kind.forward is BoostedLoss.forward


def fuse_resize(head: nn.Module) -> nn.Module:
    """Make a decode head compute its boosted losses class by class, see `gbseg.losses.resize`.

    Losses and ``acc_seg`` are what they were; the memory of the enlarged logits and of what a loss derives from them is not
    taken.

    Args:
        head: with MMSegmentation's own ``loss_by_feat``, no pixel sampler, and boosted losses only. Changed in place.

    Returns:
        The head.

    Raises:
        ValueError: the head is none of these; says which.
    """
    name = type(head).__name__
    if not isinstance(head, BaseDecodeHead) or type(head).loss_by_feat is not BaseDecodeHead.loss_by_feat:
        raise ValueError(
            f"{name} does not compute its loss with BaseDecodeHead.loss_by_feat, so nothing is known of its resize."
        )
    if head.sampler is not None:
        raise ValueError(
            f"{name} has the pixel sampler {type(head.sampler).__name__}, which needs all enlarged logits at once."
        )
    if others := [type(loss).__name__ for loss in _losses(head) if not _is_boosted(loss)]:
        raise ValueError(f"{name} has the loss {', '.join(others)}; only boosted losses can be computed class by class.")
    head.loss_by_feat = MethodType(loss_by_feat, head)
    return head


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
