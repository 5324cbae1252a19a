"""Many trials of a small network trained at once, vectorised over seeds and rates with ``torch.func``.

T trials, N images, B images per batch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from gbseg.files import write_atomically
from gbseg.losses.modules import GuardedLoss
from gbseg.mm.resumable_sampler import ResumableSampler

__all__ = ["Split", "TrialCurves", "train_trials"]


@dataclass(frozen=True)
class Split:
    """Images and labels on one device.

    Attributes:
        inputs: (N, ...) floats, as the network takes them.
        labels: (N,) int64.
    """

    inputs: Tensor
    labels: Tensor


@dataclass
class TrialCurves:
    """The measurements of T trials after each epoch.

    Attributes:
        error: per epoch, T error rates in 0..1; None from the epoch on in which a trial's loss became non-finite.
        loss: per epoch, T mean training losses; None likewise.
        diverged: T epochs (from 1) in which the loss became non-finite; None where it never did.
    """

    error: list[list[float | None]] = field(default_factory=list)
    loss: list[list[float | None]] = field(default_factory=list)
    diverged: list[int | None] = field(default_factory=list)


def train_trials(
    make: Callable[[], nn.Module],
    loss: GuardedLoss,
    train: Split,
    test: Split,
    rates: Sequence[float],
    seeds: Sequence[int],
    epochs: int,
    batch: int = 100,
    state: Path | None = None,
) -> TrialCurves:
    """Train T networks side by side by plain gradient descent at fixed rates.

    Each network becomes what ``gbseg train`` makes of the same seed and rate (up to the rounding of batched products): its
    initial weights come from its seed, the order of its images from a `ResumableSampler` with that seed. A trial that diverges
    goes on as NaN and does not affect the others.

    Args:
        make: builds a network; its ``init_weights`` is called under the trial's seed. No batch normalisation, no dropout.
        loss: the loss of the logits.
        train: the training set.
        test: the set on which the error is measured.
        rates: T learning rates.
        seeds: T seeds.
        epochs: passes over ``train``.
        batch: images per step; divides the number of training images.
        state: a file for weights and curves, written after every tenth epoch; an interrupted call continues from it.

    Returns:
        The curves.

    Raises:
        ValueError: there are no rates or not as many seeds; the batch does not divide the training set; the network has
            buffers; the state is of other trials.
    """
    if len(rates) != len(seeds) or not rates:
        raise ValueError(f"each trial has a rate and a seed, got {len(rates)} rates and {len(seeds)} seeds.")
    count = len(train.labels)
    if not 0 < batch <= count or count % batch:
        raise ValueError(f"batches of {batch} do not divide {count} images.")
    device = train.inputs.device
    networks = []
    for seed in seeds:
        torch.manual_seed(seed)
        # moved before its weights are drawn, as mmengine's runner does: each device has its own random generator
        network = make().to(device)
        getattr(network, "init_weights", lambda: None)()
        networks.append(network)
    stacked, buffers = stack_module_state(networks)
    if buffers:
        raise ValueError(f"trials are vectorised over parameters alone; the network has the buffers {', '.join(buffers)}.")
    weights = {name: weight.detach() for name, weight in stacked.items()}
    skeleton = networks[0].to("meta")

    def objective(weights: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        # not its forward, whose checks of values cannot be vectorised; the data set has checked the labels
        return loss.compute(functional_call(skeleton, weights, (inputs,)), labels, None, None, None, "mean")

    step = vmap(grad_and_value(objective))
    classify = vmap(lambda weights, inputs: functional_call(skeleton, weights, (inputs,)).argmax(1), in_dims=(0, None))
    minus_rate = -torch.tensor(rates, dtype=train.inputs.dtype, device=device)
    samplers = [ResumableSampler(train.labels, seed=seed) for seed in seeds]
    curves = TrialCurves(diverged=[None] * len(seeds))
    if state is not None and state.exists():
        weights, curves = _load(state, rates, seeds, device)
    for epoch in range(len(curves.error), epochs):
        order = torch.tensor([sampler.order(epoch) for sampler in samplers], device=device)
        total = torch.zeros_like(minus_rate)
        for index in order.split(batch, dim=1):
            gradient, value = step(weights, train.inputs[index], train.labels[index])
            for name, weight in weights.items():
                weight.addcmul_(gradient[name], minus_rate.view(-1, *[1] * (weight.ndim - 1)))
            total += value
        wrong = torch.zeros(len(seeds), dtype=torch.float64, device=device)
        for inputs, labels in zip(test.inputs.split(1000), test.labels.split(1000), strict=True):
            wrong += (classify(weights, inputs) != labels).sum(1)
        finite = torch.isfinite(total) & torch.stack([torch.isfinite(w.flatten(1)).all(1) for w in weights.values()]).all(0)
        for trial, is_finite in enumerate(finite.tolist()):
            if not is_finite and curves.diverged[trial] is None:
                curves.diverged[trial] = epoch + 1
        for values, curve in ((wrong / len(test.labels), curves.error), (total / (count // batch), curves.loss)):
            pairs = zip(values.tolist(), curves.diverged, strict=True)
            curve.append([value if diverged is None else None for value, diverged in pairs])
        if state is not None and (epoch + 1) % 10 == 0:
            _save(state, rates, seeds, weights, curves)
    return curves


def _save(path: Path, rates: Sequence[float], seeds: Sequence[int], weights: dict[str, Tensor], curves: TrialCurves) -> None:
    buffer = io.BytesIO()
    torch.save({"rates": list(rates), "seeds": list(seeds), "weights": weights, "curves": asdict(curves)}, buffer)
    write_atomically(buffer.getbuffer(), path)


def _load(
    path: Path, rates: Sequence[float], seeds: Sequence[int], device: torch.device
) -> tuple[dict[str, Tensor], TrialCurves]:
    saved = torch.load(path, map_location=device, weights_only=True)
    if (saved["rates"], saved["seeds"]) != (list(rates), list(seeds)):
        raise ValueError(f"{path} holds other trials (rates {saved['rates']}, seeds {saved['seeds']}): remove it.")
    return saved["weights"], TrialCurves(**saved["curves"])
