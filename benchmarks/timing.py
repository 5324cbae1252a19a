"""Times contenders in one process. They take turns, so that other load on the machine affects all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.memory import peak

__all__ = ["Measured", "agree", "measure", "reason"]


@dataclass(frozen=True)
class Measured:
    """Time and memory of one contender.

    Attributes:
        seconds: of every round; empty if it could not run.
        peak: the most bytes held at a time beyond its inputs.
        failed: why it could not run, else empty.
    """

    seconds: tuple[float, ...] = ()
    peak: int = 0
    failed: str = ""

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(low), float(high)

    def ratio_to(self, other: Measured) -> float:
        """The median of the ratios of each round, in which both met the same load."""
        return statistics.median(
            numerator / denominator for numerator, denominator in zip(self.seconds, other.seconds, strict=True)
        )


def reason(error: Exception) -> str:
    """Why a contender could not run, in a line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:150]


def _seconds(run: Callable[[], object], device: str) -> float:
    if torch.device(device).type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    before.record()
    run()
    after.record()
    torch.cuda.synchronize(device)
    return before.elapsed_time(after) / 1e3


def measure(contenders: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, Measured]:
    """Time every contender once a round, each round in another order; then the memory of each on its own.

    The first call of each warms up and is not counted. A contender that raises in it (a package that is not installed, no
    compiler) is left out and says why.
    """
    runnable, results = [], {}
    for name, run in contenders.items():
        try:
            run()
        except Exception as error:  # of any library; the others are still measured
            results[name] = Measured(failed=reason(error))
        else:
            runnable.append((name, run))
    seconds: dict[str, list[float]] = {name: [] for name, _ in runnable}
    # in random order: otherwise each would always follow the same one, whose threads may still be spinning
    order = random.Random(0)
    for _ in range(rounds):
        for name, run in order.sample(runnable, len(runnable)):
            seconds[name].append(_seconds(run, device))
    for name, run in runnable:
        results[name] = Measured(tuple(seconds[name]), peak(run, device))
    return {name: results[name] for name in contenders}


def agree(contenders: Mapping[str, Callable[[], Sequence[Tensor]]], names: Sequence[str]) -> None:
    """Check that contenders compute the same: the tensors that those of ``names`` return against the first's.

    Raises:
        AssertionError: a contender's numbers differ; the message names it.
    """
    expected = contenders[names[0]]()
    for name in names[1:]:
        for tensor, reference in zip(contenders[name](), expected, strict=True):
            close = 16 * torch.finfo(reference.dtype).eps
            largest = float(reference.abs().max())
            torch.testing.assert_close(
                tensor, reference, rtol=close, atol=close * largest, msg=lambda text, name=name: f"{name}: {text}"
            )
