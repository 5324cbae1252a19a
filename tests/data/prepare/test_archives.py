"""Archives that are cut, damaged or hostile, and unpacking that is killed."""

from __future__ import annotations

import errno
import gzip
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from real_layouts import in_child, tree_of, write_tar

from gbseg.data.prepare import archives
from gbseg.data.prepare.archives import ArchiveError, finish_unpacking, unpack
from gbseg.files import FileWriteError

RNG = np.random.default_rng(0)
FILES = {
    "top/list.txt": b"one\ntwo\nthree\n",
    "top/empty": b"",
    "top/sub/block": RNG.bytes(512),
    "top/sub/large": RNG.bytes(30_000),
    "top/last": RNG.bytes(700),
}


@pytest.fixture(params=["a.tar", "a.tgz"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "given" / request.param
    path.parent.mkdir()
    write_tar(path, FILES)
    return path


def test_whole(archive: Path, tmp_path: Path) -> None:
    """All files, and nothing beside them."""
    unpack(archive, tmp_path / "to")
    assert tree_of(tmp_path / "to") == FILES


def test_cut(archive: Path, tmp_path: Path) -> None:
    """Wherever it ends, between two members as well, it is refused in one sentence and leaves nothing."""
    data = archive.read_bytes()
    # a plain archive ends with blocks of zeros, of which the first is enough
    end = len(data) if archive.suffix == ".tgz" else len(data.rstrip(b"\0")) // 512 * 512 + 1024
    for length in {*range(0, end, 512), *range(7, end, 1000), end - 1}:
        archive.write_bytes(data[:length])
        with pytest.raises(ArchiveError, match=r"a\.t.*(is damaged or cut short|is no tar archive): ") as caught:
            unpack(archive, tmp_path / "to")
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "to").iterdir())


def test_damage(archive: Path, tmp_path: Path) -> None:
    """A flipped byte of a compressed file is found; a web page in place of an archive is shown."""
    data = bytearray(archive.read_bytes())
    if archive.suffix == ".tgz":
        for position in range(20, len(data), 1500):
            archive.write_bytes(data[:position] + bytes([data[position] ^ 255]) + data[position + 1 :])
            with pytest.raises(ArchiveError, match=r"is damaged|is no tar archive"):
                unpack(archive, tmp_path / "to")
    archive.write_bytes(b"<html>" + bytes(10_000))
    with pytest.raises(ArchiveError, match=r"is no tar archive: it begins with b'<html>"):
        unpack(archive, tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    "members",
    [
        [_member("../evil")],
        [_member("top/../../evil")],
        [_member("/evil")],
        [_member("top/link", tarfile.SYMTYPE, "../../evil")],
        [_member("top/link", tarfile.SYMTYPE, "/etc")],
        [_member("top/link", tarfile.LNKTYPE, "../evil")],
        [_member("top/device", tarfile.CHRTYPE)],
    ],
    ids=lambda members: f"{members[0].name}->{members[0].linkname}",
)
def test_climbing(members: list[tarfile.TarInfo], tmp_path: Path) -> None:
    """Member and archive are named; nothing is outside, nor inside, not even what came before it."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        good = _member("top/good")
        good.size = 4
        tar.addfile(good, io.BytesIO(b"good"))
        for member in members:
            tar.addfile(member)
    (tmp_path / "inner" / "to").mkdir(parents=True)
    with pytest.raises(ArchiveError, match=r"a\.tar holds '.*', which is refused") as caught:
        unpack(tmp_path / "a.tar", tmp_path / "inner" / "to")
    assert members[0].name in str(caught.value)
    assert list(tree_of(tmp_path)) == ["a.tar"] and not list((tmp_path / "inner" / "to").iterdir())
    assert not Path("/evil").exists()


def test_what_is_there(archive: Path, tmp_path: Path) -> None:
    """Stays as it is, except what an interrupted tar left."""
    to = tmp_path / "to" / "top"
    to.mkdir(parents=True)
    (to / "list.txt").write_bytes(b"mine")
    (to / "other").write_bytes(b"mine too")
    (to / "last").write_bytes(FILES["top/last"][:300])
    unpack(archive, tmp_path / "to")
    assert tree_of(tmp_path / "to") == {**FILES, "top/list.txt": b"mine", "top/other": b"mine too"}


@pytest.mark.parametrize("existing", [False, True])
def test_killed(archive: Path, tmp_path: Path, existing: bool) -> None:
    """At every rename: what is whole is finished without the archive, what is not leaves nothing."""
    outcomes = set()
    for number in range(9):
        to = tmp_path / str(number)
        if existing:
            (to / "top" / "sub").mkdir(parents=True)

        def killed(number: int = number, to: Path = to) -> None:
            count = iter(range(100))

            def or_die(rename: Callable) -> Callable:
                def rename_or_die(*names: object) -> None:
                    if next(count) == number:
                        os.kill(os.getpid(), 9)
                    rename(*names)

                return rename_or_die

            os.rename, os.replace = or_die(os.rename), or_die(os.replace)
            unpack(archive, to)

        if in_child(killed) == "":
            break
        assert not (to / "top" / "last").exists() or existing
        finish_unpacking(to)
        outcomes.add(bool(tree_of(to)))
        if tree_of(to):
            assert tree_of(to) == FILES
        assert not list(to.glob(".*"))
        unpack(archive, to)
        assert tree_of(to) == FILES
    # before the folder is called whole, and after
    assert outcomes == {False, True} and number == (6 if existing else 2)


def test_full_disk(archive: Path, tmp_path: Path) -> None:
    """The room is given back."""
    error = in_child(lambda: unpack(archive, tmp_path / "to"), limit=20_000)
    assert error and "could not be unpacked to" in error and "File too large" in error and "MiB are free" in error
    assert not list((tmp_path / "to").iterdir())


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no second file system to link to")
def test_a_folder_linked_to_another_disk(archive: Path, tmp_path: Path) -> None:
    """A rename cannot cross file systems: what goes there is copied, and what was there stays."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as linked:
        if Path(linked).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm is on the file system of the temporary folder")
        to = tmp_path / "to"
        to.mkdir()
        Path(linked, "mine").write_bytes(b"mine")
        (to / "top").symlink_to(linked)
        unpack(archive, to)
        # rglob does not follow a link
        assert tree_of(Path(linked)) == {name.removeprefix("top/"): data for name, data in FILES.items()} | {"mine": b"mine"}
        assert not list(to.glob(".*"))


