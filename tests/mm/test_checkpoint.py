"""Checkpoints under attack: killed while writing, damaged afterwards, no room on the disk."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")
import engine_tiny as tiny

from gbseg.mm import checkpoint_files as durable
from gbseg.mm.checkpoint_files import checkpoint_damage, write_checkpoint
from gbseg.mm.hooks.checkpoint import (
    CheckpointWriteError,
    DurableCheckpointHook,
    NoReadableCheckpointError,
    newest_readable_checkpoint,
)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _garbage(path: Path) -> None:
    path.write_bytes(b"\x93garbage" * 3000)


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flipped_bit(path: Path) -> None:
    """One bit inside the largest tensor, which torch.load would not notice."""
    data = bytearray(path.read_bytes())
    weights = torch.load(path, weights_only=False)["state_dict"]["layers.0.weight"]
    place = data.index(weights.numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(data)


DAMAGES = {
    _truncate: "its end is missing: the file was cut off, or damaged",
    _empty: "the file is empty",
    _garbage: "it was not written by torch.save or safetensors",
    _zeros: "it holds zeros alone",
    _flipped_bit: "the checksum of its part",
}


def _whole(folder: Path) -> None:
    """Every checkpoint under its own name is whole, and no other file is left but those of one interrupted write."""
    for path in folder.glob("*.pth"):
        if not path.name.startswith("best_"):
            assert checkpoint_damage(path) is None, path
        torch.load(path, weights_only=False)
    assert len(list(folder.glob(".*"))) <= 1


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("done")
    assert tiny.run(folder) == 0
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be damaged; its ``last_checkpoint`` still has the path of the original, as after a move."""
    shutil.copytree(done, tmp_path / "copy")
    Path(tmp_path / "copy" / "last_checkpoint").write_text(str(tmp_path / "gone" / "iter_12.pth"))
    return tmp_path / "copy"


# writes: iter_3, last_checkpoint; best, iter_4, last_checkpoint (validation); iter_6, last_checkpoint; ...
# tests/faults/run.py has many more
WRITES = [(1, "half"), (4, "half"), (6, "before rename"), (9, "after rename")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "how"), WRITES)
def test_killed_while_writing(done: Path, tmp_path: Path, number: int, how: str) -> None:
    """At whatever write, what is there is whole, and the resumed run ends as the undisturbed one, with its files only."""
    assert tiny.run(tmp_path, kill_write=(number, how)) == -9
    _whole(tmp_path)
    assert len(list(tmp_path.glob("iter_*.pth"))) >= (number > 1)
    assert len(list(tmp_path.glob("best_*.pth"))) >= (number > 3)
    assert tiny.run(tmp_path, resume=True) == 0
    assert tiny.differences(tiny.result(done), tiny.result(tmp_path)) == []
    assert list(tmp_path.glob(".*")) == []


def test_the_old_one_goes_after_the_new_one_has_come(tmp_path: Path) -> None:
    """Killed before last_checkpoint names iter_9, both earlier ones are still there."""
    assert tiny.run(tmp_path, kill_write=(6, "before rename"), val=100) == -9
    assert {path.name for path in tmp_path.glob("iter_*")} == {"iter_3.pth", "iter_6.pth", "iter_9.pth"}


