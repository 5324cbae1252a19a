"""Where a number comes from: what a result has to be stored with so that someone can get it again."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gbseg.parallel import available_cores

# what is imported -> the distributions that provide it, in the order in which they are asked
PACKAGES = {
    "numpy": ("numpy",),
    "mmengine": ("onedl-mmengine", "mmengine"),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
    "gbseg": ("gbseg",),
}


def _version(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _git(*arguments: str) -> str | None:
    """Ask git about the folder that this package lies in; None where git is missing or does not know it."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _code() -> dict[str, Any]:
    """The commit, and whether the working tree differs from it. Both None where git does not track this file."""
    # a package installed below some other project's folder must not be given that project's commit
    if _git("ls-files", "--error-unmatch", "provenance.py") is None:
        return {"commit": None, "dirty": None}
    # the results that a command writes are not the code that wrote them
    changes = _git("status", "--porcelain", "--", ":(top)", ":(top,exclude)results")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _memory() -> float | None:
    """The machine's memory in GiB, None where the system does not say."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def provenance(command: str | None = None, seed: int | None = None) -> dict[str, Any]:
    """Describe the code, the machine and the moment, ready for JSON.

    Holds no host name, no user name and no absolute path, unless `command` does: pass it as a user would type it in
    the repository's root.

    Args:
        command: the command line that made the result.
        seed: the seed it ran with.

    Returns:
        A dict with `date` (UTC, ISO 8601, seconds), `command`, `seed`, `git` (`commit`, and `dirty`: whether anything
        but `results/` differs from it or is untracked; both None outside git),
        `hardware` (`cpu`, `cores` that the process may use, `memory_gib`, `gpu`: a name or None) and `versions`
        (of python and the packages, None where one is not installed).
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
        # torch's own string, unlike its distribution's, says which build it is: 2.11.0+cu130
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)}
        | {name: _version(names) for name, names in PACKAGES.items()},
    }
