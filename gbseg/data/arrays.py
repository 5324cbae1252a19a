"""MNIST, CIFAR-10 and folders of small images as arrays: read from their files, kept in memory, augmented batch by batch.

Shapes: N images of C channels and H x W pixels; B images in a batch.
"""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gbseg.data.images import MAX_PIXELS, open_image
from gbseg.data.lists import abbreviate
from gbseg.data.plain_pickles import load_plain
from gbseg.files import class_folders, visible_entries

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
_LIMIT = 2**30  # bytes of a decompressed file: MNIST's largest has 47 million, EMNIST's 547 million


class BadDataFileError(ValueError):
    """A data file is missing, cut off, or not of the format that its name says."""


class Images(NamedTuple):
    """A labelled set.

    Attributes:
        pixels: (N, C, H, W) uint8, RGB where C = 3.
        labels: (N,) int64.
    """

    pixels: np.ndarray
    labels: np.ndarray


def _read_bytes(path: Path, remedy: str) -> bytes:
    """The content of a file, or of the file with the suffix .gz."""
    compressed = path.with_name(path.name + ".gz")
    try:
        if path.is_file():
            return path.read_bytes()
        if compressed.is_file():
            with gzip.open(compressed) as file:
                data = file.read(_LIMIT + 1)
            if len(data) <= _LIMIT:
                return data
            raise BadDataFileError(
                f"{compressed} ({compressed.stat().st_size:,} bytes) holds more than {_LIMIT:,} bytes, the most that is read "
                f"of a compressed file: decompress it yourself if it is meant to. {remedy}"
            )
    except (OSError, EOFError, zlib.error) as error:
        raise BadDataFileError(f"{path} cannot be read: {error}. {remedy}") from error
    raise BadDataFileError(f"there is no {path}. {remedy}")


def read_idx(path: Path | str, remedy: str = "") -> np.ndarray:
    """Read an IDX file of bytes, MNIST's format: two zero bytes, type 8, number of dimensions, each dimension as uint32, data.

    Args:
        path: the file, which may be compressed and then has the suffix .gz.
        remedy: what to do if it is missing, for the message.

    Raises:
        BadDataFileError: the file is missing, no IDX file of bytes, or shorter or longer than its dimensions say.
    """
    path = Path(path)
    data = _read_bytes(path, remedy)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise BadDataFileError(f"{path} is no IDX file of bytes: it begins with {data[:4]!r}. {remedy}")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    start = 4 + 4 * data[3]
    if len(data) - start != math.prod(shape):
        raise BadDataFileError(
            f"{path} holds {len(data) - start} bytes, its header {shape} asks for {math.prod(shape)}. {remedy}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_mnist(root: Path | str, train: bool) -> Images:
    """Read MNIST from ``root``, ``root/raw`` or ``root/MNIST/raw`` (torchvision's folder): (N, 1, 28, 28).

    Args:
        root: the folder.
        train: whether to read the 60,000 training images or the 10,000 test images.

    Raises:
        BadDataFileError: a file is missing or damaged, the numbers of images and labels differ, or a label is not in 0..9.
    """
    remedy = "MNIST is four files such as train-images-idx3-ubyte(.gz); data/README.md says what goes where."
    root = Path(root)
    folders = root / "MNIST/raw", root / "raw", root
    folder = next((folder for folder in folders if any(folder.glob("[!.]*-ubyte*"))), folders[0])
    stem = "train" if train else "t10k"
    pixels = read_idx(folder / f"{stem}-images-idx3-ubyte", remedy)
    labels = read_idx(folder / f"{stem}-labels-idx1-ubyte", remedy)
    if pixels.ndim != 3 or labels.shape != pixels.shape[:1]:
        raise BadDataFileError(f"{folder}: {stem} images {pixels.shape} and labels {labels.shape} do not belong together.")
    _check_labels(labels, 10, folder / f"{stem}-labels-idx1-ubyte")
    return Images(pixels[:, None], labels.astype(np.int64))


def _read_cifar_batch(path: Path, remedy: str) -> Images:
    data = _read_bytes(path, remedy)
    try:
        content = load_plain(io.BytesIO(data), encoding="bytes")
        # keys are bytes in the original files, which Python 2 wrote, and may be text in others
        content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        pixels, labels = content["data"], np.asarray(content["labels"])
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        reason = str(error)
        if reason.startswith("GLOBAL "):
            reason = f"it asks for {reason.removeprefix('GLOBAL ')}, which no CIFAR file needs"
        raise BadDataFileError(f"{path} is no CIFAR-10 batch: {type(error).__name__}: {reason}. {remedy}") from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise BadDataFileError(f"{path} is no CIFAR-10 batch: its data is not (N, 3072) uint8. {remedy}")
    if labels.shape != pixels.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise BadDataFileError(f"{path}: {len(pixels)} images and labels of shape {labels.shape} {labels.dtype}. {remedy}")
    _check_labels(labels, 10, path)
    return Images(pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64))


