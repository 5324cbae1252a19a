"""Vectorised trials against the same trials trained alone with torch.optim."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from gbseg.losses import ExpGBLoss, LinearLoss, SigmoidMSELoss, SoftmaxLoss
from gbseg.losses.modules import GuardedLoss
from gbseg.mm.resumable_sampler import ResumableSampler
from reproduction import trials
from reproduction.trials import Split, TrialCurves, train_trials


def make() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 4)).double()


def _split(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    centres = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(9))
    inputs = centres[labels] + torch.randn(count, 3, 4, generator=generator)
    return Split(inputs.double(), labels)


# more test images than one step of the evaluation takes
TRAIN, TEST = _split(110, 0), _split(1300, 1)


def alone(loss: GuardedLoss, rate: float, seed: int, epochs: int, batch: int) -> tuple[list[float], list[float]]:
    """The textbook's loop."""
    torch.manual_seed(seed)
    network = make()
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    sampler = ResumableSampler(TRAIN.labels, seed=seed)
    errors, losses = [], []
    for epoch in range(epochs):
        values = []
        for index in torch.tensor(sampler.order(epoch)).split(batch):
            optimizer.zero_grad()
            value = loss(network(TRAIN.inputs[index]), TRAIN.labels[index])
            value.backward()
            optimizer.step()
            values.append(value.item())
        with torch.no_grad():
            errors.append((network(TEST.inputs).argmax(1) != TEST.labels).double().mean().item())
        losses.append(sum(values) / len(values))
    return errors, losses


def column(rows: list[list[float | None]], trial: int) -> list[float | None]:
    return [row[trial] for row in rows]


@pytest.mark.parametrize(
    "loss", [ExpGBLoss(targets=(0, 6)), LinearLoss(), SigmoidMSELoss(), SoftmaxLoss(loss_weight=3.0)], ids=repr
)
def test_a_vectorised_trial_is_the_trial_alone(loss: GuardedLoss) -> None:
    """Other seeds, other rates, side by side: error and loss after every epoch are those of each alone."""
    rates, seeds = [0.01, 0.05, 0.02], [3, 4, 3]
    curves = train_trials(make, loss, TRAIN, TEST, rates, seeds, epochs=4, batch=10)
    for trial, (rate, seed) in enumerate(zip(rates, seeds, strict=True)):
        errors, losses = alone(loss, rate, seed, 4, 10)
        assert column(curves.error, trial) == pytest.approx(errors)
        assert column(curves.loss, trial) == pytest.approx(losses)
    assert curves.diverged == [None] * 3 and curves.loss[0][0] != curves.loss[0][2]


def test_divergence_stays_with_its_trial() -> None:
    """A rate that is far too high is recorded as diverged; its neighbour is what it is alone."""
    loss = ExpGBLoss()
    curves = train_trials(make, loss, TRAIN, TEST, [50.0, 0.005], [1, 2], epochs=3, batch=10)
    assert curves.diverged == [1, None]
    assert column(curves.error, 0) == [None] * 3 == column(curves.loss, 0)
    assert column(curves.error, 1) == pytest.approx(alone(loss, 0.005, 2, 3, 10)[0])


def test_a_network_that_draws_its_weights_in_init_weights() -> None:
    """They come from the trial's seed, after the ones of the construction."""

    class Late(nn.Sequential):
        def init_weights(self) -> None:
            nn.init.normal_(self[1].weight)

    def late() -> nn.Module:
        return Late(nn.Flatten(), nn.Linear(12, 4)).double()

    torch.manual_seed(5)
    network = late()
    network.init_weights()
    error = (network(TEST.inputs).argmax(1) != TEST.labels).double().mean().item()
    # a rate at which nothing moves
    curves = train_trials(late, SoftmaxLoss(), TRAIN, TEST, [1e-300], [5], epochs=1, batch=10)
    assert curves.error == [[pytest.approx(error)]]


class _Recorded(ResumableSampler):
    asked: list[int]

    def order(self, epoch: int) -> list[int]:
        self.asked.append(epoch)
        return super().order(epoch)


def test_an_interrupted_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the state of its last tenth epoch, to the very numbers of a call that was never interrupted."""
    state = tmp_path / "state.pt"
    rates, seeds = [0.01, 50.0, 0.005], [3, 4, 5]

    def run(epochs: int, state: Path | None) -> TrialCurves:
        return train_trials(make, ExpGBLoss(), TRAIN, TEST, rates, seeds, epochs, 10, state)

    whole = run(12, None)
    assert whole.diverged == [None, 1, None]
    run(9, state)
    assert not state.exists()
    # what is there when a call is killed in its eleventh epoch
    run(10, state)
    _Recorded.asked = []
    monkeypatch.setattr(trials, "ResumableSampler", _Recorded)
    assert run(12, state) == whole
    assert _Recorded.asked == [10] * 3 + [11] * 3


@pytest.mark.parametrize(("rates", "seeds"), [([0.02], [3]), ([0.01], [4]), ([0.01, 0.01], [3, 4])])
def test_a_state_of_other_trials_is_refused(tmp_path: Path, rates: list[float], seeds: list[int]) -> None:
    state = tmp_path / "state.pt"
    train_trials(make, SoftmaxLoss(), TRAIN, TEST, [0.01], [3], 10, 10, state)
    with pytest.raises(ValueError, match=r"state\.pt holds other trials \(rates \[0\.01\], seeds \[3\]\): remove it"):
        train_trials(make, SoftmaxLoss(), TRAIN, TEST, rates, seeds, 12, 10, state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": [0.1]}, "1 rates and 2 seeds"),
        ({"rates": [], "seeds": []}, "0 rates and 0 seeds"),
        ({"batch": 120}, "batches of 120 do not divide 110"),
        ({"batch": 20}, "batches of 20 do not divide 110"),
        ({"batch": 0}, "batches of 0 do not divide 110"),
        ({"make": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4))}, r"buffers 1\.running_mean"),
    ],
)
def test_refused(changes: dict[str, object], message: str) -> None:
    """Settings that make no sense."""
    settings = {"make": make, "rates": [0.1, 0.1], "seeds": [0, 1], "batch": 10, **changes}
    with pytest.raises(ValueError, match=message):
        train_trials(loss=SoftmaxLoss(), train=TRAIN, test=TEST, epochs=1, **settings)


def test_controls_that_need_no_runs() -> None:
    """Under plain SGD a factor of the loss is a factor of the rate, and the softmax with both scale and penalty is exp-GB."""
    alpha, t_pos, rate, seeds = 0.1, 16.0, 0.002, [3, 4]

    def run(loss: GuardedLoss, rate: float) -> TrialCurves:
        return train_trials(make, loss, TRAIN, TEST, [rate] * 2, seeds, epochs=5, batch=10)

    def same(one: TrialCurves, other: TrialCurves) -> None:
        assert one.error == other.error and one.diverged == [None, None]
        for trial in range(2):
            assert column(one.loss, trial) == pytest.approx([16 * value for value in column(other.loss, trial)], rel=1e-9)

    softmax = run(SoftmaxLoss(), 16 * rate)
    penalised = run(SoftmaxLoss(scale=1, penalty=1, alpha=alpha, t_pos=t_pos), 16 * rate)
    same(run(SoftmaxLoss(scale=16), rate), softmax)
    same(run(ExpGBLoss(alpha, (0, t_pos)), rate), penalised)
    # the two controls are not one
    assert penalised.loss != softmax.loss and penalised.error != softmax.error