def _zeros(path: Path, header: bytes, size: int) -> Path:
    """A compressed archive of a header and zeros, of which a thousand take one byte."""
    with gzip.open(path, "wb", 1) as file:
        file.write(header)
        for _ in range(size // 2**20):
            file.write(bytes(2**20))
    return path


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = _member(name, kind)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a file": (
        lambda path: _zeros(path, _header("top/zeros", 2**40), 2**24),
        r"declares files of more than 1,073,741,824 bytes up to 'top/zeros'",
    ),
    "empty files": (
        lambda path: _zeros(path, b"".join(_header(f"top/{k}", 0) for k in range(5000)), 0),
        r"declares files of more than 16,777,216 bytes up to 'top/4096'",
    ),
    "a name": (
        lambda path: _zeros(path, _header("././@LongLink", 2**34, tarfile.GNUTYPE_LONGNAME), 2**24),
        r"holds a name or header of 17,179,869,184 bytes",
    ),
    "a pax header": (
        lambda path: _zeros(path, _header("top/x", 0) + _header("pax", 2**33, tarfile.XHDTYPE), 2**24),
        r"holds a name or header of 8,589,934,592 bytes",
    ),
    "what comes after it": (lambda path: _zeros(path, _header("top/x", 0), 2**30 + 2**22), "goes on and on after its end"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_archive_of_something_large(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before anything is written, in a sentence."""
    make, match = BOMBS[kind]
    if kind == "empty files":
        # 262,144 of them take minutes
        monkeypatch.setattr(archives, "_HARMLESS", 2**24)
    path = make(tmp_path / "a.tgz")
    assert path.stat().st_size < 2**23
    with pytest.raises(ArchiveError, match=match) as caught:
        unpack(path, tmp_path / "to")
    assert "not the official archive, do not trust it" in str(caught.value) or kind == "what comes after it"
    assert "Nothing was unpacked" in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "to").iterdir())


def test_too_little_room(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is written; a file takes whole blocks of the disk."""
    needed = sum(-(-max(len(data), 1) // 4096) * 4096 for data in FILES.values()) + 2 * 4096
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(
        FileWriteError, match=rf"{archive} holds files of 0\.1 MiB, and 0\.1 MiB are free in \S+/to; nothing"
    ) as caught:
        unpack(archive, tmp_path / "to")
    assert caught.value.errno == errno.ENOSPC and not list((tmp_path / "to").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    unpack(archive, tmp_path / "to")
    assert tree_of(tmp_path / "to") == FILES


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (
            [f"top/{'n' * 300}"],
            r"holds the name 'top/n+'\.\.\., which is too long: 300 bytes in one part, and file systems take 255",
        ),
        (["ä" * 130], r"which is too long: 260 bytes in one part"),
        (["/".join(["part"] * 1000)], r"which is too long: 4,999 bytes, and file systems take 4,096"),
        (["top/x", "top/x/"], r"holds 'top/x' both as a file and as a folder"),
        (["top/x/", "top/x"], r"holds 'top/x' both as a file and as a folder"),
        (["top/x", "./top/x/y"], r"holds 'top/x' both as a file and as a folder"),
        (["top/x/y", "top//x"], r"holds 'top/x' both as a file and as a folder"),
    ],
)
def test_impossible_names(tmp_path: Path, names: list[str], match: str) -> None:
    """They are called what they are, and not a full disk."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(_member("top/good"))
        for name in names:
            tar.addfile(_member(name, tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE))
    with pytest.raises(ArchiveError, match=match) as caught:
        unpack(tmp_path / "a.tar", tmp_path / "to")
    assert "free" not in str(caught.value) and not list((tmp_path / "to").iterdir())


def test_a_name_that_is_there_as_another_kind(archive: Path, tmp_path: Path) -> None:
    """Nothing of the archive is lost: it is said, and when it is moved away the rest is done without the archive."""
    (tmp_path / "to/top/last").mkdir(parents=True)
    (tmp_path / "to/top/sub").write_bytes(b"mine")
    with pytest.raises(ArchiveError, match=r"to/top/\w+ is a \w+, and a \w+ in the archive: move it away"):
        unpack(archive, tmp_path / "to")
    (tmp_path / "to/top/sub").rename(tmp_path / "to/top/mine")
    with pytest.raises(ArchiveError, match=r"to/top/last is a folder, and a file in the archive: move it away"):
        finish_unpacking(tmp_path / "to")
    (tmp_path / "to/top/last").rmdir()
    archive.unlink()
    finish_unpacking(tmp_path / "to")
    assert tree_of(tmp_path / "to") == {**FILES, "top/mine": b"mine"}
