"""Bytes that PyTorch's allocator holds while a function runs.

On a CPU they are counted from the profiler's allocation events, on a GPU by the caching allocator itself. Memory that
libraries take past the allocator (workspaces of cuBLAS and oneDNN) is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["held", "peak"]


def _peak_and_held(function: Callable[[], object], device: str) -> tuple[int, int]:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = function()
        peak_and_held = torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before
        del result
        return peak_and_held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        # the name keeps the result alive until the profile ends
        result = function()
    del result
    events = (event for event in record.profiler.kineto_results.events() if event.name() == "[memory]")
    steps = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    levels = list(accumulate(steps, initial=0))
    return max(levels), levels[-1]


def peak(function: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes that were held at a time while ``function`` ran, beyond those at the start."""
    return _peak_and_held(function, device)[0]


def held(function: Callable[[], object], device: str = "cpu") -> int:
    """The bytes that are held when ``function`` has returned, by its result or elsewhere, beyond those at the start."""
    return _peak_and_held(function, device)[1]
