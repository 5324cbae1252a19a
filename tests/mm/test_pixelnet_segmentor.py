"""PixelNet as MMSegmentation sees it: the size of a prediction, and labels at the original size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("mmseg")
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models.backbones import ResNet
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import gbseg.pixelnet

CHANNELS = (4, 8, 16, 32, 32)
PADDING = {"type": "SegDataPreProcessor", "pad_val": 0, "seg_pad_val": 255, "test_cfg": {"size_divisor": 32}}


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    """What `default_scope = 'mmseg'` does in a config."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def _config(**options: Any) -> ConfigDict:
    """A PixelNet of 1/16 of the width."""
    config = {
        "type": "PixelNet",
        "data_preprocessor": {"type": "SegDataPreProcessor", "size_divisor": 1, "pad_val": 0, "seg_pad_val": 255},
        "backbone": {
            "type": "VGG16Trunk",
            "taps": ["conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"],
            "width": 1 / 16,
        },
        "decode_head": {
            "type": "PixelNetHead",
            "in_channels": CHANNELS,
            "num_classes": 5,
            "strides": (1, 2, 4, 8, 16),
            "hidden": (16,),
            "init_std": None,
            "sampler": {"type": "UniformPixelSampler", "num": 30},
        },
        "test_cfg": {"mode": "whole"},
    }
    return ConfigDict({**config, **options})


def _build(config: ConfigDict) -> EncoderDecoder:
    torch.manual_seed(0)
    model = MODELS.build(config)
    model.init_weights()
    with torch.no_grad():
        # logits that differ by more than rounding
        model.decode_head.linears[-1].weight.normal_()
    return model.eval()


def _samples(shapes: list[tuple[int, int]], **meta: Any) -> list[SegDataSample]:
    return [SegDataSample(metainfo={"ori_shape": shape, "img_shape": shape, **meta}) for shape in shapes]


def _nearest(extent: int, upsampled: int) -> np.ndarray:
    """Which of ``extent`` positions lies under the centre of each of ``upsampled`` ones, exactly: floor((i + 0.5) * h / H)."""
    return (2 * np.arange(upsampled) + 1) * extent // (2 * upsampled)


def _assert_upsampled(sample: SegDataSample, logits: Tensor, shape: tuple[int, int]) -> None:
    """A prediction is the argmax and the logits at the network's size, upsampled to ``shape`` by nearest neighbour."""
    rows, columns = (_nearest(n, m) for n, m in zip(logits.shape[1:], shape, strict=True))
    label = logits.numpy().argmax(0)[rows[:, None], columns]
    assert sample.pred_sem_seg.data.dtype == torch.int64
    np.testing.assert_array_equal(sample.pred_sem_seg.data.numpy(), label[None])
    np.testing.assert_array_equal(sample.seg_logits.data.numpy(), logits.numpy()[:, rows[:, None], columns])
    assert torch.equal(sample.seg_logits.data.argmax(0, keepdim=True), sample.pred_sem_seg.data)


# odd sizes of the network: no centre then falls on the border of two pixels, where either is nearest
@pytest.mark.parametrize("size", ["original", (35, 49), [17, 19]])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("with_samples", [False, True])
def test_prediction_at_the_networks_size(size: Any, batch: int, with_samples: bool) -> None:
    """The input resized (or not), the network dense on it, its labels upsampled to each image's original size."""
    model = _build(_config(test_cfg={"mode": "whole", "input": size}))
    shapes = [(37, 51), (30, 41), (64, 33)][:batch] if with_samples else [(37, 51)] * batch
    inputs = torch.rand(batch, 3, 37, 51) * 255
    samples = _samples(shapes) if with_samples else None
    with torch.no_grad():
        predicted = model.predict(inputs, samples)
        seen = inputs if size == "original" else F.interpolate(inputs, size, mode="bilinear")
        logits = model.decode_head(model.backbone(seen), tuple(seen.shape[2:]))
    assert len(predicted) == batch
    if samples is not None:
        assert all(a is b for a, b in zip(predicted, samples, strict=True))
    for sample, one, shape in zip(predicted, logits, shapes, strict=True):
        _assert_upsampled(sample, one, shape)


