"""Files that are either whole or not there. Standard library alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "FileWriteError",
    "free_space",
    "only_process",
    "remove_temporary_files",
    "require_folder",
    "spoken_errors",
    "sync_folder",
    "temporary_path",
    "write_atomically",
]

_TEMPORARY = ".{}.gbseg-writing"


class FileWriteError(OSError):
    """A file could not be written. Nothing of it is left, and what stood in its place before is untouched."""


def require_folder(path: Path | None) -> None:
    """Refuse a folder that cannot be made because a file is in its place, before there is anything to write.

    Raises:
        ValueError: names the file.
    """
    there = None if path is None else next((place for place in (path, *path.parents) if place.exists()), None)
    if there is not None and not there.is_dir():
        raise ValueError(f"{path} is to be a folder, and {there} is a file: name another.")


def write_atomically(data: bytes | memoryview, path: str | Path, durable: bool = True) -> None:
    """Write a file such that at every moment, also after a power cut, ``path`` is what it was or all of ``data``.

    Args:
        data: all of the file.
        path: where; its folder is made.
        durable: wait until the disk has it. Without, a power cut (but no kill) may leave an empty file: for many small files
            that can be made again and are checked before they are trusted.

    Raises:
        FileWriteError: the system refused (disk full, quota, file size limit, read-only); the errno is kept, the message names
            the file, its size and the space that is free.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                # before the rename: a file system may otherwise make the new name durable earlier than its bytes
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise FileWriteError(
            error.errno,
            f"{path} could not be written: {error.strerror} (it takes {len(data) / 2**20:.1f} MiB, {free_space(path.parent)})",
        ) from error


def temporary_path(path: Path) -> Path:
    """A name beside ``path`` for what is to replace it; `remove_temporary_files` finds what was left under such names."""
    # two processes may write the same file: each has a temporary one of its own
    return path.with_name(_TEMPORARY.format(f"{path.name}.{os.getpid()}"))


def sync_folder(folder: str | Path) -> None:
    """Wait until the names of a folder's files are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_space(folder: Path) -> str:
    """How much room is left, for a message."""
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB are free"
    except OSError as error:
        return f"free space unknown: {error.strerror}"


def remove_temporary_files(folder: str | Path) -> None:
    """Remove what a killed `write_atomically` left behind in ``folder``."""
    for path in Path(folder).glob(_TEMPORARY.format("*")):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def spoken_errors() -> Iterator[None]:
    """Errors of the system from deep inside the standard library, raised again from here: a sentence to the command line."""
    try:
        yield
    except OSError as error:
        if type(error).__module__.startswith("gbseg."):
            raise
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{reason}: {error.filename}" if error.filename else reason) from error


@contextlib.contextmanager
def only_process(folder: str | Path, patience: float = 10) -> Iterator[None]:
    """Hold a lock on a folder, that no two processes prepare it. The lock goes with the process, also when it is killed.

    Raises:
        RuntimeError: another process holds it, after ``patience`` seconds.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                # the workers of a killed process end a moment after it
                if time.monotonic() > deadline:
                    raise RuntimeError(f"another process prepares {folder} at this moment; wait for it or end it") from error
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)
