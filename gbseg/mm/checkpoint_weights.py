"""Load a checkpoint's weights strictly: a tensor that is missing or of another shape would stay random, and be scored."""

from collections.abc import Mapping
from os import PathLike

from torch import Tensor, nn

from gbseg.data.lists import abbreviate
from gbseg.mm.compat import unwrap_model

__all__ = ["load_weights", "require_some_weights", "require_weights"]


def _weights(stored: Mapping) -> dict[str, Tensor]:
    return {str(name).removeprefix("module."): value for name, value in stored.get("state_dict", stored).items()}


def require_weights(network: nn.Module, stored: Mapping, checkpoint: str | PathLike) -> None:
    """Refuse a checkpoint without all weights of a network. Additional ones (an auxiliary head's) are ignored.

    Args:
        network: may be wrapped for several processes or test-time augmentation.
        stored: the checkpoint's content.
        checkpoint: its path, for the message.

    Raises:
        ValueError: tensors are missing or of another shape; the message names the first ones.
    """
    weights = {name: value for name, value in _weights(stored).items() if isinstance(value, Tensor)}
    shapes = {name: tuple(value.shape) for name, value in unwrap_model(network).state_dict().items()}
    wrong = [
        f"{name} {tuple(weights[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if problems := wrong + [f"{name} is missing" for name in shapes if name not in weights]:
        raise ValueError(
            f"{checkpoint} does not belong to this config: {len(problems)} of the network's {len(shapes)} tensors are missing "
            f"or of another shape: {abbreviate(problems, 3)}."
        )


def require_some_weights(network: nn.Module, stored: Mapping, checkpoint: str | PathLike) -> None:
    """Refuse a checkpoint of which nothing fits: with ``load_from``, mmengine would train random weights, with a warning.

    Args:
        network: may be wrapped for several processes or test-time augmentation.
        stored: the checkpoint's content.
        checkpoint: its path, for the message.

    Raises:
        ValueError: no tensor has the name and the shape of one of the network's, or what has its name is no tensor.
    """
    weights = _weights(stored)
    state = {name: value for name, value in unwrap_model(network).state_dict().items() if isinstance(value, Tensor)}
    for name in weights.keys() & state.keys():
        if not isinstance(weights[name], Tensor):
            raise ValueError(f"{checkpoint}: {name} is a {type(weights[name]).__name__}, and not a tensor.")
    if not any(name in weights and weights[name].shape == value.shape for name, value in state.items()):
        raise ValueError(
            f"{checkpoint} has no weights of this network: none of its {len(weights)} entries ({abbreviate(list(weights), 3)}) "
            f"has the name and shape of one of the network's {len(state)} tensors ({abbreviate(list(state), 3)})."
        )


def load_weights(network: nn.Module, stored: Mapping, checkpoint: str | PathLike) -> None:
    """Load a checkpoint's weights into a network; raises as `require_weights` does, and then changes nothing."""
    require_weights(network, stored, checkpoint)
    network.load_state_dict(_weights(stored), strict=False)
