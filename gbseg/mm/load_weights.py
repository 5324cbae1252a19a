"""Whether a checkpoint belongs to a network: what is missing or of another shape would stay random, and be scored."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from torch import Tensor, nn

__all__ = ["load_weights", "require_weights"]


def _weights(stored: Mapping) -> dict[str, Tensor]:
    return {name.removeprefix("module."): value for name, value in stored.get("state_dict", stored).items()}


def require_weights(network: nn.Module, stored: Mapping, checkpoint: str | PathLike) -> None:
    """Refuse a checkpoint that has not all weights of a network. What it has beyond them (an auxiliary head's) is fine.

    Args:
        network: wrapped for several processes or test-time augmentation, or not (``module``).
        stored: the checkpoint's content.
        checkpoint: its path, for the message.

    Raises:
        ValueError: tensors are missing or of another shape; the message names the first ones.
    """
    while isinstance(getattr(network, "module", None), nn.Module):
        network = network.module
    weights = _weights(stored)
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    wrong = [
        f"{name} {tuple(weights[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    missing = [f"{name} is missing" for name in wanted if name not in weights]
    if problems := [*wrong, *missing]:
        raise ValueError(
            f"{checkpoint} does not belong to this config: {len(problems)} of the network's {len(wanted)} tensors are missing "
            f"or of another shape: {', '.join(problems[:3])}{', ...' if len(problems) > 3 else ''}."
        )


def load_weights(network: nn.Module, stored: Mapping, checkpoint: str | PathLike) -> None:
    """Load a checkpoint's weights into a network; raises as `require_weights` does, and then changes nothing."""
    require_weights(network, stored, checkpoint)
    network.load_state_dict(_weights(stored), strict=False)
