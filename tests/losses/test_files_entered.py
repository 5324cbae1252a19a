"""How much of the package one call of a loss runs through, so that a reader finds all of it."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType

import pytest
import torch

import gbseg
from gbseg import BoostedLoss, ExpGBLoss, Pow3GBLoss

PACKAGE = Path(gbseg.__file__).parent


def _calls_by_file(step: object) -> Counter[str]:
    """The calls of functions of gbseg, by file, in this thread and in those that start meanwhile."""
    calls: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE) and path.name != "__init__.py":
            calls[path.relative_to(PACKAGE).as_posix()] += 1

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        step()  # type: ignore[operator]
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return calls


@pytest.mark.parametrize("ignored", [False, True], ids=["", "ignored"])
@pytest.mark.parametrize("kind", [ExpGBLoss, Pow3GBLoss])
def test_files_of_one_loss(kind: type[BoostedLoss], ignored: bool) -> None:
    """Built, called and back-propagated: the boost, the module with its checks, the choice of a kernel, and the kernel."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 21, 8, 8, generator=rng).requires_grad_()
    label = torch.randint(0, 21, (2, 8, 8), generator=rng)
    if ignored:
        label[:, ::3] = 255

    def step() -> None:
        kind()(x, label).backward()

    # a backward in a thread of its own would be seen only if the thread is new
    threads: set[int] = set()
    x.register_hook(lambda gradient: threads.add(threading.get_ident()))
    step()
    calls = _calls_by_file(step)
    assert threads == {threading.get_ident()}
    assert set(calls) <= {"boosting.py", "losses/modules.py", "losses/functional.py", "losses/kernels/cpu.py"}
    assert calls["losses/functional.py"] and calls["losses/kernels/cpu.py"]
    assert calls.total() <= 80
