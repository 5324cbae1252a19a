"""Files that are given as checkpoints and would run code, or are damaged, or are none, wherever a checkpoint is taken."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_tiny as tiny
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, Runner
from PIL import Image
from tiny_segmentors import write_segmentor
from torch import nn

import gbseg
from gbseg.cli import main
from gbseg.data.scenes import write_scenes
from gbseg.mm import load_config
from gbseg.mm.checkpoint_files import checkpoint_damage, newest_readable_checkpoint
from gbseg.mm.checkpoint_loading import CheckpointError
from gbseg.mm.component_errors import config_errors
from gbseg.mm.run_comparison import draw_predictions
from gbseg.mm.runner import QuietRunner

OPTIONS = ["train_cfg.max_iters=3", "train_cfg.val_interval=3", "default_hooks.checkpoint.interval=3"]


class Evil:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return exec, (f"open({str(self.marker)!r}, 'w')",)


def _zip_of(pickled: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", pickled), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", content)


def _by_attributes(marker: Path) -> bytes:
    """A pickle of names that mmengine allows: it puts ``eval`` where HistoryBuffer's module has numpy."""

    def name(module: str, attribute: str) -> bytes:
        return f"c{module}\n{attribute}\n".encode()

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def attribute(owner: bytes, of: str) -> bytes:
        return name("__builtin__", "getattr") + owner + text(of) + b"\x86R"

    history = name("mmengine.logging.history_buffer", "HistoryBuffer")
    evaluate = attribute(attribute(name("__builtin__", "getattr"), "__self__"), "eval")
    false_numpy = name("collections", "OrderedDict") + b")R}" + text("array") + evaluate + b"sb"
    program = text(f"open({str(marker)!r}, 'w')")
    poisoned = attribute(attribute(history, "__init__"), "__globals__") + text("np") + false_numpy + b"s"
    return b"\x80\x02}" + text("state_dict") + poisoned + b"0" + history + program * 2 + b"\x86R" + b"s."


def _extended(whole: Path, marker: Path, path: Path) -> None:
    torch.save({**torch.load(whole, weights_only=False), "mine": Evil(marker)}, path)


