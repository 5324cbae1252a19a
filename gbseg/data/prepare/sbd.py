"""SBD (Hariharan et al., 2011): find its folder, and convert its labels from MATLAB files to PNGs."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from gbseg._moved import add_moved_names
from gbseg.data.masks import encode_mask
from gbseg.files import write_atomically
from gbseg.palettes import VOC_CLASSES
from gbseg.parallel import run_in_processes

__all__ = ["convert_sbd", "find_sbd", "is_complete_png", "read_segmentation"]

# below the data folder: Berkeley's layout in any of these, or torchvision's, which is the folder itself
_PARENTS = (".", "sbd", "SBD")
_SUBFOLDERS = (*(f"{parent}/{name}" for parent in _PARENTS for name in ("benchmark_RELEASE/dataset", "dataset")), *_PARENTS)


def find_sbd(root: str | Path) -> Path | None:
    """The folder with ``cls/``, ``train.txt`` and ``val.txt``, in Berkeley's or torchvision's layout; None if there is none."""
    folders = (Path(root, subfolder) for subfolder in _SUBFOLDERS if Path(root, subfolder, "cls").is_dir())
    return next((folder for folder in folders if (folder / "train.txt").is_file() and (folder / "val.txt").is_file()), None)


def read_segmentation(path: str | Path) -> np.ndarray:
    """Read ``GTcls.Segmentation`` of an SBD file: (H, W) integers, 0 background, 1..20 the classes. SBD marks no borders.

    Raises:
        ValueError: the file is missing or damaged, or has no such label map; the message names it.
        OSError: the file could not be read for another reason.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    try:
        content = loadmat(io.BytesIO(_decompressed(data)), variable_names=["GTcls"])
    except Exception as error:
        # scipy has no exception for damaged files; a dozen types are possible
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged or no MATLAB file of version 5: {reason}") from error
    struct_array = content.get("GTcls")
    if struct_array is None or struct_array.size != 1 or "Segmentation" not in (struct_array.dtype.names or ()):
        raise ValueError(f"{path} has no GTcls.Segmentation, which every file of SBD's cls folder has")
    values = struct_array["Segmentation"].item()
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.size == 0 or values.dtype.kind not in "ui":
        what = f"{values.shape} {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"{path}: GTcls.Segmentation is {what} instead of (H, W) integers")
    if values.min() < 0 or values.max() >= len(VOC_CLASSES):
        invalid = sorted(set(np.unique(values).tolist()) - set(range(len(VOC_CLASSES))))
        raise ValueError(f"{path}: GTcls.Segmentation has the values {invalid[:5]}; classes are 0..{len(VOC_CLASSES) - 1}")
    return values


# types of data elements in a MATLAB file of version 5
_MATRIX, _COMPRESSED = 14, 15


def _decompressed(data: bytes) -> bytes:
    """A MATLAB file with its variables decompressed and verified: scipy checks no checksums, and damage can crash it."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError(f"it begins with {data[:20]!r}" if data else "it is empty")
    position, parts = 128, [data[:128]]
    while position < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        if kind == _COMPRESSED:
            parts.append(zlib.decompress(data[position + 8 : position + 8 + size]))
        elif kind == _MATRIX:
            parts.append(data[position : position + 8 + size])
        else:
            raise ValueError(f"there is no variable at byte {position}")
        position += 8 + size
    if position != len(data):
        raise ValueError(f"{len(data):,} bytes where {position:,} are announced")
    return b"".join(parts)


def is_complete_png(path: Path) -> bool:
    """Whether a file begins and ends like a PNG, which it does not after a power cut or an interrupted copy."""
    data = path.read_bytes() if path.is_file() else b""
    return data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")


def _convert(files: tuple[Path, Path]) -> None:
    mat, png = files
    # not durable: waiting for the disk takes longer than the conversion; is_complete_png finds what a power cut emptied
    write_atomically(encode_mask(read_segmentation(mat)), png, durable=False)


def convert_sbd(
    sbd: str | Path, ids: Sequence[str], folder: str | Path, processes: int | None = None
) -> tuple[int, list[tuple[str, ValueError]]]:
    """Convert SBD's labels to indexed PNGs: ``<sbd>/cls/<id>.mat`` to ``<folder>/<id>.png``.

    Existing PNGs are left as they are. All are written atomically, so the next run continues an interrupted one.

    Args:
        sbd: SBD's folder, as `find_sbd` returns it.
        ids: the images to convert.
        folder: the folder to write to.
        processes: number of processes, by default one per core.

    Returns:
        The number of converted labels, and the ids that could not be converted, each with the reason.

    Raises:
        ValueError: ``processes`` is less than 1.
        RuntimeError: a worker was killed.
        OSError: a file could not be read or written.
    """
    files = [(Path(sbd, "cls", f"{name}.mat"), Path(folder, f"{name}.png")) for name in ids]
    missing = [(mat, png) for mat, png in files if not is_complete_png(png)]
    failed = run_in_processes(_convert, missing, "SBD labels to PNG", processes) if missing else []
    return len(missing) - len(failed), [(mat.stem, error) for (mat, _), error in failed]


add_moved_names(__name__)
