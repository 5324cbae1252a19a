"""The networks of the paper's experiments, without their output layer, which the head adds.

Each takes images (N, C, H, W) and returns one feature vector per image, as a tuple of one (N, ``out_channels``) tensor, like
MMPretrain's backbones. Where the paper gives no widths, the docstring says what was assumed.
"""

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

__all__ = ["MLP", "AlexNetBN", "AllConvNet", "SmallConvNet"]


class _Features(BaseModule):
    """A sequence of layers with He initialisation."""

    def __init__(self, layers: Sequence[nn.Module], out_channels: int, init_cfg: dict | None) -> None:
        super().__init__(init_cfg)
        self.layers = nn.Sequential(*layers)
        self.out_channels = out_channels

    def init_weights(self) -> None:
        """He initialisation (fan in, normal) of every weight, zero biases."""
        for module in self.layers.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """(N, C, H, W) -> ((N, out_channels),)."""
        return (self.layers(image).flatten(1),)


def _convolution(
    channels: int, width: int, kernel: int = 3, stride: int = 1, padding: int | None = None, batch_norm: bool = True
) -> list[nn.Module]:
    padding = kernel // 2 if padding is None else padding
    # normalisation would remove a bias again
    convolution = nn.Conv2d(channels, width, kernel, stride, padding, bias=not batch_norm)
    return [convolution, *([nn.BatchNorm2d(width)] if batch_norm else []), nn.ReLU(inplace=True)]


@MODELS.register_module()
class MLP(_Features):
    """Fully connected layers with ReLU: 784-392-50 and, in the head, 10 of Table 1 (392 and 50 taken as hidden widths).

    Args:
        in_features: inputs of the first layer, pixels times channels.
        hidden: widths of the layers.
        init_cfg: as for mmengine's ``BaseModule``.
    """

    def __init__(self, in_features: int = 784, hidden: Sequence[int] = (392, 50), init_cfg: dict | None = None) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for before, width in zip([in_features, *hidden], hidden, strict=False):
            layers += [nn.Linear(before, width), nn.ReLU(inplace=True)]
        super().__init__(layers, hidden[-1], init_cfg)


@MODELS.register_module()
class SmallConvNet(_Features):
    """Four convolutions with batch normalisation, for Fig. 1a; the head adds the affine layer.

    Assumed, since the paper gives no details: 3 x 3, each followed by normalisation and ReLU, 2 x 2 max pooling after the
    first three and 2 x 2 average pooling after the last, widths 32-64-128-128; the features of a 32 x 32 image are 128 x 2 x 2.

    Args:
        widths: channels of the four layers.
        size: side of the images in pixels, a multiple of 16.
        batch_norm: normalise after every convolution; without it the convolutions have biases.
        init_cfg: as for mmengine's ``BaseModule``.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 128),
        size: int = 32,
        batch_norm: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        layers: list[nn.Module] = []
        for number, (before, width) in enumerate(zip([3, *widths], widths, strict=False)):
            layers += [*_convolution(before, width, batch_norm=batch_norm), nn.MaxPool2d(2) if number < 3 else nn.AvgPool2d(2)]
        super().__init__(layers, widths[-1] * (size // 16) ** 2, init_cfg)


@MODELS.register_module()
class AllConvNet(_Features):
    """Ten layers with the head's: All-CNN-C (Springenberg et al., 2014) with batch normalisation, for Fig. 1b, 2, 3 and 5.

    3 x 3 convolutions of 96, 96, 96 (stride 2), 192, 192, 192 (stride 2), 192 channels, then 1 x 1 of 192 and 10; every one
    with normalisation and ReLU. Where All-CNN-C averages over positions, the head's fully connected layer reads all of them.
    Assumed: padding 1 everywhere, so that 8 x 8 positions are left of 32 x 32; no dropout.

    Args:
        width: factor for the numbers of channels of all layers but the last.
        last: channels of the last convolution.
        size: side of the images in pixels, a multiple of 4.
        init_cfg: as for mmengine's ``BaseModule``.
    """

    def __init__(self, width: float = 1.0, last: int = 10, size: int = 32, init_cfg: dict | None = None) -> None:
        narrow, wide = round(96 * width), round(192 * width)
        plan = [(narrow, 3, 1), (narrow, 3, 1), (narrow, 3, 2), (wide, 3, 1), (wide, 3, 1), (wide, 3, 2), (wide, 3, 1)]
        plan += [(wide, 1, 1), (last, 1, 1)]
        layers: list[nn.Module] = []
        before = 3
        for channels, kernel, stride in plan:
            layers += _convolution(before, channels, kernel, stride)
            before = channels
        super().__init__(layers, last * (size // 4) ** 2, init_cfg)


@MODELS.register_module()
class AlexNetBN(_Features):
    """AlexNet with batch normalisation after every layer but the output (Table 2, Fig. 4), which the head adds.

    Assumed: torchvision's single-column widths 64-192-384-256-256 and 4096-4096, images of 224 x 224, dropout 0.5 before each
    of the fully connected layers as in the original.

    Args:
        dropout: probability of dropping a unit.
        init_cfg: as for mmengine's ``BaseModule``.
    """

    def __init__(self, dropout: float = 0.5, init_cfg: dict | None = None) -> None:
        layers = (
            *_convolution(3, 64, 11, 4, 2),
            nn.MaxPool2d(3, 2),
            *_convolution(64, 192, 5),
            nn.MaxPool2d(3, 2),
            *_convolution(192, 384),
            *_convolution(384, 256),
            *_convolution(256, 256),
            nn.MaxPool2d(3, 2),
            nn.AdaptiveAvgPool2d(6),
            nn.Flatten(),
            *self._affine(256 * 36, dropout),
            *self._affine(4096, dropout),
        )
        super().__init__(layers, 4096, init_cfg)

    @staticmethod
    def _affine(before: int, dropout: float) -> list[nn.Module]:
        return [nn.Dropout(dropout), nn.Linear(before, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU(inplace=True)]
