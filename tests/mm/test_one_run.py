"""One folder is of one training at a time and of one run: the lock, the three ways on, restarts, several runs."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmengine")
import engine_tiny as tiny
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from gbseg import files
from gbseg.cli import main
from gbseg.mm.config import load_config, run_configs
from gbseg.mm.run_folder import LOCK, lock_run_folders

JOBS = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in JOBS:
        monkeypatch.delenv(name, raising=False)


def _config(folder: Path, iterations: int = 12, runs: dict[str, Any] | None = None) -> Path:
    config = tiny.config(folder / "work", **{"train_cfg.max_iters": iterations})
    config.pop("work_dir")
    config.default_scope = "mmengine"
    if runs:
        config.runs = runs
    config.dump(folder / "tiny.py")
    return folder / "tiny.py"


def _train(folder: Path, *options: str) -> int:
    # mmengine names logs by the second, and two runs of one process must not share one
    time.sleep(1 - time.time() % 1)
    return main(["train", str(folder / "tiny.py"), "--work-dir", str(folder / "work"), *options])


def _locked_runs(folder: Path, stack: ExitStack, **options: bool) -> Any:
    runs = run_configs(load_config(folder / "tiny.py"), folder / "work")
    return stack.enter_context(lock_run_folders(runs, folder / "work", **options))


def _hold(folder: Path, ready: Any, forks: bool) -> None:
    with ExitStack() as stack:
        _locked_runs(folder, stack)
        if forks and os.fork() == 0:
            # a worker of the data loader, which lives on a while when its parent is killed
            time.sleep(30)
            os._exit(0)
        ready.set()
        time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize("forks", [False, True], ids=["alone", "with workers"])
def test_two_trainings_in_one_folder(forks: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused at once, and names the first; after a SIGKILL the folder is free, whatever its workers do.

    Without the lock: both train. With one that forks inherit: the folder stays locked as long as the workers live.
    """
    _config(tmp_path)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, forks))
    holder.start()
    assert ready.wait(60)
    start = time.monotonic()
    assert _train(tmp_path) == 1
    assert time.monotonic() - start < 8
    message = capsys.readouterr().err
    text = f"{tmp_path}/work is being trained in, by process {holder.pid} on {socket.gethostname()}: wait for it, end it, or"
    assert text in message and "Traceback" not in message
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with ExitStack() as stack:
        start = time.monotonic()
        assert _locked_runs(tmp_path, stack).resume == {"": False}
        assert time.monotonic() - start < 5
        assert json.loads((tmp_path / "work" / LOCK).read_text())["process"] == os.getpid()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a living process of this machine is refused by its number, one of another host or a dead one is not."""
    _config(tmp_path)

    def no_lock(descriptor: int, timeout: float) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files, "_wait_for_lock", no_lock)
    (tmp_path / "work").mkdir()
    for record, is_refused in (
        ({"process": os.getppid(), "host": socket.gethostname()}, True),
        ({"process": os.getppid(), "host": socket.gethostname(), "ended": True}, False),
        ({"process": os.getppid(), "host": "another"}, False),
        ({"process": 2**30, "host": socket.gethostname()}, False),
        ({"process": "a", "host": 5}, False),
        ([], False),
    ):
        (tmp_path / "work" / LOCK).write_text(json.dumps(record))
        with ExitStack() as stack:
            if is_refused:
                with pytest.raises(RuntimeError, match=rf"last trained in by process {os.getppid()} of this machine"):
                    _locked_runs(tmp_path, stack)
            else:
                _locked_runs(tmp_path, stack)


def test_the_three_ways_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with checkpoints is refused; --resume, another folder and --overwrite go on. Without: both runs' files mix."""
    _config(tmp_path)
    work = tmp_path / "work"
    assert _train(tmp_path) == 0
    before = {path: path.read_bytes() for path in work.rglob("*.pth")}
    for name in ("mine.pth", "vgg16-397923af.pth", "best_of_mine.pth", "notes.txt", "20260101_000000/mine.txt"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text("mine")
    capsys.readouterr()
    assert _train(tmp_path) == 1
    message = capsys.readouterr().err
    assert f"checkpoints of an earlier run in {work} (up to iter_12.pth, which is finished): --resume continues" in message
    assert "--work-dir DIR" in message and "--overwrite" in message and "Traceback" not in message
    assert {path: path.read_bytes() for path in before} == before
    assert _train(tmp_path, "--resume") == 0
    assert f"Training continues from {work}/iter_12.pth." in "".join(path.read_text() for path in work.glob("*/*.log"))
    _config(tmp_path, iterations=5)
    assert _train(tmp_path, "--overwrite") == 0
    assert {path.name for path in work.glob("iter_*.pth")} == {"iter_4.pth", "iter_5.pth"}
    assert len(list(work.glob("*/vis_data/scalars.json"))) == 1 and len(list(work.glob("best_score*"))) == 1
    assert (work / "last_checkpoint").read_text() == str(work / "iter_5.pth")
    log = next(iter(work.glob("*/*.log"))).read_text()
    assert f"Removed from {work}: iter_" in log
    for name in ("mine.pth", "vgg16-397923af.pth", "best_of_mine.pth", "notes.txt", "20260101_000000/mine.txt"):
        assert (work / name).read_text() == "mine"
    with pytest.raises(SystemExit):
        _train(tmp_path, "--overwrite", "--resume")


def test_what_the_config_names_is_not_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``load_from`` of the very folder. Without: it is gone when it is to be loaded."""
    _config(tmp_path)
    assert _train(tmp_path) == 0
    named = tmp_path / "work/iter_12.pth"
    assert _train(tmp_path, "--overwrite", "--cfg-options", f"load_from={named}") == 1
    assert f"--overwrite would remove {named}, which the config names: move it" in capsys.readouterr().err
    assert named.is_file()


RESTARTS: dict[str, dict[str, str]] = {
    "torchrun": {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"},
    "torchrun by name": {"TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "0"},
    "SLURM": {"SLURM_JOB_ID": "17"},
}


@pytest.mark.parametrize("launcher", RESTARTS)
def test_restarts_continue(launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun or SLURM starts again goes on, without a word of --resume, and does not overwrite what it has begun.

    Without: the second start is refused. Where a restart alone counts: one that was refused goes on with a foreign run.
    """
    _config(tmp_path)
    work = tmp_path / "work"
    for name, value in RESTARTS[launcher].items():
        monkeypatch.setenv(name, value)
    count = "SLURM_RESTART_COUNT" if launcher == "SLURM" else "TORCHELASTIC_RESTART_COUNT"
    with ExitStack() as stack:
        assert _locked_runs(tmp_path, stack).resume == {"": False}
        (work / "iter_3.pth").touch()
    monkeypatch.setenv(count, "1")
    for options in ({}, {"overwrite": True}):
        with ExitStack() as stack:
            locked = _locked_runs(tmp_path, stack, **options)
            assert locked.resume == {"": True} and "has started this training again: it continues" in locked.notes[0]
    # a later job in the same folder
    monkeypatch.setenv(count, "0")
    with ExitStack() as stack, pytest.raises(ValueError, match="checkpoints of an earlier run"):
        _locked_runs(tmp_path, stack)
    monkeypatch.setenv(count, "1")
    with ExitStack() as stack, pytest.raises(ValueError, match="checkpoints of an earlier run"):
        _locked_runs(tmp_path, stack)
    with ExitStack() as stack:
        assert _locked_runs(tmp_path, stack, overwrite=True).resume == {"": False}
    assert list(work.glob("*.pth")) == []


def test_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second time, finished runs stay and it is said how to repeat them; one that is not finished is refused.

    Without: all are trained again over their own files.
    """
    _config(tmp_path, runs=dict(a={}, b={"train_cfg.max_iters": 6}))
    work = tmp_path / "work"
    assert _train(tmp_path) == 0
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file() and path.name != LOCK}
    capsys.readouterr()
    assert _train(tmp_path) == 0
    text = capsys.readouterr().out
    assert f"All runs in {work} are finished and stay as they are: a, b. To train them again, use --overwrite, or" in text
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file() and path.name != LOCK} == before
    # one is missing: it is trained, and the other stays
    shutil.rmtree(work / "b")
    (work / "a" / LOCK).unlink()
    assert _train(tmp_path) == 0
    assert f"Runs in {work} are finished and stay as they are: a. " in capsys.readouterr().out
    assert (work / "b/iter_6.pth").is_file()
    assert all(path.read_bytes() == content for path, content in before.items() if path.parent == work / "a")
    # killed in its last validation
    record = json.loads((work / "b" / LOCK).read_text())
    assert record["finished"] == {"iter": 6}
    (work / "b" / LOCK).write_text(json.dumps({**record, "finished": None}))
    assert _train(tmp_path) == 1
    assert f"checkpoints of an earlier run in {work}/b (up to iter_6.pth): --resume continues it" in capsys.readouterr().err
    assert _train(tmp_path, "--resume") == 0
    _config(tmp_path, runs=dict(a={}, b={"train_cfg.max_iters": 9}))
    assert _train(tmp_path) == 1
    assert _train(tmp_path, "--overwrite") == 0
    assert (work / "b/iter_9.pth").is_file() and len(list((work / "a").glob("*/vis_data"))) == 1


@pytest.mark.parametrize(
    "file", ["iter_3.pth", "interrupted.pth", "best_score_iter_4.pth", "epoch_1.pth", "iter_12-0123abcd.pth"]
)
def test_what_counts_as_a_checkpoint(file: str, tmp_path: Path) -> None:
    """Also without ``last_checkpoint``; weights of other names, logs and folders do not."""
    _config(tmp_path)
    (tmp_path / "work/iter_9.pth").mkdir(parents=True)
    (tmp_path / "work/20260101_000000/vis_data").mkdir(parents=True)
    for name in ("vgg16-397923af.pth", "weights.pth", "last_checkpoint"):
        (tmp_path / "work" / name).touch()
    with ExitStack() as stack:
        assert _locked_runs(tmp_path, stack).resume == {"": False}
    (tmp_path / "work" / file).touch()
    with ExitStack() as stack, pytest.raises(ValueError, match="checkpoints of an earlier run"):
        _locked_runs(tmp_path, stack)


def test_a_folder_of_checkpoints_elsewhere(tmp_path: Path) -> None:
    """``out_dir`` and ``filename_tmpl`` of the config are followed."""
    hook = dict(type="DurableCheckpointHook", out_dir=str(tmp_path / "out"), filename_tmpl="state-{}-run.pth")
    config = Config(dict(default_hooks=dict(checkpoint=hook), train_cfg=dict(max_iters=6)))
    (tmp_path / "out/work").mkdir(parents=True)
    held = partial(lock_run_folders, {"": (config, tmp_path / "work")}, tmp_path / "work")
    with held() as locked:
        assert locked.resume == {"": False}
    (tmp_path / "out/work/state-6-run.pth").touch()
    with pytest.raises(ValueError, match=r"up to state-6-run\.pth"), held():
        pass
    with held(overwrite=True):
        assert not list((tmp_path / "out/work").glob("*.pth"))


@HOOKS.register_module()
class FileLimitHook(Hook):
    """Let no file grow beyond the size that the logged scalars have, in the middle of a run."""

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Do it after iteration 4."""
        if runner.iter == 3:
            size = next(Path(runner.work_dir).glob("*/vis_data/scalars.json")).stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_log_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said in a sentence, as of a checkpoint. Without: a traceback out of mmengine's writing of scalars."""
    _config(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        options = ("custom_hooks.0.type=FileLimitHook", "default_hooks.checkpoint.save_best=None")
        assert _train(tmp_path, "--cfg-options", *options) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = capsys.readouterr().err
    assert "cannot be written to any more: File too large" in message
    assert "The checkpoints are untouched: make room, then resume" in message
    assert (tmp_path / "work/iter_3.pth").is_file()


def test_a_config_that_is_refused_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever stands in the places that are looked at. Without: an empty folder with a lock stays, or a traceback comes."""
    _config(tmp_path)
    for option in ("train_cfg.max_iters=0", "default_hooks=5", "train_cfg=5", "default_hooks.checkpoint=5"):
        assert _train(tmp_path, "--cfg-options", option) == 1
        assert "Traceback" not in capsys.readouterr().err
        if option in ("train_cfg.max_iters=0", "default_hooks=5"):
            assert not (tmp_path / "work").exists()
