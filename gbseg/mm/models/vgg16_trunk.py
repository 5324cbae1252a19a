"""VGG-16 with named taps: the feature maps from which PixelNet's hypercolumns are made.

Taps are read after their ReLU, fc7 after its dropout. fc6 is a 7 x 7 convolution and fc7 a 1 x 1 convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from gbseg.pixelnet.vgg16_weights import INPUT_NORMALISATION, load_vgg16_weights

__all__ = ["TAPS", "VGG16Trunk"]

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of VGG-16's five blocks; each block ends with a 2 x 2 max pooling."""

TAPS = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "fc7")
"""PixelNet's taps: 64 + 128 + 256 + 512 + 512 + 4096 = 5568 channels."""


@MODELS.register_module()
class VGG16Trunk(BaseModule):
    """VGG-16 up to its deepest tap.

    The input is BGR in 0..255. The trunk itself applies the normalisation of the weights' convention, so a config's data
    preprocessor has no ``mean``, ``std`` or ``bgr_to_rgb``.

    Args:
        taps: names of the maps to return: ``conv<block>_<layer>``, ``fc6`` and ``fc7``.
        width: factor for all numbers of channels; narrow trunks train from scratch.
        batch_norm: add batch normalisation after every convolution, as in torchvision's VGG16_BN.
        weights: None (He initialisation), 'torchvision' (downloaded by torchvision), a torchvision ``.pth``, or a
            ``.safetensors`` file with torchvision's names; loaded by `init_weights`.
        convention: how the weights were trained: 'torchvision' (RGB, 0..1, ImageNet mean and deviation) or 'caffe' (BGR,
            0..255, mean only). None: 'caffe' for ``.safetensors``, else 'torchvision'.
        frozen_stages: how many of the first blocks do not train, 0 to 5.
        fc_padding: 3 gives fc6 the size of conv5's pooled map (stride 32). 0 is the authors' analysis network, with
            ``image_padding=100``, and in the head ``offset=100`` and a stride of 224 for fc7.
        image_padding: zero pixels (after normalisation) around the image; the head's ``offset`` must equal it.
        ceil_mode: poolings round sizes up, as in Caffe.
        fc_dropout: probability of dropout after fc6 and fc7.
        init_cfg: as for mmengine's ``BaseModule``; use ``weights`` instead.

    Shapes:
        (N, 3, H, W) -> a tuple of (N, C_l, h_l, w_l), one per tap, in the order of ``taps``.

    Raises:
        ValueError: an unknown tap, weights with ``width != 1``, or a frozen stage that does not exist.
    """

    def __init__(
        self,
        taps: Sequence[str] = TAPS,
        width: float = 1.0,
        batch_norm: bool = False,
        weights: str | None = None,
        convention: str | None = None,
        frozen_stages: int = 0,
        fc_padding: int = 3,
        image_padding: int = 0,
        ceil_mode: bool = False,
        fc_dropout: float = 0.5,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not 0 <= frozen_stages <= len(_BLOCKS):
            raise ValueError(f"frozen_stages counts the first blocks, 0 to {len(_BLOCKS)}, got {frozen_stages}.")
        if weights is not None and width != 1:
            raise ValueError(f"weights belong to width 1, not to a trunk of width {width}: set weights=None or width=1.")
        if convention is None:
            convention = "caffe" if str(weights).endswith(".safetensors") else "torchvision"
        if convention not in INPUT_NORMALISATION:
            raise ValueError(f"convention must be one of {sorted(INPUT_NORMALISATION)}, got {convention!r}.")
        self.taps = tuple(taps)
        self.weights = weights
        self.frozen_stages = frozen_stages
        self.image_padding = image_padding
        self.batch_norm = batch_norm
        normalisation = INPUT_NORMALISATION[convention]
        self.to_rgb = normalisation.rgb
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalisation.std).view(1, 3, 1, 1), persistent=False)
        # by name, so that `print(model)`, checkpoints and paramwise rates say conv4_3 and fc7
        self.layers = nn.ModuleDict()
        self._build(width, fc_padding, ceil_mode, fc_dropout)
        available = [name for name in self.layers if not name.startswith("pool")]
        unknown = [tap for tap in self.taps if tap not in available]
        if unknown or not self.taps:
            raise ValueError(f"unknown taps {unknown}; VGG-16 has {', '.join(available)}.")
        names = list(self.layers)
        for name in names[max(map(names.index, self.taps)) + 1 :]:
            del self.layers[name]
        for layer in self._frozen():
            layer.requires_grad_(False)

    def _build(self, width: float, fc_padding: int, ceil_mode: bool, fc_dropout: float) -> None:
        previous = 3
        for block, (channels, depth) in enumerate(_BLOCKS, start=1):
            for layer in range(1, depth + 1):
                convolution = nn.Conv2d(previous, round(channels * width), 3, padding=1)
                norm = [nn.BatchNorm2d(convolution.out_channels)] if self.batch_norm else []
                self.layers[f"conv{block}_{layer}"] = nn.Sequential(convolution, *norm, nn.ReLU())
                previous = convolution.out_channels
            self.layers[f"pool{block}"] = nn.MaxPool2d(2, ceil_mode=ceil_mode)
        hidden = round(4096 * width)
        for name, kernel, padding in (("fc6", 7, fc_padding), ("fc7", 1, 0)):
            convolution = nn.Conv2d(previous, hidden, kernel, padding=padding)
            self.layers[name] = nn.Sequential(convolution, nn.ReLU(), nn.Dropout(fc_dropout))
            previous = hidden

    def _frozen(self) -> list[nn.Module]:
        stages = tuple(f"conv{block}_" for block in range(1, self.frozen_stages + 1))
        return [layer for name, layer in self.layers.items() if name.startswith(stages)]

    def convolutions(self) -> dict[str, nn.Module]:
        """The convolutions and batch normalisations by torchvision's names (``features.N``, ``classifier.N``)."""
        names = {"fc6": "classifier.0", "fc7": "classifier.3"}
        features = [layer.modules() for name, layer in self.layers.items() if name not in names]
        # torchvision numbers all layers of one flat sequence, also those without weights
        flat = (module for module in chain.from_iterable(features) if not isinstance(module, nn.Sequential))
        modules = {f"features.{i}": module for i, module in enumerate(flat) if list(module.parameters())}
        return modules | {names[name]: next(layer.children()) for name, layer in self.layers.items() if name in names}

    def init_weights(self) -> None:
        """He initialisation, or the weights that the config names."""
        if self.weights is not None:
            load_vgg16_weights(self.convolutions(), self.weights, self.batch_norm)
            return
        for module in self.layers.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def train(self, mode: bool = True) -> VGG16Trunk:
        """Set training mode; frozen batch normalisations keep their statistics."""
        super().train(mode)
        for layer in self._frozen():
            layer.eval()
        return self

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The taps of a batch of BGR images in 0..255."""
        x = image.flip(1) if self.to_rgb else image
        x = (x - self.mean) / self.std
        if self.image_padding:
            x = nn.functional.pad(x, [self.image_padding] * 4)
        # the layout of the fastest kernels of cuDNN and oneDNN, in which flattening a map to rows of features is a view
        x = x.contiguous(memory_format=torch.channels_last)
        outputs: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            x = layer(x)
            if name in self.taps:
                outputs[name] = x
        return tuple(outputs[tap] for tap in self.taps)
