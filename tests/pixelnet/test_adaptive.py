"""Adaptive prediction: what is evaluated is the dense prediction, what is not lies where nothing changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor

pytest.importorskip("mmseg")
from gbseg.mm.models import PixelNet, PixelNetHead
from gbseg.pixelnet.adaptive import adaptive_logits


def _discs(size: tuple[int, int], centre: tuple[float, float] = (30.0, 40.0)) -> Tensor:
    """(3, H, W) logits: a disc of radius 15, one of 6 inside it, and the rest."""
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in size), indexing="ij")
    distance = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2).sqrt()
    return torch.stack([(distance - 15).clamp(max=8), torch.zeros_like(distance), (6 - distance).clamp(max=8)])


def _run(dense: Tensor, coarse: int, margin: float) -> tuple[Tensor, Tensor, list[Tensor]]:
    asked = []

    def evaluate(points: Tensor) -> Tensor:
        asked.append(points)
        return dense[:, points[:, 0], points[:, 1]].T

    softmax = torch.nn.Softmax(dim=0)
    logits, evaluated = adaptive_logits(evaluate, tuple(dense.shape[1:]), softmax, coarse, margin)
    return logits, evaluated, asked


@pytest.mark.parametrize("size", [(61, 83), (64, 64), (1, 50), (50, 1), (1, 1), (5, 3)])
@pytest.mark.parametrize("coarse", [1, 4, 16])
@pytest.mark.parametrize("margin", [0.0, 0.1, 2.0])
def test_what_was_evaluated_is_dense(size: tuple[int, int], coarse: int, margin: float) -> None:
    """Bit for bit, in every pixel that says so; with a margin above 1, and from a grid of 1, that is every pixel."""
    dense = _discs(size)
    logits, evaluated, asked = _run(dense, coarse, margin)
    assert logits.shape == dense.shape and evaluated.shape == size
    assert torch.equal(logits[:, evaluated], dense[:, evaluated])
    if margin > 1 or coarse == 1:
        assert bool(evaluated.all())
    # no pixel is asked for twice but the border ones, which may stand for a place beyond
    inner = torch.cat(asked)
    inner = inner[(inner[:, 0] < size[0] - 1) & (inner[:, 1] < size[1] - 1)]
    assert len(inner.unique(dim=0)) == len(inner)


@pytest.mark.parametrize("coarse", [2, 4, 8])
def test_shapes_with_smooth_borders(coarse: int) -> None:
    """Objects larger than the grid's spacing get their exact labels from a small part of the pixels."""
    dense = _discs((97, 129))
    logits, evaluated, asked = _run(dense, coarse, 0.0)
    assert torch.equal(logits.argmax(0), dense.argmax(0))
    assert float(evaluated.double().mean()) < {2: 0.35, 4: 0.2, 8: 0.16}[coarse]
    assert sum(map(len, asked)) < 1.05 * int(evaluated.sum())


def test_an_object_between_the_grid_points_is_missed_without_a_margin() -> None:
    """That is the price, and the margin buys some of it back: logits fall off around what was missed."""
    dense = _discs((65, 65), centre=(36.0, 36.0))[[1, 2]]
    dense[1] = 2 - ((torch.arange(65.0)[:, None] - 36) ** 2 + (torch.arange(65.0)[None] - 36) ** 2).sqrt() / 1.5
    assert bool((dense.argmax(0) == 1).any())
    missed, _, _ = _run(dense, 8, 0.0)
    assert not (missed.argmax(0) == 1).any()
    # the four grid points around it are 5.7 pixels away, where the logit is 1.8 behind
    logits, evaluated, _ = _run(dense, 8, 0.8)
    assert torch.equal(logits.argmax(0), dense.argmax(0)) and float(evaluated.double().mean()) < 0.3


def _network(**test_cfg: Any) -> PixelNet:
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type="PixelNet",
            backbone=dict(type="VGG16Trunk", taps=("conv1_2", "conv3_3")),
            decode_head=dict(
                type="PixelNetHead", in_channels=(64, 256), strides=(1, 4), num_classes=4, hidden=(16,), init_std=None
            ),
            test_cfg=ConfigDict(test_cfg),
        )
    )
    model.decode_head.init_weights()
    return model.eval()


def test_a_network_in_this_mode() -> None:
    """`test_cfg` reaches the head: with every pixel evaluated it is the dense network, else it is nearly."""
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 5, 6), (40, 48), mode="bicubic")
    dense, whole, some = (
        _network(mode=mode, **options)(image, mode="predict")[0]
        for mode, options in (
            ("whole", {}),
            ("adaptive", dict(margin=2.0)),
            ("adaptive", dict(coarse=4, margin=0.0)),
        )
    )
    torch.testing.assert_close(whole.seg_logits.data, dense.seg_logits.data, rtol=0, atol=1e-5)
    assert not torch.equal(some.seg_logits.data, dense.seg_logits.data)
    assert float((some.pred_sem_seg.data == dense.pred_sem_seg.data).float().mean()) > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(coarse=6), "power of 2, got 6"),
        (dict(coarse=0), "power of 2"),
        (dict(margin=-1), "must be >= 0, got -1"),
        (dict(mode="adaptve"), "'whole', 'slide' or 'adaptive', got 'adaptve'"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _network(**(dict(mode="adaptive") | options))


def test_a_head_that_cannot_adapt() -> None:
    with pytest.raises(ValueError, match="needs a PixelNetHead, not FCNHead"):
        MODELS.build(
            dict(
                type="PixelNet",
                backbone=dict(type="VGG16Trunk", taps=("conv5_3",)),
                decode_head=dict(type="mmseg.FCNHead", in_channels=512, channels=8, num_classes=4),
                test_cfg=dict(mode="adaptive"),
            )
        )


def test_one_image_of_a_batch_does_not_see_the_other() -> None:
    torch.manual_seed(0)
    head = PixelNetHead((3, 2), 4, strides=(1, 4), hidden=(8,), init_std=None).eval()
    head.init_weights()
    features = [torch.randn(2, 3, 20, 24), torch.randn(2, 2, 5, 6)]
    with torch.no_grad():
        both, evaluated = head.adaptive(features, (20, 24), 4, 0.05)
        for image in range(2):
            one, its = head.adaptive([feature[image : image + 1] for feature in features], (20, 24), 4, 0.05)
            torch.testing.assert_close(one[0], both[image], rtol=0, atol=1e-6)
            assert torch.equal(its[0], evaluated[image])
