"""Safe unpacking of tar archives: nothing outside of the folder, nothing in part, no existing file replaced."""

import errno
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

    Before anything is written it is read to its end, and its names and the sizes that it declares are looked at. It is then
    unpacked to a hidden folder and moved. A bad archive leaves nothing, and `finish_unpacking` finishes or removes what a
    killed process leaves. Existing files stay as they are, except those that are a first part of the archive's file, as an
    interrupted ``tar`` leaves them.

    Raises:
        ArchiveError: the archive is cut short, damaged or no tar archive; a member would land outside of the folder, has a name
            that no file system takes, or is a file where another is a folder; its files are much larger than the archive; or it
            has a folder where there is a file already.
        FileWriteError: the disk is full, or has too little room for the archive's files.
        RuntimeError: Python is older than 3.11.4 and its tarfile has no filters.
    """
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError("the tarfile of this Python cannot unpack safely: use 3.11.4 or later, or unpack it yourself.")
    archive, folder = Path(archive), Path(folder)
    partial = folder / _UNPACKING.format(archive.name)
    try:
        finish_unpacking(folder)
        partial.mkdir(parents=True)
        _require_sound(archive, partial)
        with open_tar(archive) as tar:
            for member in tar:
                # once more: what is unpacked through a link of the archive shows only when the link is there
                with _refused_members(archive, member):
                    tar.extract(member, partial, filter=_only_inside)
        # the new name means that all files are there, also after a power cut
        sync_disks()
        partial.rename(folder / _UNPACKED.format(archive.name))
        finish_unpacking(folder)
    except FileWriteError:
        raise
    except OSError as error:
        no_room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = f"({free_space(folder)})" if no_room else f"({error.filename})" if error.filename else ""
        raise FileWriteError(
            error.errno, f"{archive} could not be unpacked to {folder}: {error.strerror} {what}".rstrip()
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


_DISTRUST = "Nothing was unpacked; this is not the official archive, do not trust it."
# photographs hardly compress, label maps tenfold; below the first number an archive may be anything
_HARMLESS, _TIMES = 2**30, 20
_BLOCK = 4096  # what a file takes at least, so that a million empty ones count as well
_NAME, _PATH = 255, 4096  # bytes that file systems take


def _require_sound(archive: Path, folder: Path) -> None:
    """Look at all members before the first is written."""
    most, free = max(_HARMLESS, _TIMES * archive.stat().st_size), shutil.disk_usage(folder).free
    needed, kinds = 0, dict[str, bool]()
    with open_tar(archive, looking=True) as tar:
        for member in tar:
            with _refused_members(archive, member):
                _only_inside(member, str(folder))
            _require_possible_name(archive, member, kinds)
            needed += -(-max(member.size, 1) // _BLOCK) * _BLOCK
            if needed > most:
                raise ArchiveError(
                    f"{archive} has {archive.stat().st_size:,} bytes and declares files of more than {most:,} bytes up to "
                    f"{member.name[:80]!r}, which is refused: photographs and label maps do not compress like that. {_DISTRUST}"
                )
    if needed > free:
        raise FileWriteError(
            errno.ENOSPC,
            f"{archive} holds files of {needed / 2**20:,.1f} MiB, and {free / 2**20:,.1f} MiB are free in {folder.parent}; "
            "nothing was unpacked",
        )


@contextmanager
def _refused_members(archive: Path, member: tarfile.TarInfo) -> Iterator[None]:
    try:
        yield
    except tarfile.FilterError as error:
        raise ArchiveError(f"{archive} holds {member.name!r}, which is refused: {error}. {_DISTRUST}") from error


def _require_possible_name(archive: Path, member: tarfile.TarInfo, kinds: dict[str, bool]) -> None:
    """Refuse names that no file system takes, and one name for a file and a folder; ``kinds``: name -> whether it is a file."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    longest = max((len(os.fsencode(part)) for part in parts), default=0)
    if longest > _NAME or len(os.fsencode(member.name)) > _PATH:
        what = f"{longest:,} bytes in one part" if longest > _NAME else f"{len(os.fsencode(member.name)):,} bytes"
        limit = _NAME if longest > _NAME else _PATH
        raise ArchiveError(
            f"{archive} holds the name {member.name[:40]!r}..., which is too long: {what}, and file systems take {limit:,}. "
            f"{_DISTRUST}"
        )
    names = ["/".join(parts[: k + 1]) for k in range(len(parts))]
    for name in names:
        # the last part is what the member is, those before are folders
        is_file = name == names[-1] and not member.isdir()
        if kinds.setdefault(name, is_file) != is_file:
            raise ArchiveError(f"{archive} holds {name[:80]!r} both as a file and as a folder. {_DISTRUST}")


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
    elif source.is_dir() != target.is_dir():
        kinds = ("a file", "a folder") if source.is_dir() else ("a folder", "a file")
        raise ArchiveError(f"{target} is {kinds[0]}, and {kinds[1]} in the archive: move it away and start again.")


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


