"""What of a checkpoint is data: it is kept when a checkpoint is written, or converted, and the rest is left out by name."""

import io
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import EpochBasedTrainLoop, LogProcessor, Runner
from torch import Tensor, nn

from gbseg.files import write_atomically
from gbseg.mm.checkpoint_loading import CheckpointError, UnsafeCheckpointError, read_checkpoint, unpickle_safely

__all__ = ["convert_checkpoint", "shorten_curves", "without_unsafe_entries"]

PLAIN = (type(None), bool, int, float, complex, str, bytes, Tensor, nn.Parameter)
TRAINED = ("state_dict", "optimizer")  # what no checkpoint is written without
CURVE = 100  # values of a curve that a checkpoint holds in any case
_LEFT_OUT = object()
_named: set[str] = set()


def _refused_kind(value: Any) -> str | None:
    """The type for which `read_checkpoint` would refuse a value; None for data."""
    if type(value) in PLAIN:
        return None
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        # on the meta device only the pickle is read, and not the tensors
        unpickle_safely(io.BytesIO(buffer.getvalue()), "meta")
    except UnsafeCheckpointError as error:
        return error.kind
    except Exception as error:  # __reduce__ of a foreign class may raise anything
        return f"{type(value).__module__}.{type(value).__qualname__} ({type(error).__name__})"
    return None


def _only_data(value: Any, place: str, left_out: dict[str, str]) -> Any:
    """The value without what is no data in it, the value itself if it is all data; nothing is changed in place.

    Of a dictionary single entries are left out, of anything else the whole, since the place of an item may matter.

    Args:
        value: of a checkpoint.
        place: its keys, for the message.
        left_out: gets the place and type of each entry that is left out.
    """
    if type(value) in (dict, OrderedDict):
        items = {}
        for key, item in value.items():
            below = f"{place}.{key}" if place else str(key)
            if (kind := _refused_kind(key)) is not None:
                left_out[f"{below} (as a key)"] = kind
            else:
                items[key] = _only_data(item, below, left_out)
        kept = {key: item for key, item in items.items() if item is not _LEFT_OUT}
        if len(kept) == len(value) and all(kept[key] is value[key] for key in value):
            return value
        copied = type(value)(kept)
        if isinstance(value, OrderedDict):
            # a state dict's _metadata
            vars(copied).update(vars(value))
        return copied
    if type(value) in (list, tuple) and any(isinstance(item, dict) for item in value):
        new = [_only_data(item, f"{place}[{index}]", left_out) for index, item in enumerate(value)]
        if all(after is before for after, before in zip(new, value, strict=True)):
            return value
        return _LEFT_OUT if any(item is _LEFT_OUT for item in new) else type(value)(new)
    kind = _refused_kind(value)
    if kind is not None:
        left_out[place] = kind
        return _LEFT_OUT
    return value


def _listed(left_out: dict[str, str]) -> str:
    return ", ".join(f"{place} ({kind})" for place, kind in left_out.items())


def without_unsafe_entries(data: bytes | memoryview, path: str | Path) -> bytes | memoryview:
    """What torch.save has made of a checkpoint, without the entries for which `read_checkpoint` would refuse the file.

    A hook or a user of the message hub may have put any object there. It is left out, and named in a warning once a folder.
    Weights and the state of the optimizer are kept in any case; a warning says how to read them.

    Args:
        data: the content of the file to be written, made in this process.
        path: where it is to be written.
    """
    if bytes(data[:4]) != b"PK\x03\x04":
        return data
    try:
        unpickle_safely(io.BytesIO(data), "meta", name=path)
        return data
    except UnsafeCheckpointError as error:
        kind = error.kind
    except CheckpointError:
        # not of torch.save
        return data
    # what this process itself has pickled a moment ago
    checkpoint = torch.load(io.BytesIO(data), "cpu", weights_only=False)
    if not isinstance(checkpoint, dict):
        return data
    left_out: dict[str, str] = {}
    kept = _only_data(checkpoint, "", left_out)
    trained = {key: checkpoint[key] for key in TRAINED if key in checkpoint and kept.get(key) is not checkpoint[key]}
    left_out = {place: kind for place, kind in left_out.items() if place.split(".")[0] not in trained}
    message = ""
    if left_out:
        message = f"left out of the checkpoints, since they are no data, and to load them could run code: {_listed(left_out)}. "
    if trained:
        message += (
            f"{' and '.join(trained)} of the checkpoints hold {kind}, so that only `gbseg convert-checkpoint` will read them."
        )
    if f"{Path(path).parent}: {message}" not in _named:
        _named.add(f"{Path(path).parent}: {message}")
        print_log(message.strip(), "current", logging.WARNING)
    buffer = io.BytesIO()
    torch.save({**kept, **trained}, buffer)
    return buffer.getbuffer()


