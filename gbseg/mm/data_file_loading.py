"""The reading of pickles and YAML that a config names (``ann_file``, ``class_weight``): of data only, so none runs code.

Importing `gbseg.mm` sends ``mmengine.fileio.load`` this way, and the pickles that MMSegmentation's loaders of volumes read.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TextIO

import torch
import yaml  # type: ignore[import-untyped]
from mmengine.fileio import PickleHandler, YamlHandler, register_handler

from gbseg.data.plain_pickles import load_plain
from gbseg.mm.checkpoint_loading import HOLDERS, memory_of, unpickle_safely
from gbseg.mm.compat import file_being_loaded, replace_volume_pickle

__all__ = ["PlainPickleHandler", "PlainYamlHandler"]

REMEDY = "write what is data in it as .json, or an array as .npy, where you trust the file"


def _storage(data: bytes) -> Any:
    return unpickle_safely(io.BytesIO(data), name="of a tensor in a pickle")


def _tensor(storage: Any, *settings: Any) -> torch.Tensor:
    size = memory_of(storage)
    tensor = torch._utils._rebuild_tensor_v2(storage, *settings)
    # PyTorch gives a storage that is too small for the tensor as much memory as the file asks for
    if memory_of(storage) != size:
        raise ValueError("a tensor in it is larger than what it holds of it")
    return tensor


TENSORS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
    **HOLDERS,
}
"""What the results that MMEngine dumps hold beside plain data, and what it stands for."""


def _load(file: BinaryIO, name: str, **options: Any) -> Any:
    try:
        return load_plain(file, TENSORS, **options)
    except pickle.UnpicklingError as error:
        kind = str(error).removeprefix("GLOBAL ")
        if kind == str(error):
            raise ValueError(f"{name} cannot be read as a pickle: {error}") from error
        raise ValueError(f"{name} holds objects made by {kind}, and to load that could run code: {REMEDY}.") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise ValueError(f"{name} cannot be read as a pickle of data: {type(error).__name__}: {error}") from error


@register_handler(["pickle", "pkl"])
class PlainPickleHandler(PickleHandler):
    """mmengine's handler of pickles, which reads data alone."""

    def load_from_fileobj(self, file: BinaryIO, **options: Any) -> Any:
        """Read an open file.

        Raises:
            ValueError: it holds anything but data; the message names the type.
        """
        return _load(file, file_being_loaded(file, "the pickle"), **options)


@register_handler(["yaml", "yml"])
class PlainYamlHandler(YamlHandler):
    """mmengine's handler of YAML, without the tags that call functions (``!!python/object/apply``)."""

    def load_from_fileobj(self, file: TextIO, **options: Any) -> Any:
        """Read an open file.

        Raises:
            ValueError: it holds anything but data; the message names the tag.
        """
        # it knows tuples, which mmengine's own dumps have; without C where PyYAML was built so
        options.setdefault("Loader", getattr(yaml, "CFullLoader", yaml.FullLoader))
        try:
            return super().load_from_fileobj(file, **options)
        except yaml.constructor.ConstructorError as error:
            name = file_being_loaded(file, "the YAML file")
            raise ValueError(f"{name}: {error.problem}, and to load that could run code: {REMEDY}.") from error


def load_volume(content: bytes) -> Any:
    """``pickle.loads`` of data only, for MMSegmentation's ``LoadBiomedicalData`` and its like."""
    return _load(io.BytesIO(content), "the pickle of a volume")


replace_volume_pickle(load_volume)