class _LongHeaderError(Exception):
    """A name or another record about a member is too long to be read."""


class _Member(tarfile.TarInfo):
    """A member of an archive. tarfile reads its name into memory, however long the archive says that it is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        # what these hold is about the next member
        kinds = tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
        if member.type in kinds and member.size > 2**20:
            raise _LongHeaderError(f"a name or header of {member.size:,} bytes")
        return member


_ANOTHER = "Nothing was unpacked: give another copy, or remove it (and leave its option away) to download it."


@contextmanager
def open_tar(
    archive: str | Path, remedy: str = _ANOTHER, file: IO[bytes] | None = None, looking: bool = False
) -> Iterator[tarfile.TarFile]:
    """Read a tar archive (plain or compressed) to its end, with a progress bar.

    Whatever tarfile and the decompressors raise of a damaged archive within the ``with`` block becomes an `ArchiveError`.

    Args:
        archive: the archive's path.
        remedy: the last sentences of error messages: what was done so far, and what to do now.
        file: an archive within an archive, open for reading; ``archive`` is then its name for messages.
        looking: whether nothing is unpacked, for the progress bar.

    Raises:
        ArchiveError: no tar archive, damaged or cut short.
    """
    try:
        with ExitStack() as stack:
            if file is None:
                progress, title = stack.enter_context(byte_progress()), "reading" if looking else "unpacking"
                file = stack.enter_context(progress.open(archive, "rb", description=f"{title} {Path(archive).name}"))
            try:
                tar = stack.enter_context(tarfile.open(fileobj=file, tarinfo=_Member))
            except tarfile.ReadError as error:
                file.seek(0)
                # tarfile's own message has a line for every kind of compression
                raise ArchiveError(f"{archive} is no tar archive: it begins with {file.read(20)!r}. {remedy}") from error
            yield tar
            _require_end(tar)
    except _LongHeaderError as error:
        raise ArchiveError(f"{archive} holds {error}: this is not the official archive, do not trust it. {remedy}") from error
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, UnicodeError, OSError) as error:
        # gzip and bz2 report damage by an OSError without errno; those with one come from the system
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ArchiveError(f"{archive} is damaged or cut short: {error}. {remedy}") from error


_MOST_BYTES = 2**28  # of a file that is read into memory; ImageNet's largest image has 2**24


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, archive: str | Path) -> bytes:
    """The content of a regular file of an archive.

    Raises:
        ArchiveError: the file is too large to be an image or a list.
    """
    if member.size > _MOST_BYTES:
        raise ArchiveError(
            f"{archive} holds {member.name} of {member.size:,} bytes, and at most {_MOST_BYTES:,} are read: this is not the "
            "official archive, do not trust it."
        )
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
    for _ in range(_HARMLESS // 2**20):
        if not stream.read(2**20):
            return
    raise tarfile.ReadError("it goes on and on after its end")
