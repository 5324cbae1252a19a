"""From a trained network's logits to probabilities, through the link function of the loss that it was trained with."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gbseg.losses.links import probabilities_of_losses

__all__ = ["probabilities_of"]


def probabilities_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function from a model's logits (N, C, ...) to class probabilities of the same shape, which sum to one over C.

    It is the method ``probabilities`` of the first loss of the model's main head that has one (for boosted losses, their
    link), softmax for cross-entropy and similar losses, and normalised sigmoids for a loss with ``use_sigmoid=True``. Labels
    are always the argmax of the logits, never of these probabilities.

    Args:
        model: a segmentor with ``decode_head``, or a classifier with ``head``; of a cascade the last head counts. A model
            wrapped for several processes or for test-time augmentation is unwrapped (``module``).

    Raises:
        ValueError: the model has no such head, or none of the head's losses has a known link.
    """
    while isinstance(wrapped := getattr(model, "module", None), nn.Module):
        model = wrapped
    head: Any = getattr(model, "decode_head", getattr(model, "head", None))
    if isinstance(head, nn.ModuleList):
        head = head[-1]
    losses = getattr(head, "loss_decode", getattr(head, "loss_module", None))
    if losses is None:
        raise ValueError(f"the head of {type(model).__name__} has no loss, so its probabilities are unknown.")
    return probabilities_of_losses(losses if isinstance(losses, nn.ModuleList) else [losses])
