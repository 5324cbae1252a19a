"""What a trained network's logits say as probabilities: through the link of the loss that it was trained with."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from gbseg.losses.links import probabilities_of_losses

__all__ = ["probabilities_of"]


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
    return probabilities_of_losses(losses if isinstance(losses, nn.ModuleList) else [losses])
