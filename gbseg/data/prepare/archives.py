"""Safe unpacking of tar archives: nothing outside of the folder, nothing in part, no existing file replaced."""

import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from gbseg.data.prepare.download import byte_progress
from gbseg.files import FileWriteError, free_space, sync_disks, temporary_path

__all__ = ["ArchiveError", "finish_unpacking", "open_tar", "read_member", "unpack"]

# an archive is unpacked to a hidden folder, which is renamed when it is complete
_UNPACKING, _UNPACKED = ".{}.gbseg-unpacking", ".{}.gbseg-unpacked"


class ArchiveError(ValueError):
    """An archive is damaged, cut short, or holds what must not be unpacked."""


def unpack(archive: str | Path, folder: str | Path) -> None:
    """Unpack a tar archive (plain or compressed) into a folder.

    It is unpacked to a hidden folder and then moved. A bad archive leaves nothing, and `finish_unpacking` finishes or removes
    what a killed process leaves. Existing files stay as they are, except those that are a first part of the archive's file, as
    an interrupted ``tar`` leaves them.

    Raises:
        ArchiveError: the archive is cut short, damaged or no tar archive, or a member would land outside of the folder.
        FileWriteError: the disk is full.
        RuntimeError: Python is older than 3.11.4 and its tarfile has no filters.
    """
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError("the tarfile of this Python cannot unpack safely: use 3.11.4 or later, or unpack it yourself.")
    archive, folder = Path(archive), Path(folder)
    partial = folder / _UNPACKING.format(archive.name)
    try:
        finish_unpacking(folder)
        partial.mkdir(parents=True)
        with open_tar(archive) as tar:
            for member in tar:
                try:
                    tar.extract(member, partial, filter=_only_inside)
                except tarfile.FilterError as error:
                    raise ArchiveError(
                        f"{archive} holds {member.name!r}, which is refused: {error}. Nothing was unpacked; this is not the "
                        "official archive, do not trust it."
                    ) from error
        # the new name means that all files are there, also after a power cut
        sync_disks()
        partial.rename(folder / _UNPACKED.format(archive.name))
        finish_unpacking(folder)
    except OSError as error:
        raise FileWriteError(
            error.errno, f"{archive} could not be unpacked to {folder}: {error.strerror} ({free_space(folder)})"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def finish_unpacking(folder: str | Path) -> None:
    """Finish what killed runs of `unpack` left: a complete hidden folder is moved into place, an incomplete one removed."""
    folder = Path(folder)
    for partial in folder.glob(_UNPACKING.format("*")):
        shutil.rmtree(partial)
    for complete in folder.glob(_UNPACKED.format("*")):
        _merge(complete, folder)
        shutil.rmtree(complete)


def _merge(source: Path, target: Path) -> None:
    """Move what ``target`` lacks of ``source``, and the files of which it has a first part."""
    in_part = source.is_file() and target.is_file() and _is_first_part(target, source)
    if in_part or not os.path.lexists(target):
        shutil.move(source, target, _copy_atomically)
    elif source.is_dir() and target.is_dir():
        for entry in source.iterdir():
            _merge(entry, target / entry.name)


def _copy_atomically(source: str | Path, target: str | Path) -> None:
    """Copy a file, which ``shutil.move`` does if the target is on another disk."""
    temporary = temporary_path(Path(target))
    shutil.copyfile(source, temporary)
    temporary.replace(target)


def _is_first_part(file: Path, complete: Path) -> bool:
    return file.stat().st_size < complete.stat().st_size and complete.read_bytes().startswith(file.read_bytes())


def _only_inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    # tarfile's filter would make the path relative and say nothing
    if member.name.startswith("/"):
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, folder)


_ANOTHER = "Nothing was unpacked: give another copy, or remove it (and leave its option away) to download it."


@contextmanager
def open_tar(archive: str | Path, remedy: str = _ANOTHER, file: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """Read a tar archive (plain or compressed) to its end, with a progress bar.

    Whatever tarfile and the decompressors raise of a damaged archive within the ``with`` block becomes an `ArchiveError`.

    Args:
        archive: the archive's path.
        remedy: the last sentences of error messages: what was done so far, and what to do now.
        file: an archive within an archive, open for reading; ``archive`` is then its name for messages.

    Raises:
        ArchiveError: no tar archive, damaged or cut short.
    """
    try:
        with ExitStack() as stack:
            if file is None:
                progress = stack.enter_context(byte_progress())
                file = stack.enter_context(progress.open(archive, "rb", description=f"unpacking {Path(archive).name}"))
            try:
                tar = stack.enter_context(tarfile.open(fileobj=file))
            except tarfile.ReadError as error:
                file.seek(0)
                # tarfile's own message has a line for every kind of compression
                raise ArchiveError(f"{archive} is no tar archive: it begins with {file.read(20)!r}. {remedy}") from error
            yield tar
            _require_end(tar)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, UnicodeError, OSError) as error:
        # gzip and bz2 report damage by an OSError without errno; those with one come from the system
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ArchiveError(f"{archive} is damaged or cut short: {error}. {remedy}") from error


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The content of a regular file of an archive."""
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _require_end(tar: tarfile.TarFile) -> None:
    """A cut between two members, or within the header of one, is no error to tarfile: look for the block of zeros."""
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")
    # a compressed file's checksum comes last
    while stream.read(2**20):
        pass
