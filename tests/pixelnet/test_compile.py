"""`torch.compile`, bfloat16 autocast and channels_last: the network is the same, and the head is one graph."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor

pytest.importorskip("mmseg")
from gbseg.mm.models import PixelNetHead
from gbseg.pixelnet.sampling import Samples

pytestmark = pytest.mark.slow

SHAPES = ((3, 20), (4, 10), (8, 3))


def _head(**options: Any) -> PixelNetHead:
    torch.manual_seed(0)
    head = PixelNetHead([c for c, _ in SHAPES], 5, strides=(1, 2, 8), hidden=(12, 12), init_std=None, **options)
    head.init_weights()
    return head


def _features(dtype: torch.dtype = torch.float32, channels_last: bool = False) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    features = [torch.randn(2, c, side, side, generator=rng).to(dtype) for c, side in SHAPES]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return [feature.contiguous(memory_format=layout).requires_grad_() for feature in features]


def _samples() -> list[SimpleNamespace]:
    label = torch.randint(5, (2, 20, 20), generator=torch.Generator().manual_seed(2))
    label[0, :5] = 255
    return [
        SimpleNamespace(
            gt_sem_seg=SimpleNamespace(data=image_label[None], shape=image_label.shape), metainfo=dict(img_path="image")
        )
        for image_label in label
    ]


def _first_pixels(label: Tensor, num_classes: int, ignore_index: int) -> Samples:
    points = torch.cartesian_prod(torch.arange(4, 20, 3), torch.arange(0, 20, 3)).expand(2, -1, 2)
    return Samples(points, torch.stack([image_label[points[0, :, 0], points[0, :, 1]] for image_label in label]))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("loss", ["ExpGBLoss", "Pow3GBLoss"])
def test_a_training_step_of_the_head_is_one_graph(loss: str, half: bool, channels_last: bool) -> None:
    """`fullgraph` refuses any break; losses and all gradients are those of the head without a compiler."""
    head = _head(dropout=0.0, sampler=_first_pixels, loss_decode=dict(type=loss))
    features = _features(channels_last=channels_last)
    inputs = [*features, *head.parameters()]

    def step() -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return head.loss(features, _samples())

    samples = _samples()

    def compiled_step(features: list[Tensor]) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return head.loss(features, samples)

    torch._dynamo.reset()
    compiled = torch.compile(compiled_step, fullgraph=True, backend="aot_eager")
    key = "loss_expgb" if loss == "ExpGBLoss" else "loss_pow3gb"
    plain, mine = step(), compiled(features)
    assert plain.keys() == mine.keys()
    for name, value in plain.items():
        torch.testing.assert_close(mine[name], value)
    tolerance: dict[str, Any] = dict(rtol=1e-2, atol=2e-2) if half else dict(rtol=1e-5, atol=1e-5)
    for a, b in zip(torch.autograd.grad(mine[key], inputs), torch.autograd.grad(plain[key], inputs), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, **tolerance)


def test_random_pixels_and_dropout_are_one_graph_too() -> None:
    """With the sampler and the dropout that configs have."""
    head = _head(sampler=dict(type="BalancedPixelSampler", num=30))
    torch._dynamo.reset()
    losses = torch.compile(head.loss, fullgraph=True, backend="aot_eager")(_features(), _samples())
    losses["loss_expgb"].backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in head.parameters())


def test_the_trunk() -> None:
    """Compiled as one graph, in channels_last and under autocast it gives the maps that it gives without."""
    torch.manual_seed(0)
    trunk = MODELS.build(dict(type="VGG16Trunk", taps=("conv1_2", "conv2_2"))).eval()
    trunk.init_weights()
    image = torch.randn(1, 3, 16, 24)
    torch._dynamo.reset()
    compiled = torch.compile(trunk, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        plain = trunk(image)
        for layout, half in ((torch.contiguous_format, False), (torch.channels_last, False), (torch.channels_last, True)):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                maps = compiled(image.contiguous(memory_format=layout))
            for a, b in zip(maps, plain, strict=True):
                assert a.dtype == (torch.bfloat16 if half else torch.float32)
                size = float(b.abs().max())
                torch.testing.assert_close(a.float() / size, b / size, rtol=0, atol=2e-2 if half else 1e-5)