def _legacy(whole: Path, marker: Path, path: Path) -> None:
    content = {**torch.load(whole, weights_only=False), "mine": Evil(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _attributes(whole: Path, marker: Path, path: Path) -> None:
    _zip_of(_by_attributes(marker), path)


HOSTILE = {_extended: "objects made by builtins.exec", _legacy: "builtins.exec", _attributes: "builtins.getattr"}


def _cut(whole: Path, path: Path) -> None:
    shutil.copy(whole, path)
    os.truncate(path, whole.stat().st_size * 2 // 3)


def _flipped(whole: Path, path: Path) -> None:
    data = bytearray(whole.read_bytes())
    weights = max(torch.load(whole, weights_only=False)["state_dict"].values(), key=torch.Tensor.numel)
    # the highest bit of an exponent
    data[data.index(weights.numpy().tobytes()) + 3] ^= 64
    path.write_bytes(data)


def _list(whole: Path, path: Path) -> None:
    torch.save([1, 2, 3], path)


DAMAGED: dict[Callable[[Path, Path], object], str] = {
    _cut: "its end is missing: the file was cut off, or damaged",
    _flipped: "the checksum of its part ",
    _list: "it holds a list, and not a dictionary of weights",
    lambda whole, path: path.write_bytes(b""): "the file is empty",
    lambda whole, path: path.write_bytes(bytes(5000)): "it holds zeros alone, as after a power cut",
    lambda whole, path: path.write_text("Dear reader,\nthis is text."): "it is text, which begins with 'Dear reader,'",
    lambda whole, path: path.write_text("version https://git-lfs.github.com/spec/v1\noid 1\n"): "it is a pointer of Git LFS",
    lambda whole, path: path.write_bytes(b"\x93garbage" * 3000): "it was not written by torch.save or safetensors",
    lambda whole, path: path.write_bytes(pickle.dumps({"state_dict": {}}, 4)): "cannot be read: ",
    lambda whole, path: torch.save({"state_dict": [1]}, path): "its state_dict is a list, and not a dictionary",
    lambda whole, path: torch.save({"state_dict": {}, "meta": 3}, path): "its meta is a int, and not a dictionary",
}
DAMAGE_NAMES = ["cut", "flipped", "list", "empty", "zeros", "text", "lfs", "garbage", "pickle", "weights", "meta"]


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("segmentor")
    scenes = write_scenes(folder / "voc", train=2, val=1, size=(48, 64))
    return write_segmentor(folder, data=scenes)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `engine_tiny`."""
    folder = tmp_path_factory.mktemp("done")
    assert tiny.run(folder) == 0
    return folder


def _test(config: Path, checkpoint: Path, folder: Path) -> int:
    return main([str(config), str(checkpoint), "--work-dir", str(folder / "work")], command="test")


def _predict(config: Path, checkpoint: Path, folder: Path) -> int:
    Image.new("RGB", (40, 30)).save(folder / "image.png")
    return main([str(config), str(checkpoint), str(folder / "image.png"), "--out", str(folder / "out")], command="predict")


def _message(captured: Any) -> str:
    lines = captured.err.strip().splitlines()
    assert "Traceback" not in captured.err and lines[-1].startswith("gbseg: "), captured.err
    return lines[-1]


@pytest.mark.parametrize("command", [_test, _predict], ids=["test", "predict"])
@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_no_command_runs_code(
    command: Callable, make: Callable, segmentor: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names file, type and the command that converts what one trusts."""
    config, whole = segmentor
    hostile, marker = tmp_path / "hostile.pth", tmp_path / "ran"
    make(whole, marker, hostile)
    assert command(config, hostile, tmp_path) == 1
    assert not marker.exists()
    message = _message(capsys.readouterr())
    assert f"the checkpoint {hostile} cannot be read: it holds " in message and HOSTILE[make] in message
    assert f"`gbseg convert-checkpoint {hostile} OUT.pth --trust`" in message


@pytest.mark.parametrize("setting", ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"])
def test_no_environment_runs_code(
    setting: str, segmentor: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch has a variable that makes torch.load unpickle everything where the caller did not say."""
    monkeypatch.setenv(setting, "1")
    _extended(segmentor[1], tmp_path / "ran", tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match=r"builtins\.exec"):
        gbseg.Segmenter(segmentor[0], tmp_path / "hostile.pth", "cpu")
    assert not (tmp_path / "ran").exists()


@MODELS.register_module()
class HostileModel(BaseModule):
    """A model whose weights come from ``init_cfg``."""

    def __init__(self, init_cfg: dict) -> None:
        super().__init__(init_cfg)
        self.layer = nn.Linear(1, 1)


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_nothing_in_mmengine_runs_code(make: Callable, done: Path, tmp_path: Path) -> None:
    """Its own loading: CheckpointLoader, ``init_cfg`` with and without a prefix, ``load_from``."""
    hostile, marker = tmp_path / "hostile.pth", tmp_path / "ran"
    make(done / "iter_12.pth", marker, hostile)
    with pytest.raises(ValueError, match=HOSTILE[make]):
        CheckpointLoader.load_checkpoint(str(hostile))
    for prefix in ({}, {"prefix": "backbone."}):
        model = MODELS.build(dict(type="HostileModel", init_cfg=dict(type="Pretrained", checkpoint=str(hostile), **prefix)))
        with pytest.raises(ValueError, match=HOSTILE[make]):
            model.init_weights()
    assert HOSTILE[make] in str(checkpoint_damage(hostile))
    assert tiny.run(tmp_path / "run", load_from=str(hostile)) == 1
    assert HOSTILE[make] in tiny.output(tmp_path / "run")
    assert not marker.exists()


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_resuming_runs_no_code(make: Callable, done: Path, tmp_path: Path) -> None:
    """A file that is whole and holds more than data stops the run: an older one would not take its place unasked."""
    shutil.copytree(done, tmp_path / "run")
    make(done / "iter_12.pth", tmp_path / "ran", tmp_path / "run/iter_12.pth")
    printed = len(tiny.output(tmp_path / "run"))
    assert tiny.run(tmp_path / "run", resume=True) == 1
    assert HOSTILE[make] in tiny.output(tmp_path / "run")[printed:]
    assert not (tmp_path / "ran").exists()


def test_resuming_runs_no_text_of_the_checkpoint(done: Path, tmp_path: Path) -> None:
    """mmengine's runner executes ``meta['config']``, which is text and so passes every unpickler."""
    content = torch.load(done / "iter_9.pth", weights_only=False)
    content["meta"]["config"] = f"open({str(tmp_path / 'ran')!r}, 'w')\nx = 1\n"
    torch.save(content, tmp_path / "mine.pth")
    assert tiny.run(tmp_path / "run", resume=True, load_from=str(tmp_path / "mine.pth")) == 0
    assert "resumed epoch: 0, iter: 9" in tiny.output(tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def _edited(whole: Path, path: Path, edit: Callable[[dict], object]) -> None:
    content = torch.load(whole, weights_only=False)
    edit(content)
    torch.save(content, path)


UNRESUMABLE: dict[str, Callable[[dict], object]] = {
    "its training_state is a int, and not a dictionary": lambda c: c.update(training_state=5),
    "its training_state has no iter": lambda c: c.update(training_state={}),
    "its training_state has the iter a, which is a str": lambda c: c["training_state"].update(iter="a"),
    "its training_state has no processes": lambda c: c["training_state"].update(processes=[]),
    "its training_state.processes[0] is a int": lambda c: c["training_state"].update(processes=[5]),
    "its training_state.processes[0] has no size": lambda c: c["training_state"]["processes"][0].pop("size"),
    "its training_state.processes[0] has an rng that is no state of the generators (KeyError: 'torch')": lambda c: c[
        "training_state"
    ]["processes"][0]["rng"].pop("torch"),
    "its meta has no iter": lambda c: c["meta"].pop("iter"),
    "its meta has the epoch x, which is a str": lambda c: c["meta"].update(epoch="x"),
}


@pytest.mark.parametrize("reason", UNRESUMABLE)
def test_unusable_states_are_no_tracebacks(reason: str, done: Path, tmp_path: Path) -> None:
    """A checkpoint of other contents is reported like a damaged one, by its name, and the one before it is taken."""
    _edited(done / "iter_12.pth", tmp_path / "iter_12.pth", UNRESUMABLE[reason])
    assert reason in str(checkpoint_damage(tmp_path / "iter_12.pth"))
    with pytest.raises(RuntimeError, match=r"none of the checkpoints can be read") as error:
        newest_readable_checkpoint(tmp_path)
    assert f"{tmp_path}/iter_12.pth: {reason}" in str(error.value)
    shutil.copy(done / "iter_9.pth", tmp_path)
    assert newest_readable_checkpoint(tmp_path) == tmp_path / "iter_9.pth"


UNLOADABLE: dict[str, tuple[Callable[[dict], object], bool]] = {
    "its state_dict has the key 5, and not the name of a tensor": (lambda c: c["state_dict"].update({5: torch.ones(1)}), False),
    "loading it into this run fails with ": (lambda c: c.update(optimizer=5), True),
    "its meta has no iter": (lambda c: c["meta"].pop("iter"), True),
}


@pytest.mark.parametrize("reason", UNLOADABLE)
def test_what_does_not_fit_names_the_checkpoint(reason: str, done: Path, tmp_path: Path) -> None:
    """Not the config, also without `DurableCheckpointHook`, which looks at the file before it is loaded."""
    edit, resume = UNLOADABLE[reason]
    _edited(done / "iter_12.pth", tmp_path / "edited.pth", edit)
    changes = {"default_hooks.checkpoint": {"_delete_": True, "type": "CheckpointHook", "by_epoch": False, "interval": 3}}
    config = tiny.config(tmp_path / "run", resume=resume, load_from=str(tmp_path / "edited.pth"), **changes)
    runner = QuietRunner.from_cfg(config)
    with pytest.raises(CheckpointError) as error, config_errors(config, only_building=True):
        runner.train()
    assert f"the checkpoint {tmp_path / 'edited.pth'} cannot be read: {reason}" in str(error.value)


def test_names_of_weights_that_are_none(
    segmentor: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``gbseg test`` and ``predict`` accused the config, and predicted."""
    config, whole = segmentor
    _edited(whole, tmp_path / "edited.pth", lambda c: c["state_dict"].update({5: torch.ones(1)}))
    for command in (_test, _predict):
        assert command(config, tmp_path / "edited.pth", tmp_path) == 1
        assert f"{tmp_path / 'edited.pth'} cannot be read: its state_dict has the key 5" in _message(capsys.readouterr())


def test_loading_weights_takes_no_state(done: Path, tmp_path: Path) -> None:
    """``load_from`` without ``resume`` is a new run, whatever the file has as the state of its own."""
    _edited(done / "iter_12.pth", tmp_path / "edited.pth", lambda c: c.update(training_state=5))
    assert tiny.run(tmp_path / "run", load_from=str(tmp_path / "edited.pth")) == 0


def test_a_state_without_a_position(done: Path, tmp_path: Path) -> None:
    """`DurableCheckpointHook` writes it with loops that have none; a ``ResumableIterLoop`` goes on from the iteration."""
    _edited(
        done / "iter_9.pth",
        tmp_path / "a.pth",
        lambda c: [c["training_state"]["processes"][0].pop(key) for key in ("seed", "draws", "size", "validated")],
    )
    assert tiny.run(tmp_path / "run", resume=True, load_from=str(tmp_path / "a.pth")) == 0
    assert "The checkpoint holds no position in the training data" in tiny.output(tmp_path / "run")


@pytest.mark.parametrize("text", ["/", "x" * 300, "a\0b"])
def test_resuming_with_a_senseless_last_checkpoint(text: str, done: Path, tmp_path: Path) -> None:
    """A name that no file can have is as good as none; pathlib raises at it."""
    shutil.copytree(done, tmp_path / "run")
    (tmp_path / "run/last_checkpoint").write_text(text)
    assert newest_readable_checkpoint(tmp_path / "run") == tmp_path / "run/iter_12.pth"


def test_resuming_removes_no_file_elsewhere(done: Path, tmp_path: Path) -> None:
    """What a checkpoint calls the former best, or outdated, or kept, may be any file or folder of the user."""
    run, precious = tmp_path / "run", tmp_path / "precious"
    run.mkdir()
    (precious / "folder").mkdir(parents=True)
    for name in ("folder/a.txt", "best.pth", "outdated.pth", "kept.pth"):
        (precious / name).write_text("mine")
    for number, best in enumerate((precious / "best.pth", precious / "folder")):
        content = torch.load(done / "iter_9.pth", weights_only=False)
        info = content["message_hub"]["runtime_info"]
        info |= {"best_ckpt": str(best), "best_score": -1e9, "keep_ckpt_ids": ["/../../precious/kept", 1, 2]}
        content["training_state"]["outdated"] = ["../precious/outdated.pth"]
        (run / f"iter_{number}").mkdir()
        torch.save(content, run / "iter_9.pth")
        assert (
            tiny.run(
                run,
                resume=True,
                load_from=str(run / "iter_9.pth"),
                **{"default_hooks.checkpoint.filename_tmpl": "iter_0{}.pth"},
            )
            == 0
        )
    assert len([path for path in precious.rglob("*") if path.is_file()]) == 4


def test_the_command_that_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``train --resume`` on the demo's config, in whose folder is a file of somebody else."""
    scenes = write_scenes(tmp_path / "voc", train=2, val=1, size=(48, 64))
    options = [f"prepare.root={scenes}", "prepare.train=2", "prepare.val=1", "prepare.size=(48,64)", *OPTIONS]
    options += [f"{part}_dataloader.dataset.data_root={scenes}" for part in ("train", "val", "test")]
    work = tmp_path / "work"
    config = load_config("gbseg::demo_expgb.py")
    run = next(iter(config.runs))
    (work / run).mkdir(parents=True)
    content = {"meta": {"iter": 3, "epoch": 0}, "state_dict": {}, "message_hub": {}, "mine": Evil(tmp_path / "ran")}
    torch.save(content, work / run / "iter_3.pth")
    assert main(["train", "gbseg::demo_expgb.py", "--resume", "--work-dir", str(work), "--cfg-options", *options]) == 1
    assert "builtins.exec" in _message(capsys.readouterr())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("command", [_test, _predict], ids=["test", "predict"])
@pytest.mark.parametrize("make", DAMAGED, ids=DAMAGE_NAMES)
def test_damaged_files_are_said_in_a_sentence(
    command: Callable, make: Callable, segmentor: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is scored or predicted with them."""
    config, whole = segmentor
    make(whole, tmp_path / "damaged.pth")
    assert command(config, tmp_path / "damaged.pth", tmp_path) == 1
    message = _message(capsys.readouterr())
    assert f"the checkpoint {tmp_path / 'damaged.pth'} cannot be read: " in message and DAMAGED[make] in message
    assert not list(tmp_path.rglob("scores.json")) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", DAMAGED, ids=DAMAGE_NAMES)
def test_damaged_files_in_mmengine(make: Callable, done: Path, tmp_path: Path) -> None:
    """``load_from`` and ``init_cfg`` take none of them either."""
    damaged = tmp_path / "damaged.pth"
    make(done / "iter_12.pth", damaged)
    model = MODELS.build(dict(type="HostileModel", init_cfg=dict(type="Pretrained", checkpoint=str(damaged))))
    with pytest.raises(ValueError, match=r"damaged\.pth cannot be read: ") as error:
        model.init_weights()
    assert DAMAGED[make] in str(error.value)
    runner = Runner.from_cfg(tiny.config(tmp_path / "run", load_from=str(damaged)))
    with pytest.raises(ValueError, match=r"damaged\.pth cannot be read: "):
        runner.load_or_resume()


def test_a_folder_and_a_missing_file(segmentor: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = segmentor
    for command in (_test, _predict):
        assert command(config, tmp_path, tmp_path) == 1
        assert f"{tmp_path} is a folder: name a checkpoint in it, or {tmp_path / 'last_checkpoint'}." in _message(
            capsys.readouterr()
        )
        assert command(config, tmp_path / "no.pth", tmp_path) == 1
        assert f"there is no checkpoint {tmp_path / 'no.pth'}" in _message(capsys.readouterr())
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*no\.pth"):
        CheckpointLoader.load_checkpoint(str(tmp_path / "no.pth"))


def test_last_checkpoint_is_followed(
    segmentor: tuple[Path, Path], done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name beside it first, since the folder may be a copy; then by the path that is written in it."""
    config, whole = segmentor
    other = tmp_path / "other"
    other.mkdir()
    _cut(whole, other / whole.name)
    (tmp_path / whole.name).write_bytes(whole.read_bytes())
    last = tmp_path / "last_checkpoint"
    last.write_text(f"{other / whole.name}")
    for command in (_test, _predict):
        assert command(config, last, tmp_path) == 0
    assert (tmp_path / f"work/test_{whole.stem}/scores.json").is_file()
    (tmp_path / whole.name).unlink()
    assert _test(config, last, tmp_path) == 1
    assert f"{other / whole.name} cannot be read: its end is missing" in _message(capsys.readouterr())
    for text, expected in (("gone.pth", "names gone.pth, which is neither beside it nor at that path"), ("", "is empty")):
        last.write_text(text)
        assert _predict(config, last, tmp_path) == 1
        assert f"{last} {expected}: give the checkpoint itself." in _message(capsys.readouterr())
    # mmengine's loading, and resuming from a given file
    shutil.copytree(done, tmp_path / "run")
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / "run/last_checkpoint"))
    assert loaded["meta"]["iter"] == 12
    assert tiny.run(tmp_path / "again", resume=True, load_from=str(tmp_path / "run/last_checkpoint")) == 0


def test_resuming_in_a_copied_folder(done: Path, tmp_path: Path) -> None:
    """The file that last_checkpoint names still exists where the folder came from; the copy's own is meant."""
    shutil.copytree(done, tmp_path / "copy")
    assert Path((tmp_path / "copy/last_checkpoint").read_text()).is_file()
    assert tiny.run(tmp_path / "copy", resume=True) == 0
    runner: Runner = Runner.from_cfg(tiny.config(tmp_path / "copy", resume=True))
    runner.call_hook("before_run")
    assert runner._load_from == str(tmp_path / "copy/iter_12.pth")


def test_a_comparison_draws_no_hostile_run(tmp_path: Path) -> None:
    """`gbseg.mm.compare_runs` reads the checkpoints of the runs for its pictures."""
    scenes = write_scenes(tmp_path / "voc", train=2, val=1, size=(48, 64))
    config_file, whole = write_segmentor(tmp_path, data=scenes)
    config: Config = load_config(config_file)
    config.val_dataloader = config.test_dataloader
    torch.save({**torch.load(whole), "message_hub": {}}, whole)
    _extended(whole, tmp_path / "ran", tmp_path / "iter_3.pth")
    with pytest.raises(ValueError, match=r"builtins\.exec"):
        draw_predictions({"run": (config, tmp_path)}, 1, tmp_path / "drawn.png")
    assert not (tmp_path / "ran").exists()
