"""MNIST and CIFAR-10 as arrays: read from their own files, held in memory, augmented a batch at a time.

Shapes: N images of C channels and H x W pixels, B images of a batch.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = [
    "BadDataFileError",
    "Images",
    "random_crops",
    "read_cifar10",
    "read_folder",
    "read_idx",
    "read_mnist",
    "uniform_words",
]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MNIST_CLASSES = tuple("0123456789")


class BadDataFileError(ValueError):
    """A data file is missing, cut short or not what its name says."""


class Images(NamedTuple):
    """A labelled set.

    Attributes:
        pixels: (N, C, H, W) uint8, RGB where C = 3.
        labels: (N,) int64.
    """

    pixels: np.ndarray
    labels: np.ndarray


def _bytes(path: Path, how: str) -> bytes:
    """The content of a file, or of the same with .gz behind its name."""
    packed = path.with_name(path.name + ".gz")
    try:
        if path.is_file():
            return path.read_bytes()
        if packed.is_file():
            return gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise BadDataFileError(f"{path} cannot be read: {error}. {how}") from error
    raise BadDataFileError(f"there is no {path}. {how}")


def read_idx(path: Path | str, how: str = "") -> np.ndarray:
    """An IDX file of bytes, the format of MNIST: two zero bytes, the type 8, the number of dimensions, each as uint32, data.

    Args:
        path: the file; with .gz behind its name it may be packed.
        how: what to do if it is missing, for the message.

    Raises:
        BadDataFileError: missing, no IDX file of bytes, or not as long as its dimensions say.
    """
    path = Path(path)
    data = _bytes(path, how)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise BadDataFileError(f"{path} is no IDX file of bytes: it begins with {data[:4]!r}. {how}")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    start = 4 + 4 * data[3]
    if len(data) - start != int(np.prod(shape, dtype=np.int64)):
        raise BadDataFileError(f"{path} holds {len(data) - start} bytes, its header {shape} asks for {np.prod(shape)}. {how}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_mnist(root: Path | str, train: bool) -> Images:
    """MNIST from ``root``, ``root/raw`` or ``root/MNIST/raw`` (torchvision's place): 60,000 or 10,000 images, (N, 1, 28, 28).

    Raises:
        BadDataFileError: see `read_idx`; images and labels that do not belong together; a label above 9.
    """
    how = "MNIST is four files such as train-images-idx3-ubyte(.gz); data/README.md says what goes where."
    root = Path(root)
    folder = next((f for f in (root / "MNIST/raw", root / "raw", root) if any(f.glob("*-ubyte*"))), root / "MNIST/raw")
    stem = "train" if train else "t10k"
    pixels = read_idx(folder / f"{stem}-images-idx3-ubyte", how)
    labels = read_idx(folder / f"{stem}-labels-idx1-ubyte", how)
    if pixels.ndim != 3 or labels.shape != pixels.shape[:1]:
        raise BadDataFileError(f"{folder}: {stem} images {pixels.shape} and labels {labels.shape} do not belong together.")
    _check_labels(labels, 10, folder / f"{stem}-labels-idx1-ubyte")
    return Images(pixels[:, None], labels.astype(np.int64))


class _PlainUnpickler(pickle.Unpickler):
    """Builds numpy arrays of numbers and nothing else: a pickle may otherwise run any code."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _cifar_part(path: Path, how: str) -> Images:
    data = _bytes(path, how)
    try:
        content = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
        # Python 2 wrote byte strings as keys, what was written since may have text
        content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        pixels, labels = content["data"], np.asarray(content["labels"])
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise BadDataFileError(f"{path} is no CIFAR-10 batch: {type(error).__name__}: {error}. {how}") from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise BadDataFileError(f"{path} is no CIFAR-10 batch: its data is not (N, 3072) uint8. {how}")
    if labels.shape != pixels.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise BadDataFileError(f"{path}: {len(pixels)} images and labels of shape {labels.shape} {labels.dtype}. {how}")
    _check_labels(labels, 10, path)
    return Images(pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64))


