"""Large files over http(s): continued where the connection broke, and checked before they get their name."""

from __future__ import annotations

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

from gbseg.files import FileWriteError, free_space, sync_folder

__all__ = ["DownloadError", "byte_progress", "download", "file_md5", "require_md5"]

_CHUNK = 2**18


class DownloadError(RuntimeError):
    """A file could not be fetched; what has come so far is kept for the next attempt."""


def byte_progress() -> Progress:
    """A progress bar that counts bytes (shown where the standard error is a terminal)."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def file_md5(path: str | Path) -> str:
    """The MD5 of a file, in hexadecimal digits."""
    path, md5 = Path(path), hashlib.md5(usedforsecurity=False)
    with byte_progress() as progress, path.open("rb") as file:
        bar = progress.add_task(f"MD5 of {path.name}", total=path.stat().st_size)
        while chunk := file.read(2**20):
            md5.update(chunk)
            progress.advance(bar, len(chunk))
    return md5.hexdigest()


def require_md5(
    path: str | Path, md5: str, remedy: str = "Give another copy, or remove it (and leave its option away) to download it"
) -> None:
    """Refuse a file that is not the official one.

    Args:
        path: the file.
        md5: the official one's, in hexadecimal digits.
        remedy: what to do, for the message.

    Raises:
        ValueError: its MD5 is another one.
    """
    found = file_md5(path)
    if found != md5:
        raise ValueError(
            f"{path} has the MD5 {found}, the official file has {md5}: it is damaged, cut short or another version. {remedy}, "
            "or say --no-verify if you know that it is good."
        )


class _NoRetryError(Exception):
    """The server's answer will not get better."""


def download(url: str, path: str | Path, md5: str | None = None, attempts: int = 5, pause: float = 1.0) -> None:
    """Fetch a file; what an earlier attempt left in ``<path>.part`` is continued.

    A server that knows no ranges is asked for the whole again. The file has its name only when it is whole and, with ``md5``,
    right.

    Args:
        url: http or https.
        path: where to; a file that is there already is replaced.
        md5: what it must have, in hexadecimal digits; None takes whatever comes at the announced length.
        attempts: in a row without a new byte before it gives up.
        pause: seconds before the second attempt; doubled with each further one.

    Raises:
        ValueError: the URL is neither http nor https, or the MD5 is wrong: the file is then at ``<path>.wrong``.
        DownloadError: refused, not found, or no more came after so many attempts.
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
                # bytes that were there before are no progress: a server without ranges would be asked for ever
                failures = 1 if length > reached else failures + 1
                reached = max(reached, length)
                if isinstance(error, _NoRetryError) or failures >= attempts:
                    kept = f" The next start continues after the {length:,} bytes in {part}." if length else ""
                    raise DownloadError(
                        f"{url} could not be downloaded: {_why(error)}.{kept} The original hosts are often down: name another "
                        f"by a --...-mirror option, or put the file at {path}."
                    ) from error
                time.sleep(pause * 2 ** (failures - 1))
    if md5 is not None and (found := file_md5(part)) != md5:
        wrong = path.with_name(path.name + ".wrong")
        part.replace(wrong)
        raise ValueError(
            f"what {url} sent has the MD5 {found}, the official file has {md5}; it is kept as {wrong}. Start again to download "
            "it anew, name another host by a --...-mirror option, or, if you know that it is good, rename it to "
            f"{path.name} and say --no-verify."
        )
    with part.open("rb") as file:
        # the name must not reach the disk earlier than the bytes
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def _why(error: Exception) -> str:
    # a URLError hides the real one; an HTTPError is one and says its status
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        return str(error.reason)
    return str(error) or type(error).__name__


def _fetch(url: str, part: Path, progress: Progress, bar: TaskID) -> None:
    """One attempt: returns when ``part`` is whole."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "gbseg"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                # nothing lies behind what we have: all of it is here, or what is here is not of this file
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
        # unbuffered: a buffer would try again to write what the disk refused when it is closed
        with part.open("ab" if have else "wb", buffering=0) as file:
            while chunk := response.read1(_CHUNK):
                _write(file, chunk, part)
                have += len(chunk)
                progress.update(bar, completed=have)
    # a connection that ends early is no error to http.client when it reads in pieces
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
        # said as what it is: an OSError of the connection would be tried again
        raise FileWriteError(
            error.errno,
            f"{part} could not be written: {error.strerror} ({free_space(part.parent)}); what has come is kept and continued",
        ) from error
