"""Atomic file writes, folder locks and readable system errors. Standard library only."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from gbseg._moved import add_moved_names

__all__ = [
    "FileWriteError",
    "free_space",
    "lock_folder",
    "readable_os_errors",
    "remove_temporary_files",
    "require_folder",
    "sync_disks",
    "sync_folder",
    "temporary_path",
    "write_atomically",
]

_TEMPORARY = ".{}.gbseg-writing"


class FileWriteError(OSError):
    """A file could not be written. Nothing of it is left, and an earlier file of that name is unchanged."""


def require_folder(path: Path | None) -> None:
    """Refuse an output folder whose place is taken by a file, before there is anything to write.

    Args:
        path: the folder, which need not exist yet; None is accepted.

    Raises:
        ValueError: the path or one of its parents is a file; the message names it.
    """
    if path is None:
        return
    existing = next((parent for parent in (path, *path.parents) if parent.exists()), None)
    if existing is not None and not existing.is_dir():
        raise ValueError(f"{path} is to be a folder, and {existing} is a file: name another.")


def write_atomically(data: bytes | memoryview, path: str | Path, durable: bool = True) -> None:
    """Write a file atomically: at every moment, also after a power cut, ``path`` has its old content or all of ``data``.

    Args:
        data: the file's content.
        path: the file; missing parent folders are created.
        durable: wait until the data is on the disk. If False, a power cut (but no kill) may leave an empty file. Meant for
            many small files that can be made again and are checked before they are used.

    Raises:
        FileWriteError: the system refused the write (disk full, quota, file size limit, read-only). It keeps the errno; the
            message names the file, its size and the free space.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                # before the rename: a file system may otherwise make the new name durable before the data
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
    """A temporary name beside ``path``, unique to this process. `remove_temporary_files` removes what is left under it."""
    return path.with_name(_TEMPORARY.format(f"{path.name}.{os.getpid()}"))


def sync_folder(folder: str | Path) -> None:
    """Wait until the names of a folder's files are on the disk. Does nothing on Windows, which opens no folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_disks() -> None:
    """Wait until all files written so far are on the disks. Does nothing on Windows, which has no such call."""
    if hasattr(os, "sync"):
        os.sync()


def free_space(folder: Path) -> str:
    """The free space on a folder's disk, as a clause for a message."""
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB are free"
    except OSError as error:
        return f"free space unknown: {error.strerror}"


def remove_temporary_files(folder: str | Path) -> None:
    """Remove the temporary files that a killed `write_atomically` left in ``folder``."""
    for path in Path(folder).glob(_TEMPORARY.format("*")):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def readable_os_errors() -> Iterator[None]:
    """Raise an OSError of the standard library again with a message of reason and file, which the command line prints as is."""
    try:
        yield
    except OSError as error:
        if type(error).__module__.startswith("gbseg."):
            raise
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{reason}: {error.filename}" if error.filename else reason) from error


@contextlib.contextmanager
def lock_folder(folder: str | Path, timeout: float = 10) -> Iterator[None]:
    """Hold an exclusive lock on a folder, so that only one process prepares it. The lock ends with the process, also by a kill.

    Windows has no ``fcntl``: nothing is locked there, and it is up to the user not to prepare a folder twice at once.

    Args:
        folder: the folder, which is created if it does not exist.
        timeout: seconds to wait for another process.

    Raises:
        RuntimeError: another process still holds the lock after ``timeout`` seconds.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + timeout
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


add_moved_names(__name__)
