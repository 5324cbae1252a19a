"""Many trials of a small network trained at once, vectorised over seeds and rates with `torch.func`.

Shapes: T trials, N images, B images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from gbseg.losses.guarded import GuardedLoss

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
    """What T trials measured after each epoch.

    Attributes:
        error: by epoch, T shares of wrong labels in 0..1; None from the epoch in which a trial's loss was not finite.
        loss: by epoch, T mean training losses; None likewise.
        diverged: T epochs (from 1) in which the loss stopped to be finite, None where it never did.
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
    after_epoch: Callable[[int, TrialCurves], None] | None = None,
) -> TrialCurves:
    """Train T networks side by side by plain gradient descent at fixed rates.

    Each is what it would be alone (up to the rounding of batched products): its initial weights and the order of its batches
    come from its own seed. A trial that diverges goes on as NaN and touches no other.

    Args:
        make: builds a network; its `init_weights` is called under the trial's seed. No batch normalisation, no dropout.
        loss: of the logits.
        train: to train on.
        test: to measure the error on.
        rates: T learning rates.
        seeds: T seeds.
        epochs: passes over ``train``.
        batch: images a step; what is left over at an epoch's end is dropped.
        after_epoch: called with the number of epochs done and what is known so far.

    Returns:
        The curves.

    Raises:
        ValueError: rates and seeds of different number, none at all, a batch larger than the set, or a network with buffers.
    """
    if len(rates) != len(seeds) or not rates:
        raise ValueError(f"each trial has a rate and a seed, got {len(rates)} rates and {len(seeds)} seeds.")
    if not 0 < batch <= len(train.labels):
        raise ValueError(f"a batch of {batch} images does not fit {len(train.labels)}.")
    device = train.inputs.device
    networks = []
    for seed in seeds:
        torch.manual_seed(seed)
        network = make()
        getattr(network, "init_weights", lambda: None)()
        networks.append(network.to(device))
    state, buffers = stack_module_state(networks)
    if buffers:
        raise ValueError(f"trials are vectorised over parameters alone; the network has the buffers {', '.join(buffers)}.")
    weights = {name: weight.detach() for name, weight in state.items()}
    skeleton = networks[0].to("meta")

    def objective(weights: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        return loss.compute(functional_call(skeleton, weights, (inputs,)), labels, None, None, None, "mean")

    step = vmap(grad_and_value(objective))
    classify = vmap(lambda weights, inputs: functional_call(skeleton, weights, (inputs,)).argmax(1), in_dims=(0, None))
    rate = torch.tensor(rates, dtype=train.inputs.dtype, device=device)
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    curves = TrialCurves(diverged=[None] * len(seeds))
    for epoch in range(1, epochs + 1):
        order = torch.stack([torch.randperm(len(train.labels), generator=one) for one in orders]).to(device)
        total = torch.zeros_like(rate)
        steps = len(train.labels) // batch
        for index in order[:, : steps * batch].split(batch, dim=1):
            gradient, value = step(weights, train.inputs[index], train.labels[index])
            for name, weight in weights.items():
                weight.sub_(rate.view(-1, *[1] * (weight.ndim - 1)) * gradient[name])
            total += value
        wrong = torch.zeros_like(rate)
        for inputs, labels in zip(test.inputs.split(1000), test.labels.split(1000), strict=True):
            wrong += (classify(weights, inputs) != labels).sum(1)
        finite = torch.isfinite(total) & torch.stack([torch.isfinite(w.flatten(1)).all(1) for w in weights.values()]).all(0)
        for trial, good in enumerate(finite.tolist()):
            if not good and curves.diverged[trial] is None:
                curves.diverged[trial] = epoch
        for values, kept in ((wrong / len(test.labels), curves.error), (total / steps, curves.loss)):
            known = zip(values.tolist(), curves.diverged, strict=True)
            kept.append([value if diverged is None else None for value, diverged in known])
        if after_epoch is not None:
            after_epoch(epoch, curves)
    return curves
