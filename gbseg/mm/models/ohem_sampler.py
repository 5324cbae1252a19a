"""Online hard example mining by the probabilities of the head's loss."""

from mmengine.registry import TASK_UTILS
from mmseg.structures.sampler import OHEMPixelSampler
from torch import Tensor, nn

from gbseg.losses.links import probabilities_of_losses

__all__ = ["LinkOHEMPixelSampler"]


@TASK_UTILS.register_module()
class LinkOHEMPixelSampler(OHEMPixelSampler):
    """MMSegmentation's ``OHEMPixelSampler`` whose ``thresh`` is a probability by the link of the head's loss.

    The original compares ``thresh`` with a softmax of the logits, which is no probability after pow3-GB and linear outputs.
    After cross-entropy, and exp-GB with ``t_neg = 0``, both select the same pixels. Without ``thresh`` the losses decide.

    Args:
        context: the decode head; MMSegmentation passes it.
        thresh: pixels whose label has a smaller probability are hard; None: those of the largest losses.
        min_kept: the least number of pixels of an image to keep.
    """

    def sample(self, seg_logit: Tensor, seg_label: Tensor) -> Tensor:
        """The weights (N, H, W), 1 at hard pixels and else 0, for logits (N, C, H, W) and labels (N, 1, H, W)."""
        if self.thresh is not None:
            losses = self.context.loss_decode
            link = probabilities_of_losses(losses if isinstance(losses, nn.ModuleList) else [losses])
            # the softmax of their logarithms are the probabilities
            seg_logit = link(seg_logit.detach()).log()
        return super().sample(seg_logit, seg_label)