@pytest.mark.parametrize("shape", [(500, 375), (333, 500), (281, 499), (100, 7), (224, 224), (448, 672), (1, 1)])
def test_nearest_neighbour_at_half_pixels(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of 224 x 224 at VOC's sizes; where a centre falls on the border of two pixels, either may be read."""
    model = _build(_config(test_cfg={"mode": "whole", "input": (224, 224)}))
    # every position its own row (first channel) and column (second)
    grid = torch.stack(torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij"))
    monkeypatch.setattr(model, "inference", lambda inputs, metas: grid.expand(len(inputs), -1, -1, -1))
    [sample] = model.predict(torch.zeros(1, 3, *shape), _samples([shape]))
    logits = sample.seg_logits.data.numpy()
    for axis, line in enumerate((logits[0, :, 0], logits[1, 0, :])):
        exact = _nearest(224, shape[axis])
        border = (2 * np.arange(shape[axis]) + 1) * 224 % (2 * shape[axis]) == 0
        assert (line[~border] == exact[~border]).all()
        assert (np.abs(line - exact) <= border).all()
    assert (logits[0] == logits[0, :, :1]).all()
    assert (logits[1] == logits[1, :1, :]).all()


def test_sliding_window() -> None:
    """A window as large as the image is the whole image; smaller windows cover it."""
    inputs = torch.rand(1, 3, 40, 56) * 255
    slide = {"mode": "slide", "input": "original"}
    whole = _build(_config())
    one = _build(_config(test_cfg={**slide, "crop_size": (40, 56), "stride": (40, 56)}))
    several = _build(_config(test_cfg={**slide, "crop_size": (32, 32), "stride": (8, 24)}))
    with torch.no_grad():
        [expected], [actual], [parts] = (model.predict(inputs, _samples([(40, 56)])) for model in (whole, one, several))
    torch.testing.assert_close(actual.seg_logits.data, expected.seg_logits.data)
    assert parts.seg_logits.data.shape == expected.seg_logits.data.shape


def test_padding_of_the_preprocessor_is_cut() -> None:
    """What a test preprocessor pads is no part of the original image."""
    plain, padding = _build(_config()), _build(_config(data_preprocessor=PADDING))
    image = torch.randint(256, (3, 40, 56), generator=torch.Generator().manual_seed(0)).byte()
    # black below and to the right is what both networks see, once as part of the image
    [expected] = plain.test_step({"inputs": [F.pad(image, (0, 8, 0, 24))], "data_samples": _samples([(64, 64)])})
    [actual] = padding.test_step({"inputs": [image], "data_samples": _samples([(40, 56)])})
    assert torch.equal(actual.pred_sem_seg.data, expected.pred_sem_seg.data[:, :40, :56])


def test_padding_is_not_squeezed_into_the_networks_size() -> None:
    """With a size for the network, what was padded is cut before the image is resized to it."""
    size = {"test_cfg": {"mode": "whole", "input": (33, 35)}}
    plain, padding = _build(_config(**size)), _build(_config(**size, data_preprocessor=PADDING))
    image = torch.randint(256, (3, 40, 56), generator=torch.Generator().manual_seed(0)).byte()
    [expected], [actual] = (m.test_step({"inputs": [image], "data_samples": _samples([(40, 56)])}) for m in (plain, padding))
    assert torch.equal(actual.seg_logits.data, expected.seg_logits.data)
    samples = [*_samples([(40, 56)], img_padding_size=(0, 8, 0, 24)), *_samples([(64, 60)], img_padding_size=(0, 4, 0, 0))]
    with pytest.raises(ValueError, match="padded differently"):
        plain.predict(torch.zeros(2, 3, 64, 64), samples)


@pytest.mark.parametrize(("direction", "dim"), [("horizontal", 2), ("vertical", 1)])
def test_a_flipped_image_is_flipped_back(direction: str, dim: int) -> None:
    """MMSegmentation's flip augmentation at test time says so in the metadata; padding came after it."""
    model = _build(_config())
    image = torch.rand(1, 3, 32, 48) * 255
    with torch.no_grad():
        [plain] = model.predict(image, _samples([(32, 40)], img_padding_size=(0, 8, 0, 0)))
        meta = {"flip": True, "flip_direction": direction, "img_padding_size": (0, 8, 0, 0)}
        [flipped] = model.predict(image, _samples([(32, 40)], **meta))
    assert torch.equal(flipped.pred_sem_seg.data, plain.pred_sem_seg.data.flip(dim))


def test_padding_of_the_trunk_must_be_the_offset_of_the_head() -> None:
    """Or every feature would be read at the wrong place; the message names both."""
    config = _config()
    config.backbone.image_padding = 100
    with pytest.raises(ValueError, match=r"pads images by 100 pixels .* offset=0"):
        _build(config)
    config.decode_head.offset = 100
    [sample] = _build(config).predict(torch.zeros(1, 3, 32, 40))
    assert sample.pred_sem_seg.data.shape == (1, 32, 40)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (20, 7)])
