"""Unpacking tar archives so that nothing lands outside, nothing is half there, and nobody's files are replaced."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gbseg.data.prepare.download import byte_progress
from gbseg.files import FileWriteError, free_space, temporary_path

__all__ = ["ArchiveError", "damage_named", "finish_unpacking", "open_tar", "require_end", "unpack"]

# an archive is unpacked beside its target; the folder is renamed when all of it is there
_UNPACKING, _UNPACKED = ".{}.gbseg-unpacking", ".{}.gbseg-unpacked"


class ArchiveError(ValueError):
    """An archive is damaged, cut short, or holds what must not be unpacked."""


def unpack(archive: str | Path, folder: str | Path) -> None:
    """Unpack a tar archive (plain or compressed) into a folder.

    It is unpacked beside and then moved, so that an archive that turns out to be bad leaves nothing, and what a killed process
    leaves is finished or removed by `finish_unpacking`. Files that are there already stay as they are, except one that is the
    first part of the archive's, as an interrupted ``tar`` leaves it.

    Raises:
        ArchiveError: cut short, damaged, no tar archive, or a member would land outside of the folder.
        FileWriteError: the disk is full.
        RuntimeError: Python is older than 3.11.4, whose tarfile has no filters.
    """
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError("the tarfile of this Python cannot unpack safely: use 3.11.4 or later, or unpack it yourself.")
    archive, folder = Path(archive), Path(folder)
    partial = folder / _UNPACKING.format(archive.name)
    try:
        finish_unpacking(folder)
        partial.mkdir(parents=True)
        _extract(archive, partial)
        # the new name says that all is there: let that be true after a power cut as well
        os.sync()
        partial.rename(folder / _UNPACKED.format(archive.name))
        finish_unpacking(folder)
    except OSError as error:
        raise FileWriteError(
            error.errno, f"{archive} could not be unpacked to {folder}: {error.strerror} ({free_space(folder)})"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def finish_unpacking(folder: str | Path) -> None:
    """Finish what killed runs of `unpack` left in a folder: what is whole is moved (without the archive), the rest removed."""
    folder = Path(folder)
    for partial in folder.glob(_UNPACKING.format("*")):
        shutil.rmtree(partial)
    for whole in folder.glob(_UNPACKED.format("*")):
        for entry in whole.iterdir():
            _merge(entry, folder / entry.name)
        shutil.rmtree(whole)


def _merge(source: Path, target: Path) -> None:
    if not os.path.lexists(target):
        _move(source, target)
    elif source.is_dir() and target.is_dir():
        for entry in source.iterdir():
            _merge(entry, target / entry.name)
    elif source.is_file() and target.is_file() and _is_cut(target, source):
        _move(source, target)


def _move(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        # the user's folder is a link to another disk
        if error.errno != errno.EXDEV:
            raise
        if source.is_dir():
            target.mkdir()
            for entry in source.iterdir():
                _move(entry, target / entry.name)
        else:
            temporary = temporary_path(target)
            shutil.copyfile(source, temporary)
            temporary.replace(target)


def _is_cut(file: Path, whole: Path) -> bool:
    return file.stat().st_size < whole.stat().st_size and whole.read_bytes().startswith(file.read_bytes())


def _only_inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    # the filter would quietly make it relative
    if member.name.startswith("/"):
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, folder)


def _extract(archive: Path, folder: Path) -> None:
    with damage_named(archive), archive.open("rb") as file, byte_progress() as progress:
        bar = progress.add_task(f"unpacking {archive.name}", total=archive.stat().st_size)
        with open_tar(archive, file) as tar:
            for member in tar:
                try:
                    tar.extract(member, folder, filter=_only_inside)
                except tarfile.FilterError as error:
                    raise ArchiveError(
                        f"{archive} holds {member.name!r}, which is refused: {error}. Nothing was unpacked; this is not the "
                        "official archive, do not trust it."
                    ) from error
                progress.update(bar, completed=file.tell())
            require_end(tar)


_ANOTHER = "Nothing was unpacked: give another copy, or remove it (and leave its option away) to download it."


@contextmanager
def damage_named(archive: str | Path, remedy: str = _ANOTHER) -> Iterator[None]:
    """Whatever tarfile and the decompressors raise of a damaged archive, as one ArchiveError.

    Args:
        archive: its name, for the message.
        remedy: the message's last sentences: what was done so far, and what to do now.
    """
    what = f"{archive} is damaged or cut short"
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, UnicodeError) as error:
        raise ArchiveError(f"{what}: {error}. {remedy}") from error
    except OSError as error:
        if error.errno is None:
            # how gzip and bz2 say that what they read is damaged
            raise ArchiveError(f"{what}: {error}. {remedy}") from error
        raise


def open_tar(archive: str | Path, file: IO[bytes], remedy: str = _ANOTHER) -> tarfile.TarFile:
    """Open a tar archive (plain or compressed) for reading; the arguments are those of `damage_named`.

    Raises:
        ArchiveError: it is none.
    """
    try:
        return tarfile.open(fileobj=file)
    except tarfile.ReadError as error:
        file.seek(0)
        # its own message has a line for every kind of compression
        raise ArchiveError(f"{archive} is no tar archive: it begins with {file.read(20)!r}. {remedy}") from error


def require_end(tar: tarfile.TarFile) -> None:
    """A cut between two members, or within the header of one, is no error to tarfile: look for the block of zeros.

    Raises:
        ReadError: it is not there.
    """
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")
    # a compressed file's checksum comes last
    while stream.read(2**20):
        pass
