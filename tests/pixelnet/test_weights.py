"""Pretrained weights: what fits is copied exactly, what does not is named and nothing is copied."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("mmseg")
import torchvision
from safetensors.torch import load_file, save_file
from torchvision.models import vgg

from gbseg.mm.models.vgg16_trunk import VGG16Trunk
from gbseg.pixelnet.vgg16_weights import load_vgg16_weights

SHARED = Path(__file__).parents[3] / "shared" / "data"
REAL_WEIGHTS = SHARED / "vgg16" / "vgg16_conv_bgr_caffe.safetensors"
REAL_IMAGE = SHARED / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2007_000033.jpg"
WIDTH = 1 / 32


def _narrow_state(batch_norm: bool = False) -> dict[str, Tensor]:
    """The state of a VGG-16 of 1/32 of the width, made of torchvision's own parts and so of its names."""
    torch.manual_seed(0)
    plan = [entry if isinstance(entry, str) else entry // 32 for entry in vgg.cfgs["D"]]
    classifier = nn.Sequential(nn.Linear(16 * 49, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 128), nn.ReLU())
    state = nn.ModuleDict({"features": vgg.make_layers(plan, batch_norm), "classifier": classifier}).state_dict()
    for name, tensor in state.items():
        if "running" in name:
            tensor.uniform_()
        assert "." in name
    return state


def _by_order(trunk: VGG16Trunk) -> list[Tensor]:
    """Parameters and statistics in the order of the layers."""
    return [tensor for name, tensor in trunk.layers.state_dict().items() if "num_batches" not in name]


def _save(state: Any, path: Path) -> str:
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return str(path)


def _load(source: str, batch_norm: bool = False, **options: Any) -> VGG16Trunk:
    """A narrow trunk with weights of ``source`` (the trunk itself refuses weights of another width)."""
    trunk = VGG16Trunk(width=WIDTH, batch_norm=batch_norm, **options)
    load_vgg16_weights(trunk.convolutions(), source, batch_norm)
    return trunk


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_tensor_is_torchvisions(suffix: str, batch_norm: bool, tmp_path: Path) -> None:
    """All tensors, in the order of the layers; linear layers as convolutions that give the same values."""
    state = _narrow_state(batch_norm)
    trunk = _load(_save(state, tmp_path / f"vgg{suffix}"), batch_norm).eval()
    theirs = [tensor for name, tensor in state.items() if "num_batches" not in name]
    ours = _by_order(trunk)
    assert len(ours) == len(theirs) == (13 * (6 if batch_norm else 2) + 4)
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.equal(mine.flatten(), expected.flatten())
    pooled = torch.randn(1, 16, 7, 7)
    linear = F.linear(pooled.flatten(1), state["classifier.0.weight"], state["classifier.0.bias"]).relu()
    torch.testing.assert_close(trunk.layers["fc6"](pooled)[0, :, 3, 3], linear[0])


def test_the_full_network_from_a_checkpoint_of_torchvision(tmp_path: Path) -> None:
    """`VGG16Trunk(weights='vgg16.pth')` after `init_weights`: every tensor of `torchvision.models.vgg16().state_dict()`."""
    torch.manual_seed(0)
    with torch.device("meta"):
        names = torchvision.models.vgg16(weights=None, init_weights=False).state_dict()
    # one row stands for the 4096 of a linear layer, which saves 480 MB of disk
    state = {
        name: (torch.randn(1, like.shape[1]) if like.ndim == 2 else torch.randn(like.shape)).expand(like.shape)
        for name, like in names.items()
    }
    trunk = VGG16Trunk(weights=_save(state, tmp_path / "vgg16.pth"))
    trunk.init_weights()
    ours = _by_order(trunk)
    # all but the 1000 ImageNet classes
    assert len(ours) == len(state) - 2
    for mine, (name, expected) in zip(ours, state.items(), strict=False):
        assert torch.equal(mine.reshape(expected.shape), expected), name
    assert trunk.to_rgb


def test_round_trip(tmp_path: Path) -> None:
    """A trunk written by torchvision's names gives, read again, the same taps."""
    torch.manual_seed(0)
    trunk = VGG16Trunk(width=WIDTH, batch_norm=True)
    trunk.init_weights()
    # statistics other than the initial ones
    trunk.train()(torch.rand(2, 3, 32, 32) * 255)
    state = {f"{name}.{key}": t for name, module in trunk.convolutions().items() for key, t in module.state_dict().items()}
    again = _load(_save(state, tmp_path / "trunk.safetensors"), batch_norm=True)
    image = torch.rand(1, 3, 32, 40) * 255
    for expected, actual in zip(trunk.eval()(image), again.eval()(image), strict=True):
        assert torch.equal(expected, actual)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_torchvision_fetches_the_network_that_is_built(batch_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """weights='torchvision' is VGG16_BN where the trunk normalises batches, VGG16 where not."""
    asked = []

    def fetch(self: Any, **options: Any) -> dict[str, Tensor]:
        asked.append((str(self), options["check_hash"]))
        return _narrow_state(batch_norm)

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fetch)
    trunk = _load("torchvision", batch_norm)
    assert asked == [(f"VGG16{'_BN' if batch_norm else ''}_Weights.IMAGENET1K_V1", True)]
    assert torch.equal(_by_order(trunk)[0], _narrow_state(batch_norm)["features.0.weight"])


def test_torchvision_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what could not be fetched, why, and what to do instead."""

    def fetch(self: Any, **options: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fetch)
    with pytest.raises(FileNotFoundError, match=r"https://\S+vgg16\S+\.pth.*no route to host.*backbone\.weights="):
        _load("torchvision")


@pytest.mark.parametrize(
    ("weights", "convention", "rgb"),
    [
        (None, None, True),
        ("torchvision", None, True),
        ("some.pth", None, True),
        ("some.safetensors", None, False),
        ("some.safetensors", "torchvision", True),
        ("some.pth", "caffe", False),
    ],
)
def test_convention(weights: str | None, convention: str | None, rgb: bool) -> None:
    """Files of safetensors are taken to be Caffe's (BGR) unless the config says otherwise."""
    with torch.device("meta"):
        trunk = VGG16Trunk(taps=("conv1_1",), weights=weights, convention=convention)
    assert trunk.to_rgb is rgb


@pytest.mark.parametrize("name", ["nothing.pth", "nothing.safetensors", "."])
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    """The message names the path and says how to get weights."""
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / name)) + ".*backbone.weights=torchvision"):
        load_vgg16_weights({}, str(tmp_path / name))


