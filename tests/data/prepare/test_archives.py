"""Archives that are cut, damaged or hostile, and unpacking that is killed."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from real_layouts import in_child, tree_of, write_tar

from gbseg.data.prepare.archives import ArchiveError, finish_unpacking, unpack

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
