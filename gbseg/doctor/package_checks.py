"""The packages of this environment against gbseg's requirements."""

from collections.abc import Iterator
from importlib import metadata

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from gbseg.doctor.finding import ERROR, NOTE, OK, WARNING, Finding

__all__ = ["check_packages"]

# distributions that install into the same folders as the maintained ones: the one installed last has overwritten the other
ORIGINALS = ("mmengine", "mmcv", "mmcv-lite", "mmcv-full", "mmsegmentation", "mmpretrain")
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def check_packages() -> Iterator[Finding]:
    """Versions against gbseg's requirements, distributions that overwrite each other, and the GPU."""
    try:
        requirements = [Requirement(line) for line in metadata.requires("gbseg") or ()]
    except metadata.PackageNotFoundError:
        text = "gbseg itself is not installed, so its requirements are unknown."
        yield Finding(NOTE, "packages", text, "pip install '.[mm]'")
        requirements = []
    problems = [*_unmet(requirements), *_overwritten()]
    yield from problems
    if requirements and not problems:
        yield Finding(OK, "packages", f"torch {_version('torch')} and {len(requirements) - 1} others are what gbseg asks for.")
    if torch.cuda.is_available():
        yield Finding(OK, "device", f"{torch.cuda.device_count()} GPU(s), {torch.cuda.get_device_name()}.")
    else:
        built = f"for CUDA {torch.version.cuda}, and no GPU is visible" if torch.version.cuda else "without CUDA"
        yield Finding(NOTE, "device", f"torch is built {built}: training runs on the CPU.")


def _unmet(requirements: list[Requirement]) -> Iterator[Finding]:
    """Required packages that are missing or of another version."""
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"extra": "mm"}):
            continue
        installed, command = _version(requirement.name), f"pip install '{requirement.name}{requirement.specifier}'"
        if installed is None:
            yield Finding(ERROR, "packages", f"{requirement.name} is not installed.", command)
        elif not requirement.specifier.contains(installed, prereleases=True):
            text = f"{requirement.name} {installed} is installed, gbseg was tried with {requirement.specifier}."
            yield Finding(WARNING, "packages", text, command)


def _overwritten() -> Iterator[Finding]:
    """Distributions that overwrite files of each other."""
    for name in ORIGINALS:
        maintained = f"onedl-{name.partition('-')[0]}"
        if (installed := _version(name)) is not None:
            text = (
                f"{name} {installed} is installed beside {maintained}: both own the same folder, and parts of each are in it."
            )
            remedy = f"pip uninstall {name} {maintained}, then pip install {maintained}"
            yield Finding(ERROR, "packages", text, remedy)
    opencv = {name: version for name in OPENCV if (version := _version(name)) is not None}
    if len(set(opencv.values())) > 1:
        versions = ", ".join(f"{name} {version}" for name, version in opencv.items())
        newest = max(opencv.values(), key=Version)
        text = f"two versions of OpenCV share the folder cv2: {versions}."
        yield Finding(ERROR, "packages", text, f"pip install {' '.join(f'{name}=={newest}' for name in opencv)}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
