"""PixelNet's head: the sparse network is the dense one at the sampled pixels, and its memory does not grow with the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("mmseg")
from mmengine.registry import MODELS

from gbseg import BadLabelError
from gbseg.mm.models import PixelNetHead, VGG16Trunk
from gbseg.pixelnet.hypercolumn import Level, hypercolumns_reference
from gbseg.pixelnet.sampling import Samples


class Recorder(nn.Module):
    """A loss that keeps what it was given."""

    loss_name = "loss_recorded"
    logits: Tensor

    def forward(self, logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
        """Any scalar."""
        self.logits = logits
        return logits.mean()


def _head(channels: Sequence[int] = (3, 2), num_classes: int = 4, **options: Any) -> PixelNetHead:
    """A small head with weights large enough to tell errors, and its random parts seeded."""
    torch.manual_seed(1)
    settings = {"hidden": (6, 5), "strides": [2**i for i in range(len(channels))], "dropout": 0.0, "init_std": 0.3}
    head = PixelNetHead(channels, num_classes, **{**settings, **options})
    head.init_weights()
    with torch.no_grad():
        for linear in head.linears:
            linear.bias.normal_()
    return head


def _samples(label: Tensor) -> list[SimpleNamespace]:
    """What MMSegmentation hands a head, of labels (N, H, W)."""
    return [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=one.unsqueeze(0), shape=tuple(one.shape))) for one in label]


def _at(points: Tensor) -> Callable[..., Samples]:
    """A sampler that draws these points."""

    def sampler(label: Tensor, num_classes: int, ignore_index: int = 255) -> Samples:
        image = torch.arange(len(points)).unsqueeze(1)
        return Samples(points, label[image, points[..., 0], points[..., 1]])

    return sampler


def _random_points(batch: int, num: int, size: Sequence[int]) -> Tensor:
    return torch.stack([torch.randint(side, (batch, num)) for side in size], dim=-1)


def _pick(dense: Tensor, points: Tensor) -> Tensor:
    """Logits (N, C, P) of dense ones (N, C, H, W)."""
    return torch.stack([image[:, rows, columns] for image, (rows, columns) in zip(dense, points.mT, strict=True)])


def _assert_sparse_is_dense(head: PixelNetHead, features: Sequence[Tensor], size: tuple[int, int], num: int) -> Tensor:
    """What the loss sees at random pixels against the dense logits there, which are returned."""
    batch = features[0].shape[0]
    points = _random_points(batch, num, size)
    recorder = Recorder()
    head.loss_decode, head.sampler = nn.ModuleList([recorder]), _at(points)
    head.loss(features, _samples(torch.zeros(batch, *size, dtype=torch.long)))
    with torch.no_grad():
        dense = head.predict(features, [{"img_shape": size}] * batch)
    assert dense.shape == (batch, head.num_classes, *size)
    assert dense.dtype == features[0].dtype
    torch.testing.assert_close(recorder.logits, _pick(dense, points), rtol=0, atol=1e-10)
    return dense


def _by_definition(head: PixelNetHead, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Dense logits of hypercolumns by `F.grid_sample`, concatenated, scaled, and an MLP written out."""
    strides = [(size[0] / f.shape[2], size[1] / f.shape[3]) for f in features]
    if head.strides is not None:
        strides = [(float(s), float(s)) for s in head.strides]
    scale = head.tap_scale or [1.0] * len(features)
    points = torch.cartesian_prod(*(torch.arange(side) for side in size)).expand(features[0].shape[0], -1, 2)
    levels = [Level(f * k, stride, head.offset) for f, k, stride in zip(features, scale, strides, strict=True)]
    x = hypercolumns_reference(levels, points)
    for linear, norm in zip(head.linears[:-1], head.norms, strict=True):
        x = F.linear(x, linear.weight, linear.bias)
        if isinstance(norm, nn.BatchNorm1d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        elif isinstance(norm, nn.LayerNorm):
            x = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias)
        x = x.clamp(min=0)
    x = F.linear(x, head.linears[-1].weight, head.linears[-1].bias)
    return x.mT.reshape(x.shape[0], -1, *size)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    strides=st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=3),
    declared=st.booleans(),
    round_up=st.booleans(),
    chunk=st.sampled_from([1, 2, 5, 13, 14, 15, 40, 195, 1000]),
    scaled=st.booleans(),
    norm=st.sampled_from([None, "BN", "LN"]),
    batch=st.integers(1, 3),
    num=st.integers(1, 60),
    offset=st.sampled_from([0, 3]),
    seed=st.integers(0, 1000),
)
def test_sparse_logits_are_the_dense_logits(
    size: tuple[int, int],
    strides: list[int],
    declared: bool,
    round_up: bool,
    chunk: int,
    scaled: bool,
    norm: str | None,
    batch: int,
    num: int,
    offset: int,
    seed: int,
) -> None:
    """At any size, chunk and setting, to 1e-10; and both are the network by definition."""
    channels = [3, 1, 4][: len(strides)]
    head = _head(
        channels,
        strides=strides if declared else None,
        chunk=chunk,
        tap_scale=[0.5, 10.0, 0.01][: len(strides)] if scaled else None,
        norm=norm,
        offset=offset,
    )
    torch.manual_seed(seed)
    for module in head.norms:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 1.5)
    head.double().eval()
    sides = [[max(1, -(-side // s) if round_up else side // s) for side in size] for s in strides]
    features = [torch.randn(batch, c, *side, dtype=torch.float64) for c, side in zip(channels, sides, strict=True)]
    dense = _assert_sparse_is_dense(head, features, size, num)
    torch.testing.assert_close(dense, _by_definition(head, features, size), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "chunk", "options"),
    [
        ((32, 32), 10**6, {}),
        ((50, 37), 24, {}),
        ((33, 71), 200, {"ceil_mode": True}),
        ((40, 24), 100, {"image_padding": 100, "fc_padding": 0}),
    ],
)
def test_the_whole_network_is_the_same_sparse_and_dense(size: tuple[int, int], chunk: int, options: dict[str, Any]) -> None:
    """VGG-16 with fc6 and fc7 and the head over all six taps; at 32 x 32 fc7 is one position."""
    torch.manual_seed(0)
    trunk = VGG16Trunk(width=1 / 32, batch_norm=True, **options)
    trunk.init_weights()
    trunk.double().eval()
    head = _head([2, 4, 8, 16, 16, 128], hidden=(9,), offset=trunk.image_padding, chunk=chunk).double()
    features = trunk(torch.rand(2, 3, *size, dtype=torch.float64) * 255)
    _assert_sparse_is_dense(head, features, size, 150)


def test_in_index_chooses_and_orders_the_maps() -> None:
    """The head's first map is the backbone's output that in_index names first."""
    torch.manual_seed(0)
    maps = [torch.randn(1, c, 4, 4) for c in (5, 2, 3)]
    head = _head((3, 5), in_index=(2, 0), strides=(2, 2))
    expected = _by_definition(head, [maps[2], maps[0]], (8, 8))
    torch.testing.assert_close(head(maps), expected, rtol=0, atol=1e-5)


def test_gradients_reach_every_tap_but_no_frozen_stage() -> None:
    """The loss reads every map, every trained convolution learns, and frozen blocks get nothing and keep their statistics."""
    torch.manual_seed(0)
    trunk = VGG16Trunk(width=1 / 16, batch_norm=True, frozen_stages=2)
    trunk.init_weights()
    trunk.train()
    before = {name: value.clone() for name, value in trunk.named_buffers() if "running" in name}
    features = trunk(torch.rand(2, 3, 64, 64) * 255)
    # leaves: what arrives here came from the head and not through a deeper tap
    leaves = [feature.detach().requires_grad_() for feature in features]
    head = _head([4, 8, 16, 32, 32, 256], strides=(1, 2, 4, 8, 16, 32), sampler={"type": "UniformPixelSampler", "num": 50})
    losses = head.loss(leaves, _samples(torch.randint(4, (2, 64, 64))))
    losses["loss_expgb"].backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert (leaf.grad.flatten(2).abs().sum((0, 2)) > 0).float().mean() > 0.5
    torch.autograd.backward(features[2:], [leaf.grad for leaf in leaves[2:]])
    for name, layer in trunk.layers.items():
        frozen = name.startswith(("conv1", "conv2"))
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                weight = module.weight
                assert (weight.grad is None) if frozen else (weight.grad is not None and bool((weight.grad != 0).any())), name
                assert weight.requires_grad is not frozen
    for name, value in trunk.named_buffers():
        if name in before:
            frozen = "conv1" in name or "conv2" in name
            assert torch.equal(value, before[name]) is frozen, name
    assert all(not features[i].requires_grad for i in (0, 1))


class _LargestAllocation(TorchDispatchMode):
    """The number of elements of the largest new tensor, those of ``known`` sizes apart."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known
        self.largest = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        storages = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in storages and x.numel() not in self.known:
                self.largest = max(self.largest, x.numel())
        return result


def test_memory_of_a_prediction_does_not_grow_with_the_image() -> None:
    """Beyond features and logits, the largest tensor is bounded by the chunk, four of which are a tile, at any size."""
    chunk, channels, hidden = 128, (3, 8), 10
    head = _head(channels, num_classes=5, hidden=(hidden, hidden), strides=(1, 4), chunk=chunk).eval()
    largest = {}
    for height, width in ((16, 32), (128, 32), (16, 256)):
        features = [torch.randn(1, c, -(-height // s), -(-width // s)) for c, s in zip(channels, (1, 4), strict=True)]
        features = [feature.contiguous(memory_format=torch.channels_last) for feature in features]
        with torch.no_grad(), _LargestAllocation({5 * height * width}) as record:
            head(features, (height, width))
        largest[height, width] = record.largest
    # of the first, the logits are one tile, and known
    assert largest[16, 32] == chunk * hidden
    assert largest[128, 32] == largest[16, 256] == 4 * chunk * 5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_loss_is_that_of_the_dense_logits_at_the_samples(dropout: float) -> None:
    """Cross-entropy by hand on the dense logits, picked; in eval mode dropout does nothing, in train mode it does."""
    torch.manual_seed(0)
    features, label = [torch.randn(2, 3, 6, 5), torch.randn(2, 2, 3, 3)], torch.randint(4, (2, 6, 5))
    label[0, :3] = 255
    points = _random_points(2, 40, (6, 5))
    loss = {"type": "mmseg.CrossEntropyLoss", "avg_non_ignore": True, "loss_weight": 3.0}
    head = _head(strides=(1, 2), dropout=dropout, loss_decode=loss).eval()
    head.sampler = _at(points)
    logits = _pick(head(features), points).double().detach().numpy()
    picked = label[torch.arange(2).unsqueeze(1), points[..., 0], points[..., 1]].numpy()
    keep = picked != 255
    right = np.take_along_axis(logits, np.where(keep, picked, 0)[:, None], 1)[:, 0]
    expected = 3 * (np.log(np.exp(logits).sum(1)) - right)[keep].mean()
    losses = head.loss(features, _samples(label))
    assert set(losses) == {"loss_ce", "acc_seg"}
    assert losses["loss_ce"].item() == pytest.approx(expected, rel=1e-5)
    accuracy = 100 * (logits.argmax(1) == picked)[keep].mean()
    assert losses["acc_seg"].item() == pytest.approx(accuracy, rel=1e-5)
    assert not losses["acc_seg"].requires_grad
    change = abs(head.train().loss(features, _samples(label))["loss_ce"].item() - expected)
    assert (change > 1e-3) == (dropout > 0)


def test_a_model_in_bfloat16() -> None:
    """Weights and features of bfloat16 without autocast: the logits differ by bfloat16's rounding alone."""
    head = _head((3, 2), norm="LN", strides=(1, 8))
    features = [torch.randn(1, 3, 8, 8), torch.randn(1, 2, 1, 1)]
    expected = head(features, (8, 8))
    actual = head.bfloat16()([feature.bfloat16() for feature in features], (8, 8))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05)
    label = torch.randint(0, 4, (1, 8, 8))
    loss = head.loss([feature.bfloat16() for feature in features], _samples(label))["loss_expgb"]
    loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in head.parameters())


def test_several_losses() -> None:
    """Each under its name; those of one name are added."""
    torch.manual_seed(0)
    features, label = [torch.randn(1, 3, 4, 4), torch.randn(1, 2, 2, 2)], torch.randint(4, (1, 8, 8))
    pow3 = {"type": "Pow3GBLoss", "loss_weight": 0.5}
    expgb, twice = {"type": "ExpGBLoss"}, {"type": "ExpGBLoss", "alpha": 0.2}
    points = _random_points(1, 20, (8, 8))

    def losses(loss_decode: Any) -> dict[str, Tensor]:
        head = _head(strides=(2, 4), loss_decode=loss_decode)
        head.sampler = _at(points)
        return head.loss(features, _samples(label))

    several = losses([expgb, pow3, twice])
    assert set(several) == {"loss_expgb", "loss_pow3gb", "acc_seg"}
    torch.testing.assert_close(several["loss_pow3gb"], losses(pow3)["loss_pow3gb"])
    torch.testing.assert_close(several["loss_expgb"], losses(expgb)["loss_expgb"] + losses(twice)["loss_expgb"])
    assert set(losses(None)) == {"loss_expgb", "acc_seg"}


def test_nothing_labelled() -> None:
    """A batch without a labelled pixel has a finite loss and an accuracy of 0."""
    losses = _head(strides=(2, 4)).loss(
        [torch.randn(1, 3, 4, 4), torch.randn(1, 2, 2, 2)], _samples(torch.full((1, 8, 8), 255))
    )
    assert losses["loss_expgb"].item() == 0
    assert losses["acc_seg"].item() == 0


@pytest.mark.parametrize("loss", ["ExpGBLoss", "mmseg.CrossEntropyLoss"])
def test_a_label_that_is_no_class_is_refused_by_file(loss: str) -> None:
    """One bad pixel of a batch, whichever loss it is: the message names the file and the label."""
    label = torch.zeros(2, 8, 8, dtype=torch.long)
    label[1, 3, 5] = 17
    samples = _samples(label)
    for number, sample in enumerate(samples):
        sample.metainfo = {"seg_map_path": f"SegmentationClass/{number}.png"}
    head = _head(strides=(2, 4), loss_decode={"type": loss}, sampler={"type": "UniformPixelSampler", "num": 1})
    with pytest.raises(BadLabelError, match=r"^SegmentationClass/1\.png: .*\b17\b"):
        head.loss([torch.randn(2, 3, 4, 4), torch.randn(2, 2, 2, 2)], samples)


def test_batch_normalisation_counts_points() -> None:
    """In training, mean and variance are over all points of all images, not over images or channels."""
    torch.manual_seed(0)
    features, size = [torch.randn(3, 3, 4, 4), torch.randn(3, 2, 2, 2)], (8, 8)
    head = _head(strides=(2, 4), norm="BN", hidden=(6,)).train()
    points = _random_points(3, 11, size)
    head.sampler = _at(points)
    head.loss(features, _samples(torch.zeros(3, *size, dtype=torch.long)))
    levels = [Level(f, (s, s)) for f, s in zip(features, (2, 4), strict=True)]
    rows = F.linear(hypercolumns_reference(levels, points), head.linears[0].weight, head.linears[0].bias).flatten(0, 1)
    norm = head.norms[0]
    torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * rows.var(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init_std", [0.001, 0.05, None])
def test_initial_weights(init_std: float | None) -> None:
    """Gaussian of the given deviation, or He's in the hidden layers and 0.001 in the last; biases 0."""
    torch.manual_seed(0)
    head = PixelNetHead((60, 40), 90, hidden=(120, 110), init_std=init_std, init_cfg=None)
    head.init_weights()
    for i, linear in enumerate(head.linears):
        last = i == len(head.linears) - 1
        expected = init_std or (0.001 if last else math.sqrt(2 / linear.in_features))
        assert linear.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert abs(linear.weight.mean().item()) < 5 * expected / math.sqrt(linear.weight.numel())
        assert not linear.bias.any()


@pytest.mark.parametrize(
    "loss",
    [
        {"type": "ExpGBLoss"},
        {"type": "ExpGBLoss", "alpha": 0.3, "targets": (1.0, 6.0)},
        {"type": "Pow3GBLoss"},
        {"type": "LinearLoss", "targets": (-1.0, 1.0)},
    ],
)
@pytest.mark.parametrize("init_bias", ["prior", [0.7, 0.2, 0.1]])
def test_training_starts_at_the_given_frequencies(loss: dict[str, Any], init_bias: Any) -> None:
    """`init_bias` makes the link of a freshly initialised network give these frequencies at every pixel."""
    torch.manual_seed(0)
    head = PixelNetHead((4,), 3, hidden=(8,), strides=(1,), loss_decode=loss, init_bias=init_bias)
    head.init_weights()
    probabilities = MODELS.build(loss).probabilities(head([torch.randn(1, 4, 3, 3)]))
    expected = torch.tensor([1 / 3] * 3 if init_bias == "prior" else init_bias)
    torch.testing.assert_close(probabilities, expected.view(1, 3, 1, 1).expand(1, 3, 3, 3), rtol=0, atol=1e-3)


def test_the_prior_by_hand() -> None:
    """exp-GB with t in {0, 16}: 0.1 * exp(x) = 16 * p."""
    head = PixelNetHead((4,), 3, hidden=(8,), init_bias=[0.7, 0.2, 0.1], loss_decode={"type": "ExpGBLoss"})
    head.init_weights()
    expected = [math.log(16 * p / 0.1) for p in (0.7, 0.2, 0.1)]
    np.testing.assert_allclose(head.linears[-1].bias.detach().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_index": (0,)}, "in_index has 1 values for 2"),
        ({"strides": (1, 2, 4)}, "strides has 3 values for 2"),
        ({"tap_scale": (1.0,)}, "tap_scale has 1 values for 2"),
        ({"norm": "GN"}, "norm must be one of .*'BN', 'LN'.*'GN'"),
        ({"chunk": 0}, "chunk .* >= 1, got 0"),
        ({"hidden": ()}, "hidden needs at least one layer"),
        ({"init_bias": "priors"}, "init_bias is None, 'prior' or a list of frequencies, got 'priors'"),
        ({"init_bias": "prior", "loss_decode": {"type": "mmseg.CrossEntropyLoss"}}, "CrossEntropyLoss has none"),
        ({"init_bias": [0.5, 0.6, 0.1, 0.1]}, "sum to 1"),
        ({"init_bias": [0.5, 0.5]}, "2.*4|4.*2"),
        ({"init_bias": [1.0]}, "1.*4|4.*1"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    """Each is refused at the latest when weights are initialised; the message says what is wrong."""
    with pytest.raises(ValueError, match=message):
        PixelNetHead((3, 2), 4, **{"hidden": (5,), **options}).init_weights()


def test_the_size_of_a_prediction() -> None:
    """Given, or the first map's times its stride; without strides there is none to find."""
    features = [torch.randn(1, 3, 4, 5), torch.randn(1, 2, 2, 3)]
    assert _head(strides=(2, 4))(features).shape == (1, 4, 8, 10)
    assert _head(strides=(2, 4))(features, (7, 9)).shape == (1, 4, 7, 9)
    assert _head(strides=None)(features, (7, 9)).shape == (1, 4, 7, 9)
    with pytest.raises(ValueError, match=r"size \(H, W\), or strides"):
        _head(strides=None)(features)


@pytest.mark.parametrize(
    ("meta", "size"),
    [
        ({"img_shape": (7, 9)}, (7, 9)),
        ({"img_shape": (7, 9), "pad_shape": (8, 10)}, (8, 10)),
        # MMSegmentation's sliding window writes the crop's shape as a torch.Size into the metadata of a larger image
        ({"img_shape": torch.Size((6, 5)), "pad_shape": (8, 10)}, (6, 5)),
    ],
)
def test_the_size_that_metadata_name(meta: dict[str, Any], size: tuple[int, int]) -> None:
    """The network's input: padded if it was padded."""
    features = [torch.randn(1, 3, 4, 5), torch.randn(1, 2, 2, 3)]
    assert _head(strides=(2, 4)).predict(features, [meta]).shape[2:] == size
