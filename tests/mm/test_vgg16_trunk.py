"""VGG-16 with taps, against torchvision's own module with the same random weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmseg")
import torchvision
from torchvision.transforms.v2 import functional as V

from gbseg.mm.models.vgg16_trunk import TAPS, VGG16Trunk

CONVOLUTIONS = [f"conv{block}_{layer}" for block, depth in enumerate((2, 2, 3, 3, 3), 1) for layer in range(1, depth + 1)]
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def _torchvision_vgg(batch_norm: bool, classifier: bool) -> nn.Module:
    """torchvision's VGG-16 with random weights that keep activations near one; its classifier has 500 MB."""
    torch.manual_seed(0)
    with torch.device("meta"):
        vgg = (torchvision.models.vgg16_bn if batch_norm else torchvision.models.vgg16)(weights=None, init_weights=False)
    vgg.features.to_empty(device="cpu")
    if classifier:
        vgg.classifier.to_empty(device="cpu")
    for module in vgg.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            nn.init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()))
            assert module.bias is not None
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return vgg.eval()


def _copy(source: nn.Module, target: nn.Module) -> None:
    """Weights and statistics in the order of the layers, by position and not by name."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    pairs = zip(*([m for m in module.modules() if isinstance(m, kinds)] for module in (target, source)), strict=False)
    for ours, theirs in pairs:
        for name, tensor in ours.state_dict(keep_vars=True).items():
            tensor.data.copy_(theirs.state_dict()[name].reshape(tensor.shape))


def _activations(features: nn.Sequential, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """torchvision's activations behind every ReLU, by the names of the VGG paper."""
    names = iter(CONVOLUTIONS)
    for layer in features:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            yield next(names), x.clone()


def _normalised(bgr: Tensor) -> Tensor:
    """torchvision's own preset of a BGR image in 0..255."""
    return V.normalize(bgr.flip(1) / 255, **IMAGENET)


def test_every_activation_is_torchvisions() -> None:
    """All 13 convolutions, and fc6 and fc7 as convolutions, on a 224 x 224 image: the real network in the real size."""
    vgg = _torchvision_vgg(batch_norm=False, classifier=True)
    trunk = VGG16Trunk(taps=(*CONVOLUTIONS, "fc6", "fc7"), fc_padding=0).eval()
    _copy(vgg, trunk)
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad():
        taps = dict(zip(trunk.taps, trunk(image), strict=True))
        expected = dict(_activations(vgg.features, _normalised(image)))
        x = vgg.features(_normalised(image)).flatten(1)
        # classifier: linear, ReLU, dropout, linear, ReLU, dropout, linear
        expected["fc6"] = vgg.classifier[:2](x).view(1, 4096, 1, 1)
        expected["fc7"] = vgg.classifier[:5](x).view(1, 4096, 1, 1)
    assert list(taps) == list(expected)
    for name, tap in taps.items():
        assert tap.shape == expected[name].shape
        scale = expected[name].abs().max().item()
        assert (tap - expected[name]).abs().max().item() < 2e-5 * scale, name


def test_batch_normalised_activations_are_torchvisions() -> None:
    """vgg16_bn: the taps are behind normalisation and ReLU."""
    vgg = _torchvision_vgg(batch_norm=True, classifier=False)
    trunk = VGG16Trunk(taps=CONVOLUTIONS, batch_norm=True).eval()
    _copy(vgg.features, trunk)
    image = torch.rand(2, 3, 37, 50, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad():
        for (name, expected), tap in zip(_activations(vgg.features, _normalised(image)), trunk(image), strict=True):
            scale = expected.abs().max().item()
            assert (tap - expected).abs().max().item() < 2e-5 * scale, name


def _identity(trunk: VGG16Trunk) -> VGG16Trunk:
    """The first convolution as a copy of its input's channels, positive and negative parts apart."""
    convolution = trunk.layers["conv1_1"][0]
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.bias.zero_()
        for channel in range(3):
            convolution.weight[channel, channel, 1, 1] = 1
            convolution.weight[channel + 3, channel, 1, 1] = -1
    return trunk


def _input_of_conv1(trunk: VGG16Trunk, image: Tensor) -> Tensor:
    parts = _identity(trunk)(image)[0]
    return parts[:, :3] - parts[:, 3:6]


@pytest.mark.parametrize("convention", ["torchvision", "caffe"])
def test_normalisation_is_that_of_the_weights(convention: str) -> None:
    """From BGR in 0..255: torchvision's preset of the RGB image, or BGR minus Caffe's mean."""
    bgr = torch.randint(256, (2, 3, 5, 4), generator=torch.Generator().manual_seed(0))
    actual = _input_of_conv1(VGG16Trunk(taps=("conv1_1",), width=1 / 8, convention=convention), bgr.float())
    expected = _normalised(bgr) if convention == "torchvision" else bgr - torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 if convention == "caffe" else 1e-5)


