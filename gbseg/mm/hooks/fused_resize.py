"""Loss and accuracy of MMSegmentation's decode heads class by class, without the upsampled logits of all classes."""

from types import MethodType
from typing import Any, TypeGuard

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from gbseg.losses.modules import BoostedLoss
from gbseg.losses.resize import resized_accuracy
from gbseg.mm.compat import BaseDecodeHead, labels_of_batch

__all__ = ["FuseResizeHook", "fuse_resize"]


def loss_by_feat(self: BaseDecodeHead, seg_logits: Tensor, batch_data_samples: list[Any]) -> dict[str, Tensor]:
    """``BaseDecodeHead.loss_by_feat`` without the upsampled logits of all classes."""
    label = labels_of_batch(self, batch_data_samples)
    losses: dict[str, Tensor] = {}
    for loss in filter(_is_boosted, _losses(self)):
        value = loss.resized(seg_logits, label, ignore_index=self.ignore_index, align_corners=self.align_corners)
        losses[loss.loss_name] = losses[loss.loss_name] + value if loss.loss_name in losses else value
    # shape (1,), as MMSegmentation's
    losses["acc_seg"] = resized_accuracy(seg_logits, label, self.ignore_index, self.align_corners).view(1)
    return losses


def _losses(head: BaseDecodeHead) -> list[nn.Module]:
    return list(head.loss_decode) if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]


def _is_boosted(loss: nn.Module) -> TypeGuard[BoostedLoss]:
    """Whether it is a boosted loss, and no subclass that overrides what is computed."""
    if not isinstance(loss, BoostedLoss):
        return False
    return type(loss).compute is BoostedLoss.compute and type(loss).forward is BoostedLoss.forward


def fuse_resize(head: BaseDecodeHead) -> BaseDecodeHead:
    """Make a decode head compute its boosted losses class by class, see `gbseg.losses.resize`.

    Losses and ``acc_seg`` keep their values. The upsampled logits and what a loss computes from them take no memory.

    Args:
        head: with MMSegmentation's own ``loss_by_feat``, no pixel sampler, and only boosted losses. Changed in place.

    Returns:
        The head.

    Raises:
        ValueError: the head has another ``loss_by_feat``, a pixel sampler, or a loss that is not boosted.
    """
    name = type(head).__name__
    if not isinstance(head, BaseDecodeHead) or type(head).loss_by_feat is not BaseDecodeHead.loss_by_feat:
        raise ValueError(
            f"{name} does not compute its loss with BaseDecodeHead.loss_by_feat, so nothing is known of its resize."
        )
    if head.sampler is not None:
        raise ValueError(
            f"{name} has the pixel sampler {type(head.sampler).__name__}, which needs all upsampled logits at once."
        )
    if not_boosted := [type(loss).__name__ for loss in _losses(head) if not _is_boosted(loss)]:
        raise ValueError(f"{name} has the loss {', '.join(not_boosted)}; only boosted losses can be computed class by class.")
    head.loss_by_feat = MethodType(loss_by_feat, head)
    return head


@HOOKS.register_module()
class FuseResizeHook(Hook):
    """`fuse_resize` for all decode heads of the model that have a boosted loss, auxiliary ones included.

    A head without a boosted loss stays as it is.

    Raises:
        ValueError: a head with a boosted loss cannot be changed, or there is none.
    """

    def before_run(self, runner: Runner) -> None:
        """Change the heads."""
        heads = [module for module in runner.model.modules() if isinstance(module, BaseDecodeHead)]
        heads = [head for head in heads if any(isinstance(module, BoostedLoss) for module in head.modules())]
        if not heads:
            name = type(runner.model).__name__
            raise ValueError(f"FuseResizeHook: {name} has no decode head of MMSegmentation's with a boosted loss.")
        for head in heads:
            fuse_resize(head)
