"""Atomic writes of checkpoints, and the search for the newest checkpoint that is not damaged."""

import errno
import logging
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log
from torch import Tensor

from gbseg.files import (
    FileWriteError,
    checkpoint_path,
    checkpoint_steps,
    is_checkpoint_folder,
    named_checkpoint,
    write_atomically,
)
from gbseg.mm.checkpoint_contents import without_unsafe_entries
from gbseg.mm.checkpoint_loading import CheckpointError, UnsafeCheckpointError, read_checkpoint
from gbseg.mm.rng import rng_fault
from gbseg.mm.sharded_checkpoint import read_rest

__all__ = [
    "INTERRUPTED",
    "REMEDIES",
    "CheckpointWriteError",
    "DurableBackend",
    "NoReadableCheckpointError",
    "checkpoint_damage",
    "newest_readable_checkpoint",
    "require_resumable",
    "write_checkpoint",
]


INTERRUPTED = "interrupted.pth"
"""The checkpoint of a run that was stopped between two regular ones; it goes when the next regular one is written."""

REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "let the folder be written to"),
    errno.EISDIR: "rename or remove that folder",
}
"""What to do where a file cannot be written, by the system's number of the error."""


class CheckpointWriteError(OSError):
    """A checkpoint could not be written. No part of it is left, and earlier checkpoints are untouched."""


class NoReadableCheckpointError(RuntimeError):
    """There are checkpoints, but all are damaged."""


def write_checkpoint(data: bytes | memoryview, path: str | Path) -> None:
    """`gbseg.files.write_atomically`, whose error says that earlier checkpoints can still be resumed from.

    Raises:
        CheckpointWriteError: the file could not be written (disk full, no permission); has the system's errno.
    """
    try:
        write_atomically(data, path)
    except FileWriteError as error:
        remedy = REMEDIES.get(error.errno or 0, "mend that")
        raise CheckpointWriteError(
            error.errno, f"{error.strerror}. The checkpoints before it are untouched: {remedy}, then resume"
        ) from error


