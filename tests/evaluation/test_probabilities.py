"""Which link a model's logits go through, by the losses of its head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

import gbseg
from gbseg.evaluation.probabilities import probabilities_of


def _model(*losses: nn.Module, key: str = "decode_head") -> nn.Module:
    model, head = nn.Module(), nn.Module()
    head.loss_decode = nn.ModuleList(losses) if len(losses) > 1 else losses[0]
    setattr(model, key, head)
    return model


def _mm(name: str, **settings: object) -> nn.Module:
    import mmseg.models  # noqa: F401

    return MODELS.build(dict(type=f"mmseg.{name}", **settings))


LOGITS = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)) * 4


def test_boosted() -> None:
    """The cubic link by hand in float64, whichever place the loss has in the list."""
    loss = gbseg.Pow3GBLoss(alpha=0.01, beta=0.4, targets=(-2, 10))
    share = np.clip((0.01 * LOGITS.double().numpy() ** 3 + 0.4 + 2) / 12, 0, None)
    expected = share / share.sum(1, keepdims=True)
    assert np.isfinite(expected).all()
    for model in (_model(loss), _model(_mm("DiceLoss"), loss)):
        np.testing.assert_allclose(probabilities_of(model)(LOGITS).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_softmax_and_sigmoid() -> None:
    """The MM packages' own losses: softmax, and sigmoids over their sum."""
    exact = LOGITS.double()
    softmax = probabilities_of(_model(_mm("CrossEntropyLoss")))
    np.testing.assert_allclose(softmax(LOGITS), exact.softmax(1), atol=1e-6)
    assert softmax(exact).dtype == torch.float64 and softmax(LOGITS.half()).dtype == torch.float32
    sigmoid = probabilities_of(_model(_mm("CrossEntropyLoss", use_sigmoid=True)))
    np.testing.assert_allclose(sigmoid(LOGITS), exact.sigmoid() / exact.sigmoid().sum(1, keepdim=True), atol=1e-6)
    assert torch.isfinite(sigmoid(torch.full((1, 5, 1, 1), -200.0))).all()


def test_heads() -> None:
    """A cascade's last head counts, wrappers are unwrapped, and a classifier's head is found."""
    cascade = nn.Module()
    cascade.decode_head = nn.ModuleList(
        [_model(_mm("CrossEntropyLoss")).decode_head, _model(loss := gbseg.ExpGBLoss()).decode_head]
    )
    assert probabilities_of(cascade) == loss.probabilities
    wrapper = nn.Module()
    wrapper.module = _model(loss)
    assert probabilities_of(wrapper) == loss.probabilities
    classifier, head = nn.Module(), nn.Module()
    classifier.head, head.loss_module = head, loss
    assert probabilities_of(classifier) == loss.probabilities


def test_unknown() -> None:
    """A loss without a known link is named, not guessed at."""
    with pytest.raises(ValueError, match="not known for HuberLoss"):
        probabilities_of(_model(nn.HuberLoss()))
    with pytest.raises(ValueError, match="head of Linear has no loss"):
        probabilities_of(nn.Linear(1, 1))
