"""The calibration error against torchmetrics, a float64 loop over bins, and networks whose calibration is known."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from gbseg.evaluation import Calibration
from gbseg.losses.modules import ExpGBLoss, Pow3GBLoss

C = 6


def _image(seed: int, shape: tuple[int, int] = (40, 50), scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and a label that they are right about more often than not."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(C, *shape, generator=generator)
    label = (logits + 2 * torch.randn(C, *shape, generator=generator)).argmax(0)
    label[torch.rand(shape, generator=generator) < 0.1] = 255
    return logits, label


def _brute(probabilities: np.ndarray, prediction: np.ndarray, label: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error by its definition, one bin at a time."""
    kept = label != 255
    confidence = np.take_along_axis(probabilities, prediction[None], 0)[0][kept].astype(np.float64)
    right = (prediction == label)[kept]
    error = 0.0
    for m in range(bins):
        inside = (confidence * bins >= m) & ((confidence * bins < m + 1) | (m == bins - 1))
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def test_against_torchmetrics() -> None:
    """Two images of different sizes give the error that torchmetrics finds over their pixels."""
    calibration, everything = Calibration(), []
    for seed, shape in ((0, (40, 50)), (1, (33, 21))):
        logits, label = _image(seed, shape)
        calibration.update(logits, logits.softmax(0), label)
        everything.append((logits.softmax(0).flatten(1), label.flatten()))
    probabilities = torch.cat([p for p, _ in everything], 1).T
    label = torch.cat([t for _, t in everything])
    for norm in ("l1", "max"):
        reference = multiclass_calibration_error(probabilities, label, C, n_bins=15, norm=norm, ignore_index=255)
        result = calibration.reliability()
        # torchmetrics sums in float32
        assert (result.ece if norm == "l1" else result.mce) == pytest.approx(float(reference), rel=2e-5)
    assert sum(result.pixels) == int((label != 255).sum())
    kept = label != 255
    assert result.mean_accuracy == pytest.approx(float((probabilities.argmax(1) == label)[kept].double().mean()), rel=1e-12)
    assert result.mean_confidence == pytest.approx(float(probabilities.max(1).values[kept].double().mean()), rel=1e-6)


@pytest.mark.parametrize("loss", [ExpGBLoss(alpha=0.1, targets=(0, 16)), Pow3GBLoss()], ids=["expgb", "pow3gb"])
def test_through_the_link(loss: ExpGBLoss | Pow3GBLoss) -> None:
    """The confidence is the link's; for pow3-GB that is another number than the softmax's, for exp-GB the same."""
    logits, label = _image(2)
    linked, soft = Calibration(), Calibration()
    probabilities = loss.probabilities(logits[None])[0]
    linked.update(logits, probabilities, label)
    soft.update(logits, logits.softmax(0), label)
    expected = _brute(probabilities.numpy(), logits.argmax(0).numpy(), label.numpy())
    assert linked.reliability().ece == pytest.approx(expected, rel=1e-9)
    difference = abs(linked.reliability().ece - soft.reliability().ece)
    assert difference < 1e-6 if isinstance(loss, ExpGBLoss) else difference > 0.05


def test_networks_of_known_calibration() -> None:
    """Labels drawn from the probabilities give an error near zero; doubled logits are too sure, halved ones not enough."""
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(C, 300, 400, generator=generator)
    probabilities = logits.double().softmax(0)
    label = torch.multinomial(probabilities.flatten(1).T, 1, generator=generator).view(300, 400)
    result = {}
    for factor in (0.5, 1.0, 2.0):
        calibration = Calibration()
        calibration.update(factor * logits, (factor * logits).softmax(0), label)
        result[factor] = calibration.reliability()
    # 120,000 pixels in 15 bins: what chance leaves is about sqrt(15 / 120,000) / 2
    assert result[1.0].ece < 0.006
    assert result[2.0].ece > 0.15 and result[2.0].mean_confidence > result[2.0].mean_accuracy + 0.15
    assert result[0.5].ece > 0.15 and result[0.5].mean_confidence < result[0.5].mean_accuracy - 0.15


def test_certain_and_empty_bins() -> None:
    """A probability of one falls into the last bin; bins without pixels are NaN and count for nothing."""
    calibration = Calibration(bins=4)
    probabilities = torch.tensor([[[1.0, 1.0, 0.6, 0.25]], [[0.0, 0.0, 0.4, 0.75]]])
    calibration.update(probabilities, probabilities, torch.tensor([[0, 1, 0, 255]]))
    result = calibration.reliability()
    assert result.pixels == (0, 0, 1, 2)
    assert math.isnan(result.confidence[0]) and math.isnan(result.accuracy[1])
    assert result.accuracy[2:] == (1.0, 0.5) and result.confidence[2:] == pytest.approx((0.6, 1.0))
    assert result.ece == pytest.approx((0.4 + 2 * 0.5) / 3) and result.mce == pytest.approx(0.5)


def test_wrong_input() -> None:
    """What has no probability, no possible label or no pixel ends in a sentence, never in a number."""
    logits, label = _image(3)
    calibration = Calibration()
    with pytest.raises(ValueError, match="no pixel counts"):
        calibration.reliability()
    broken = logits.clone()
    broken[:, 0, :3] = float("nan")
    label[0, :3] = 1
    calibration.update(broken, broken.softmax(0), label)
    with pytest.raises(ValueError, match=r"^3 of \d+ pixels have a probability that is no number"):
        calibration.reliability()
    calibration = Calibration()
    label[0, 0] = C
    calibration.update(logits, logits.softmax(0), label)
    with pytest.raises(ValueError, match=r"^1 of \d+ pixels .* label out of range"):
        calibration.reliability()
    with pytest.raises(ValueError, match="two classes or more, not of 1"):
        calibration.update(logits[:1], logits[:1].sigmoid(), label)
    with pytest.raises(ValueError, match=r"\(6, 40, 50\), \(6, 40, 50\), \(1, 40, 50\)"):
        calibration.update(logits, logits.softmax(0), label[None])


def test_nothing_waits_for_the_device() -> None:
    """Tensors without values pass through: no operation asks the device for one."""
    calibration = Calibration()
    logits = torch.empty(C, 8, 9, device="meta")
    calibration.update(logits, logits.softmax(0), torch.empty(8, 9, dtype=torch.int64, device="meta"))
    assert calibration.state.shape == (3, 16) and calibration.state.dtype == torch.float64
    with pytest.raises(RuntimeError):
        calibration.state.sum().item()
