"""Online hard example mining: a loss of the pixels to whose label the network gives a small probability."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gbseg.losses.baselines import SigmoidBCELoss, SoftmaxLoss
from gbseg.losses.functional import default_ignore_index
from gbseg.losses.modules import BoostedLoss, ExpGBLoss, GuardedLoss, LinearLoss, Pow3GBLoss, mean_over_processes

__all__ = ["OhemLoss"]

_LOSSES = {kind.__name__: kind for kind in (ExpGBLoss, Pow3GBLoss, LinearLoss, BoostedLoss, SoftmaxLoss, SigmoidBCELoss)}


class OhemLoss(nn.Module):
    """The mean of a loss over hard pixels: those whose label has a probability below a threshold.

    As MMSegmentation's ``OhemCrossEntropy``, for any loss of gbseg's: with ``p`` the probabilities of the labels by the loss's
    link, and ``q`` the ``min_kept``-th smallest of them (from 0), the loss is the mean over the pixels with
    ``p < max(q, thresh)``. Class weights multiply the terms and not the divisor.

    Args:
        loss: a loss of gbseg's, or the config of one.
        thresh: the probability below which a pixel is hard.
        min_kept: about so many pixels of a batch are hard at least.
        ignore_index: pixels with this label have no loss, where the call does not give another.
        loss_name: the key under which MMSegmentation logs the loss; it starts with ``loss_``.
        sync_divisor: whether the mean is over the hard pixels of all processes, see `gbseg.losses.modules.GuardedLoss`.

    Raises:
        TypeError: ``loss`` is no loss of gbseg's.
        ValueError: ``thresh`` is no probability, or ``min_kept`` is negative.
    """

    def __init__(
        self,
        loss: nn.Module | dict,
        thresh: float = 0.7,
        min_kept: int = 100000,
        ignore_index: int | None = None,
        loss_name: str = "loss_ohem",
        sync_divisor: bool | None = None,
    ) -> None:
        super().__init__()
        if isinstance(loss, dict):
            settings = {key: value for key, value in loss.items() if key != "_scope_"}
            name = settings.pop("type", None)
            if name not in _LOSSES:
                raise TypeError(f"OhemLoss: loss is the config of one of {', '.join(_LOSSES)}, not of {name!r}.")
            loss = _LOSSES[name](**settings)
        if not isinstance(loss, GuardedLoss):
            raise TypeError(f"OhemLoss: loss is a loss of gbseg's, such as ExpGBLoss, not {type(loss).__name__}.")
        if not 0 <= thresh <= 1:
            raise ValueError(f"OhemLoss: thresh is a probability, got {thresh!r}.")
        if min_kept < 0:
            raise ValueError(f"OhemLoss: min_kept is a number of pixels, got {min_kept!r}.")
        if not loss_name.startswith("loss_"):
            raise ValueError(f"loss_name must start with 'loss_' or mmengine leaves it out of the sum, got {loss_name!r}.")
        self.loss: GuardedLoss = loss
        self.thresh = float(thresh)
        self.min_kept = max(1, int(min_kept))
        self.ignore_index = ignore_index
        self.loss_name = loss_name
        self.sync_divisor = sync_divisor

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int | None = None, **kwargs: Any
    ) -> Tensor:
        """The loss of ``pred`` against ``target``.

        Args:
            pred: ``(N, C, *)`` logits.
            target: ``(N, *)`` integer labels.
            weight: ``(N, *)`` factors of the pixels.
            ignore_index: pixels with this label have no loss.
            kwargs: as for `gbseg.losses.modules.GuardedLoss`.

        Raises:
            BadLabelError, ValueError: as the loss itself does; soft labels, of which none is hard.
        """
        if target.is_floating_point():
            raise ValueError("OhemLoss takes integer labels (N, *): a soft label has no probability of its own.")
        ignore_index = self.ignore_index if ignore_index is None else ignore_index
        ignore_index = default_ignore_index(pred.shape[1]) if ignore_index is None else ignore_index
        losses = self.loss(pred, target, weight, reduction_override="none", ignore_index=ignore_index, **kwargs)
        hard = self._hard(pred.detach(), target, ignore_index)
        count: Tensor = torch.count_nonzero(hard)
        if self.sync_divisor and self.training and dist.is_available() and dist.is_initialized():
            count = mean_over_processes(count)
        return torch.where(hard, losses, 0.0).sum() / torch.where(count > 0, count, 1).to(losses.dtype)

    def _hard(self, logits: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
        valid_mask = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
        label = torch.where(valid_mask, target, 0).clamp(0, logits.shape[1] - 1)
        probability = self.probabilities(logits).gather(1, label.unsqueeze(1)).squeeze(1)
        # ignored pixels come last
        probability = torch.where(valid_mask, probability, 2.0)
        count = int(torch.count_nonzero(valid_mask))
        if not count:
            return valid_mask
        smallest = probability.flatten().kthvalue(min(self.min_kept, count - 1) + 1).values
        return valid_mask & (probability < smallest.clamp(min=self.thresh))

    def probabilities(self, logits: Tensor, dim: int = 1) -> Tensor:
        """Class probabilities by the link of the loss."""
        return self.loss.probabilities(logits, dim)
