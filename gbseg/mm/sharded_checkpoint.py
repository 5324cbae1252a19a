"""Reading checkpoints of ``torch.distributed.checkpoint`` (DCP): folders, to which every process has written its part.

`gbseg.mm.fully_shard` writes them. Such a folder holds what an ordinary checkpoint holds:

* ``.metadata`` and ``__<process>_<n>.distcp`` are DCP's: the tensors of ``state_dict`` and ``optimizer``. PyTorch's own
  ``torch.distributed.checkpoint.load`` and ``dcp_to_torch_save`` read them.
* ``rest.pth`` is an ordinary checkpoint of all the rest, with the size and the checksum of each of the other files.

DCP's metadata are a pickle, which PyTorch's reader takes as it is, so that a file could run code. Here it may name a few
classes of data alone.
"""

import pathlib
import pickle
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.dist import is_main_process
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, filesystem, load
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor import empty as sharded_empty

from gbseg.files import REST
from gbseg.mm.checkpoint_loading import FOLDER_READERS, CheckpointError, UnsafeCheckpointError, read_checkpoint

__all__ = ["file_record", "read_rest", "read_sharded", "shard_of", "sharded_like"]

_targets: list[DeviceMesh] = []


@contextmanager
def sharded_like(mesh: DeviceMesh) -> Iterator[None]:
    """As long as it lasts, `read_sharded` gives each process of ``mesh`` its part of the tensors that were sharded."""
    # mmengine's loaders, which are in between, pass nothing on
    _targets.append(mesh)
    try:
        yield
    finally:
        _targets.pop()


def shard_of(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """The part of a tensor, which all processes have, that ``fully_shard`` leaves to this one; asks no other process."""
    return distribute_tensor(tensor.to(mesh.device_type), mesh, [Shard(0)], src_data_rank=None)


def file_record(path: Path) -> tuple[int, int]:
    """The size and the CRC-32 of a file."""
    checksum = size = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
    return size, checksum


def read_rest(folder: Path) -> dict[str, Any]:
    """What a folder holds beside the tensors of weights and optimizer, once all of its files are known to be whole.

    Raises:
        CheckpointError: a file is missing, cut off or damaged.
        UnsafeCheckpointError: ``rest.pth`` holds more than data.
    """
    try:
        rest = read_checkpoint(folder / REST)
    except FileNotFoundError:
        raise CheckpointError(folder, f"it has no {REST}: `gbseg train` did not write it, or not to the end") from None
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(folder, error.kind) from error
    except CheckpointError as error:
        raise CheckpointError(folder, f"{REST}: {error.reason}") from error
    record = rest.get("sharded")
    if not isinstance(record, dict) or not all(isinstance(record.get(key), dict) for key in ("files", "tensors")):
        raise CheckpointError(folder, f"{REST} does not say which files and tensors belong to it")
    for name, written in record["files"].items():
        path = folder / Path(name).name
        if not path.is_file():
            raise CheckpointError(folder, f"its file {path.name} is missing")
        if (size := path.stat().st_size) != written[0]:
            raise CheckpointError(folder, f"its file {path.name} has {size} bytes, and {written[0]} were written")
        # one process is enough to read all that the others read in parts
        if is_main_process() and file_record(path) != tuple(written):
            raise CheckpointError(
                folder, f"the checksum of its file {path.name} is wrong, so that its values are not those written"
            )
    return rest


def read_sharded(folder: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a folder as if it were an ordinary checkpoint; runs no code.

    Inside `sharded_like`, tensors that were sharded are ``DTensor``, and each process reads its own part, whatever the number
    of processes that wrote them.

    Args:
        folder: of a checkpoint.
        map_location: a device for the other tensors.

    Raises:
        CheckpointError: something is missing or damaged.
        UnsafeCheckpointError: it holds more than data.
    """
    rest = read_rest(folder)
    record = rest.pop("sharded")
    try:
        tensors = _read_tensors(folder, record)
        for key, (place, _) in record["tensors"].items():
            *parents, name = place
            node = rest
            for parent in parents:
                node = node.setdefault(parent, {})
            on_device = not _targets and isinstance(map_location, str | torch.device)
            node[name] = tensors[key].to(map_location) if on_device else tensors[key]
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    # its CheckpointException is no Exception; a hostile or damaged file can make it raise anything
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        failures = getattr(error, "failures", None)
        cause = next(iter(failures.values()))[0] if failures else error
        raise CheckpointError(folder, f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}") from error
    return rest


def _read_tensors(folder: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    metadata = _metadata(folder)
    parts = {key: metadata.state_dict_metadata[key] for key in record["tensors"]}
    if strange := [key for key, part in parts.items() if not isinstance(part, dcp.TensorStorageMetadata)]:
        raise CheckpointError(folder, f"its {strange[0]} is no tensor")
    tensors = cast(dict[str, dcp.TensorStorageMetadata], parts)
    size = sum(part.size.numel() * part.properties.dtype.itemsize for part in tensors.values())
    if size > (written := sum(size for size, _ in record["files"].values())):
        raise CheckpointError(folder, f"its tensors would take {size / 2**20:.1f} MiB, and it holds {written / 2**20:.1f} MiB")
    if foreign := {part.relative_path for part in metadata.storage_data.values()} - set(record["files"]):
        raise CheckpointError(folder, f"its .metadata name {min(foreign)[:100]}, which is none of its files")

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> dcp.Metadata:
            return metadata

    values: dict[str, Tensor] = {}
    for key, part in tensors.items():
        dtype = part.properties.dtype
        if record["tensors"][key][1] and _targets:
            values[key] = sharded_empty(part.size, dtype=dtype, device_mesh=_targets[-1], placements=[Shard(0)])
        else:
            values[key] = torch.empty(part.size, dtype=dtype)
    # no process waits for another, so that an error of one of them does not leave the others waiting
    with warnings.catch_warnings():
        # of which it warns
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(values, storage_reader=Reader(folder), no_dist=True)
    return values


class _MetadataUnpickler(pickle.Unpickler):
    """Takes the classes of DCP's metadata, which hold values, and nothing else that a pickle could name."""

    def __init__(self, file: Any, folder: Path) -> None:
        super().__init__(file)
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        if module == dcp.__name__ and name in (*dcp.__all__, "_MEM_FORMAT_ENCODING"):
            return getattr(dcp, name)
        if (module, name) == (filesystem.__name__, "_StorageInfo"):
            return getattr(filesystem, name)
        if module in ("pathlib", "pathlib._local") and name in ("PosixPath", "WindowsPath"):
            return pathlib.PurePath
        if (module, name) in (("torch", "Size"), ("torch.serialization", "_get_layout")):
            return torch.Size if name == "Size" else torch.serialization._get_layout
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise UnsafeCheckpointError(self._folder, f"objects made by {module}.{name}, named in its .metadata")


def _metadata(folder: Path) -> dcp.Metadata:
    with (folder / ".metadata").open("rb") as file:
        metadata: dcp.Metadata = _MetadataUnpickler(file, folder).load()
    return metadata


FOLDER_READERS.append(read_sharded)
