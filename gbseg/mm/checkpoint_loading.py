"""The reading of checkpoints: of data only, so that no file runs code.

A pickle names functions and what to call them with. ``torch.load(weights_only=True)`` looks each name up in a list. MMEngine
adds ``getattr`` and numpy's classes to it, and with ``getattr`` a file can reach any function again. Here, what MM checkpoints
hold besides tensors (numpy's arrays and numbers, and the history of the logged values) is built by the classes below, which
take numbers and text alone.

Importing `gbseg.mm` sends all of MMEngine's loading this way: ``load_from``, ``resume``, ``init_cfg=dict(type='Pretrained')``.
"""

import argparse
import io
import os
import pickle
import re
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch.torch_version import TorchVersion

from gbseg.files import checkpoint_path
from gbseg.mm.compat import HISTORY_BUFFER, history_buffer, replace_torch_load

__all__ = ["CheckpointError", "UnsafeCheckpointError", "load_safely", "read_checkpoint", "unpickle_safely"]

MAX_EXPANSION = 64  # torch.save does not compress; whoever does, gains less than this
_LOCK = threading.Lock()


class CheckpointError(ValueError):
    """A file is no checkpoint, or is damaged. ``str(error)`` names the file, ``error.reason`` is what is wrong with it."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"the checkpoint {path} cannot be read: {reason}")
        self.reason = reason


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint holds more than data, so that reading it could run code; ``error.kind`` is the type that it names."""

    def __init__(self, path: object, kind: str) -> None:
        super().__init__(
            path,
            f"it holds {kind}, and to load that could run code. If you trust where the file comes from, "
            f"`gbseg convert-checkpoint {path} OUT.pth --trust` writes what is data in it to OUT.pth",
        )
        self.kind = kind


class _Dtype:
    """In place of ``numpy.dtype``: numbers, truth values and text of fixed length."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[biufcSU]\d+", code):
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype({code!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """In place of ``numpy.ndarray``."""

    def __init__(self, *_: object) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        *_, shape, dtype, fortran, data = state
        self.value = np.ndarray(shape, dtype.dtype, bytearray(data), order="F" if fortran else "C")


class _History:
    """In place of mmengine's ``HistoryBuffer``, whose state replaces functions of the class."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return np.ndarray((), dtype.dtype, data)[()]


def _no_bytes() -> bytes:
    """In place of ``bytes``, by which an empty array has its data; ``bytes(10**12)`` would take the memory."""
    return b""


def _attribute(owner: object, name: str) -> str:
    """In place of ``getattr``, by which the state of a ``HistoryBuffer`` names its own methods; they are not used."""
    if owner is not _History:
        raise pickle.UnpicklingError("GLOBAL builtins.getattr")
    return name


_ALLOWED: dict[str, Callable[..., Any]] = {
    "builtins.bytes": _no_bytes,
    "builtins.getattr": _attribute,
    "builtins.slice": slice,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    HISTORY_BUFFER: _History,
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    # others that checkpoints have in `meta`, and pre-trained weights in `args`; none of them does more than to hold values
    **{f"{kind.__module__}.{kind.__qualname__}": kind for kind in (argparse.Namespace, ConfigDict, TorchVersion)},
    **dict.fromkeys(("pathlib.PosixPath", "pathlib._local.PosixPath"), Path),
}


