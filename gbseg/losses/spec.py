"""What a boosted loss is computed from, beside the logits: passed around as one.

Shapes: N images or rows, C classes, * any trailing dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gbseg.boosting import Boost, check_targets

__all__ = ["Problem", "traced"]


def traced(*tensors: Tensor | None) -> bool:
    """Whether a compiler, a transform of functions or a subclass of Tensor is to see every operation."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return any(type(one) not in (Tensor, nn.Parameter) for one in tensors if one is not None)


@dataclass(frozen=True)
class Problem:
    """All but the logits, as `boosted_loss` takes it, and a factor of the whole.

    Raises:
        TypeError: ``boost`` is none.
        ValueError: targets, reduction or bound make no sense.
    """

    label: Tensor
    boost: Boost
    targets: tuple[float, float]
    ignore_index: int | None
    class_weight: Tensor | None
    weight: Tensor | None
    avg_factor: float | Tensor | None
    reduction: str
    max_delta: float | None
    loss_weight: float

    def __post_init__(self) -> None:
        if not isinstance(self.boost, Boost):
            raise TypeError(
                f"boost must be a gbseg.boosting.Boost (a loss has it as loss.boost), got {type(self.boost).__name__}."
            )
        check_targets(self.boost, self.targets)
        if self.reduction not in ("none", "sum", "mean"):
            raise ValueError(f"reduction must be 'none', 'sum' or 'mean', got {self.reduction!r}.")
        if self.max_delta is not None and not self.max_delta > 0:
            raise ValueError(f"max_delta bounds |g(x) - t| and must be > 0 (or None for no bound), got {self.max_delta!r}.")
        if self.max_delta == math.inf:
            # no bound; written so, the fast paths need not ask twice
            object.__setattr__(self, "max_delta", None)

    def by(self, loss: Callable[..., Tensor], logits: Tensor) -> Tensor:
        """What a function with the arguments of `gbseg.losses.reference.boosted_loss` gives, times the factor."""
        value = loss(
            logits,
            self.label,
            self.boost,
            self.targets,
            ignore_index=self.ignore_index,
            class_weight=self.class_weight,
            weight=self.weight,
            avg_factor=self.avg_factor,
            reduction=self.reduction,
            max_delta=self.max_delta,
        )
        return self.loss_weight * value

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All there are, for autograd to watch: what is changed between forward and backward is an error."""
        found = (self.label, self.class_weight, self.weight, self.avg_factor)
        return tuple(one for one in found if isinstance(one, Tensor))

    @property
    def learned(self) -> bool:
        """Whether something but the logits wants a gradient; only the reference gives it one."""
        return torch.is_grad_enabled() and any(one.requires_grad for one in self.tensors)

    @property
    def soft(self) -> bool:
        """Whether the labels are shares of the classes."""
        return self.label.is_floating_point()

    @property
    def pixels(self) -> int:
        """How many there are, ignored ones included."""
        return self.label.numel() // (max(self.label.shape[1], 1) if self.soft else 1)

    @property
    def counted(self) -> Tensor | None:
        """(N, *) whether a pixel is not ignored; None where none can be."""
        if self.soft or self.ignore_index is None:
            return None
        return (self.label != self.ignore_index).contiguous()

    def scale(self, counted: Tensor | None) -> float | Tensor:
        """What the sum over the pixels is multiplied by; a tensor where nobody is to wait for a device."""
        if self.reduction != "mean":
            return self.loss_weight
        divisor: float | Tensor = max(self.pixels, 1)
        if self.avg_factor is not None:
            divisor = self.avg_factor.reshape(()) if isinstance(self.avg_factor, Tensor) else self.avg_factor
        elif counted is not None:
            divisor = torch.count_nonzero(counted).clamp(min=1)
        if not isinstance(divisor, Tensor):
            return self.loss_weight / divisor
        scale = self.loss_weight / divisor.detach().double()
        return scale.item() if scale.device.type == "cpu" else scale
