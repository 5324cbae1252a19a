"""Atomic file writes, listed folders, folder locks and readable system errors. Standard library only."""

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from gbseg._moved import add_moved_names

__all__ = [
    "REST",
    "FileWriteError",
    "checkpoint_path",
    "checkpoint_steps",
    "class_folders",
    "free_space",
    "is_alive",
    "is_checkpoint_folder",
    "is_dead_link",
    "lock_folder",
    "locked_file",
    "named_checkpoint",
    "readable_os_errors",
    "remove_path",
    "remove_temporary_files",
    "require_folder",
    "sync_disks",
    "sync_folder",
    "temporary_path",
    "visible_entries",
    "walk_files",
    "write_atomically",
]

_TEMPORARY = ".{}.gbseg-writing"
REST = "rest.pth"
"""The file of a checkpoint folder (`gbseg.mm.sharded_checkpoint`) that names all others, and is written last."""


class FileWriteError(OSError):
    """A file could not be written. Nothing of it is left, and an earlier file of that name is unchanged."""


def require_folder(path: Path | None) -> None:
    """Refuse an output folder that cannot be made or written to, before there is anything to write.

    Args:
        path: the folder, which need not exist yet; None is accepted.

    Raises:
        ValueError: the path or one of its parents is a file, or may not be written to; the message names it.
    """
    if path is None:
        return
    existing = next((parent for parent in (path, *path.parents) if os.path.lexists(parent)), None)
    if existing is not None and not existing.is_dir():
        kind = "a link to nothing" if existing.is_symlink() else "a file"
        raise ValueError(f"{path} is to be a folder, and {existing} is {kind}: name another.")
    if existing is not None and not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{path} is to be a folder to write to, and {existing} may not be written to: name another.")


def checkpoint_steps(folder: Path, example: str = "") -> dict[Path, int]:
    """The regular checkpoints in a folder (not best, published or foreign ones) and their iteration or epoch.

    Args:
        folder: the folder, which need not exist.
        example: the name of one of them. If there are none like it, they are those of MMEngine's own names.
    """
    patterns = [r"(?:iter|epoch)_(\d+)"]
    stem = Path(example).stem
    if number := re.search(r"(\d+)\D*$", stem):
        # filename_tmpl may be anything, so the pattern is taken from a name
        patterns.insert(0, re.escape(stem[: number.start(1)]) + r"(\d+)" + re.escape(stem[number.end(1) :]))
    paths = [path for path in folder.glob("*") if (path.suffix == ".pth" and path.exists()) or is_checkpoint_folder(path)]
    for pattern in patterns:
        matches = ((path, re.fullmatch(pattern, path.stem)) for path in paths)
        if steps := {path: int(match[1]) for path, match in matches if match}:
            return steps
    return {}


def is_checkpoint_folder(path: str | os.PathLike) -> bool:
    """Whether a path is a checkpoint of ``torch.distributed.checkpoint``, as training with ``FullyShard`` writes them."""
    # os.path, because pathlib raises at a name that is too long
    return any(os.path.isfile(os.path.join(path, name)) for name in (REST, ".metadata"))  # noqa: PTH113, PTH118


def checkpoint_path(path: str | os.PathLike) -> Path:
    """The file, or folder, of a checkpoint. MMEngine's text file ``last_checkpoint`` stands for the one that it names.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder, and no checkpoint.
    """
    path = Path(path)
    if is_checkpoint_folder(path):
        return path
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a checkpoint in it, or {path / 'last_checkpoint'}.")
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; training writes them into work_dirs/<config>/.")
    if path.name != "last_checkpoint":
        return path
    text, checkpoint = named_checkpoint(path)
    if checkpoint is not None:
        return checkpoint
    named_by_it = f"names {text[:100]}, which is neither beside it nor at that path" if text else "is empty"
    if os.path.isfile(text):  # noqa: PTH113
        named_by_it = f"names {text}, of another folder, and {Path(text).name} is not among the checkpoints beside it"
    raise FileNotFoundError(f"{path} {named_by_it}: give the checkpoint itself.")


def named_checkpoint(last_checkpoint: Path) -> tuple[str, Path | None]:
    """The text of MMEngine's file ``last_checkpoint``, and the file that it names, None if there is none.

    mmengine writes the path as it was, and the folder may have been copied or moved: a file of that name beside it is meant,
    and the path as it is written only where no checkpoint of the run lies beside it.
    """
    try:
        with last_checkpoint.open(errors="replace") as file:
            text = file.read(4096).strip()
    except OSError:
        return "", None
    named = Path(text)
    # no name: '/'
    places = [last_checkpoint.with_name(named.name)] if named.name else []
    if named.name and not checkpoint_steps(last_checkpoint.parent, named.name):
        places.append(named)
    return text, next((place for place in places if _is_checkpoint(place) and place != last_checkpoint), None)