def _refused(source: str, *parts: str, batch_norm: bool = False, **options: Any) -> None:
    """Loading raises a ValueError with these parts in its message, and leaves the trunk as it was."""
    trunk = VGG16Trunk(width=WIDTH, batch_norm=batch_norm, **options)
    before = [tensor.clone() for tensor in _by_order(trunk)]
    with pytest.raises(ValueError, match=r"^VGG-16 weights: ") as caught:
        load_vgg16_weights(trunk.convolutions(), source, batch_norm)
    for part in (source, *parts):
        assert part in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, _by_order(trunk), strict=True))


@pytest.mark.parametrize("name", ["vgg.pth", "vgg.safetensors", "vgg"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x80" * 1000])
def test_a_garbage_file(name: str, content: bytes, tmp_path: Path) -> None:
    """Half a download or an error page: the message names the file and how it was read."""
    (tmp_path / name).write_bytes(content)
    _refused(str(tmp_path / name), "could not be read")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param([1, 2], id="list"),
        pytest.param(torch.zeros(3), id="tensor"),
        pytest.param(nn.Linear(1, 1), id="module"),
        pytest.param(dict.fromkeys(_narrow_state(), "text"), id="text"),
    ],
)
def test_a_checkpoint_of_something_else(content: Any, tmp_path: Path) -> None:
    """A file that torch reads but that is no state dict."""
    _refused(_save(content, tmp_path / "other.pth"))


def test_missing_tensors_and_wrong_shapes(tmp_path: Path) -> None:
    """The message names the tensors, their shapes and those needed, six of them and the number of the rest."""
    state = _narrow_state()
    del state["features.7.bias"]
    state["features.2.weight"] = torch.zeros(3, 2, 3, 3)
    # as many numbers in another order are no fit either
    state["classifier.3.weight"] = torch.zeros(64, 256)
    _refused(
        _save(state, tmp_path / "vgg.pth"),
        "features.7.bias is missing",
        "features.2.weight has shape (3, 2, 3, 3), needed (2, 2, 3, 3)",
        "classifier.3.weight has shape (64, 256), needed (128, 128, 1, 1)",
    )
    _refused(_save({}, tmp_path / "empty.pth"), "features.0.weight is missing", "; and 24 more")
    # a plain VGG-16 for a batch-normalised trunk: convolutions stand at other places
    _refused(_save(_narrow_state(), tmp_path / "plain.pth"), "features.1.weight is missing", batch_norm=True)


def test_convolutions_only(tmp_path: Path) -> None:
    """With fc7 asked for, the message says to leave it out; without, the file is enough."""
    state = {name: tensor for name, tensor in _narrow_state().items() if name.startswith("features")}
    source = _save(state, tmp_path / "convolutions.safetensors")
    _refused(source, "classifier.0.weight is missing", "leave 'fc7' out of the trunk's taps")
    trunk = _load(source, taps=("conv5_3",))
    assert torch.equal(trunk.layers["conv5_3"][0].weight, state["features.28.weight"])


@pytest.mark.skipif(not REAL_WEIGHTS.is_file() or not REAL_IMAGE.is_file(), reason="no real weights and images: ../shared/data")
def test_the_real_file_on_a_real_image() -> None:
    """Oxford's convolutions on a VOC photograph against a chain of `F.conv2d`, BGR minus the mean."""
    taps = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
    trunk = VGG16Trunk(taps=taps, weights=str(REAL_WEIGHTS))
    trunk.init_weights()
    rgb = np.asarray(Image.open(REAL_IMAGE).convert("RGB"))[100:196, 150:278]
    image = torch.from_numpy(rgb[..., ::-1].copy()).permute(2, 0, 1).unsqueeze(0).float()
    state = load_file(REAL_WEIGHTS)
    with torch.no_grad():
        maps = trunk.eval()(image)
        x = image - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
        for number in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
            # torchvision counts ReLUs and poolings too: a gap of three has a pooling in it
            if number in (5, 10, 17, 24):
                x = F.max_pool2d(x, 2)
            x = F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1).relu()
    assert all(tap.isfinite().all() for tap in maps)
    torch.testing.assert_close(maps[-1], x, rtol=1e-4, atol=1e-3)
    # activations of Oxford's weights: hundreds in the middle, around ten at the end (with RGB or 0..1 they are not)
    deviations = [tap.std().item() for tap in maps]
    assert 200 < deviations[2] < 900
    assert 2 < deviations[4] < 20
