"""Hard pixels by the probabilities of the loss: against a loop over pixels, in a head of MMSegmentation that trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

import gbseg.mm  # noqa: F401  (registers what is built)

LOSSES = {
    "exp": dict(type="ExpGBLoss"),
    "pow3": dict(type="Pow3GBLoss"),
    "linear": dict(type="LinearLoss"),
    "softmax": dict(type="CrossEntropyLoss"),
}


def _head(loss: str, **sampler: Any) -> nn.Module:
    torch.manual_seed(0)
    config = dict(
        type="FCNHead", in_channels=3, channels=4, num_convs=1, concat_input=False, num_classes=5, dropout_ratio=0.0,
        norm_cfg=dict(type="BN"), loss_decode=LOSSES[loss], sampler=dict(type="LinkOHEMPixelSampler", **sampler),
    )  # fmt: skip
    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build(config)


def _batch() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    logits, label = 2 * torch.randn(2, 5, 6, 7, generator=rng), torch.randint(0, 5, (2, 1, 6, 7), generator=rng)
    label[:, :, 0] = 255
    return logits, label


def _probabilities(loss: str, logits: np.ndarray) -> np.ndarray:
    """The definition, in float64, of one pixel."""
    softmax = np.exp(logits) / np.exp(logits).sum()
    if loss in ("exp", "softmax"):
        return softmax
    share = np.maximum(0, logits if loss == "linear" else (0.001 * logits**3 + 0.4) / 10)
    return share / share.sum() if share.sum() else softmax


@pytest.mark.parametrize("thresh", [0.1, 0.35, 0.8])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_threshold_is_a_probability(loss: str, thresh: float) -> None:
    """Every pixel whose label has a smaller one, and at least ``min_kept`` an image."""
    logits, label = _batch()
    kept = 6
    actual = _head(loss, thresh=thresh, min_kept=kept).sampler.sample(logits, label).numpy()
    pixels = [(n, i, j) for n, i, j in np.ndindex(2, 6, 7) if label[n, 0, i, j] != 255]
    values = {p: _probabilities(loss, logits[p[0], :, p[1], p[2]].double().numpy())[label[p[0], 0, p[1], p[2]]] for p in pixels}
    limit = max(sorted(values.values())[2 * kept], thresh)
    assert {tuple(p) for p in np.argwhere(actual).tolist()} == {p for p, value in values.items() if value < limit}
    assert set(np.unique(actual)) <= {0.0, 1.0}


def test_the_original_is_wrong_after_pow3() -> None:
    """What the sampler is for: the softmax of its logits hides hard pixels; after exp-GB nothing changes."""
    logits, label = _batch()
    for loss, same in (("exp", True), ("softmax", True), ("pow3", False), ("linear", False)):
        ours = _head(loss, thresh=0.35, min_kept=2)
        theirs = _head(loss, thresh=0.35, min_kept=2)
        theirs.sampler.__class__ = theirs.sampler.__class__.__base__
        assert torch.equal(ours.sampler.sample(logits, label), theirs.sampler.sample(logits, label)) is same


@pytest.mark.parametrize("thresh", [None, 0.35])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_head_trains(loss: str, thresh: float | None) -> None:
    """MMSegmentation builds it from the config, and the loss falls on what it selects; without a threshold too."""
    head = _head(loss, thresh=thresh, min_kept=10)
    rng = torch.Generator().manual_seed(2)
    features = torch.randn(2, 3, 6, 7, generator=rng)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in _batch()[1]]
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    values = []
    for _ in range(20):
        losses = head.loss((features,), samples, {})
        (value,) = [value for name, value in losses.items() if "loss" in name]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value))
    assert np.isfinite(values).all() and values[-1] < values[0]
