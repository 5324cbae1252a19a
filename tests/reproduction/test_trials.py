"""Vectorised trials against the same trials trained alone with torch.optim."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from gbseg.losses import ExpGBLoss, LinearLoss, SigmoidMSELoss, SoftmaxLoss
from gbseg.losses.guarded import GuardedLoss
from gbseg.reproduction.trials import Split, train_trials


def make() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 4)).double()


def _split(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    centres = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(9))
    inputs = centres[labels] + torch.randn(count, 3, 4, generator=generator)
    return Split(inputs.double(), labels)


TRAIN, TEST = _split(107, 0), _split(1300, 1)


def alone(loss: GuardedLoss, rate: float, seed: int, epochs: int, batch: int) -> tuple[list[float], list[float]]:
    """The textbook's loop."""
    torch.manual_seed(seed)
    network = make()
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    order = torch.Generator().manual_seed(seed)
    errors, losses = [], []
    for _ in range(epochs):
        total, steps = 0.0, 0
        for index in torch.randperm(len(TRAIN.labels), generator=order).split(batch):
            if len(index) < batch:
                continue
            optimizer.zero_grad()
            value = loss(network(TRAIN.inputs[index]), TRAIN.labels[index])
            value.backward()
            optimizer.step()
            total, steps = total + value.item(), steps + 1
        with torch.no_grad():
            errors.append((network(TEST.inputs).argmax(1) != TEST.labels).double().mean().item())
        losses.append(total / steps)
    return errors, losses


@pytest.mark.parametrize("loss", [ExpGBLoss(targets=(0, 6)), LinearLoss(), SigmoidMSELoss(), SoftmaxLoss()], ids=repr)
def test_a_vectorised_trial_is_the_trial_alone(loss: GuardedLoss) -> None:
    """Other seeds, other rates, side by side: error and loss after every epoch are those of each alone."""
    rates, seeds = [0.01, 0.05, 0.02], [3, 4, 3]
    found = train_trials(make, loss, TRAIN, TEST, rates, seeds, epochs=4, batch=10)
    for trial, (rate, seed) in enumerate(zip(rates, seeds, strict=True)):
        errors, losses = alone(loss, rate, seed, 4, 10)
        assert [row[trial] for row in found.error] == pytest.approx(errors)
        assert [row[trial] for row in found.loss] == pytest.approx(losses)
    assert found.diverged == [None] * 3 and found.loss[0][0] != found.loss[0][2]


def test_divergence_stays_with_its_trial() -> None:
    """A rate that is far too high is recorded as diverged; its neighbour is what it is alone."""
    loss = ExpGBLoss()
    found = train_trials(make, loss, TRAIN, TEST, [50.0, 0.005], [1, 2], epochs=3, batch=10)
    assert found.diverged == [1, None]
    assert [row[0] for row in found.error] == [None] * 3 == [row[0] for row in found.loss]
    assert [row[1] for row in found.error] == pytest.approx(alone(loss, 0.005, 2, 3, 10)[0])


def test_progress() -> None:
    """The caller sees every epoch as it ends, to write it down."""
    seen = []
    train_trials(
        make, SoftmaxLoss(), TRAIN, TEST, [0.1], [0], 3, 20, lambda epoch, curves: seen.append((epoch, len(curves.error)))
    )
    assert seen == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": [0.1]}, "1 rates and 2 seeds"),
        ({"rates": [], "seeds": []}, "0 rates and 0 seeds"),
        ({"batch": 108}, "does not fit 107"),
        ({"make": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4))}, "buffers 1.running_mean"),
    ],
)
def test_refused(changes: dict[str, object], message: str) -> None:
    """Settings that make no sense."""
    settings: dict[str, Callable | object] = {"make": make, "rates": [0.1, 0.1], "seeds": [0, 1], "batch": 10, **changes}
    with pytest.raises(ValueError, match=message):
        train_trials(loss=SoftmaxLoss(), train=TRAIN, test=TEST, epochs=1, **settings)
