"""A training step in a file: written when a loss or gradient is not finite, and read by ``gbseg replay``.

A dump is data: tensors, numbers and text (`gbseg.mm.checkpoint_loading.read_checkpoint` reads it). Its config is a dictionary,
and data samples are their class's name, their ``metainfo`` and their fields.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from gbseg.data.lists import abbreviate
from gbseg.files import write_atomically
from gbseg.mm.checkpoint_loading import CheckpointError, read_checkpoint
from gbseg.mm.rng import rng_fault, rng_state

__all__ = ["DUMP_SUFFIX", "IterationRecord", "buffers_of", "image_names", "plain", "read_dump", "rebuilt", "write_dump"]

DUMP_SUFFIX = ".dump"
"""Of the files, so that none is taken for a checkpoint."""

_VERSION = 1
_ELEMENT, _ARRAY, _TUPLE, _LEFT_OUT = "data element", "array", "tuple", "left out"


@dataclass
class IterationRecord:
    """What one iteration began with.

    Attributes:
        iteration: its number, from 1.
        batch: from the data loader.
        rng: the random states (`gbseg.mm.rng.rng_state`).
        losses: the terms that were logged, once they are known.
        divisor: of the loss in the backward pass, for gradient accumulation.
    """

    iteration: int
    batch: Any
    rng: dict[str, Any] = field(default_factory=rng_state)
    losses: dict[str, Tensor] = field(default_factory=dict)
    divisor: int = 1


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a model's buffers: a forward pass changes those of batch norm."""
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def _elements(value: Any) -> Iterator[Mapping[str, Any]]:
    """The meta data of the samples in a batch."""
    if isinstance(value, BaseDataElement):
        yield value.metainfo
    elif isinstance(value, Mapping):
        keys = [key for key in ("img_path", "sample_idx") if isinstance(value.get(key), list | tuple | Tensor)]
        if keys:
            yield from ({keys[0]: item} for item in value[keys[0]])
        for item in value.values():
            yield from _elements(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _elements(item)


def image_names(batch: Any, limit: int = 4) -> str:
    """The images of a batch for a message: their paths, or where they have none, their numbers in the data set."""
    names = []
    for meta in _elements(batch):
        path, index = meta.get("img_path"), meta.get("sample_idx")
        if path is not None:
            names.append(str(path))
        elif index is not None:
            names.append(f"sample {int(index)}")
    return abbreviate(names, limit)


def plain(value: Any) -> Any:
    """A value as data: tensors on the CPU, numbers, text, lists and dictionaries, of which `rebuilt` makes it again."""
    if isinstance(value, Tensor):
        # a copy: a view would be saved with all of its memory
        return value.detach().cpu().clone()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        native = np.ascontiguousarray(value.astype(value.dtype.newbyteorder("=")))
        if native.dtype.kind == "u" and native.dtype.itemsize > 1:
            return {_ARRAY: torch.from_numpy(native.astype(np.int64)), "dtype": native.dtype.name}
        return {_ARRAY: torch.from_numpy(native), "dtype": native.dtype.name}
    if isinstance(value, np.generic):
        return plain(value.item())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BaseDataElement):
        fields = {name: plain(item) for name, item in value.items()}
        return {_ELEMENT: type(value).__name__, "metainfo": plain(value.metainfo), "fields": fields}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items() if isinstance(key, str | int)}
    if isinstance(value, tuple):
        return {_TUPLE: [plain(item) for item in value]}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {_LEFT_OUT: f"{type(value).__module__}.{type(value).__qualname__}"}


def _subclasses(kind: type[BaseDataElement]) -> Iterator[type[BaseDataElement]]:
    for subclass in type.__subclasses__(kind):
        yield subclass
        yield from _subclasses(subclass)


def rebuilt(value: Any) -> Any:
    """What `plain` was given. Data elements are of classes that are imported already; nothing is imported for them.

    Raises:
        ValueError: a part was left out, or a class is not known.
    """
    if isinstance(value, list):
        return [rebuilt(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _LEFT_OUT in value:
        raise ValueError(f"the batch holds {value[_LEFT_OUT]}, which is no data, so it was left out of the dump")
    if _ARRAY in value:
        return value[_ARRAY].numpy().astype(str(value["dtype"]))
    if _TUPLE in value:
        return tuple(rebuilt(item) for item in value[_TUPLE])
    if _ELEMENT in value:
        known = {kind.__name__: kind for kind in (*_subclasses(BaseDataElement), BaseDataElement)}
        if value[_ELEMENT] not in known:
            raise ValueError(f"the batch holds data samples of the class {value[_ELEMENT]}, which is not imported here")
        element = known[value[_ELEMENT]](metainfo=rebuilt(value["metainfo"]))
        element.set_data(rebuilt(value["fields"]))
        return element
    return {key: rebuilt(item) for key, item in value.items()}


def _plain_config(value: Any) -> Any:
    """A config of dictionaries, lists, tuples and text; a class in it becomes its name, by which it is registered."""
    if isinstance(value, Mapping):
        return {str(key): _plain_config(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (tuple if isinstance(value, tuple) else list)(_plain_config(item) for item in value)
    if isinstance(value, type) or callable(value):
        return getattr(value, "__name__", repr(value))
    return value if value is None or isinstance(value, bool | int | float | str | bytes) else str(value)


def write_dump(
    path: Path,
    config: Config,
    model: nn.Module,
    buffers: Mapping[str, Tensor],
    records: list[IterationRecord],
    gradients: Mapping[str, float] | None,
    **facts: Any,
) -> None:
    """Write a step that was not taken.

    Args:
        path: the file.
        config: of the run.
        model: the network, with its parameters before the step.
        buffers: those before the forward pass (`buffers_of`).
        records: the iteration, with those before it whose gradients are part of the step.
        gradients: the largest absolute entry of each parameter's gradient, None where there are none to compare.
        **facts: further numbers and texts.

    Raises:
        gbseg.files.FileWriteError: it cannot be written.
    """
    content = {
        "gbseg_dump": _VERSION,
        "config": _plain_config(config.to_dict()),
        "state_dict": plain(dict(model.state_dict())),
        "buffers": plain(buffers),
        "iterations": [
            {
                "iteration": record.iteration,
                "batch": plain(record.batch),
                "rng": record.rng,
                "losses": {name: float(value) for name, value in record.losses.items()},
                "divisor": record.divisor,
            }
            for record in records
        ],
        "gradients": None if gradients is None else dict(gradients),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        **facts,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(buffer.getbuffer(), path)


_OF_AN_ITERATION = {"iteration", "batch", "rng", "losses", "divisor"}
_KINDS = dict(config=dict, state_dict=dict, buffers=dict, iterations=list, device=str, processes=int)


def read_dump(path: str | Path) -> dict[str, Any]:
    """Read what `write_dump` has written; no code that the file holds is run.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no dump, or damaged.
    """
    dump = read_checkpoint(path)
    if dump.get("gbseg_dump") != _VERSION:
        raise CheckpointError(path, "it is no dump of a step, which training writes as nonfinite_iter_*.dump")
    faults = [key for key, kind in _KINDS.items() if not isinstance(dump.get(key), kind)]
    for record in dump["iterations"] if not faults else ():
        if not isinstance(record, dict) or _OF_AN_ITERATION - record.keys():
            faults.append("iterations")
        elif fault := rng_fault(record["rng"]):
            raise CheckpointError(path, f"its random state cannot be set: {fault}")
    if faults or not dump["iterations"]:
        raise CheckpointError(path, f"its {(faults or ['iterations'])[0]} is missing or of another kind")
    return dump
