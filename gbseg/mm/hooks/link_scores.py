"""Scores of MMPretrain's classifiers by the link of their loss, where MMPretrain takes a softmax."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from gbseg.losses.modules import BoostedLoss
from gbseg.mm.compat import score_by_link

__all__ = ["LinkScoresHook"]


@HOOKS.register_module()
class LinkScoresHook(Hook):
    """Make ``pred_score`` the probabilities of the loss that a classifier was trained with.

    MMPretrain's heads, and its classifiers of timm and Hugging Face, take a softmax of the logits whatever the loss is. After
    exp-GB with ``t_neg = 0`` that is right; after pow3-GB and linear outputs it is not. ``pred_label`` stays the argmax of the
    logits. A head with another loss stays as it is.
    """

    def before_run(self, runner: Runner) -> None:
        """Change the heads."""
        for module in runner.model.modules():
            loss = getattr(module, "loss_module", None)
            if isinstance(loss, BoostedLoss):
                score_by_link(module, loss.probabilities)