def shorten_curves(checkpoint: dict[str, Any], runner: Runner) -> None:
    """Leave out of a checkpoint the logged values that nothing reads again: else it grows with every iteration.

    Of each curve of training the newest 100 values are kept, of one of validation those of the log processor's window, and of
    both more where its windows are longer: of a value with a window 'epoch', one for each batch of an epoch; of one with a
    window 'global', all. So what is logged after resuming is what would have been logged without interruption. All values are
    in ``vis_data/scalars.json``.

    Args:
        checkpoint: what is to be written; changed in place, but not the curves of the run.
        runner: the runner.
    """
    processor = runner.log_processor
    curves = checkpoint.get("message_hub", {}).get("log_scalars", {})
    if not isinstance(processor, LogProcessor) or not all(isinstance(curve, HistoryBuffer) for curve in curves.values()):
        # of somebody else: what it reads is not known
        return
    windows = [(setting["data_src"], setting.get("window_size")) for setting in processor.custom_cfg]
    # an iteration loop counts all its batches as those of one epoch
    epoch = len(runner.train_dataloader) if isinstance(runner.train_loop, EpochBasedTrainLoop) else None
    for name, curve in curves.items():
        needed = [CURVE if name.startswith("train/") else 1, processor.window_size]
        for source, window in windows:
            if source in (name, name.partition("/")[2]):
                # without a window, a statistic is over all values
                of_name = epoch if window == "epoch" else window
                needed.append(of_name if isinstance(of_name, int) else len(curve.data[0]))
        length = max(needed)
        if len(curve.data[0]) > length:
            values, counts = curve.data
            curves[name] = HistoryBuffer(values[-length:], counts[-length:], curve.max_length)


def convert_checkpoint(source: str | Path, target: str | Path) -> dict[str, str]:
    """Write what is data in a checkpoint that one trusts to a file that `read_checkpoint` takes.

    A source that it takes already is copied, in torch's present format. Any other is unpickled in full, and so **runs the code
    that it holds**.

    Args:
        source: the checkpoint; one that holds a whole module counts as its weights.
        target: the file to write, which must not exist.

    Returns:
        The entries that are left out, and the type of each.

    Raises:
        FileExistsError: there is a target already.
        gbseg.mm.checkpoint_loading.CheckpointError: the source is damaged, no checkpoint, or its classes are not found.
        gbseg.files.FileWriteError: the target cannot be written.
    """
    if Path(target).exists():
        raise FileExistsError(f"{target} exists: name another file.")
    left_out: dict[str, str] = {}
    try:
        checkpoint = read_checkpoint(source)
    except UnsafeCheckpointError:
        checkpoint = _unpickle_anything(source)
        if isinstance(checkpoint, nn.Module):
            checkpoint = {"state_dict": checkpoint.state_dict()}
        if not isinstance(checkpoint, dict):
            raise CheckpointError(source, f"it holds a {type(checkpoint).__name__}, and not a dictionary of weights") from None
        checkpoint = _only_data(dict(checkpoint), "", left_out)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    unpickle_safely(io.BytesIO(buffer.getbuffer()), "meta", name=target)
    write_atomically(buffer.getbuffer(), target)
    return left_out


def _unpickle_anything(source: str | Path) -> Any:
    try:
        return torch.load(source, "cpu", weights_only=False)
    except Exception as error:  # its code may raise anything
        missing = isinstance(error, ImportError | AttributeError)
        hint = "; to convert it, install what defines the class, or run the command where it can be imported" if missing else ""
        raise CheckpointError(source, f"{type(error).__name__}: {error}{hint}") from error
