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
from typing import Any, BinaryIO
from urllib.parse import urlparse

import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, TypedStorage, UntypedStorage, nn
from torch.torch_version import TorchVersion

from gbseg.data.lists import abbreviate
from gbseg.data.plain_pickles import PLAIN, Dtype, StandIn, numpy_names, real
from gbseg.files import checkpoint_path
from gbseg.mm.compat import HISTORY_BUFFER, history_buffer, replace_torch_load, replaced_in_torchs_list

__all__ = ["CheckpointError", "UnsafeCheckpointError", "load_safely", "read_checkpoint", "unpickle_safely"]

MAX_EXPANSION = 64  # torch.save does not compress; whoever does, gains less than this
# of folders, filled by `gbseg.mm.sharded_checkpoint`, which is made of the reader of files below
FOLDER_READERS: list[Callable[[Path, Any], dict[str, Any]]] = []
_LOCK = threading.Lock()


class CheckpointError(ValueError):
    """A file is no checkpoint, or is damaged. ``str(error)`` names the file, ``error.reason`` is what is wrong with it."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"the checkpoint {path} cannot be read: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple:
        # an exception is otherwise pickled with its message as the only argument; rank 0 sends it to the other processes
        return type(self), (self.path, self.reason)


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint holds more than data, so that reading it could run code; ``error.kind`` is the type that it names."""

    def __init__(self, path: object, kind: str) -> None:
        super().__init__(
            path,
            f"it holds {kind}, and to load that could run code. If you trust where the file comes from, "
            f"`gbseg convert-checkpoint {path} OUT.pth --trust` writes what is data in it to OUT.pth",
        )
        self.kind = kind

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.kind)


class _History(StandIn):
    """In place of mmengine's ``HistoryBuffer``, whose state replaces functions of the class."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state

    def real(self, done: dict[int, Any]) -> HistoryBuffer:
        return history_buffer(real(self.state, done))


def _attribute(owner: object, name: str) -> str:
    """In place of ``getattr``, by which the state of a ``HistoryBuffer`` names its own methods; they are not used."""
    if owner is not _History:
        raise pickle.UnpicklingError("GLOBAL builtins.getattr")
    return name


# what checkpoints have in `meta`, and pre-trained weights in `args`; none of them does more than to hold values
HOLDERS: dict[str, Callable[..., Any]] = {
    **{f"{kind.__module__}.{kind.__qualname__}": kind for kind in (argparse.Namespace, ConfigDict, TorchVersion)},
    **dict.fromkeys(("pathlib.PosixPath", "pathlib._local.PosixPath"), Path),
}
_ALLOWED: dict[str, Callable[..., Any]] = {
    "builtins.getattr": _attribute,
    "builtins.slice": slice,
    HISTORY_BUFFER: _History,
    **{name: PLAIN[name] for name in ("builtins.bytes", "builtins.bytearray", "_codecs.encode")},
    **numpy_names(Dtype),
    **HOLDERS,
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
            with replaced_in_torchs_list(_ALLOWED):
                yield
        finally:
            serialization.clear_safe_globals()
            serialization.add_safe_globals(before)


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


def _load_safetensors(file: BinaryIO, map_location: Any) -> dict[str, Any]:
    from safetensors.torch import load, load_file

    # a function or dict that maps devices is of torch.load alone
    device = str(map_location) if isinstance(map_location, str | torch.device) else "cpu"
    if isinstance(file, io.BufferedReader):
        return load_file(file.name, device)
    return {name: value.to(device) for name, value in load(file.read()).items()}


def _verified_members(file: BinaryIO, name: object, size: int) -> list[zipfile.ZipInfo]:
    """What is in an archive of torch.save. The checksums are right, at which torch does not look when it reads the weights."""
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        raise CheckpointError(name, "its end is missing: the file was cut off, or damaged") from None
    with archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > MAX_EXPANSION * size:
            raise CheckpointError(name, f"its {size / 2**20:.1f} MiB would unpack to {unpacked / 2**20:.1f} MiB")
        # torch.serialization.set_crc32_options(False) writes no checksums, which are 0 then
        damaged = archive.testzip() if any(member.CRC for member in members) else None
    if damaged is not None:
        raise CheckpointError(name, f"the checksum of its part {damaged!r} is wrong, so that its values are not those written")
    return members


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


def unpickle_safely(
    file: BinaryIO | Path | str,
    map_location: Any = "cpu",
    mmap: bool = False,
    name: object = None,
    max_bytes: float = float("inf"),
) -> Any:
    """``torch.load`` of anything that is data.

    Args:
        file: a file that torch.save has written.
        map_location: as for torch.load.
        mmap: as for torch.load.
        name: the file's name in messages.
        max_bytes: the most that a tensor may take.

    Raises:
        UnsafeCheckpointError: it holds more than data.
        CheckpointError: it cannot be read, or has larger tensors.
    """
    values: dict[int, Any] = {}
    with _one_sentence(name or file), _allow_list():
        content = real(torch.load(file, map_location, weights_only=True, mmap=mmap), values)
    # a pickle can ask for an empty tensor of any size, by the constructors of PyTorch's first versions
    if (largest := max(map(memory_of, values.values()), default=0)) > max_bytes:
        raise CheckpointError(
            name or file, f"a tensor in it would take {largest / 2**20:.1f} MiB, and it holds {max_bytes / 2**20:.1f} MiB"
        )
    return content


def memory_of(value: Any) -> int:
    """The bytes of a tensor's memory, or of a storage; 0 for anything else, and where a tensor has none of its own."""
    if type(value) in (Tensor, nn.Parameter):
        return value.untyped_storage().nbytes() if value.layout is torch.strided and not value.is_meta else 0
    # the public methods of the typed ones warn that these will go
    return getattr(value, "_untyped_storage", value).nbytes() if isinstance(value, UntypedStorage | TypedStorage) else 0