def test_an_image_smaller_than_the_deepest_stride_is_continued_by_its_border(shape: tuple[int, int]) -> None:
    """The poolings need 16 pixels; the prediction is that of the image so continued, cut."""
    model = _build(_config())
    image = torch.rand(1, 3, *shape) * 255
    rows, columns = (np.minimum(np.arange(max(side, 16)), side - 1) for side in shape)
    with torch.no_grad():
        [result] = model.predict(image, _samples([shape]))
        [whole] = model.predict(image[:, :, rows][..., columns], _samples([(len(rows), len(columns))]))
    assert torch.equal(result.seg_logits.data, whole.seg_logits.data[:, : shape[0], : shape[1]])


@pytest.mark.parametrize(("scale", "expected"), [(1, (35, 224)), (1.0, (35, 224)), (0.5, (16, 112)), (1.75, (64, 400))])
def test_scales_of_the_networks_size(scale: float, expected: tuple[int, int]) -> None:
    """To multiples of 16: 17.5 and 112; 61.25 and 392, which is 24.5 * 16."""
    model = _build(_config(test_cfg={"mode": "whole", "input": (35, 224)}))
    assert model.scaled_input(scale) == expected
    image = torch.rand(1, 3, 50, 60) * 255
    with torch.no_grad():
        [result] = model.predict(image, _samples([(50, 60)], input_scale=scale))
        seen = F.interpolate(image, expected, mode="bilinear")
        logits = model.decode_head(model.backbone(seen), expected)
    result_labels = result.pred_sem_seg.data[0].numpy()
    whole = F.interpolate(logits, (50, 60), mode="nearest-exact")[0].argmax(0).numpy()
    np.testing.assert_array_equal(result_labels, whole)


@pytest.mark.parametrize("size", ["half", (224,), (224, 224, 3), (0, 224), (224.0, 224.0), (-1, 5)])
def test_wrong_input_sizes(size: Any) -> None:
    """The message says what is possible and what came."""
    with pytest.raises(ValueError, match=r"\['input'\] is 'original' or \(height, width\), got"):
        _build(_config(test_cfg={"mode": "whole", "input": size}))


def _training_samples(batch: int, size: tuple[int, int]) -> list[SegDataSample]:
    samples = _samples([size] * batch)
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(5, (1, *size)))
    return samples


@pytest.mark.parametrize("segmentor", ["PixelNet", "EncoderDecoder"])
@pytest.mark.parametrize("backbone", ["vgg", "resnet"])
def test_training_and_prediction_through_the_registries(segmentor: str, backbone: str) -> None:
    """Any MMSegmentation segmentor and backbone takes the head; a training step changes backbone and head."""
    config = _config(type=segmentor)
    if backbone == "resnet":
        config.backbone = ConfigDict(type="ResNet", depth=18, norm_cfg={"type": "BN"}, out_indices=(0, 1, 2, 3), init_cfg=None)
        config.decode_head.update(in_channels=(64, 128, 256, 512), strides=(4, 8, 16, 32))
    model = _build(config)
    assert isinstance(model.backbone, ResNet if backbone == "resnet" else gbseg.pixelnet.VGG16Trunk)
    assert isinstance(model, gbseg.pixelnet.PixelNet) is (segmentor != "EncoderDecoder")
    images = [torch.randint(256, (3, 64, 50)).byte() for _ in range(2)]
    data = model.data_preprocessor({"inputs": images, "data_samples": _training_samples(2, (64, 50))}, training=True)
    losses = model.train()(**data, mode="loss")
    assert set(losses) == {"decode.loss_expgb", "decode.acc_seg"}
    total, _ = model.parse_losses(losses)
    total.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert all(module.weight.grad.any() for module in model.decode_head.linears)
    # another original size: EncoderDecoder resizes logits, PixelNet labels
    with torch.no_grad():
        predicted = model.eval().test_step({"inputs": images, "data_samples": _samples([(64, 50)] * 2, ori_shape=(100, 90))})
    assert [tuple(sample.pred_sem_seg.data.shape) for sample in predicted] == [(1, 100, 90)] * 2
