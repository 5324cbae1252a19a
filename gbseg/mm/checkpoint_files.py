"""Files that are either whole or not there, and the search for the newest whole checkpoint."""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log
from mmengine.runner.checkpoint import get_torch_safe_globals

from gbseg.files import FileWriteError, write_atomically

__all__ = [
    "CheckpointWriteError",
    "DurableBackend",
    "NoReadableCheckpointError",
    "checkpoint_damage",
    "newest_readable_checkpoint",
    "write_checkpoint",
]


class CheckpointWriteError(OSError):
    """A checkpoint could not be written. Nothing of it is left, and the ones before it are untouched."""


class NoReadableCheckpointError(RuntimeError):
    """There are checkpoints, but none that can be read."""


def write_checkpoint(data: bytes | memoryview, path: str | Path) -> None:
    """`gbseg.files.write_atomically` with a checkpoint's words: what a full disk leaves to resume from.

    Raises:
        CheckpointWriteError: the system refused; the errno is kept.
    """
    try:
        write_atomically(data, path)
    except FileWriteError as error:
        raise CheckpointWriteError(
            error.errno, f"{error.strerror}. The checkpoints before it are untouched: make room, then resume"
        ) from error


@register_backend("gbseg_durable")
class DurableBackend(LocalBackend):
    """mmengine's local files, with `write_atomically` and with removals that can be put off until the new file is there."""

    def __init__(self) -> None:
        self.put_off: list[str] | None = None

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write bytes atomically; raises as `write_checkpoint` does."""
        write_checkpoint(obj, filepath)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Write text atomically; raises as `write_checkpoint` does."""
        write_checkpoint(obj.encode(encoding), filepath)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file, or only note its path while ``put_off`` is a list."""
        if self.put_off is None:
            super().remove(filepath)
        else:
            self.put_off.append(str(filepath))


def checkpoint_damage(path: str | Path) -> str | None:
    """Why training cannot be resumed from this file, None if it can. Reads all of it, but never holds it in memory."""
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            return "the file is empty"
        # torch.load does not look at the checksums: a flipped bit in a weight would go unnoticed
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"the checksum of its part {broken!r} is wrong"
        checkpoint = _open_mapped(path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    missing = [key for key in ("meta", "state_dict", "message_hub") if key not in checkpoint]
    return f"it holds no {', no '.join(missing)}" if missing else None


def _open_mapped(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(get_torch_safe_globals()):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UnpicklingError:
        # a hook of the user may save objects of its own: mmengine reads those too, once the first try failed
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False)


def _regular(folder: Path, like: Path | None) -> dict[Path, int]:
    """The regular checkpoints in ``folder`` (not best, published or foreign weights) and their iteration or epoch."""
    pattern = r"(?:iter|epoch)_(\d+)"
    if like is not None and (number := re.search(r"(\d+)\D*$", like.stem)):
        # filename_tmpl may be anything, so that the name at hand is the pattern
        pattern = re.escape(like.stem[: number.start(1)]) + r"(\d+)" + re.escape(like.stem[number.end(1) :])
    found = ((path, re.fullmatch(pattern, path.stem)) for path in folder.glob("*.pth"))
    return {path: int(match[1]) for path, match in found if match}


def _candidates(folder: Path, named: Path | None, newer: bool) -> list[Path]:
    """The regular checkpoints of a run, newest first.

    Args:
        folder: Where they lie.
        named: The newest one known.
        newer: Whether there may be one newer than ``named``.
    """
    steps = _regular(folder, named)
    newest = named
    if newer and named in steps:
        # a kill between the two writes leaves a newer one than last_checkpoint says. It must be both, further and younger:
        # an earlier run in the same folder leaves further ones, a copied folder has its times in any order
        age = named.stat().st_mtime_ns
        newest = max(
            (p for p in steps if steps[p] >= steps[named] and p.stat().st_mtime_ns >= age), key=lambda path: steps[path]
        )
    limit = float("inf") if newest is None else steps.get(newest, float("inf"))
    rest = sorted(
        (path for path in steps if path != newest and steps[path] < limit), key=lambda path: steps[path], reverse=True
    )
    return rest if newest is None else [newest, *rest]


def _last_checkpoint(work_dir: Path) -> Path | None:
    """The path in mmengine's file of that name."""
    file = work_dir / "last_checkpoint"
    text = file.read_text(errors="replace").strip() if file.is_file() else ""
    if not text:
        return None
    # the folder may have been moved since: mmengine writes the path as it was given
    return path if (path := Path(text)).is_file() else work_dir / path.name


def newest_readable_checkpoint(
    work_dir: str | Path, folder: str | Path | None = None, start: str | Path | None = None
) -> Path | None:
    """Find the newest checkpoint from which training can be resumed; every damaged newer one is reported by a warning.

    Args:
        work_dir: The folder of the run, in which mmengine's file ``last_checkpoint`` lies.
        folder: Where the checkpoints lie, if that is elsewhere and there is no ``last_checkpoint``.
        start: Look at this file first and then at those before it, whatever ``last_checkpoint`` says.

    Returns:
        The path, or None if there is no checkpoint at all.

    Raises:
        FileNotFoundError: ``start`` does not exist.
        NoReadableCheckpointError: there are checkpoints, but all are damaged; lists every one with the reason.
    """
    if start is not None and not Path(start).is_file():
        raise FileNotFoundError(f"the checkpoint to resume from, {start}, does not exist")
    named = _last_checkpoint(Path(work_dir)) if start is None else Path(start)
    candidates = _candidates(Path(folder or work_dir) if named is None else named.parent, named, newer=start is None)
    tried = []
    for path in candidates:
        damage = checkpoint_damage(path)
        if damage is None:
            return path
        tried.append(f"{path}: {damage}")
        print_log(f"Checkpoint {path} cannot be resumed from, trying the one before: {damage}", "current", logging.WARNING)
    if not tried:
        return None
    raise NoReadableCheckpointError(
        "none of the checkpoints can be read, so the run cannot be resumed (start anew without --resume, in another "
        "work_dir if these files are still of use):\n  " + "\n  ".join(tried)
    )
