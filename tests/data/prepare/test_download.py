"""Downloads from a real server that drops, lies and forgets."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from real_layouts import Server, in_child, md5_of, serving

from gbseg.data.prepare.download import DownloadError, download_file, require_md5

DATA = np.random.default_rng(0).bytes(100_000)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.files["a.tar"] = DATA
        yield running


def _fetch(server: Server, path: Path, md5: str | None = md5_of(DATA), name: str = "a.tar") -> None:
    download_file(server.url + name, path, md5, attempts=3, pause=0.001)


def _whole(path: Path) -> None:
    assert path.read_bytes() == DATA
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_whole(server: Server, tmp_path: Path) -> None:
    """One request, without a range; the folder is made."""
    _fetch(server, tmp_path / "new" / "a.tar")
    _whole(tmp_path / "new" / "a.tar")
    assert server.asked == [None]


def test_continued(server: Server, tmp_path: Path) -> None:
    """Only what is missing is asked for."""
    (tmp_path / "a.tar.part").write_bytes(DATA[:70_000])
    _fetch(server, tmp_path / "a.tar")
    _whole(tmp_path / "a.tar")
    assert server.asked == ["bytes=70000-"]


def test_dropped_connections(server: Server, tmp_path: Path) -> None:
    """As often as it takes, as long as each brings something: more often than the attempts without any."""
    server.drop_after = 15_000
    _fetch(server, tmp_path / "a.tar")
    _whole(tmp_path / "a.tar")
    assert server.asked == [None, *(f"bytes={n}-" for n in range(15_000, 100_000, 15_000))]


def test_ranges_ignored(server: Server, tmp_path: Path) -> None:
    """The whole comes again and replaces what was there."""
    server.ranges = False
    (tmp_path / "a.tar.part").write_bytes(DATA[:70_000])
    _fetch(server, tmp_path / "a.tar")
    _whole(tmp_path / "a.tar")


def test_ranges_ignored_and_dropped(server: Server, tmp_path: Path) -> None:
    """It ends, though every attempt brings bytes."""
    server.ranges, server.drop_after = False, 60_000
    with pytest.raises(DownloadError, match=r"ended after 60,000 of 100,000 bytes\. The next start continues after the 60,000"):
        _fetch(server, tmp_path / "a.tar")
    assert len(server.asked) == 3 and not (tmp_path / "a.tar").exists()
    assert (tmp_path / "a.tar.part").read_bytes() == DATA[:60_000]


def test_part_that_is_whole(server: Server, tmp_path: Path) -> None:
    """A kill between the last byte and the name: nothing is sent again."""
    (tmp_path / "a.tar.part").write_bytes(DATA)
    _fetch(server, tmp_path / "a.tar")
    _whole(tmp_path / "a.tar")
    assert server.asked == ["bytes=100000-"]


@pytest.mark.parametrize("shift", [0, 5])
def test_part_that_does_not_fit(server: Server, tmp_path: Path, shift: int) -> None:
    """Longer than the file, or continued at another byte than asked for: begun anew, not glued together."""
    (tmp_path / "a.tar.part").write_bytes(DATA[:500] if shift else DATA + b"more")
    server.shift = shift
    _fetch(server, tmp_path / "a.tar", md5=None)
    _whole(tmp_path / "a.tar")
    assert server.asked[1] is None


def test_wrong_md5(server: Server, tmp_path: Path) -> None:
    """What came lies aside, both sums are said, and the next start begins anew."""
    (tmp_path / "a.tar.part").write_bytes(b"x" + DATA[1:500])
    wrong = b"x" + DATA[1:]
    with pytest.raises(ValueError, match=f"MD5 {md5_of(wrong)}, the official file has {md5_of(DATA)}.*--no-verify"):
        _fetch(server, tmp_path / "a.tar")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar.wrong"]
    assert (tmp_path / "a.tar.wrong").read_bytes() == wrong
    _fetch(server, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == DATA


def test_refused(server: Server, tmp_path: Path) -> None:
    """Not found is not asked for again; a server that is busy is."""
    with pytest.raises(DownloadError, match=r"b\.tar could not be downloaded: the server answers 404 Not Found\. The original"):
        _fetch(server, tmp_path / "b.tar", name="b.tar")
    assert server.asked == [None] and not list(tmp_path.iterdir())
    server.statuses = [503, 429]
    _fetch(server, tmp_path / "a.tar")
    _whole(tmp_path / "a.tar")


def test_nobody_there(tmp_path: Path) -> None:
    """The reason and the remedies, not urllib's wrapping."""
    with serving() as gone:
        pass
    message = (
        rf"{re.escape(gone.url)}a\.tar could not be downloaded: \[Errno 111\] Connection refused\. The .*-mirror.*a\.tar\."
    )
    with pytest.raises(DownloadError, match=message):
        _fetch(gone, tmp_path / "a.tar")
    with pytest.raises(ValueError, match="no http or https"):
        download_file("file:///etc/passwd", tmp_path / "x")


def test_no_length(server: Server, tmp_path: Path) -> None:
    """A server that does not say how much is coming: the MD5 decides."""
    server.announce = False
    _fetch(server, tmp_path / "a.tar")
    _whole(tmp_path / "a.tar")
    server.drop_after = 1000
    with pytest.raises(ValueError, match="MD5"):
        _fetch(server, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not tried again, and what has come is continued later; too little room is said before the first byte."""
    error = in_child(lambda: _fetch(server, tmp_path / "a.tar"), limit=40_000)
    assert error and re.match(r"FileWriteError: .*a\.tar\.part could not be written: File too large \(.* free\)", error)
    assert len(server.asked) == 1 and (tmp_path / "a.tar.part").read_bytes() == DATA[:40_000]
    _fetch(server, tmp_path / "a.tar")
    _whole(tmp_path / "a.tar")
    assert server.asked == [None, "bytes=40000-"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 99_999))
    with pytest.raises(OSError, match="needs 0 MiB more"):
        _fetch(server, tmp_path / "b")
    assert not (tmp_path / "b.part").exists()


def test_local_md5(tmp_path: Path) -> None:
    """The right file passes, another is named with both sums."""
    (tmp_path / "a").write_bytes(DATA)
    require_md5(tmp_path / "a", md5_of(DATA))
    with pytest.raises(ValueError, match=f"a has the MD5 {md5_of(DATA)}, the official file has {'0' * 32}.*--no-verify"):
        require_md5(tmp_path / "a", "0" * 32)
