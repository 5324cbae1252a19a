"""From a loss to what its logits mean: probabilities, and the logits at which training may start."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["SOFTMAX_LOSSES", "normalised_sigmoids", "probabilities_of_losses", "softmax", "starting_logits"]

# losses on a softmax over the classes, by name, since mmseg and mmpretrain have classes of their own
SOFTMAX_LOSSES = (
    "CrossEntropyLoss",
    "OhemCrossEntropy",
    "LovaszLoss",
    "TverskyLoss",
    "DiceLoss",
    "FocalLoss",
    "LabelSmoothLoss",
)


def probabilities_of_losses(losses: Iterable[nn.Module]) -> Callable[[Tensor], Tensor]:
    """The function from logits ``(N, C, *)`` to class probabilities of the same shape, which sum to one over C.

    It is the method ``probabilities`` of the first of the losses that has one (every loss of gbseg has), normalised sigmoids
    after a loss with ``use_sigmoid=True``, and softmax after cross-entropy and similar losses.

    Raises:
        ValueError: none of the losses tells what its logits mean as probabilities.
    """
    losses = list(losses)
    for loss in losses:
        if (probabilities := getattr(loss, "probabilities", None)) is not None:
            return probabilities
    if any(getattr(loss, "use_sigmoid", False) for loss in losses):
        return normalised_sigmoids
    names = [type(loss).__name__ for loss in losses]
    if any(name in SOFTMAX_LOSSES for name in names):
        return softmax
    raise ValueError(
        f"what the logits mean as probabilities is not known for {', '.join(names)}: give the loss a method "
        "probabilities(logits) of (N, C, *)."
    )


def softmax(logits: Tensor, dim: int = 1) -> Tensor:
    """``torch.softmax`` in float32, or in float64."""
    return torch.softmax(logits, dim, dtype=torch.promote_types(logits.dtype, torch.float32))


def normalised_sigmoids(logits: Tensor, dim: int = 1) -> Tensor:
    """``sigmoid(x)`` over its sum along ``dim``, in float32 or float64."""
    # as the softmax of log-sigmoids there is no 0 / 0 where all of them are tiny
    return torch.softmax(nn.functional.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32))), dim)


def starting_logits(loss: nn.Module, start: str | Sequence[float] | None, num_classes: int, owner: str) -> Tensor | None:
    """The (C,) logits at which a loss's link gives class frequencies, which a head can start its output bias with.

    Args:
        loss: a loss with a method ``prior_logits``, unless ``start`` is None.
        start: None for no such logits; 'prior' for uniform frequencies; or C frequencies.
        num_classes: C.
        owner: name of the head, for error messages.

    Raises:
        ValueError: the loss has no ``prior_logits``, or ``start`` is none of the above.
    """
    if start is None:
        return None
    prior_logits: Callable[[Tensor], Tensor] | None = getattr(loss, "prior_logits", None)
    if prior_logits is None:
        raise ValueError(f"{owner}: init_bias needs a loss with prior_logits; {type(loss).__name__} has none.")
    if start == "prior":
        return prior_logits(torch.full((num_classes,), 1 / num_classes))
    if isinstance(start, str):
        raise ValueError(f"{owner}: init_bias is None, 'prior' or a list of frequencies, got {start!r}.")
    if len(start) != num_classes:
        raise ValueError(f"{owner}: init_bias has {len(start)} frequencies for {num_classes} classes.")
    return prior_logits(torch.tensor(start))
