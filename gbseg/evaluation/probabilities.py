"""What a trained network's logits say as probabilities: through the link of the loss that it was trained with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["probabilities_of"]

# losses on a softmax over the classes, by name: mmseg and mmpretrain register one of a kind each
_SOFTMAX = ("CrossEntropyLoss", "OhemCrossEntropy", "LovaszLoss", "TverskyLoss", "DiceLoss", "FocalLoss", "LabelSmoothLoss")


def probabilities_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function from a model's logits (N, C, *) to class probabilities of the same shape, which sum to one over C.

    It is the `probabilities` of the first loss of the model's main head that has one (every boosted loss: its link), softmax
    after cross-entropy and its kin, and normalised sigmoids after a loss with ``use_sigmoid=True``. Labels are always the
    argmax of the logits, never of these.

    Args:
        model: a segmentor with ``decode_head``, or a classifier with ``head``; of a cascade the last head counts. A model
            wrapped for several processes, or for test-time augmentation, is unwrapped (``module``).

    Raises:
        ValueError: there is no such head, or no loss of it whose logits are known to be probabilities by some link.
    """
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    head = getattr(model, "decode_head", getattr(model, "head", None))
    if isinstance(head, nn.ModuleList):
        head = head[-1]
    losses = getattr(head, "loss_decode", getattr(head, "loss_module", None))
    if losses is None:
        raise ValueError(f"the head of {type(model).__name__} has no loss, so its probabilities are unknown.")
    losses = list(losses) if isinstance(losses, nn.ModuleList) else [losses]
    for loss in losses:
        if hasattr(loss, "probabilities"):
            return loss.probabilities
    for loss in losses:
        if getattr(loss, "use_sigmoid", False):
            return _normalised_sigmoids
    names = [type(loss).__name__ for loss in losses]
    if any(name in _SOFTMAX for name in names):
        return _softmax
    raise ValueError(
        f"what the logits mean as probabilities is not known for {', '.join(names)}: give the loss a method "
        "probabilities(logits) of (N, C, *)."
    )


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _normalised_sigmoids(logits: Tensor) -> Tensor:
    # the softmax of log-sigmoids is the sigmoids over their sum, without 0 / 0 where all of them are tiny
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.softmax(nn.functional.logsigmoid(logits), dim=1)
