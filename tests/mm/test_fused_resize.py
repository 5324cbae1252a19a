"""MMSegmentation's heads with and without their enlarged logits."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg")
from mmengine.structures import PixelData
from mmseg.models.decode_heads import EncHead, FCNHead
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

from gbseg.losses import ExpGBLoss
from gbseg.mm import FuseResizeHook
from gbseg.mm.hooks.fused_resize import fuse_resize

register_all_modules(init_default_scope=False)
EXPGB = dict(type="ExpGBLoss", loss_name="loss_expgb")
POW3GB = dict(type="Pow3GBLoss", loss_weight=0.3, loss_name="loss_pow3gb")


def _head(**options: object) -> FCNHead:
    torch.manual_seed(0)
    settings = dict(in_channels=4, channels=6, num_classes=3, num_convs=1, dropout_ratio=0.0, norm_cfg=dict(type="BN"))
    return FCNHead(**{**settings, "loss_decode": [EXPGB, POW3GB, EXPGB], **options})


def _samples(count: int, size: tuple[int, int]) -> list[SegDataSample]:
    rng = torch.Generator().manual_seed(1)
    label = torch.randint(0, 3, (count, 1, *size), generator=rng)
    label.view(-1)[::4] = 255
    return [SegDataSample(gt_sem_seg=PixelData(data=one)) for one in label]


class _Halved(ExpGBLoss):
    def compute(self, *args: Any, **options: Any) -> torch.Tensor:
        return super().compute(*args, **options) / 2


@pytest.mark.parametrize("align_corners", [False, True])
def test_losses_accuracy_and_gradients_stay(align_corners: bool) -> None:
    plain, fused = (_head(align_corners=align_corners) for _ in range(2))
    fuse_resize(fused)
    features = torch.randn(2, 4, 5, 7)
    samples = _samples(2, (40, 56))
    expected, actual = (head.loss([features], samples, {}) for head in (plain, fused))
    assert actual.keys() == expected.keys() == {"loss_expgb", "loss_pow3gb", "acc_seg"}
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])
    for losses in (expected, actual):
        (losses["loss_expgb"] + losses["loss_pow3gb"]).backward()
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_fused_is_named() -> None:
    with pytest.raises(ValueError, match="FCNHead has the loss CrossEntropyLoss"):
        fuse_resize(_head(loss_decode=[EXPGB, dict(type="CrossEntropyLoss")]))
    with pytest.raises(ValueError, match="FCNHead has the pixel sampler OHEMPixelSampler"):
        fuse_resize(_head(sampler=dict(type="OHEMPixelSampler"), loss_decode=EXPGB))
    head = _head(loss_decode=EXPGB)
    head.loss_decode = _Halved()
    with pytest.raises(ValueError, match="FCNHead has the loss _Halved"):
        fuse_resize(head)
    encoding = EncHead(in_channels=[4], in_index=[0], channels=6, num_classes=3, loss_decode=EXPGB)
    with pytest.raises(ValueError, match="EncHead does not compute its loss with"):
        fuse_resize(encoding)


def test_the_hook_changes_every_head() -> None:
    model = torch.nn.ModuleDict(dict(decode_head=_head(), auxiliary_head=torch.nn.ModuleList([_head(), _head()])))
    model["other"] = _head(loss_decode=dict(type="CrossEntropyLoss"))
    FuseResizeHook().before_run(SimpleNamespace(model=model))
    assert "loss_by_feat" not in vars(model["other"])
    assert all("loss_by_feat" in vars(head) for head in (model["decode_head"], *model["auxiliary_head"]))
    with pytest.raises(ValueError, match="Linear has no decode head of MMSegmentation's with a boosted loss"):
        FuseResizeHook().before_run(SimpleNamespace(model=torch.nn.Linear(1, 1)))
