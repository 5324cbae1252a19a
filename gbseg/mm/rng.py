"""The states of the global random generators: python, numpy, torch on the CPU and torch on every CUDA device.

numpy's legacy global generator is used on purpose: the transforms of mmcv, mmseg and mmpretrain draw from it.
"""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log

__all__ = ["preserved_rng", "rng_fault", "rng_state", "seed_cpu_rng", "set_rng_state"]


def rng_state(cuda: bool = True) -> dict[str, Any]:
    """Return the states of all global generators, made of nothing but tensors and built-in types.

    Args:
        cuda: whether to include the CUDA devices, if CUDA has been used in this process.

    Returns:
        ``python``, ``numpy``, ``torch`` and, if included, ``cuda``; ``torch.load`` reads it with ``weights_only=True``.
    """
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    name, keys, *rest = numpy_state
    state = {
        "python": random.getstate(),
        # a tensor, since an array would need an entry in the allow-list of torch.load; torch has no uint32 arithmetic
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if cuda and torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Set the global generators to what `rng_state` returned.

    If the number of CUDA devices differs, their states are not set, and a warning is logged.
    """
    random.setstate(state["python"])
    np.random.set_state(_numpy_state(state))  # noqa: NPY002
    # .cpu(): a checkpoint loaded with map_location='cuda' has even these tensors on the device
    torch.set_rng_state(state["torch"].cpu())
    devices = state.get("cuda", [])
    if len(devices) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([device.cpu() for device in devices])
    elif devices:
        print_log(
            f"The random states of {len(devices)} CUDA devices are not restored: there are {torch.cuda.device_count()} "
            "here, so what is drawn on a device will differ from the run without interruption.",
            logger="current",
            level=logging.WARNING,
        )


def rng_fault(state: dict[str, Any]) -> str | None:
    """Say why `set_rng_state` would fail; tried with generators of its own, so that the global ones stay as they are."""
    try:
        random.Random().setstate(state["python"])
        np.random.RandomState().set_state(_numpy_state(state))
        torch.Generator().set_state(state["torch"].cpu())
        for device in state.get("cuda", []):
            device.cpu()
    except Exception as error:  # the state may be anything
        return f"{type(error).__name__}: {error}"
    return None


def _numpy_state(state: dict[str, Any]) -> tuple:
    name, keys, *rest = state["numpy"]
    return name, keys.cpu().numpy().astype(np.uint32), *rest


def seed_cpu_rng(*entropy: int) -> None:
    """Seed python, numpy and torch's CPU generator from ``entropy``, but not the generators of devices."""
    words = np.random.SeedSequence(entropy).generate_state(4, np.uint32)
    random.seed(words.tobytes())
    np.random.seed(words)  # noqa: NPY002
    # not torch.manual_seed, which would seed every CUDA device as well
    torch.default_generator.manual_seed(int(words[:2].view(np.uint64)[0]))


@contextmanager
def preserved_rng(cuda: bool = True) -> Iterator[dict[str, Any]]:
    """Restore the global generators at the end; yields the state from before."""
    state = rng_state(cuda)
    try:
        yield state
    finally:
        set_rng_state(state)
