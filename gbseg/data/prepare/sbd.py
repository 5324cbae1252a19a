"""SBD (Hariharan et al., 2011): find its folder, and convert its labels from MATLAB files to PNGs."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gbseg._moved import add_moved_names
from gbseg.data.masks import encode_mask
from gbseg.data.prepare.mat_files import read_mat
from gbseg.files import write_atomically
from gbseg.palettes import VOC_CLASSES
from gbseg.parallel import run_in_processes

__all__ = ["convert_sbd", "find_sbd", "is_complete_png", "read_segmentation"]

# below the data folder: Berkeley's layout in any of these, or torchvision's, which is the folder itself
_PARENTS = (".", "sbd", "SBD")
_SUBFOLDERS = (*(f"{parent}/{name}" for parent in _PARENTS for name in ("benchmark_RELEASE/dataset", "dataset")), *_PARENTS)
# pixels of an image that is not there; those of VOC and SBD have at most 500 x 500
_LARGEST = 2048 * 2048


def find_sbd(root: str | Path) -> Path | None:
    """The folder with ``cls/``, ``train.txt`` and ``val.txt``, in Berkeley's or torchvision's layout; None if there is none."""
    folders = (Path(root, subfolder) for subfolder in _SUBFOLDERS if Path(root, subfolder, "cls").is_dir())
    return next((folder for folder in folders if (folder / "train.txt").is_file() and (folder / "val.txt").is_file()), None)


def read_segmentation(path: str | Path) -> np.ndarray:
    """Read ``GTcls.Segmentation`` of an SBD file: (H, W) integers, 0 background, 1..20 the classes. SBD marks no borders.

    Raises:
        ValueError: the file is missing or damaged, decompresses to more than a label map of its image can need, or has no such
            label map; the message names it.
        OSError: the file could not be read for another reason.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    try:
        content = read_mat(data, _most_bytes(path), variable_names=["GTcls"])
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no MATLAB file of version 5: {error}") from error
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


def _most_bytes(path: Path) -> int:
    """The most that the variables of an SBD file can need, by the size of its image.

    The label map takes at most 8 bytes a pixel. The other 56 are for the boundaries, a sparse map for each class, which take
    up to 13 bytes where there is one.
    """
    pixels = _LARGEST
    # beside the labels in both layouts
    image_path = path.parent.parent / "img" / f"{path.stem}.jpg"
    unreadable = OSError, SyntaxError, ValueError, Image.DecompressionBombError
    with contextlib.suppress(*unreadable), Image.open(image_path) as image:
        pixels = min(image.width * image.height, _LARGEST)
    return 2**20 + 64 * pixels


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
