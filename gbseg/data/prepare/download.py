"""Resumable download of large files over http(s), verified before they get their final name."""

import errno
import hashlib
import http.client
import io
import os
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from gbseg._moved import add_moved_names
from gbseg.files import FileWriteError, free_space, sync_folder

__all__ = ["DownloadError", "byte_progress", "download_file", "file_md5", "require_md5"]

_CHUNK = 2**18


class DownloadError(RuntimeError):
    """A file could not be downloaded; the bytes received so far are kept for the next attempt."""


def byte_progress() -> Progress:
    """A progress bar in bytes, which is shown if the standard error is a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def file_md5(path: str | Path) -> str:
    """The MD5 of a file, in hexadecimal digits."""
    md5 = hashlib.md5(usedforsecurity=False)
    with byte_progress() as progress, progress.open(path, "rb", description=f"MD5 of {Path(path).name}") as file:
        while chunk := file.read(2**20):
            md5.update(chunk)
    return md5.hexdigest()


def require_md5(
    path: str | Path, md5: str, remedy: str = "Give another copy, or remove it (and leave its option away) to download it"
) -> None:
    """Refuse a file that is not the official one.

    Args:
        path: the file.
        md5: MD5 of the official file, in hexadecimal digits.
        remedy: what to do, for the message.

    Raises:
        ValueError: the file has another MD5.
    """
    if (actual := file_md5(path)) != md5:
        raise ValueError(
            f"{path} has the MD5 {actual}, the official file has {md5}: it is damaged, cut short or another version. {remedy}, "
            "or say --no-verify if you know that it is good."
        )


class _NoRetryError(Exception):
    """The server refuses, and would refuse again."""


def download_file(url: str, path: str | Path, md5: str | None = None, attempts: int = 5, pause: float = 1.0) -> None:
    """Download a file, and continue what an earlier attempt left in ``<path>.part``.

    From a server without range requests, the file is downloaded from its beginning again. It gets its final name when it is
    complete and its MD5 is right.

    Args:
        url: http or https.
        path: the file to write; an existing one is replaced.
        md5: the expected MD5 in hexadecimal digits; with None, only the length is checked.
        attempts: number of consecutive attempts without a new byte after which it gives up.
        pause: seconds before the second attempt; doubled with each further one.

    Raises:
        ValueError: the URL is neither http nor https, or the MD5 is wrong (the file is then kept as ``<path>.wrong``).
        DownloadError: the server refuses, has no such file, or sent nothing new in ``attempts`` attempts.
        FileWriteError: the disk is full.
    """
    path = Path(path)
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{url} is no http or https address; a file of this machine is given by its --...-tar option.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    reached, failures = 0, 0
    with byte_progress() as progress:
        bar = progress.add_task(path.name, total=None)
        while True:
            try:
                _fetch(url, part, progress, bar)
                break
            except FileWriteError:
                raise
            except (_NoRetryError, OSError, http.client.HTTPException) as error:
                length = part.stat().st_size if part.exists() else 0
                # only bytes beyond those of earlier attempts count, or a server without ranges would be asked forever
                failures = 1 if length > reached else failures + 1
                reached = max(reached, length)
                if isinstance(error, _NoRetryError) or failures >= attempts:
                    kept = f" The next start continues after the {length:,} bytes in {part}." if length else ""
                    raise DownloadError(
                        f"{url} could not be downloaded: {_why(error)}.{kept} The original hosts are often down: name another "
                        f"by a --...-mirror option, or put the file at {path}."
                    ) from error
                time.sleep(pause * 2 ** (failures - 1))
    if md5 is not None and (actual := file_md5(part)) != md5:
        wrong = path.with_name(path.name + ".wrong")
        part.replace(wrong)
        raise ValueError(
            f"what {url} sent has the MD5 {actual}, the official file has {md5}; it is kept as {wrong}. Start again to "
            "download it anew, name another host by a --...-mirror option, or, if you know that it is good, rename it to "
            f"{path.name} and say --no-verify."
        )
    with part.open("rb") as file:
        # before the rename: the name must not reach the disk before the data
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def _why(error: Exception) -> str:
    # a URLError wraps the error that says why; an HTTPError, which is one too, says its status
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        return str(error.reason)
    return str(error) or type(error).__name__


def _fetch(url: str, part: Path, progress: Progress, bar: TaskID) -> None:
    """One attempt; returns when ``part`` is complete."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "gbseg"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                # no bytes after ours: the part is complete, or it is not of this file
                if error.headers.get("Content-Range", "").rpartition("/")[2] != str(have):
                    part.unlink()
                    raise ConnectionError(f"the server has fewer bytes than {part}, which is begun anew") from None
                return
            if error.code < 500 and error.code not in (408, 425, 429):
                raise _NoRetryError(f"the server answers {error.code} {error.reason}") from None
            raise
    with response:
        if response.status == 206:
            start, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            if start.partition("-")[0] != str(have):
                part.unlink()
                raise ConnectionError(f"the server sent bytes {start or '?'} when asked for those from {have}; begun anew")
        else:
            have, total = 0, response.headers.get("Content-Length", "")
        size = int(total) if total.isdigit() else None
        if size is not None and size - have > (free := shutil.disk_usage(part.parent).free):
            raise FileWriteError(
                errno.ENOSPC, f"{part} needs {(size - have) / 2**20:.0f} MiB more and {free / 2**20:.0f} MiB are free"
            )
        progress.update(bar, total=size, completed=have)
        # unbuffered: closing a buffer would write again what the disk refused
        with part.open("ab" if have else "wb", buffering=0) as file:
            while chunk := response.read1(_CHUNK):
                _write(file, chunk, part)
                have += len(chunk)
                progress.update(bar, completed=have)
    # http.client raises nothing if the connection ends early while it reads in pieces
    if size is not None and have < size:
        raise ConnectionError(f"the connection ended after {have:,} of {size:,} bytes")
    if size is not None and have > size:
        part.unlink()
        raise ConnectionError(f"the server sent {have:,} bytes and had announced {size:,}")


def _write(file: io.FileIO, chunk: bytes, part: Path) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        # of its own type, because an OSError of the connection is tried again
        raise FileWriteError(
            error.errno,
            f"{part} could not be written: {error.strerror} ({free_space(part.parent)}); what has come is kept and continued",
        ) from error


add_moved_names(__name__)
