"""Files that are whole or not there, under the kernel's own file size limit."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gbseg import files
from gbseg.files import (
    FileWriteError,
    checkpoint_path,
    named_checkpoint,
    remove_temporary_files,
    require_folder,
    write_atomically,
)

LIMITED = """
import resource, signal, sys
from gbseg.files import FileWriteError, write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with EFBIG instead of killing the process
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(bytes(5000), sys.argv[1])
except FileWriteError as error:
    print(error.errno, error)
"""


def test_a_refused_write(tmp_path: Path) -> None:
    """What stood there stays, nothing lies beside it, and the message names file, reason and room."""
    path = tmp_path / "folder" / "file.bin"
    write_atomically(b"before", path)
    run = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.startswith(f"{errno.EFBIG} ") and f"{path} could not be written: File too large" in run.stdout
    assert "(it takes 0.0 MiB, " in run.stdout and "MiB are free)" in run.stdout
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"] and path.read_bytes() == b"before"


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    """The folder cannot be made: the same error."""
    Path(tmp_path, "file").write_bytes(b"")
    with pytest.raises(FileWriteError, match=r"file/x could not be written"):
        write_atomically(b"1", tmp_path / "file" / "x")


def test_what_a_kill_leaves(tmp_path: Path) -> None:
    """The temporary file of a killed process is removed, other hidden files are not."""
    script = "import os, sys; from gbseg import files; files.os.fsync = lambda _: os.kill(os.getpid(), 9); "
    run = subprocess.run(
        [sys.executable, "-c", script + "files.write_atomically(b'new', sys.argv[1])", tmp_path / "a"], timeout=60, check=False
    )
    assert run.returncode == -9
    Path(tmp_path, ".mine").write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == 2 and not Path(tmp_path, "a").exists()
    remove_temporary_files(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [".mine"]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("kept")
    require_folder(None)
    require_folder(tmp_path / "new/one")
    for path in (tmp_path / "page", tmp_path / "page/under"):
        with pytest.raises(ValueError, match=r"is to be a folder, and .*page is a file: name another\."):
            require_folder(path)
    assert (tmp_path / "page").read_text() == "kept" and not (tmp_path / "new").exists()


WITHOUT_POSIX = """
import os, pkgutil, sys
from pathlib import Path

# ModuleNotFoundError, which is what None in sys.modules raises, is how Windows answers
sys.modules.update(dict.fromkeys(("fcntl", "grp", "pwd", "resource", "syslog", "termios"), None))
if hasattr(os, "sync"):
    del os.O_DIRECTORY, os.sync, os.sched_getaffinity

import torch
import gbseg, gbseg.data, gbseg.data.prepare

gbseg.ExpGBLoss()(torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 2])).backward()
for package in (gbseg.data, gbseg.data.prepare):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        __import__(module.name)

from gbseg.data.masks import read_mask
from gbseg.data.scenes import write_scenes
from gbseg.files import lock_folder, sync_disks, sync_folder
from gbseg.parallel import available_cores

root = write_scenes(sys.argv[1], 1, 1, (64, 64))
assert read_mask(root / "SegmentationClass/train_000000.png").shape == (64, 64)
sync_disks()
sync_folder(root)
assert available_cores() >= 1
with lock_folder(root, 0), lock_folder(root, 0):
    pass
"""


def test_without_posix_modules(tmp_path: Path) -> None:
    """The losses, the data modules and atomic writes work where Python has no POSIX modules; folders are then not locked."""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, tmp_path], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr


def test_no_posix_module_at_import_time() -> None:
    """In no module of the package, also those that need the MM packages."""
    pattern = re.compile(r"^(import|from) (fcntl|grp|pwd|resource|syslog|termios)\b", re.MULTILINE)
    modules = list(Path(files.__file__).parent.rglob("*.py"))
    assert len(modules) > 50 and [path for path in modules if pattern.search(path.read_text(encoding="utf-8"))] == []


def test_every_reader_walks_like_this(tmp_path: Path) -> None:
    """Links are followed, names with a dot skipped at every level, a dead link is given like a file; sorted by parts."""
    for name in ("in/b.jpg", "in/a/z.jpg", "in/a.jpg", "in/.a.jpg", "in/.ipynb_checkpoints/c.jpg", "out/deep/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/linked").symlink_to("../out")
    (tmp_path / "in/again").symlink_to("../out/deep")
    (tmp_path / "in/lost").symlink_to("nowhere")
    (tmp_path / "in/me").symlink_to("me")
    (tmp_path / "in/.hidden").symlink_to("../out")
    found = list(files.walk_files(tmp_path / "in"))
    names = [path.relative_to(tmp_path / "in").as_posix() for path in found]
    assert names == ["a/z.jpg", "a.jpg", "again/d.jpg", "b.jpg", "linked/deep/d.jpg", "lost", "me"] and found == sorted(found)
    assert [path.name for path in found if files.is_dead_link(path)] == ["lost", "me"]
    assert [path.name for path in files.visible_entries(tmp_path / "in")] == [
        "a",
        "a.jpg",
        "again",
        "b.jpg",
        "linked",
        "lost",
        "me",
    ]


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_in_a_circle(tmp_path: Path, target: str) -> None:
    """It is named, whichever folder around it it leads to; a folder between two links closes a circle as well."""
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/a/x").touch()
    link = tmp_path / "in/a/round"
    link.symlink_to(target)
    with pytest.raises(ValueError, match=rf"{link} is a link to {link.resolve()}, which holds the link itself"):
        list(files.walk_files(tmp_path / "in"))
    links: list[Path] = []
    assert list(files.walk_files(tmp_path / "in", links.append)) == [tmp_path / "in/a/x"] and links == [link]
    link.unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "in/over").symlink_to("../out")
    (tmp_path / "out/back").symlink_to("../in")
    with pytest.raises(ValueError, match="in/over/back is a link to"):
        list(files.walk_files(tmp_path / "in"))


def test_what_last_checkpoint_names(tmp_path: Path) -> None:
    """A name that no file can have is said like one that is not there."""
    last = tmp_path / "last_checkpoint"
    (tmp_path / "a.pth").touch()
    for text in ("/", "..", ".", "x" * 300, "a/" * 3000, "a\0b", "gone.pth"):
        last.write_text(text)
        with pytest.raises(FileNotFoundError, match=r"last_checkpoint names .*, which is neither beside it nor at") as error:
            checkpoint_path(last)
        assert len(str(error.value)) < 350 + len(str(tmp_path))
        assert named_checkpoint(last)[1] is None
    last.write_text("/gone/a.pth\n")
    assert checkpoint_path(last) == named_checkpoint(last)[1] == tmp_path / "a.pth"
