"""SBD (Hariharan et al., 2011) as it comes from Berkeley: where it lies, and its labels out of MATLAB's format."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from gbseg.data.masks import encode_mask
from gbseg.files import write_atomically
from gbseg.palettes import VOC_CLASSES
from gbseg.parallel import run_in_processes

__all__ = ["convert_sbd", "find_sbd", "is_whole_png", "read_segmentation"]

# below the data folder; the last two are torchvision's layout
_PLACES = (
    "benchmark_RELEASE/dataset",
    "dataset",
    "sbd/benchmark_RELEASE/dataset",
    "SBD/benchmark_RELEASE/dataset",
    "sbd/dataset",
    "SBD/dataset",
    ".",
    "sbd",
    "SBD",
)


def find_sbd(root: str | Path) -> Path | None:
    """The folder that holds ``cls/``, ``train.txt`` and ``val.txt``, in Berkeley's layout or torchvision's; None without."""
    for place in _PLACES:
        folder = Path(root, place)
        if (folder / "cls").is_dir() and (folder / "train.txt").is_file() and (folder / "val.txt").is_file():
            return folder
    return None


def read_segmentation(path: str | Path) -> np.ndarray:
    """``GTcls.Segmentation`` of an SBD file: (H, W) integers, 0 background, 1 to 20 the classes; SBD marks no borders.

    Raises:
        ValueError: the file is missing or damaged, or holds something else; the message names it.
        OSError: it could not be read for another reason.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    try:
        content = loadmat(io.BytesIO(_decompressed(data)), variable_names=["GTcls"])
    except Exception as error:
        # scipy has no error of its own for damage: what it trips over first is raised, of a dozen types
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged or no MATLAB file of version 5: {reason}") from error
    found = content.get("GTcls")
    if found is None or found.size != 1 or "Segmentation" not in (found.dtype.names or ()):
        raise ValueError(f"{path} has no GTcls.Segmentation, which every file of SBD's cls folder has")
    values = found["Segmentation"].item()
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.size == 0 or values.dtype.kind not in "ui":
        what = f"{values.shape} {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"{path}: GTcls.Segmentation is {what} instead of (H, W) integers")
    if values.min() < 0 or values.max() >= len(VOC_CLASSES):
        strange = sorted(set(np.unique(values).tolist()) - set(range(len(VOC_CLASSES))))
        raise ValueError(f"{path}: GTcls.Segmentation has the values {strange[:5]}; classes are 0..{len(VOC_CLASSES) - 1}")
    return values


def _decompressed(data: bytes) -> bytes:
    """A MATLAB file with its variables decompressed, checksums checked: scipy stops before them, and damage can crash it."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError(f"it begins with {data[:20]!r}" if data else "it is empty")
    place, parts = 128, [data[:128]]
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind == 15:
            parts.append(zlib.decompress(data[place + 8 : place + 8 + size]))
        elif kind == 14:
            parts.append(data[place : place + 8 + size])
        else:
            raise ValueError(f"there is no variable at byte {place}")
        place += 8 + size
    if place != len(data):
        raise ValueError(f"{len(data):,} bytes where {place:,} are announced")
    return b"".join(parts)


def is_whole_png(path: Path) -> bool:
    """Whether a file begins and ends like a PNG: not so after a power cut, or after a copy that was interrupted."""
    try:
        with path.open("rb") as file:
            if file.read(8) != b"\x89PNG\r\n\x1a\n":
                return False
            file.seek(-8, io.SEEK_END)
            return file.read() == b"IEND\xaeB`\x82"
    except FileNotFoundError:
        return False


def _convert(files: tuple[Path, Path]) -> None:
    mat, png = files
    # not durable: waiting for the disk takes longer than the conversion; `is_whole_png` finds what a power cut empties
    write_atomically(encode_mask(read_segmentation(mat)), png, durable=False)


def convert_sbd(
    sbd: str | Path, ids: Sequence[str], folder: str | Path, processes: int | None = None
) -> tuple[int, list[tuple[str, ValueError]]]:
    """Convert SBD's labels to indexed PNGs, ``cls/<id>.mat`` to ``<folder>/<id>.png``; those that are there are left alone.

    A PNG under its name is whole, because it was written atomically, so a run that was interrupted goes on where it was.

    Args:
        sbd: see `find_sbd`.
        ids: which.
        folder: where to.
        processes: see `gbseg.parallel.run_in_processes`, also for what is raised.

    Returns:
        How many were converted, and the ids that could not be, each with the reason.
    """
    folder = Path(folder)
    files = [(Path(sbd, "cls", f"{name}.mat"), folder / f"{name}.png") for name in ids]
    missing = [entry for entry in files if not is_whole_png(entry[1])]
    failed = run_in_processes(_convert, missing, "SBD labels to PNG", processes) if missing else []
    return len(missing) - len(failed), [(mat.stem, error) for (mat, _), error in failed]