def test_padding_is_zero_after_normalisation() -> None:
    """`image_padding` puts the mean's colour around the image."""
    bgr = torch.rand(1, 3, 5, 4) * 255
    actual = _input_of_conv1(VGG16Trunk(taps=("conv1_1",), width=1 / 8, image_padding=2), bgr)
    torch.testing.assert_close(actual, nn.functional.pad(_normalised(bgr), (2, 2, 2, 2)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [1 / 16, 0.05, 1 / 8])
def test_width_scales_every_channel(width: float) -> None:
    """The taps' channels are PixelNet's, times the width, rounded."""
    taps = VGG16Trunk(width=width)(torch.zeros(1, 3, 32, 32))
    assert [tap.shape[1] for tap in taps] == [round(c * width) for c in (64, 128, 256, 512, 512, 4096)]


@pytest.mark.parametrize("size", [(64, 96), (37, 50), (32, 32)])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("image_padding", "fc_padding"), [(0, 3), (100, 0), (100, 3), (7, 3)])
def test_sizes_of_the_maps(size: tuple[int, int], ceil_mode: bool, image_padding: int, fc_padding: int) -> None:
    """Each pooling halves, down or up; fc6 takes six positions less its padding."""
    trunk = VGG16Trunk(width=1 / 32, image_padding=image_padding, fc_padding=fc_padding, ceil_mode=ceil_mode)
    expected = []
    for side in size:
        sides = [side + 2 * image_padding]
        for _ in range(5):
            sides.append(-(-sides[-1] // 2) if ceil_mode else sides[-1] // 2)
        expected.append([*sides[:5], sides[5] + 2 * fc_padding - 6])
    actual = trunk(torch.zeros(1, 3, *size))
    assert [tuple(tap.shape[2:]) for tap in actual] == list(zip(*expected, strict=True))


@pytest.mark.parametrize("taps", [("conv3_3",), ("conv4_1", "conv1_2"), ("fc6",), ("conv2_1", "fc7", "conv2_1")])
def test_a_subset_of_taps(taps: tuple[str, ...]) -> None:
    """In the order asked for; nothing is built behind the deepest, so that every parameter gets a gradient."""
    torch.manual_seed(0)
    whole, part = VGG16Trunk(taps=tuple(dict.fromkeys((*taps, *TAPS))), width=1 / 32), VGG16Trunk(taps=taps, width=1 / 32)
    whole.init_weights()
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
    image = torch.rand(1, 3, 40, 40) * 255
    maps = dict(zip(whole.taps, whole.eval()(image), strict=True))
    actual = part.eval()(image)
    assert len(actual) == len(taps)
    for tap, name in zip(actual, taps, strict=True):
        assert torch.equal(tap, maps[name])
    torch.stack([tap.sum() for tap in actual]).sum().backward()
    assert all(p.grad is not None for p in part.parameters())
    order = [*CONVOLUTIONS, "fc6", "fc7"]
    deepest = max(map(order.index, taps))
    assert [name for name in part.layers if not name.startswith("pool")] == order[: deepest + 1]


def test_fc_taps_are_behind_their_dropout() -> None:
    """In training half of fc7 and fc6 is zero and the rest doubled; in evaluation nothing is."""
    torch.manual_seed(0)
    trunk = VGG16Trunk(taps=("fc6", "fc7"), width=1 / 8)
    with torch.no_grad():
        for name in trunk.taps:
            trunk.layers[name][0].weight.zero_()
            trunk.layers[name][0].bias.fill_(1.0)
        for tap in trunk.train()(torch.zeros(1, 3, 64, 64)):
            assert set(tap.unique().tolist()) == {0.0, 2.0}
            assert (tap == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
        assert all((tap == 1).all() for tap in trunk.eval()(torch.zeros(1, 3, 64, 64)))


@pytest.mark.parametrize("stages", range(6))
def test_frozen_stages(stages: int) -> None:
    """The first blocks and no others do not train, after `train()` too."""
    trunk = VGG16Trunk(width=1 / 32, batch_norm=True, frozen_stages=stages).train()
    for name, layer in trunk.layers.items():
        frozen = name.startswith("conv") and int(name[4]) <= stages
        assert all(p.requires_grad is not frozen for p in layer.parameters()), name
        if not name.startswith("pool"):
            assert all(m.training is not frozen for m in layer.modules()), name


def test_he_initialisation() -> None:
    """Without weights: variance 2 / (fan out), biases 0."""
    torch.manual_seed(0)
    trunk = VGG16Trunk(width=1 / 4)
    trunk.init_weights()
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.12)
            assert module.bias is not None
            assert not module.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": ("conv1_2", "conv6_1")}, r"unknown taps \['conv6_1'\].*conv5_3, fc6, fc7"),
        ({"taps": ("pool3",)}, "unknown taps.*pool3"),
        ({"taps": ()}, "unknown taps"),
        ({"weights": "some.pth"}, "width 1, not to a trunk of width 0.03125"),
        ({"frozen_stages": 6}, "0 to 5, got 6"),
        ({"frozen_stages": -1}, "0 to 5, got -1"),
        ({"convention": "keras"}, "one of .*'caffe', 'torchvision'.*'keras'"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    """Each message names what was given and what there is."""
    with pytest.raises(ValueError, match=message):
        VGG16Trunk(width=1 / 32, **options)
