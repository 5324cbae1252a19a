"""Load pretrained VGG-16 weights into a trunk, and the input normalisation that they need."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["INPUT_NORMALISATION", "Normalisation", "load_vgg16_weights"]


class Normalisation(NamedTuple):
    """``(x - mean) / std`` of an image in 0..255, its channels RGB or BGR."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rgb: bool


INPUT_NORMALISATION = {
    "torchvision": Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), rgb=True),
    "caffe": Normalisation((103.939, 116.779, 123.68), (1.0, 1.0, 1.0), rgb=False),
}
"""Normalisation by the convention of the weights."""


def _read(source: str, batch_norm: bool) -> Mapping[str, Tensor]:
    if source == "torchvision":
        from torchvision.models import VGG16_BN_Weights, VGG16_Weights

        weights = VGG16_BN_Weights.IMAGENET1K_V1 if batch_norm else VGG16_Weights.IMAGENET1K_V1
        try:
            return weights.get_state_dict(progress=True, check_hash=True)
        except OSError as error:
            raise FileNotFoundError(
                f"VGG-16 weights: torchvision could not fetch {weights.url} ({error}). Fetch that file elsewhere and name it: "
                "--cfg-options model.backbone.weights=FOLDER/vgg16.pth"
            ) from error
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"VGG-16 weights: there is no file {path} (looked for from {Path.cwd().name}/). Put a torchvision VGG-16 .pth or a "
            ".safetensors with its names there, or let torchvision fetch them: "
            "--cfg-options model.backbone.weights=torchvision model.backbone.convention=torchvision"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("it holds something else than tensors by name")
        return state
    except Exception as error:
        raise ValueError(f"VGG-16 weights: {path} could not be read as {path.suffix or 'a checkpoint'} ({error}).") from error


def load_vgg16_weights(modules: Mapping[str, nn.Module], source: str, batch_norm: bool = False) -> None:
    """Copy pretrained tensors into ``modules``, keyed by torchvision's names (``features.0``, ``classifier.3``).

    Fully connected layers become convolutions: ``classifier.0.weight`` (4096, 25088) is read as (4096, 512, 7, 7).
    Nothing is copied unless all tensors fit.

    Args:
        modules: convolutions and batch normalisations of the trunk.
        source: 'torchvision', or the path of a ``.pth`` or ``.safetensors`` file.
        batch_norm: with 'torchvision', download VGG16_BN instead of VGG16.

    Raises:
        FileNotFoundError: there is no such file; the message says how to get it.
        ValueError: the file cannot be read, or tensors are missing or of a wrong shape; the message names them.
    """
    state = _read(source, batch_norm)
    problems: list[str] = []
    copies: list[tuple[Tensor, Tensor]] = []
    for name, module in modules.items():
        for key, parameter in module.state_dict(keep_vars=True).items():
            if key == "num_batches_tracked":
                continue
            tensor = state.get(f"{name}.{key}")
            if tensor is None:
                problems.append(f"{name}.{key} is missing")
            elif tensor.numel() != parameter.numel() or tensor.shape[0] != parameter.shape[0]:
                problems.append(f"{name}.{key} has shape {tuple(tensor.shape)}, needed {tuple(parameter.shape)}")
            else:
                copies.append((parameter, tensor.reshape(parameter.shape)))
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        hint = ""
        if all("classifier" in problem for problem in problems):
            hint = " The file has no fc6 and fc7: leave 'fc7' out of the trunk's taps."
        raise ValueError(f"VGG-16 weights: {source} does not fit this trunk: {shown}.{hint}")
    with torch.no_grad():
        for parameter, tensor in copies:
            parameter.copy_(tensor)
