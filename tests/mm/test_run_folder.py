"""The folder of a run: copied, moved, with a damaged ``last_checkpoint``, with folders in it, read-only."""

import errno
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")
import engine_tiny as tiny
from mmengine.runner import Runner

from gbseg.files import checkpoint_path
from gbseg.mm.checkpoint_files import CheckpointWriteError, newest_readable_checkpoint, write_checkpoint
from gbseg.mm.hooks.checkpoint import DurableCheckpointHook


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("done")
    assert tiny.run(folder) == 0
    return folder


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _hook(runner: Runner) -> Any:
    return next(hook for hook in runner.hooks if isinstance(hook, DurableCheckpointHook))


FORMS = {
    "random": bytes(range(256)) * 4,
    "bytes with a number": b"\xfe\x93_77.pth\xff",
    "a foreign path": b"/etc/passwd",
    "5,000 characters": b"x" * 5000,
    "5,000 digits": b"7" * 5000,
    "empty": b"",
    "zeros": bytes(64),
    "a file that is gone": b"/gone/run/iter_500.pth",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_last_checkpoint(form: str, done: Path, tmp_path: Path) -> None:
    """The newest file beside it is taken. With a pattern or a folder from what it says: none is found, and nothing resumes."""
    shutil.copytree(done, tmp_path / "run")
    (tmp_path / "run/last_checkpoint").write_bytes(FORMS[form])
    assert newest_readable_checkpoint(tmp_path / "run") == tmp_path / "run/iter_12.pth"
    # of a run that was stopped between two regular ones: it goes when the next one is written
    shutil.copy(done / "iter_9.pth", tmp_path / "run/interrupted.pth")
    assert newest_readable_checkpoint(tmp_path / "run") == tmp_path / "run/interrupted.pth"
    (tmp_path / "run/interrupted.pth").unlink()
    for path in (tmp_path / "run").glob("iter_*"):
        path.unlink()
    if form != "a file that is gone":
        assert newest_readable_checkpoint(tmp_path / "run") is None


@pytest.mark.parametrize("how", ["folder", "dead link", "link to itself", "another run's", "best"])
def test_a_last_checkpoint_of_another_kind(how: str, done: Path, tmp_path: Path) -> None:
    """What is no file, or names a whole file elsewhere, is as good as none."""
    run = tmp_path / "run"
    shutil.copytree(done, run)
    last = run / "last_checkpoint"
    last.unlink()
    if how == "folder":
        last.mkdir()
    elif how == "dead link":
        last.symlink_to("nowhere")
    elif how == "link to itself":
        last.symlink_to("last_checkpoint")
    else:
        shutil.copy(done / "iter_9.pth", tmp_path / "iter_77.pth")
        last.write_text(str(tmp_path / "iter_77.pth"))
    assert newest_readable_checkpoint(run) == run / "iter_12.pth"


def test_a_disk_that_is_not_there(done: Path, tmp_path: Path) -> None:
    """A path that is whole, with no checkpoint at all beside it, is no reason to start anew in silence."""
    (tmp_path / "last_checkpoint").write_text("/mnt/gone/run/iter_12.pth")
    with pytest.raises(RuntimeError, match=r"none of the checkpoints can be read.*\n.*/mnt/gone/run/iter_12\.pth: there is no"):
        newest_readable_checkpoint(tmp_path)


def test_a_copy_resumes_from_its_own_files(done: Path, tmp_path: Path) -> None:
    """``cp -r run1 copy; rm copy/iter_12.pth``. With the written path before the copy's own files: it resumes from run1."""
    run, copy = tmp_path / "run1", tmp_path / "copy"
    assert tiny.run(run) == 0
    shutil.copytree(run, copy)
    (copy / "iter_12.pth").unlink()
    before = _content(run)
    assert newest_readable_checkpoint(copy) == copy / "iter_9.pth"
    with pytest.raises(FileNotFoundError, match=r"of another folder, and iter_12\.pth is not among the checkpoints beside it"):
        checkpoint_path(copy / "last_checkpoint")
    assert tiny.run(copy, resume=True, **{"train_cfg.max_iters": 18}) == 0
    assert f"Training continues from {copy}/iter_9.pth." in tiny.output(copy)
    assert _content(run) == before
    info = torch.load(copy / "iter_18.pth", weights_only=False)["message_hub"]["runtime_info"]
    assert all(Path(info[key]).parent == copy for key in ("last_ckpt", "best_ckpt"))
    assert len(list(copy.glob("best_*"))) == 1 and str(run) not in (copy / "last_checkpoint").read_text()


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_the_best_and_the_published_ones_of_a_copy(how: str, done: Path, tmp_path: Path) -> None:
    """A better one replaces the copy's own best.

    With the paths as they were: both best ones stay, and publishing reads the old folder.
    """
    run, copy = tmp_path / "run1", tmp_path / "copy"
    shutil.copytree(done, run)
    next(run.glob("best_*")).rename(run / "best_score_iter_4.pth")
    for path in run.glob("iter_*.pth"):
        content = torch.load(path, weights_only=False)
        info = content["message_hub"]["runtime_info"]
        info |= {"last_ckpt": str(run / Path(info["last_ckpt"]).name), "best_ckpt": str(run / "best_score_iter_4.pth")}
        torch.save(content, path)
    (shutil.copytree if how == "copied" else shutil.move)(run, copy)
    before = _content(run)
    publish = {"default_hooks.checkpoint.published_keys": ["meta", "state_dict"]}
    runner = Runner.from_cfg(tiny.config(copy, resume=True, **publish))
    runner.train()
    assert len(list(copy.glob("*-*.pth"))) == 2 and _content(run) == before
    _hook(runner).write_best(runner, {"score": 1e9})
    assert [path.name for path in copy.glob("best_*_*") if "-" not in path.name] == ["best_score_iter_12.pth"]
    assert _content(run) == before


def test_checkpoints_in_a_folder_of_their_own(tmp_path: Path) -> None:
    """With ``out_dir``: the copy's folder there comes before the written path, which counts where the copy has none."""
    out = {"default_hooks.checkpoint.out_dir": str(tmp_path / "ckpts")}
    run, copy = tmp_path / "work/run1", tmp_path / "work/copy"
    assert tiny.run(run, **out) == 0
    shutil.copytree(run, copy)
    assert newest_readable_checkpoint(copy, tmp_path / "ckpts/copy") == tmp_path / "ckpts/run1/iter_12.pth"
    assert newest_readable_checkpoint(copy) == tmp_path / "ckpts/run1/iter_12.pth"
    shutil.copytree(tmp_path / "ckpts/run1", tmp_path / "ckpts/copy")
    assert newest_readable_checkpoint(copy, tmp_path / "ckpts/copy") == tmp_path / "ckpts/copy/iter_12.pth"
    (tmp_path / "ckpts/copy/iter_12.pth").unlink()
    assert newest_readable_checkpoint(copy, tmp_path / "ckpts/copy") == tmp_path / "ckpts/copy/iter_9.pth"
    before = _content(tmp_path / "ckpts/run1")
    assert tiny.run(copy, resume=True, **out, **{"train_cfg.max_iters": 15}) == 0
    assert "ckpts/copy/iter_9.pth." in tiny.output(copy) and _content(tmp_path / "ckpts/run1") == before


def test_a_folder_of_a_checkpoints_name(done: Path, tmp_path: Path) -> None:
    """It is refused before the first iteration. Without: training ends when it is to be written. A past one does no harm."""
    shutil.copytree(done, tmp_path / "run")
    (tmp_path / "run/iter_12.pth").unlink()
    (tmp_path / "run/iter_12.pth").mkdir()
    (tmp_path / "run/iter_3.pth").mkdir()
    assert newest_readable_checkpoint(tmp_path / "run") == tmp_path / "run/iter_9.pth"
    runner = Runner.from_cfg(tiny.config(tmp_path / "run", resume=True))
    with pytest.raises(ValueError, match=r"iter_12\.pth is a folder, and a checkpoint of that name is to be written: rename"):
        runner.train()
    (tmp_path / "run/iter_12.pth").rmdir()
    Runner.from_cfg(tiny.config(tmp_path / "run", resume=True)).train()
    with pytest.raises(CheckpointWriteError, match=r"Is a directory.*untouched: rename or remove that folder, then resume"):
        write_checkpoint(b"1", tmp_path / "run/iter_3.pth")


def _read_only(small_disk: Callable[[int], Path]) -> Path:
    disk = small_disk(200)
    (disk / "ckpts").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    return disk


def test_a_read_only_folder(small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    """It is refused before the first iteration, and mid-training in a sentence. Without: a checkpoint is due and fails."""
    disk = _read_only(small_disk)
    out = {"default_hooks.checkpoint.out_dir": str(disk / "ckpts")}
    runner = Runner.from_cfg(tiny.config(tmp_path / "run", **out))
    with pytest.raises(ValueError, match=rf"{disk}/ckpts/run is to be a folder to write to, and {disk}/ckpts may not be"):
        runner.train()
    with pytest.raises(CheckpointWriteError, match="untouched: let the folder be written to, then resume") as error:
        write_checkpoint(b"1", disk / "ckpts/iter_3.pth")
    assert error.value.errno == errno.EROFS