@contextmanager
def _allow_list() -> Iterator[None]:
    """Give torch.load the list above. What the user has added by ``add_safe_globals`` stays, except for the same names."""
    serialization = torch.serialization
    with _LOCK:
        before = serialization.get_safe_globals()
        names = ((item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}") for item in before)
        others = [item for item, name in zip(before, names, strict=True) if name not in _ALLOWED]
        serialization.clear_safe_globals()
        serialization.add_safe_globals([*others, *((kind, name) for name, kind in _ALLOWED.items())])
        try:
            yield
        finally:
            serialization.clear_safe_globals()
            serialization.add_safe_globals(before)


def _real(value: Any, done: dict[int, Any]) -> Any:
    """The value with numpy's and MMEngine's objects where their stand-ins are. Dictionaries and lists are changed in place."""
    if id(value) in done:
        return done[id(value)]
    done[id(value)] = value
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _real(item, done)
    elif type(value) is list:
        value[:] = [_real(item, done) for item in value]
    elif type(value) is tuple:
        done[id(value)] = tuple(_real(item, done) for item in value)
    elif isinstance(value, _Array):
        done[id(value)] = value.value
    elif isinstance(value, _History):
        done[id(value)] = history_buffer(_real(value.state, done))
    elif isinstance(value, argparse.Namespace):
        _real(vars(value), done)
    return done[id(value)]


def _first_sentence(error: BaseException) -> str:
    text = re.split(r"\n|\. ", str(error).strip())[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def _one_sentence(path: object) -> Iterator[None]:
    """Turn whatever torch, zipfile and safetensors raise at a file into a `CheckpointError`."""
    try:
        yield
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except pickle.UnpicklingError as error:
        kind = re.search(r"GLOBAL (\S+)", str(error))
        if kind is None:
            # the message of the unpickler comes last, after advice to load the file as it is
            what = re.sub(r"\s+", " ", str(error).partition("Check the documentation")[0])
            what = re.split(r"WeightsUnpickler error:|\. ", what)[-1].strip()
            raise UnsafeCheckpointError(path, f"what torch.load does not take as data ({what})") from error
        name = kind[1] if "." in kind[1] else f"builtins.{kind[1]}"
        raise UnsafeCheckpointError(path, f"objects made by {name}") from error
    except Exception as error:
        # a hostile or damaged file can make these libraries raise anything
        raise CheckpointError(path, _first_sentence(error)) from error


def _load_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    from safetensors.torch import load_file

    # a function or dict that maps devices is of torch.load alone
    device = str(map_location) if isinstance(map_location, str | torch.device) else "cpu"
    return load_file(path, device)


def _require_whole(path: Path, size: int) -> None:
    """Verify the checksums that torch.save writes and torch.load ignores: it would not notice a flipped bit in a weight."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise CheckpointError(path, "its end is missing: the file was cut off, or damaged") from None
    with archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > MAX_EXPANSION * size:
            raise CheckpointError(path, f"its {size / 2**20:.1f} MiB would unpack to {unpacked / 2**20:.1f} MiB")
        # torch.serialization.set_crc32_options(False) writes no checksums, which are 0 then
        damaged = archive.testzip() if any(member.CRC for member in members) else None
    if damaged is not None:
        raise CheckpointError(path, f"the checksum of its part {damaged!r} is wrong, so that its values are not those written")


def _what_it_is(start: bytes) -> str:
    """A clause on a file that is neither of torch.save nor of safetensors."""
    if not start.strip(b"\0"):
        return "it holds zeros alone, as after a power cut"
    line = start.splitlines()[0][:60]
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: `git lfs pull` fetches the file"
    if start.isascii() and line.decode().isprintable():
        return f"it is text, which begins with {line.decode()!r}"
    return f"it was not written by torch.save or safetensors (it begins with {line[:12]!r})"


def unpickle_safely(file: io.BytesIO | Path | str, map_location: Any = "cpu", mmap: bool = False, name: object = None) -> Any:
    """``torch.load`` of anything that is data.

    Args:
        file: a file that torch.save has written.
        map_location: as for torch.load.
        mmap: as for torch.load.
        name: the file's name in messages.

    Raises:
        UnsafeCheckpointError: it holds more than data.
        CheckpointError: it cannot be read.
    """
    with _one_sentence(name or file), _allow_list():
        return _real(torch.load(file, map_location, weights_only=True, mmap=mmap), {})


def read_checkpoint(path: str | os.PathLike, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint of torch.save or of safetensors; no code that it holds is run, and its checksums are verified.

    Args:
        path: the file; mmengine's text file ``last_checkpoint`` stands for the checkpoint that it names.
        map_location: as for torch.load.
        mmap: leave the tensors in the file until they are used, where it has torch's format since 1.6.

    Returns:
        The dictionary that it holds; of safetensors, the tensors by name.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        UnsafeCheckpointError: it holds more than data.
        CheckpointError: it is empty, cut off, damaged, or no checkpoint.
    """
    path = checkpoint_path(path)
    with _one_sentence(path):
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(1024)
        if size == 0:
            raise CheckpointError(path, "the file is empty")
        if path.suffix == ".safetensors" or (start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size):
            return _load_safetensors(path, map_location)
        zipped = start.startswith(b"PK\x03\x04")
        if zipped:
            _require_whole(path, size)
        elif not start.startswith(pickle.PROTO):
            raise CheckpointError(path, _what_it_is(start))
        return _require_dict(unpickle_safely(path, map_location, mmap and zipped, path), path)


def _require_dict(checkpoint: Any, path: object) -> dict[str, Any]:
    if not isinstance(checkpoint, dict):
        raise CheckpointError(path, f"it holds a {type(checkpoint).__name__}, and not a dictionary of weights")
    for key in ("state_dict", "meta", "message_hub"):
        # a file of weights alone may have a tensor of that name
        value = checkpoint.get(key, {}) if "state_dict" in checkpoint else {}
        if not isinstance(value, Mapping):
            raise CheckpointError(path, f"its {key} is a {type(value).__name__}, and not a dictionary")
    return checkpoint


def load_safely(file: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
    """`read_checkpoint` for MMEngine's loaders: of a path or an open file, whatever ``weights_only`` says."""
    is_path = isinstance(file, str | os.PathLike)
    name = file if is_path else getattr(file, "name", "that was fetched")
    checkpoint = read_checkpoint(file, map_location) if is_path else _require_dict(unpickle_safely(file, map_location), name)
    return _without_program(checkpoint)


def _without_program(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Without ``meta['config']``, of MMCV's time: mmengine's ``Runner.resume`` runs this text as Python."""
    if isinstance(meta := checkpoint.get("meta"), dict):
        meta.pop("config", None)
    return checkpoint


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """MMEngine's loader of local files, under the same name, which it logs."""
    return load_safely(Path(filename).expanduser(), map_location)


def fetch_safely(
    url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True, **options: Any
) -> dict[str, Any]:
    """``torch.hub.load_state_dict_from_url`` of data only; for MMEngine's loaders of URLs and model zoos.

    Raises:
        CheckpointError: as `read_checkpoint`, or the URL cannot be fetched.
    """
    file_name = options.get("file_name") or Path(urlparse(url).path).name
    file = Path(model_dir or Path(torch.hub.get_dir(), "checkpoints"), file_name)
    print_log(f"{url} is fetched by torch.hub (unless {file} is there already) and read as data: it runs no code.", "current")
    try:
        with _one_sentence(file), _allow_list():
            options["weights_only"] = True
            loaded = torch.hub.load_state_dict_from_url(url, model_dir, map_location, progress, **options)
            checkpoint = _require_dict(_real(loaded, {}), file)
    except CheckpointError as error:
        if isinstance(error.__cause__, URLError | TimeoutError | ConnectionError):
            raise CheckpointError(url, f"it cannot be fetched ({error.reason}): fetch it by hand and name the file") from error
        raise
    return _without_program(checkpoint)


def _use_in_mmengine() -> None:
    CheckpointLoader.register_scheme("", load_from_local, force=True)
    # its other loaders (http, torchvision, open-mmlab, ...) end in these two
    replace_torch_load(load_safely, fetch_safely)


_use_in_mmengine()
