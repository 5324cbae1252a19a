"""The provenance of a result: what is stored with it so that it can be reproduced."""

import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gbseg.parallel import available_cores

# imported package -> the distributions that may provide it, in order of preference
PACKAGES = {
    "numpy": ("numpy",),
    "mmengine": ("onedl-mmengine", "mmengine"),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
    "gbseg": ("gbseg",),
}


def _version(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def _git(*arguments: str) -> str | None:
    """The output of git in this package's folder; None where git is missing or fails."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=30).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _code() -> dict[str, Any]:
    """The commit, and whether the working tree differs from it. Both None where git does not track this file."""
    # a package installed below another project's folder must not get that project's commit
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "dirty": None}
    # results that a command wrote are not code
    changes = _git("status", "--porcelain", "--", ":(top)", ":(top,exclude)results")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def _cpu() -> str:
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _memory() -> float | None:
    """The machine's memory in GiB; None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def provenance(command: str | None = None, seed: int | None = None) -> dict[str, Any]:
    """Describe the code, the machine and the moment, ready for JSON.

    Holds no host name, no user name and no absolute path unless ``command`` does: pass it as typed in the repository's root.

    Args:
        command: the command line that made the result.
        seed: the seed of the run.

    Returns:
        A dict with ``date`` (UTC, ISO 8601, seconds), ``command``, ``seed``, ``git`` (``commit``, and ``dirty``: whether
        anything outside ``results/`` differs from it or is untracked; both None outside git), ``hardware`` (``cpu``, ``cores``
        that the process may use, ``memory_gib``, ``gpu``: a name or None), ``arithmetic`` (on which the last bits depend:
        ``threads`` of PyTorch's operations, ``processes`` that train together, ``deterministic``: whether PyTorch uses
        deterministic algorithms alone) and ``versions`` (of python and the packages, None
        where one is not installed).
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "seed": seed,
        "git": _code(),
        "hardware": {
            "cpu": _cpu(),
            "cores": available_cores(),
            "memory_gib": _memory(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "arithmetic": {
            "threads": torch.get_num_threads(),
            "processes": dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        },
        # torch.__version__ names the build, 2.11.0+cu130, which its distribution's version does not
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)}
        | {name: _version(names) for name, names in PACKAGES.items()},
    }