@register_backend("gbseg_durable")
class DurableBackend(LocalBackend):
    """mmengine's backend for local files, with atomic writes and with removals that can be deferred.

    Attributes:
        deferred: None: `remove` removes. A list: it only appends the path.
    """

    deferred: list[str] | None = None

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write bytes by `write_checkpoint`; of a checkpoint, what can be read back (`without_unsafe_entries`)."""
        write_checkpoint(without_unsafe_entries(obj, filepath), filepath)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Write text atomically; raises like `write_checkpoint`."""
        write_checkpoint(obj.encode(encoding), filepath)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file, or defer it."""
        if self.deferred is None:
            super().remove(filepath)
        else:
            self.deferred.append(str(filepath))

    def rmtree(self, dir_path: str | Path) -> None:
        """Remove nothing: checkpoints here are files, and one that is resumed may name any folder as an old one."""


def checkpoint_damage(path: str | Path) -> str | None:
    """Why training cannot be resumed from this file, None if it can. Reads the file in full, without holding it in memory."""
    try:
        return _damage(path)
    except UnsafeCheckpointError as error:
        return error.reason


def _damage(path: str | Path) -> str | None:
    """`checkpoint_damage`, but a file that holds more than data, and so is whole, is an ``UnsafeCheckpointError``."""
    try:
        require_resumable(read_rest(Path(path)) if is_checkpoint_folder(path) else read_checkpoint(path, mmap=True), path)
    except UnsafeCheckpointError:
        raise
    except CheckpointError as error:
        return error.reason
    except OSError as error:
        return str(error)
    return None


def require_resumable(checkpoint: Mapping[str, Any], path: object) -> None:
    """Refuse a checkpoint from which no training can be resumed.

    Args:
        checkpoint: the content, from `gbseg.mm.checkpoint_loading.read_checkpoint`.
        path: its file, for the message.

    Raises:
        CheckpointError: something is missing or of another kind than what is written.
    """
    if missing := [key for key in ("meta", "state_dict", "message_hub") if key not in checkpoint]:
        raise CheckpointError(path, f"it holds no {', no '.join(missing)}")
    fault = _fault("its meta", checkpoint["meta"], dict(epoch=Integral, iter=Integral))
    state = checkpoint.get("training_state")
    if fault is None and state is not None:
        fault = _fault("its training_state", state, dict(iter=Integral, processes=list, outdated=list))
        if fault is None and not (state["processes"] and all(isinstance(name, str) for name in state["outdated"])):
            fault = "its training_state has no processes, or outdated files that are no names"
        for rank, process in enumerate(state["processes"] if fault is None else ()):
            place = f"its training_state.processes[{rank}]"
            # a loop without a position in the data leaves the rest out
            has_position = isinstance(process, Mapping) and "draws" in process
            position = dict(seed=Integral, draws=Integral, size=Integral, validated=bool) if has_position else {}
            fault = fault or _fault(place, process, dict(rng=dict, **position))
            if fault is None and "gradients" in process:
                fault = _fault(f"{place}.gradients", process["gradients"], dict.fromkeys(process["gradients"], Tensor))
            if fault is None and (wrong := rng_fault(process["rng"])):
                fault = f"{place} has an rng that is no state of the generators ({wrong})"
    if fault is not None:
        raise CheckpointError(path, fault)


def _fault(place: str, values: Any, kinds: dict[str, type]) -> str | None:
    """Say which entry is missing or of another kind."""
    if not isinstance(values, Mapping):
        return f"{place} is a {type(values).__name__}, and not a dictionary"
    for key, kind in kinds.items():
        if key not in values:
            return f"{place} has no {key}"
        if not isinstance(values[key], kind):
            return f"{place} has the {key} {str(values[key])[:40]}, which is a {type(values[key]).__name__}"
    return None


def _newest_first(folder: Path, last: Path | None, example: str, may_be_newer: bool) -> list[Path]:
    """The regular checkpoints of a run, newest first.

    Args:
        folder: where they are.
        last: the newest one according to the file ``last_checkpoint``.
        example: the name of one, whether it is there or not.
        may_be_newer: whether to look for one that is newer than ``last``.
    """
    steps = checkpoint_steps(folder, example)
    if last is not None and last in steps and may_be_newer:
        # a kill between the two writes leaves a checkpoint that last_checkpoint does not name yet. It must have both a later
        # step and a later time: an earlier run in the same folder leaves later steps, a copied folder has arbitrary times
        time = last.stat().st_mtime_ns
        newer = [path for path in steps if steps[path] >= steps[last] and path.stat().st_mtime_ns >= time]
        last = max(newer, key=lambda path: steps[path])
    limit = float("inf") if last is None else steps.get(last, float("inf"))
    earlier = [path for path in steps if path != last and steps[path] < limit]
    earlier.sort(key=lambda path: steps[path], reverse=True)
    return earlier if last is None else [last, *earlier]


def newest_readable_checkpoint(
    work_dir: str | Path, folder: str | Path | None = None, start: str | Path | None = None, example: str = ""
) -> Path | None:
    """Find the newest checkpoint from which training can be resumed. Logs a warning for each damaged one that is newer.

    Args:
        work_dir: the folder of the run, with mmengine's file ``last_checkpoint``.
        folder: where the checkpoints are, if that is another folder (``out_dir`` of the hook).
        start: consider this file and earlier ones only, and ignore ``last_checkpoint`` of ``work_dir``.
        example: the name of a regular checkpoint, where ``last_checkpoint`` names none (``filename_tmpl`` of the hook).

    Returns:
        The path, or None if there is no checkpoint.

    Raises:
        FileNotFoundError, IsADirectoryError: ``start`` is no file.
        NoReadableCheckpointError: all checkpoints are damaged; lists each with the reason.
        UnsafeCheckpointError: one holds more than data. It is whole, so the one before it does not take its place unasked.
    """
    last: Path | None
    if start is not None:
        last, example = checkpoint_path(start), Path(start).name
        own = Path(last).parent
    else:
        own = Path(folder or work_dir)
        file = Path(work_dir, "last_checkpoint")
        text, last = named_checkpoint(file)
        example = Path(text).name if Path(text).name not in ("", INTERRUPTED) else example
        if beside := own.resolve() != Path(work_dir).resolve() and checkpoint_steps(own, example):
            # the checkpoints of this run are in ``folder``: what is written may be the place that it was copied from
            last = next((path for path in beside if path.name == example), None)
        if last is not None and last.suffix != ".pth" and not is_checkpoint_folder(last):
            last = None
        is_path = text.isprintable() and Path(text).suffix == ".pth"
        interrupted = own / INTERRUPTED
        if last is None and file.is_file() and not (is_path and not checkpoint_steps(own, example)):
            print_log(f"{file} names no checkpoint of this run: the newest in {own} is looked for.", "current", logging.WARNING)
        if last is None and interrupted.is_file():
            # a kill may have left it beside a regular one that is newer
            time = interrupted.stat().st_mtime_ns
            if not any(path.stat().st_mtime_ns > time for path in checkpoint_steps(own, example)):
                last = interrupted
        elif last is None and is_path and not checkpoint_steps(own, example):
            # not only damaged: perhaps the disk is not there
            last = Path(text)
        elif last is not None and last.parent.resolve() != own.resolve():
            print_log(f"{own} holds no checkpoint; {file} names {last}, of another folder.", "current", logging.WARNING)
            own = last.parent
    damaged = []
    for path in _newest_first(own, last, example, may_be_newer=start is None):
        if (damage := _damage(path)) is None:
            return path
        damaged.append(f"{path}: {damage}")
        print_log(f"Checkpoint {path} cannot be resumed from, trying the one before: {damage}", "current", logging.WARNING)
    if not damaged:
        return None
    raise NoReadableCheckpointError(
        "none of the checkpoints can be read, so the run cannot be resumed (start anew without --resume, in another "
        "work_dir if these files are still of use):\n  " + "\n  ".join(damaged)
    )