def _check_labels(labels: np.ndarray, num_classes: int, path: Path) -> None:
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise BadDataFileError(f"{path}: labels {labels.min()}..{labels.max()} are outside 0..{num_classes - 1}.")


def read_cifar10(root: Path | str, train: bool) -> Images:
    """CIFAR-10 from the six pickles of its Python version in ``root`` or ``root/cifar-10-batches-py``: (N, 3, 32, 32) RGB.

    Raises:
        BadDataFileError: a batch is missing, damaged, or holds anything but numbers (nothing else is ever unpickled).
    """
    how = "CIFAR-10 is the folder cifar-10-batches-py of the Python version; data/README.md says what goes where."
    root = Path(root)
    names = [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"]
    inner = root / "cifar-10-batches-py"
    here = root.name == inner.name or any((root / name).exists() for name in names)
    # where nothing is there, the place that is missed is the one that the data belong to
    folder = root if here and not inner.is_dir() else inner
    parts = [_cifar_part(folder / name, how) for name in names]
    return Images(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def read_folder(root: Path | str) -> tuple[Images, tuple[str, ...]]:
    """Images of one size in sub-folders that name their classes, ImageNet's layout; and the classes, sorted.

    Raises:
        BadDataFileError: no folder, no image, a class without any, one that cannot be decoded, or of another size than the
            first.
    """
    how = "A set in folders is train/<class>/<image> and val/<class>/<image>; data/README.md says what goes where."
    root = Path(root)
    classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((root / name).iterdir()) if path.is_file()]
    if not files:
        raise BadDataFileError(f"there is no {root} with one folder of images a class. {how}")
    if empty := sorted(set(range(len(classes))) - {label for _, label in files}):
        names = ", ".join(classes[label] for label in empty[:3]) + (", ..." if len(empty) > 3 else "")
        raise BadDataFileError(f"{root}: {len(empty)} of the {len(classes)} classes have no images ({names}). {how}")
    pixels: np.ndarray | None = None
    for number, (path, _) in enumerate(files):
        try:
            with Image.open(path) as image:
                one = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except (OSError, SyntaxError, ValueError) as error:
            raise BadDataFileError(f"{path} cannot be decoded: {error}") from error
        if pixels is None:
            pixels = np.empty((len(files), *one.shape), np.uint8)
        if one.shape != pixels.shape[1:]:
            raise BadDataFileError(
                f"{path} is {one.shape[1:]} pixels, {files[0][0].name} is {pixels.shape[2:]}: one size is needed."
            )
        pixels[number] = one
    return Images(pixels, np.array([label for _, label in files], np.int64)), tuple(classes)


def uniform_words(seed: int, draws: Sequence[int], count: int) -> np.ndarray:
    """Random numbers that depend on the seed and the number of the draw alone, not on the batch they are in.

    SplitMix64's output function over ``(seed, draw, k)``; so an interrupted run goes on with the same augmentations.

    Returns:
        (B, count) uint32.
    """
    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        base = np.uint64(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        counter = np.asarray(draws, np.uint64)[:, None] * np.uint64(count) + np.arange(1, count + 1, dtype=np.uint64)
        z = base + counter * golden
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)


def random_crops(padded: Tensor, index: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """Crops of padded images, some of them mirrored; one gather for the whole batch, on the images' device.

    Args:
        padded: (N, C, H + 2p, W + 2p) uint8.
        index: (B,) which images.
        top: (B,) first row of each crop.
        left: (B,) first column of each crop.
        flip: (B,) bool, whether left and right change places.
        size: (H, W) of the crops.

    Returns:
        (B, C, H, W) uint8.
    """
    windows = padded.unfold(2, size[0], 1).unfold(3, size[1], 1)  # (N, C, rows, columns, H, W), a view
    crops = windows[index, :, top, left]
    # bits of one or the other: four times as fast as torch.where on bytes
    mirrored = (-flip.to(torch.uint8)).view(-1, 1, 1, 1)
    return (crops.flip(3) & mirrored) | (crops & ~mirrored)
