"""Which images are meant on the command line, and where their predictions go. Only paths: nothing is read or loaded."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gbseg.files import visible_entries

__all__ = ["Job", "find_images", "plan_outputs"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of images in a folder. A file that is given by name or matched by a glob is used with any suffix."""

SHOWN = 5  # files that a message names


@dataclass(frozen=True)
class Job:
    """An image and the files to write for it; None for a file that is not required."""

    image: Path
    labels: Path
    overlay: Path | None = None
    probabilities: Path | None = None

    @property
    def outputs(self) -> list[Path]:
        """The files to write."""
        return [path for path in (self.labels, self.overlay, self.probabilities) if path is not None]


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The images given by files, folders (without sub-folders) and globs (``**`` matches sub-folders), each once.

    Names that begin with a dot are skipped. A folder or a dead link with the suffix of an image counts as an image, which then
    fails: nothing that looks like one is left out.

    Raises:
        FileNotFoundError: one of the inputs matches nothing.
    """
    images: dict[str, Path] = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = [file for file in visible_entries(path) if _looks_like_an_image(file)]
            problem = f"the folder {name} holds no image ({', '.join(SUFFIXES)})"
        elif path.exists():
            files = [path]
        else:
            matches = map(Path, glob.glob(name, recursive=True))  # noqa: PTH207
            files = sorted(file for file in matches if file.is_file() or _looks_like_an_image(file))
            problem = f"{name} is no file, no folder, and matches nothing as a glob"
        if not files:
            raise FileNotFoundError(f"{problem}.")
        for file in files:
            # Path.resolve refuses a link to itself
            images.setdefault(os.path.realpath(file), file)
    return list(images.values())


def _looks_like_an_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def plan_outputs(
    images: Sequence[Path], out: Path, overlay: bool = False, probabilities: bool = False, overwrite: bool = False
) -> list[Job]:
    """The files to write for every image: ``out/<stem>.png``, ``out/overlay/<stem>.png``, ``out/probabilities/<stem>.npz``.

    Raises:
        ValueError: two images would be written to one file, or a file to be written is one of the images.
        FileExistsError: a file to be written exists already, and ``overwrite`` is not set.
    """
    jobs = [
        Job(
            image,
            out / f"{image.stem}.png",
            out / "overlay" / f"{image.stem}.png" if overlay else None,
            out / "probabilities" / f"{image.stem}.npz" if probabilities else None,
        )
        for image in images
    ]
    image_by_name: dict[str, Path] = {}
    for job in jobs:
        # in some file systems A.png and a.png are the same file
        first = image_by_name.setdefault(job.image.stem.casefold(), job.image)
        if first != job.image:
            raise ValueError(f"{first} and {job.image} would both be written as {job.labels}: predict them into two folders.")
    inputs = {os.path.realpath(image) for image in images}
    outputs = [path for job in jobs for path in job.outputs]
    for path in outputs:
        if os.path.realpath(path) in inputs:
            raise ValueError(f"{path} is one of the images, and its prediction would overwrite it: name another --out.")
    existing = [path for path in outputs if path.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - SHOWN} more" if len(existing) > SHOWN else ""
        raise FileExistsError(
            f"{', '.join(map(str, existing[:SHOWN]))}{more} exist(s): --overwrite replaces them, or name another --out."
        )
    return jobs