def _is_checkpoint(path: Path) -> bool:
    # os.path, because pathlib raises at a name that is too long
    return os.path.isfile(path) or is_checkpoint_folder(path)  # noqa: PTH113


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


def temporary_path(path: Path, owner: object = None) -> Path:
    """A temporary name beside ``path``, unique to ``owner``, by default this process; see `remove_temporary_files`."""
    return path.with_name(_TEMPORARY.format(f"{path.name}.{owner or os.getpid()}"))


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
    """Remove the temporary files and folders that a killed process left in ``folder`` (`temporary_path`)."""
    for path in Path(folder).glob(_TEMPORARY.format("*")):
        remove_path(path)


def remove_path(path: Path) -> None:
    """Remove a file, or a folder and all that is in it; a link is removed, and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def visible_entries(folder: str | Path) -> list[Path]:
    """The files and folders in a folder, sorted, without those whose name begins with a dot (``.DS_Store``, ``._x.jpg``)."""
    return sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))


def walk_files(folder: str | Path, on_cycle: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Every file below a folder, sorted; a link to a folder is as good as that folder.

    All readers of data use it, so that all of them see the same files: names that begin with a dot are skipped, folders of
    such a name as well (``.ipynb_checkpoints``). A link to something that does not exist is given like a file.

    Args:
        folder: the folder.
        on_cycle: called with a link to a folder that holds the link, which is then left out; by default it is an error.

    Raises:
        ValueError: a link leads to a folder that holds it; the message names the link.
        OSError: a folder cannot be read.
    """
    yield from _walk(Path(folder), (Path(folder).resolve(),), on_cycle)


def _walk(folder: Path, above: tuple[Path, ...], on_cycle: Callable[[Path], None] | None) -> Iterator[Path]:
    """The files below ``folder``, which was reached through the folders ``above`` (without links, its own last)."""
    with os.scandir(folder) as entries:
        visible = sorted((e.name, e.is_symlink(), e.is_dir(follow_symlinks=False)) for e in entries if e.name[0] != ".")
    for name, is_link, is_folder in visible:
        path = folder / name
        # Path, because the entry's own is_dir raises at a link to itself
        if not (path.is_dir() if is_link else is_folder):
            yield path
            continue
        real = path.resolve() if is_link else above[-1] / name
        if not is_link or not any(outer.is_relative_to(real) for outer in above):
            yield from _walk(path, (*above, real), on_cycle)
        elif on_cycle is not None:
            on_cycle(path)
        else:
            raise ValueError(
                f"{path} is a link to {real}, which holds the link itself: following it would never end; remove it."
            )


def class_folders(root: str | Path) -> list[str]:
    """The names of the folders in a folder, sorted; links are as good as folders, names that begin with a dot are skipped.

    Raises:
        ValueError: one of them is a link to a folder that does not exist; without it the classes would be others.
    """
    entries = visible_entries(root)
    if lost := next((path for path in entries if is_dead_link(path)), None):
        raise ValueError(f"{lost} is a link to {lost.readlink()}, which does not exist: mend or remove it")
    return [path.name for path in entries if path.is_dir()]


def is_dead_link(path: Path) -> bool:
    """Whether a path is a link to something that does not exist, such as a folder on a disk that is not mounted."""
    return path.is_symlink() and not path.exists()


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
    if find_spec("fcntl") is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            _wait_for_lock(descriptor, timeout)
        except BlockingIOError as error:
            raise RuntimeError(f"another process prepares {folder} at this moment; wait for it or end it") from error
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, timeout: float) -> None:
    """Lock an open file or folder; raises ``BlockingIOError`` after so many seconds."""
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOTSUP, "this system has no flock") from error

    deadline = time.monotonic() + timeout
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # the workers of a killed process end a moment after it
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)


_locked: set[int] = set()


def _close_locked() -> None:
    """In a process that was forked: it would hold the lock when the process that took it is dead."""
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locked)


@contextlib.contextmanager
def locked_file(path: str | Path, timeout: float = 10) -> Iterator[None]:
    """Hold an exclusive lock on a file, by this process alone: it ends with it, also by a kill, and in no fork of it.

    Args:
        path: the file, which is created if it does not exist.
        timeout: seconds to wait for another process.

    Raises:
        BlockingIOError: another process still holds the lock after ``timeout`` seconds.
        OSError: the file system has no locks, or the system has none (Windows).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for_lock(descriptor, timeout)
        _locked.add(descriptor)
        yield
    finally:
        _locked.discard(descriptor)
        os.close(descriptor)


def is_alive(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # of another user
        return True
    return True


add_moved_names(__name__)