def _check_labels(labels: np.ndarray, num_classes: int, path: Path) -> None:
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise BadDataFileError(f"{path}: labels {labels.min()}..{labels.max()} are outside 0..{num_classes - 1}.")


def read_cifar10(root: Path | str, train: bool) -> Images:
    """Read CIFAR-10's Python version from ``root`` or ``root/cifar-10-batches-py``: (N, 3, 32, 32) RGB.

    Args:
        root: the folder.
        train: whether to read the 50,000 training images or the 10,000 test images.

    Raises:
        BadDataFileError: a batch is missing or damaged, or its pickle holds anything but numbers, which is not unpickled.
    """
    remedy = "CIFAR-10 is the folder cifar-10-batches-py of the Python version; data/README.md says what goes where."
    root = Path(root)
    names = [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"]
    subfolder = root / "cifar-10-batches-py"
    in_root = root.name == subfolder.name or any((root / name).exists() for name in names)
    # if there are no files at all, the error names the subfolder
    folder = root if in_root and not subfolder.is_dir() else subfolder
    batches = [_read_cifar_batch(folder / name, remedy) for name in names]
    return Images(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))


def read_folder(root: Path | str) -> tuple[Images, tuple[str, ...]]:
    """Read images of one size from ``<root>/<class>/<image>``, the layout of torchvision's ImageFolder.

    Names that begin with a dot are skipped.

    Returns:
        The images, (N, 3, H, W) RGB, and the sorted names of the classes.

    Raises:
        BadDataFileError: there is no such folder or no image, a class has no images, an image cannot be decoded, or the images
            have different sizes.
    """
    remedy = "A set in folders is train/<class>/<image> and val/<class>/<image>; data/README.md says what goes where."
    root = Path(root)
    classes = class_folders(root) if root.is_dir() else []
    # a dead link is given like a file, and cannot be decoded
    images = ((path, label) for label, name in enumerate(classes) for path in visible_entries(root / name))
    files = [(path, label) for path, label in images if not path.is_dir()]
    if not files:
        raise BadDataFileError(f"there is no {root} with one folder of images a class. {remedy}")
    if empty := sorted(set(range(len(classes))) - {label for _, label in files}):
        names = abbreviate([classes[label] for label in empty], 3)
        raise BadDataFileError(f"{root}: {len(empty)} of the {len(classes)} classes have no images ({names}). {remedy}")
    pixels = np.empty(0, np.uint8)
    for index, (path, _) in enumerate(files):
        try:
            with open_image(path) as file:
                width, height = file.size
                if width * height > MAX_PIXELS:
                    size = f"it has {width} x {height} pixels, images that are kept in memory at most {MAX_PIXELS:,}"
                    raise ValueError(f"{size}: make smaller copies")
                image = np.asarray(file.convert("RGB")).transpose(2, 0, 1)
        except (OSError, SyntaxError, ValueError) as error:
            raise BadDataFileError(f"{path} cannot be decoded: {error}") from error
        if index == 0:
            pixels = np.empty((len(files), *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            raise BadDataFileError(
                f"{path} is {image.shape[1:]} pixels, {files[0][0].name} is {pixels.shape[2:]}: one size is needed."
            )
        pixels[index] = image
    return Images(pixels, np.array([label for _, label in files], np.int64)), tuple(classes)


def uniform_words(seed: int, draws: Sequence[int], count: int) -> np.ndarray:
    """Counter-based random numbers: they depend on the seed and the draw, but not on the batch that a draw is in.

    SplitMix64's output function over ``(seed, draw, k)``. With it, a resumed run continues with the same augmentations.

    Args:
        seed: seed of the sequence.
        draws: index of the draw for each image of a batch.
        count: number of random numbers for each draw.

    Returns:
        (B, count) uint32.
    """
    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        base = np.uint64(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        counter = np.asarray(draws, np.uint64)[:, None] * np.uint64(count) + np.arange(1, count + 1, dtype=np.uint64)
        z: np.ndarray = base + counter * golden
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)


def random_crops(padded: Tensor, index: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop padded images and flip some of them horizontally, with one gather for the batch, on the images' device.

    Args:
        padded: (N, C, H + 2p, W + 2p) uint8.
        index: (B,) index of the image of each crop.
        top: (B,) first row of each crop.
        left: (B,) first column of each crop.
        flip: (B,) bool, whether to flip the crop horizontally.
        size: height and width of the crops in pixels.

    Returns:
        (B, C, H, W) uint8.
    """
    windows = padded.unfold(2, size[0], 1).unfold(3, size[1], 1)  # (N, C, rows, columns, H, W), a view
    crops = windows[index, :, top, left]
    # selected by bit masks: four times as fast as torch.where on bytes
    flip_mask = (-flip.to(torch.uint8)).view(-1, 1, 1, 1)
    return (crops.flip(3) & flip_mask) | (crops & ~flip_mask)