def read_checkpoint(path: str | os.PathLike | BinaryIO, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint of torch.save or of safetensors; no code that it holds is run, and its checksums are verified.

    Args:
        path: the file, or an open one; mmengine's text file ``last_checkpoint`` stands for the checkpoint that it names. Or
            a folder of ``torch.distributed.checkpoint`` (`gbseg.mm.sharded_checkpoint`).
        map_location: as for torch.load.
        mmap: leave the tensors in the file until they are used, where it has torch's format since 1.6 and is not open yet.

    Returns:
        The dictionary that it holds; of safetensors, the tensors by name.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        UnsafeCheckpointError: it holds more than data.
        CheckpointError: it is empty, cut off, damaged, or no checkpoint.
    """
    if isinstance(path, str | os.PathLike):
        path = checkpoint_path(path)
        if path.is_dir():
            return FOLDER_READERS[0](path, map_location)
        with _one_sentence(path), path.open("rb") as file:
            return _read(file, path, map_location, mmap)
    name = getattr(path, "name", "that was fetched")
    with _one_sentence(name):
        return _read(path, name, map_location)


def _read(file: BinaryIO, name: Any, map_location: Any, mmap: bool = False, unzipped: bool = False) -> dict[str, Any]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(1024)
    file.seek(0)
    if size == 0:
        raise CheckpointError(name, "the file is empty")
    if Path(name).suffix == ".safetensors" or (start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size):
        return _load_safetensors(file, map_location)
    zipped = start.startswith(b"PK\x03\x04")
    if zipped:
        members = _verified_members(file, name, size)
        if len(members) == 1:
            # a zipped checkpoint, which torch.hub takes from a URL; each archive in an archive could be 64 times as large
            if unzipped:
                raise CheckpointError(name, "it is an archive in an archive: unpack it, and name the checkpoint in it")
            with zipfile.ZipFile(file) as archive:
                return _read(io.BytesIO(archive.read(members[0])), name, map_location, unzipped=True)
        unpacked = sum(member.file_size for member in members)
        file.seek(0)
    elif start.startswith(pickle.PROTO):
        unpacked = size
    else:
        raise CheckpointError(name, _what_it_is(start))
    mmap = mmap and zipped
    checkpoint = unpickle_safely(name if mmap else file, map_location, mmap, name, unpacked)
    return _require_dict(checkpoint, name)


def _require_dict(checkpoint: Any, path: object) -> dict[str, Any]:
    if not isinstance(checkpoint, dict):
        raise CheckpointError(path, f"it holds a {type(checkpoint).__name__}, and not a dictionary of weights")
    for key in ("state_dict", "meta", "message_hub"):
        # a file of weights alone may have a tensor of that name
        value = checkpoint.get(key, {}) if "state_dict" in checkpoint else {}
        if not isinstance(value, Mapping):
            raise CheckpointError(path, f"its {key} is a {type(value).__name__}, and not a dictionary")
        if key == "state_dict" and (nameless := [name for name in value if not isinstance(name, str)]):
            keys = abbreviate([repr(name)[:40] for name in nameless], 3)
            raise CheckpointError(path, f"its state_dict has the key {keys}, and not the name of a tensor")
    return checkpoint


def load_safely(file: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
    """`read_checkpoint` for MMEngine's loaders: of a path or an open file, whatever ``weights_only`` says."""
    return _without_program(read_checkpoint(file, map_location))


def _without_program(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Without ``meta['config']``, of MMCV's time: mmengine's ``Runner.resume`` runs this text as Python."""
    if isinstance(meta := checkpoint.get("meta"), dict):
        meta.pop("config", None)
    return checkpoint


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """MMEngine's loader of local files, under the same name, which it logs."""
    return load_safely(Path(filename).expanduser(), map_location)


def fetch_safely(url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True) -> dict[str, Any]:
    """`load_safely` of a URL, which torch.hub fetches once; for MMEngine's loaders of URLs and model zoos.

    Raises:
        CheckpointError: as `read_checkpoint`, or the URL cannot be fetched.
    """
    file = Path(model_dir or Path(torch.hub.get_dir(), "checkpoints"), Path(urlparse(url).path).name)
    print_log(f"{url} is fetched by torch.hub (unless {file} is there already) and read as data: it runs no code.", "current")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), progress=progress)
        except Exception as error:  # of the network, the server, or the disk
            reason = f"it cannot be fetched ({_first_sentence(error)}): fetch it by hand and name the file"
            raise CheckpointError(url, reason) from error
    return load_safely(file, map_location)


def _use_in_mmengine() -> None:
    CheckpointLoader.register_scheme("", load_from_local, force=True)
    # its other loaders (http, torchvision, open-mmlab, ...) end in these two
    replace_torch_load(load_safely, fetch_safely)


_use_in_mmengine()