def test_files_of_a_run(done: Path) -> None:
    """Two regular checkpoints, mmengine's last_checkpoint, the states of every generator, and nothing else for resuming."""
    assert Path(done, "last_checkpoint").read_text() == str(done / "iter_12.pth")
    state = torch.load(done / "iter_12.pth", weights_only=False)["training_state"]
    assert state["iter"] == 12
    assert state["processes"][0]["draws"] == 48
    assert set(state["processes"][0]["rng"]) >= {"python", "numpy", "torch"}
    best = next(done.glob("best_*"))
    assert {"training_state", "optimizer"}.isdisjoint(torch.load(best, weights_only=False))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_newest(copy: Path, damage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before is taken, and a warning names the file and the reason."""
    warnings = []
    monkeypatch.setattr(durable, "print_log", lambda text, logger, level: warnings.append(text))
    damage(copy / "iter_12.pth")
    assert newest_readable_checkpoint(copy) == copy / "iter_9.pth"
    assert len(warnings) == 1
    assert warnings[0].startswith(f"Checkpoint {copy}/iter_12.pth cannot be resumed from, trying the one before: ")
    assert DAMAGES[damage] in warnings[0]


def test_resumed_from_the_one_before(done: Path, copy: Path) -> None:
    """The run ends as if nothing had been damaged."""
    _flipped_bit(copy / "iter_12.pth")
    printed = len(tiny.output(copy))
    assert tiny.run(copy, resume=True) == 0
    text = tiny.output(copy)[printed:]
    assert "iter_12.pth cannot be resumed from, trying the one before: the checksum" in text
    assert "resumed epoch: 0, iter: 9" in text
    assert tiny.differences(tiny.result(done), tiny.result(copy)) == []


def test_resumed_from_a_given_file(done: Path, copy: Path) -> None:
    """A damaged ``load_from`` falls back to those before it, an absent one is an error; intact, it is what is used."""
    assert newest_readable_checkpoint(copy, start=copy / "iter_9.pth") == copy / "iter_9.pth"
    _truncate(copy / "iter_12.pth")
    assert newest_readable_checkpoint(copy, start=copy / "iter_12.pth") == copy / "iter_9.pth"
    with pytest.raises(FileNotFoundError, match="iter_99"):
        newest_readable_checkpoint(copy, start=copy / "iter_99.pth")
    shutil.copy(done / "iter_9.pth", copy / "mine.pth")
    assert tiny.run(copy / "elsewhere", resume=True, load_from=str(copy / "mine.pth")) == 0
    assert "iter: 9" in tiny.output(copy / "elsewhere")
    assert tiny.differences(tiny.result(done)["state_dict"], tiny.result(copy / "elsewhere")["state_dict"]) == []


def test_none_readable(copy: Path) -> None:
    """The error lists every file that was tried, and training does not start."""
    for path in copy.glob("iter_*"):
        _empty(path)
    with pytest.raises(NoReadableCheckpointError, match=r"(?s)iter_12.*empty.*iter_9.*empty"):
        newest_readable_checkpoint(copy)
    printed = len(tiny.output(copy))
    assert tiny.run(copy, resume=True) == 1
    text = tiny.output(copy)[printed:]
    assert "NoReadableCheckpointError: none of the checkpoints can be read" in text
    assert "Iter(train)" not in text


def test_nothing_to_resume(tmp_path: Path) -> None:
    """No checkpoint at all is not an error: the run has not got that far."""
    assert newest_readable_checkpoint(tmp_path) is None
    assert newest_readable_checkpoint(tmp_path / "absent") is None


def test_which_one_is_newest(copy: Path) -> None:
    """What last_checkpoint says, unless a kill came before it could; never another run's, best or published ones."""
    shutil.copy(copy / "iter_12.pth", copy / "iter_500.pth")
    os.utime(copy / "iter_500.pth", (1, 1))
    for name in ("best_score_iter_900.pth", "iter_900-0123abcd.pth", "vgg16.pth"):
        shutil.copy(copy / "iter_12.pth", copy / name)
    assert newest_readable_checkpoint(copy) == copy / "iter_12.pth"
    Path(copy, "last_checkpoint").write_text(str(copy / "iter_9.pth"))
    os.utime(copy / "iter_12.pth")
    assert newest_readable_checkpoint(copy) == copy / "iter_12.pth"
    Path(copy, "last_checkpoint").unlink()
    assert newest_readable_checkpoint(copy) == copy / "iter_500.pth"
    for name in ("iter_12.pth", "iter_9.pth"):
        Path(copy, name).rename(copy / name.replace("iter_", "state-").replace(".pth", "-run.pth"))
    Path(copy, "last_checkpoint").write_text("state-12-run.pth")
    _zeros(copy / "state-12-run.pth")
    assert newest_readable_checkpoint(copy) == copy / "state-9-run.pth"


def test_weights_alone_cannot_be_resumed(copy: Path) -> None:
    """A file of weights is whole, but no training can go on from it."""
    torch.save({"state_dict": {}}, copy / "weights.pth")
    assert checkpoint_damage(copy / "weights.pth") == "it holds no meta, no message_hub"


def test_loading_is_not_resuming(done: Path, tmp_path: Path) -> None:
    """``load_from`` alone takes the weights: iterations, data and random numbers are those of a new run."""
    assert tiny.run(tmp_path, load_from=str(done / "iter_9.pth"), val=100) == 0
    loaded, other = tiny.result(tmp_path), tiny.result(done)
    for key in ("seed", "draws", "rng"):
        assert tiny.differences(*(one["training_state"]["processes"][0][key] for one in (loaded, other))) == []
    assert tiny.differences(loaded["state_dict"], other["state_dict"]) != []


@pytest.mark.parametrize("keep", [0, 1])
def test_two_at_least(keep: int) -> None:
    """One alone could not be replaced safely."""
    with pytest.raises(ValueError, match="at least two"):
        DurableCheckpointHook(max_keep_ckpts=keep)
    assert DurableCheckpointHook().max_keep_ckpts == 2
    assert DurableCheckpointHook(max_keep_ckpts=-1).max_keep_ckpts == -1


def test_local_files_only() -> None:
    """No other storage has the rename that this rests on."""
    with pytest.raises(ValueError, match="local file system only: take backend_args out"):
        DurableCheckpointHook(backend_args={"backend": "petrel"})


def test_full_disk(small_disk: Callable[[int], Path], done: Path, tmp_path: Path) -> None:
    """The earlier checkpoints stay, nothing else is left, the error says what to do; with room the run goes on."""
    disk = small_disk(140)  # room for three of these checkpoints
    run = tmp_path / "run"
    filling = disk / "run" / "filling"
    where = {"default_hooks.checkpoint.out_dir": str(disk), "default_hooks.checkpoint.save_best": None}
    assert tiny.run(run, kill=("after_train_iter", 6), **where) == -9
    earlier = {path.name: path.read_bytes() for path in (disk / "run").glob("*")}
    assert set(earlier) == {"iter_3.pth", "iter_6.pth"}
    filling.write_bytes(bytes(shutil.disk_usage(disk).free - 8192))
    assert tiny.run(run, resume=True, **where) == 1
    assert "CheckpointWriteError: [Errno 28]" in tiny.output(run)
    assert "iter_9.pth could not be written: No space left on device (it takes 0.0 MiB, 0.0 MiB are free)" in tiny.output(run)
    filling.unlink()
    assert {path.name: path.read_bytes() for path in (disk / "run").glob("*")} == earlier
    assert tiny.run(run, resume=True, **where) == 0
    assert tiny.differences(tiny.result(done)["state_dict"], tiny.result(disk / "run")["state_dict"]) == []


def test_file_size_limit(done: Path, tmp_path: Path) -> None:
    """The same without a disk of its own: the system refuses the file half way."""
    best = {"default_hooks.checkpoint.save_best": None}
    assert tiny.run(tmp_path, kill=("after_train_iter", 6), **best) == -9
    earlier = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")}
    assert tiny.run(tmp_path, resume=True, file_limit=30_000, **best) == 1
    assert "CheckpointWriteError: [Errno 27]" in tiny.output(tmp_path)
    assert "The checkpoints before it are untouched: make room, then resume" in tiny.output(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")} == earlier
    assert list(tmp_path.glob(".*")) == []
    assert tiny.run(tmp_path, resume=True, **best) == 0
    assert tiny.differences(tiny.result(done)["state_dict"], tiny.result(tmp_path)["state_dict"]) == []


def test_a_refused_folder(tmp_path: Path) -> None:
    """Where the folder cannot be made, the error is the same."""
    Path(tmp_path, "file").write_text("")
    with pytest.raises(CheckpointWriteError, match=r"Not a directory|File exists"):
        write_checkpoint(b"1", tmp_path / "file" / "iter_1.pth")


def test_published(tmp_path: Path) -> None:
    """A published checkpoint has the keys that were asked for, and is no candidate for resuming."""
    keys = {"default_hooks.checkpoint.published_keys": ["meta", "state_dict"]}
    assert tiny.run(tmp_path, **keys) == 0
    published = [path for path in tmp_path.glob("*.pth") if "-" in path.name]
    assert len(published) == 2
    assert all(set(torch.load(path, weights_only=False)) == {"meta", "state_dict"} for path in published)
    assert newest_readable_checkpoint(tmp_path) == tmp_path / "iter_12.pth"


def test_training_by_epochs(tmp_path: Path) -> None:
    """The own loop of mmengine by epochs saves and resumes with this hook as well; its data is not promised bit for bit."""
    epochs = {
        "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": 4, "_delete_": True},
        "train_dataloader.sampler": {"type": "DefaultSampler", "_delete_": True},
        "default_hooks.checkpoint.by_epoch": True,
        "default_hooks.checkpoint.interval": 1,
        "param_scheduler": None,
    }
    assert tiny.run(tmp_path, kill=("after_train_iter", 8), **epochs) == -9
    assert tiny.run(tmp_path, resume=True, **epochs) == 0
    assert "resumed epoch: 2, iter: 6" in tiny.output(tmp_path)
    assert {path.name for path in tmp_path.glob("epoch*")} == {"epoch_3.pth", "epoch_4.pth"}


def _together(folder: Path, attempt: int, **options: Any) -> list[int]:
    store = str(folder / f"store{attempt}")
    pair = [tiny.start(folder, tiny.train_together, rank=rank, store=store, **options) for rank in range(2)]
    for process in pair:
        process.join(300)
    return [process.exitcode for process in pair]


def test_two_processes(tmp_path: Path) -> None:
    """Each goes on with its own share of the data and its own random states."""
    own = {"randomness.diff_rank_seed": True}
    assert _together(tmp_path / "one", 0, **own) == [0, 0]
    assert -9 in _together(tmp_path / "two", 0, kill=("after_train_iter", 7), **own)
    assert _together(tmp_path / "two", 1, resume=True, **own) == [0, 0]
    one, two = tiny.result(tmp_path / "one"), tiny.result(tmp_path / "two")
    states = one["training_state"]["processes"]
    assert [state["draws"] for state in states] == [96, 96]
    # the running statistics of batch norm are each process's own, and mmengine saves those of the first
    del one["curves"]["val/score"], two["curves"]["val/score"]
    assert tiny.differences(one, two) == []
