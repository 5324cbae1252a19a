"""The packages of this environment against what gbseg asks for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from gbseg.doctor.finding import ERROR, NOTE, OK, WARNING, Finding

__all__ = ["check_packages"]

# distributions that own the same folders as the maintained ones: whichever was installed last has overwritten the other
ORIGINALS = {
    "mmengine": "onedl-mmengine",
    "mmcv": "onedl-mmcv",
    "mmcv-lite": "onedl-mmcv",
    "mmcv-full": "onedl-mmcv",
    "mmsegmentation": "onedl-mmsegmentation",
    "mmpretrain": "onedl-mmpretrain",
}
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def check_packages() -> Iterator[Finding]:
    """Versions against gbseg's requirements, distributions that overwrite each other, and the GPU."""
    where = "packages"
    try:
        wanted = [Requirement(line) for line in metadata.requires("gbseg") or ()]
    except metadata.PackageNotFoundError:
        yield Finding(NOTE, where, "gbseg itself is not installed, so its requirements are unknown.", "pip install '.[mm]'")
        wanted = []
    bad = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": "mm"}):
            continue
        installed = _version(requirement.name)
        if installed is None:
            bad.append(requirement.name)
            yield Finding(
                ERROR,
                where,
                f"{requirement.name} is not installed.",
                f"pip install '{requirement.name}{requirement.specifier}'",
            )
        elif not requirement.specifier.contains(installed, prereleases=True):
            bad.append(requirement.name)
            yield Finding(
                WARNING,
                where,
                f"{requirement.name} {installed} is installed, gbseg was tried with {requirement.specifier}.",
                f"pip install '{requirement.name}{requirement.specifier}'",
            )
    for name, maintained in ORIGINALS.items():
        if (installed := _version(name)) is not None:
            bad.append(name)
            yield Finding(
                ERROR,
                where,
                f"{name} {installed} is installed beside {maintained}: both own the same folder, and parts of each are in it.",
                f"pip uninstall {name} {maintained}, then pip install {maintained}",
            )
    opencv = {name: version for name in OPENCV if (version := _version(name)) is not None}
    if len(set(opencv.values())) > 1:
        bad.append("opencv")
        yield Finding(
            ERROR,
            where,
            "two versions of OpenCV share the folder cv2: " + ", ".join(f"{n} {v}" for n, v in opencv.items()) + ".",
            f"pip install {' '.join(f'{name}=={max(opencv.values(), key=Version)}' for name in opencv)}",
        )
    if wanted and not bad:
        yield Finding(OK, where, f"torch {_version('torch')} and {len(wanted) - 1} others are what gbseg asks for.")
    if torch.cuda.is_available():
        yield Finding(OK, "device", f"{torch.cuda.device_count()} GPU(s), {torch.cuda.get_device_name()}.")
    elif torch.version.cuda:
        yield Finding(
            NOTE, "device", f"torch is built for CUDA {torch.version.cuda}, and no GPU is visible: training runs on the CPU."
        )
    else:
        yield Finding(NOTE, "device", "torch is built without CUDA: training runs on the CPU.")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
