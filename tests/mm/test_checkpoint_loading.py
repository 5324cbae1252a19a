"""What the reader of checkpoints takes, what it refuses, and what the writer leaves out for its sake."""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import importlib
import io
import os
import pickle
import pkgutil
import re
import resource
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
import engine_tiny as tiny
import mmengine
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, Runner
from mmseg.datasets.transforms import LoadBiomedicalImageFromFile
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.losses.utils import get_class_weight
from safetensors.torch import save_file
from torch import nn

import gbseg
from gbseg.cli import main
from gbseg.evaluation.submission_archive import SubmissionError
from gbseg.mm.checkpoint_contents import convert_checkpoint, without_unsafe_entries
from gbseg.mm.checkpoint_files import DurableBackend, checkpoint_damage
from gbseg.mm.checkpoint_loading import CheckpointError, UnsafeCheckpointError, load_safely, read_checkpoint
from gbseg.mm.checkpoint_weights import require_some_weights


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """The warnings of the writer."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gbseg.mm.checkpoint_contents.print_log", lambda text, *_: said.append(text))
        yield said


def _train_here(work_dir: Path, **options: Any) -> None:
    """`engine_tiny.train` in a process that knows this module's hook."""
    tiny.train(work_dir, **options)


def _train_on_a_bad_disk(work_dir: Path, **options: Any) -> None:
    """`engine_tiny.train` where a bit of every checkpoint changes after it was written."""
    replace = Path.replace

    def damage(self: Path, target: Path) -> Path:
        if target.suffix == ".pth":
            data = bytearray(self.read_bytes())
            weights = torch.load(self, weights_only=False)["state_dict"]["layers.0.weight"]
            data[data.index(weights.numpy().tobytes())] ^= 1
            self.write_bytes(data)
        return replace(self, target)

    Path.replace = damage  # type: ignore[method-assign]
    tiny.train(work_dir, **options)


class Mine:
    """A class of the user, which no reader knows."""

    def __init__(self) -> None:
        self.number = 3


def same(one: Any, other: Any) -> bool:
    """Equal in value and type; of numpy also in byte order and layout."""
    if isinstance(one, HistoryBuffer):
        return isinstance(other, HistoryBuffer) and one.max_length == other.max_length and same(one.data, other.data)
    if isinstance(one, np.ndarray | np.generic):
        return (
            type(one) is type(other)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, dict):
        return type(one) is type(other) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | collections.deque):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other


ARRAYS = {
    "float64": np.array([1.5, np.inf]),
    "float32, two axes": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i4"),
    "bools": np.array([True, False]),
    "a palette": np.array([[0, 0, 0], [128, 0, 0]], np.uint8),
    "none": np.empty((0, 3), np.int64),
    "no axis": np.array(3.0),
    "complex": np.array([1j], np.complex64),
    "half": np.array([0.1], np.float16),
    "names": np.array(["a", "bc"]),
    "bytes": np.array([b"a", b"bc"]),
    **{f"a {kind.__name__}": kind(3) for kind in (np.float64, np.float32, np.int64, np.uint8, np.bool_, np.uint32, np.str_)},
}


def _zoo(era: str) -> dict[str, Any]:
    """The kinds of content that checkpoints of the model zoos have: of MMCV's time, of MMEngine's, and of others."""
    weights = collections.OrderedDict(
        {"backbone.conv.weight": torch.randn(2, 3), "backbone.bn.num_batches_tracked": torch.tensor(3)}
    )
    weights._metadata = collections.OrderedDict({"": {"version": 1}, "backbone": {"version": 2}})
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2)}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    }
    if era == "mmcv":
        meta = {
            "env_info": "sys.platform: linux",
            "mmseg_version": "0.11.0+1",
            "config": "model = dict()",
            "iter": 3,
            "epoch": 1,
        }
        meta |= {
            "CLASSES": ("road", "sky"),
            "PALETTE": [[128, 64, 128], [0, 0, 0]],
            "hook_msgs": {},
            "seed": 0,
            "exp_name": "a.py",
        }
        return {"meta": meta, "state_dict": weights, "optimizer": optimizer}
    if era == "mmengine":
        hub = MessageHub(f"zoo{id(weights)}")
        for value in (1.0, 2.0):
            hub.update_scalar("train/loss", value, 3)
        hub.update_info("best_score", np.float64(81.2))
        hub.update_info("palette", ARRAYS["a palette"])
        meta = {
            "dataset_meta": {
                "classes": ("a", "b"),
                "palette": [[0, 0, 0], [1, 1, 1]],
                "extra": ConfigDict(a=1, b=[ConfigDict(c=2)]),
            }
        }
        meta |= {"mmengine_version": "0.10.1", "cfg": "model = dict()", "torch": torch.__version__, "time": "20231101_120000"}
        scheduler = {"last_step": 3, "_last_value": [0.1], "verbose": False}
        return dict(
            meta=meta, state_dict=weights, message_hub=hub.state_dict(), optimizer=optimizer, ema_state_dict=weights,
            param_schedulers=[scheduler],
        )  # fmt: skip
    # official weights of DeiT, MAE and ConvNeXt have the arguments of their training script
    return {
        "model": weights,
        "args": argparse.Namespace(lr=1e-3, output_dir=Path("/tmp/x"), mean=ARRAYS["float64"]),
        "epoch": 9,
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("era", ["mmcv", "mmengine", "others"])
def test_checkpoints_of_model_zoos(era: str, legacy: bool, tmp_path: Path) -> None:
    content = _zoo(era)
    torch.save(content, tmp_path / "zoo.pth", _use_new_zipfile_serialization=not legacy)
    expected = torch.load(tmp_path / "zoo.pth", weights_only=False)
    for loaded in (read_checkpoint(tmp_path / "zoo.pth"), CheckpointLoader.load_checkpoint(str(tmp_path / "zoo.pth"))):
        if era == "mmcv" and "config" not in loaded["meta"]:
            # mmengine's runner would execute it
            loaded["meta"] = {key: loaded["meta"].get(key, "model = dict()") for key in content["meta"]}
        if era == "others":
            assert same(vars(loaded.pop("args")), vars(content["args"]))
            loaded["args"] = expected["args"]
        assert same(loaded, expected) or era == "others"
        weights = loaded["model" if era == "others" else "state_dict"]
        assert weights._metadata == content["model" if era == "others" else "state_dict"]._metadata
    if era == "mmengine":
        hub = MessageHub(f"restored{id(content)}")
        hub.load_state_dict(loaded["message_hub"])
        assert hub.log_scalars["train/loss"].mean() == 0.5


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_and_numbers_of_numpy(kind: str, tmp_path: Path) -> None:
    value = ARRAYS[kind]
    torch.save({"one": value, "several": [value, (value, {"inner": value})]}, tmp_path / "a.pth")
    loaded = read_checkpoint(tmp_path / "a.pth")
    assert same(loaded, {"one": value, "several": [value, (value, {"inner": value})]})
    if isinstance(value, np.ndarray):
        assert loaded["one"].flags.writeable
        # one object stays one object
        assert loaded["several"][0] is loaded["one"]


def test_checkpoints_of_old_numpy(tmp_path: Path) -> None:
    """Before numpy 2, its core had another name."""
    torch.save({"a": np.arange(3.0), "b": np.float64(2)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert same(read_checkpoint(tmp_path / "old.pth"), {"a": np.arange(3.0), "b": np.float64(2)})


def test_histories_take_no_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of mmengine's HistoryBuffer replaces the statistics of all histories of the process."""
    with monkeypatch.context() as context:
        context.setitem(HistoryBuffer._statistics_methods, "mean", HistoryBuffer.max)
        torch.save({"h": HistoryBuffer([1.0, 2.0], [1, 1])}, tmp_path / "h.pth")
    assert read_checkpoint(tmp_path / "h.pth")["h"].statistics("mean") == 1.5
    assert HistoryBuffer._statistics_methods["mean"] is HistoryBuffer.mean


REFUSED = {
    "a class": (Mine(), f"{__name__}.Mine"),
    "a function": (print, "builtins.print"),
    "an array of objects": (np.array([None, 1]), "numpy.dtype('O8')"),
    "an array of records": (np.zeros(2, [("a", "f4"), ("b", "i8")]), "numpy.dtype('V12')"),
    "a call of getattr": (functools.partial(int), "functools.partial"),
    "a whole module": (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_data_is_named(kind: str, legacy: bool, tmp_path: Path) -> None:
    value, name = REFUSED[kind]
    torch.save({"state_dict": {}, "meta": {"a": [value]}}, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeCheckpointError) as error:
        read_checkpoint(tmp_path / "c.pth")
    assert error.value.kind == f"objects made by {name}"
    assert str(error.value) == (
        f"the checkpoint {tmp_path}/c.pth cannot be read: it holds objects made by {name}, and to load that could run code. If "
        f"you trust where the file comes from, `gbseg convert-checkpoint {tmp_path}/c.pth OUT.pth --trust` writes what is data "
        "in it to OUT.pth"
    )
    assert checkpoint_damage(tmp_path / "c.pth") == error.value.reason


def test_other_protocols_of_pickle_are_refused_with_the_command(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "b": {1, 2}}, tmp_path / "c.pth", pickle_protocol=4)
    with (
        pytest.warns(UserWarning, match="protocol 4"),
        pytest.raises(UnsafeCheckpointError, match=r"Unsupported operand 149\)") as error,
    ):
        read_checkpoint(tmp_path / "c.pth")
    assert "--trust" in str(error.value) and "weights_only" not in str(error.value)


def test_what_the_user_allows_is_loaded(tmp_path: Path) -> None:
    """By torch's own list. It is as before afterwards, and names of it do not undo those of the reader."""
    torch.save({"mine": Mine(), "a": np.arange(2)}, tmp_path / "c.pth")
    before = set(torch.serialization.get_safe_globals())
    mine = [Mine, getattr, np.ndarray, np.dtype, np._core.multiarray._reconstruct, (print, "numpy.dtype")]
    with torch.serialization.safe_globals(mine):
        loaded = read_checkpoint(tmp_path / "c.pth")
        assert loaded["mine"].number == 3 and same(loaded["a"], np.arange(2))
        assert set(torch.serialization.get_safe_globals()) == before | set(mine)
    assert set(torch.serialization.get_safe_globals()) == before


def test_deep_and_circular_contents(tmp_path: Path) -> None:
    """Neither hangs nor kills the process."""
    circle: dict[str, Any] = {"a": np.float64(1)}
    circle["self"] = [circle]
    torch.save(circle, tmp_path / "circle.pth")
    loaded = read_checkpoint(tmp_path / "circle.pth")
    assert loaded["self"][0] is loaded
    program = b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"s."
    with zipfile.ZipFile(tmp_path / "deep.pth", "w") as archive:
        for name, content in (("data.pkl", program), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", content)
    with pytest.raises(CheckpointError, match="RecursionError"):
        read_checkpoint(tmp_path / "deep.pth")


def test_what_would_fill_the_memory(tmp_path: Path) -> None:
    """A compressed archive of zeros; a pickle that asks for a terabyte."""
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))
    with pytest.raises(CheckpointError, match=r"its 0\.1 MiB would unpack to 64\.0 MiB"):
        read_checkpoint(tmp_path / "bomb.pth")


def _named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def _by_hex() -> bytes:
    value = _text("ab")
    for _ in range(26):
        value = _named("_codecs", "encode") + value + _text("hex" if b"hex" in value else "latin1") + b"\x86R"
        value = value if b"hex" in value else _named("_codecs", "encode") + value + _text("hex") + b"\x86R"
    return value


A_GIGABYTE = {
    "bytearray": (_named("__builtin__", "bytearray") + _number(2**30) + b"\x85R", "a bytearray is made of '1073741824'"),
    "bytes": (_named("__builtin__", "bytes") + _number(2**30) + b"\x85R", "a bytes is made of '1073741824'"),
    "by another function": (
        _named("torch._tensor", "_rebuild_from_type_v2")
        + b"("
        + _named("__builtin__", "bytearray")
        + _named("torch", "Tensor")
        + _number(2**30)
        + b"\x85NtR",
        "a bytearray is made of",
    ),
    "codecs": (_by_hex(), "and 'hex', and not of bytes"),
    "tensor": (_named("torch", "FloatTensor") + _number(2**28) + b"\x85R", "would take 1024.0 MiB, and it holds 0.0 MiB"),
    "new tensor": (_named("torch", "Tensor") + _number(2**28) + b"\x85\x81", "would take 1024.0 MiB, and it holds 0.0 MiB"),
    "storage": (_named("torch.storage", "UntypedStorage") + _number(2**30) + b"\x85R", "would take 1024.0 MiB, and it"),
}


def test_an_archive_in_an_archive(tmp_path: Path) -> None:
    """One around a checkpoint is unpacked, as torch.hub does it; with each more, a file could be 64 times as large."""
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "whole.pth")
    for inner, outer in (("whole", "once"), ("once", "twice")):
        with zipfile.ZipFile(tmp_path / f"{outer}.pth", "w") as archive:
            archive.write(tmp_path / f"{inner}.pth", "inside")
    assert torch.equal(read_checkpoint(tmp_path / "once.pth")["state_dict"]["w"], torch.ones(2))
    with pytest.raises(
        CheckpointError, match=r"twice\.pth cannot be read: it is an archive in an archive: unpack it, and name"
    ):
        read_checkpoint(tmp_path / "twice.pth")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", A_GIGABYTE)
def test_memory_by_number(kind: str, legacy: bool, tmp_path: Path) -> None:
    """A file of 400 bytes names functions of torch's own list that take as much memory as it says."""
    value, reason = A_GIGABYTE[kind]
    program = b"\x80\x02}" + _text("a") + value + b"s."
    if legacy:
        buffer = io.BytesIO()
        torch.save({}, buffer, _use_new_zipfile_serialization=False)
        (tmp_path / "a.pth").write_bytes(buffer.getvalue().replace(b"\x80\x02}q\x00.", program, 1))
        assert program in (tmp_path / "a.pth").read_bytes()
    else:
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
            for name, content in (("data.pkl", program), ("version", b"3\n"), ("byteorder", b"little")):
                archive.writestr(f"archive/{name}", content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / "a.pth")
    assert reason in str(error.value) and str(tmp_path / "a.pth") in str(error.value)
    # in KiB; the 64 MiB are for what Python itself takes at the error
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16


def test_bytes_and_dtypes(tmp_path: Path) -> None:
    """As they were; torch's own bytearray afterwards as before."""
    content = {"a": bytearray(b"a\xff"), "b": bytearray(), "c": b"\x00\xfe", "d": b"", "e": [np.dtype("f4"), np.dtype(">i2")]}
    content |= {"empty": torch.empty(0), "one for all": torch.zeros(1).expand(10**9)}
    torch.save(content, tmp_path / "a.pth")
    loaded = read_checkpoint(tmp_path / "a.pth")
    assert loaded.pop("one for all").shape == (10**9,) and loaded.pop("empty").shape == (0,)
    assert all(same(loaded[key], content[key]) for key in loaded) and len(loaded) == 5
    assert torch._weights_only_unpickler._get_allowed_globals()["builtins.bytearray"] is bytearray


@pytest.mark.parametrize("error", [CheckpointError("a.pth", "it is cut off"), UnsafeCheckpointError("a.pth", "x.Y")])
def test_errors_reach_other_processes(error: CheckpointError) -> None:
    """`DurableCheckpointHook` broadcasts them, by pickle."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


def test_every_error_of_the_package_can_be_pickled() -> None:
    """Data loaders and launchers send errors between processes."""
    for module in pkgutil.walk_packages(gbseg.__path__, "gbseg."):
        if "kernels" not in module.name and "__main__" not in module.name:
            importlib.import_module(module.name)
    kinds = {kind for base in (Exception, OSError, ValueError, RuntimeError) for kind in base.__subclasses__()}
    kinds = {kind for kind in kinds if kind.__module__.startswith("gbseg.")} | {UnsafeCheckpointError}
    assert len(kinds) >= 14
    special: dict[type, tuple] = dict.fromkeys((CheckpointError, UnsafeCheckpointError), ("a", "b"))
    special[SubmissionError] = ([("a", "b")], "folder")
    for kind in kinds:
        error = kind(*special.get(kind, (28, "no space") if issubclass(kind, OSError) else ("a",)))
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and str(again) == str(error) and vars(again) == vars(error)


PICKLED: dict[str, Any] = {
    "annotations": [{"img_path": "a.jpg", "boxes": [[1, 2.5]], "mask": None, "ok": True, "tags": {"a"}, "size": (3, 4)}],
    "arrays": [*ARRAYS.values(), {"deeper": (ARRAYS["a palette"], [ARRAYS["names"]])}],
    "objects": np.array([[1, "a"], [None, [2, np.arange(3)]]], object),
    "records": np.array([(1.5, (2, 3))], [("a", "f4"), ("b", ">i8", (2,))]),
    "dates": np.array(["2020-01-01"], "M8[D]"),
    "a date": np.datetime64("2020-01-01T10", "25m"),
    "dtype": [np.dtype("f4"), np.dtype(">i2")],
    "containers": [collections.OrderedDict(a=1), collections.defaultdict(list, a=[1]), collections.Counter("ab")],
    "sets": [frozenset("a"), {1, (2, 3)}, set(), collections.deque([np.arange(2)])],
    "bytes": [b"", b"\xff\x00", bytearray(b"a"), bytearray(), 2**70, 1j, slice(1, 2)],
    "tensors": {"a": torch.arange(3), "b": torch.ones(2, 2, dtype=torch.bfloat16).T},
    "meta": [ConfigDict(a=ConfigDict(b=1)), Path("a/b")],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", PICKLED)
def test_pickles_of_data_are_loaded(kind: str, protocol: int, tmp_path: Path) -> None:
    """By mmengine's ``load``, as ``ann_file`` and ``class_weight`` are."""
    value = PICKLED[kind]
    mmengine.dump(value, tmp_path / "x.pkl", protocol=protocol)
    loaded = mmengine.load(tmp_path / "x.pkl")
    if kind == "objects":
        assert loaded.dtype == object and loaded.shape == (2, 2)
        assert same(loaded[1, 1][1], np.arange(3)) and loaded[0].tolist() == [1, "a"] and loaded[1, 0] is None
    else:
        assert same(loaded, value)
    with (tmp_path / "x.pkl").open("rb") as file:
        assert type(mmengine.load(file, "pkl")) is type(value)


def _false_records() -> bytes:
    """An array of bytes that are taken for pointers to objects: its dtype denies that it has any."""
    kind = _named("numpy", "dtype")
    objects = kind + _text("O8") + b"K\x00K\x01\x87R"
    state = b"(K\x03" + _text("|") + b"N" + _text("a") + b"\x85}" + _text("a") + objects + b"K\x00\x86sK\x08K\x01K\x00tb"
    array = _named("numpy.core.multiarray", "_reconstruct") + _named("numpy", "ndarray") + b"K\x00\x85" + _text("b") + b"\x87R"
    eight = _named("_codecs", "encode") + _text("A" * 8) + _text("latin1") + b"\x86R"
    return b"\x80\x02" + array + b"(K\x01K\x01\x85" + kind + _text("V8") + b"K\x00K\x01\x87R" + state + b"\x89" + eight + b"tb."


def _hostile_files(folder: Path, marker: Path) -> dict[Path, str]:
    """Files that run code as they are read, or reach memory, and what is said of each."""
    files = {
        "exec.pkl": (pickle.dumps({"a": [Evil(marker)]}), "builtins.exec"),
        "exec.pickle": (pickle.dumps([Evil(marker)], 5), "builtins.exec"),
        "mine.pkl": (pickle.dumps(Mine()), "Mine"),
        "pointers.pkl": (_false_records(), "numpy.dtype('O')"),
        "storage.pkl": (
            b"\x80\x02" + _named("torch.storage", "_load_from_bytes") + b"B" + struct.pack("<I", len(_evil_tensor(marker)))
            + _evil_tensor(marker) + b"\x85R.",
            "builtins.exec",
        ),
        "call.yaml": (f"a: !!python/object/apply:builtins.exec [\"open({str(marker)!r}, 'w')\"]\n".encode(), "builtins.exec"),
        "new.yml": (f"!!python/object/new:os.system ['touch {marker}']\n".encode(), "os.system"),
    }  # fmt: skip
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    return {folder / name: reason for name, (_, reason) in files.items()}


def _evil_tensor(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Evil(marker), buffer)
    return buffer.getvalue()


def test_no_data_file_runs_code(tmp_path: Path) -> None:
    """Neither by mmengine's ``load`` nor where configs name files: ``class_weight`` of mmseg's losses, ``ann_file``."""
    for path, reason in _hostile_files(tmp_path, tmp_path / "ran").items():
        for load in (
            mmengine.load,
            get_class_weight,
            lambda name: CrossEntropyLoss(class_weight=name),
            lambda name: BaseDataset(ann_file=name),
        ):
            with pytest.raises(ValueError, match=re.escape(reason)) as error:
                load(str(path))
            assert not (tmp_path / "ran").exists()
            assert str(path) in str(error.value) or path.name == "storage.pkl", str(error.value)
    mmengine.dump([0.5, 1.0], tmp_path / "w.pkl")
    assert get_class_weight(str(tmp_path / "w.pkl")) == [0.5, 1.0]
    mmengine.dump({"metainfo": {}, "data_list": [{"img_path": "a.jpg"}]}, tmp_path / "x.pkl")
    assert BaseDataset(ann_file=str(tmp_path / "x.pkl"))[0]["img_path"] == "a.jpg"
    mmengine.dump({"a": (1, 2.5), "b": ["c"]}, tmp_path / "x.yaml")
    assert mmengine.load(tmp_path / "x.yaml") == {"a": (1, 2.5), "b": ["c"]}
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps(list(range(100)))[:50])
    with pytest.raises(ValueError, match=r"cut\.pkl cannot be read as a pickle"):
        mmengine.load(tmp_path / "cut.pkl")


def test_no_volume_runs_code(tmp_path: Path) -> None:
    """The pickles that mmseg's loaders of biomedical data read."""
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(np.arange(24.0).reshape(1, 2, 3, 4)))
    load = LoadBiomedicalImageFromFile(decode_backend="pickle")
    with pytest.raises(ValueError, match=r"holds objects made by builtins\.exec, and to load that could run code: write what"):
        load({"img_path": str(tmp_path / "a.pkl")})
    assert not (tmp_path / "ran").exists()
    assert load({"img_path": str(tmp_path / "b.pkl")})["img"].size == 24


def test_files_without_checksums(tmp_path: Path) -> None:
    """torch.save leaves them out if it is told so; and a compressed file is one that torch.load takes."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"state_dict": {"a": torch.arange(5)}}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "a.pth")["state_dict"]["a"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_safetensors(name: str, tmp_path: Path) -> None:
    """By the name or by the content, for every place that MMEngine loads from."""
    weights = {"layer.weight": torch.randn(2, 3), "layer.bias": torch.randn(2)}
    save_file(weights, tmp_path / name)
    for loaded in (read_checkpoint(tmp_path / name), CheckpointLoader.load_checkpoint(str(tmp_path / name), "cpu")):
        assert same(dict(sorted(loaded.items())), dict(sorted(weights.items())))
    os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - 3)
    with pytest.raises(CheckpointError, match=r"cannot be read: SafetensorError: "):
        read_checkpoint(tmp_path / name)


@pytest.mark.slow
def test_a_bare_import_changes_no_process() -> None:
    """``import gbseg`` and the losses leave torch's and mmengine's loading alone; gbseg.mm replaces mmengine's alone."""
    program = """
import torch, mmengine.runner.checkpoint as c
state = lambda: (torch.load, torch.hub.load_state_dict_from_url, c._safe_torch_load, c.load_url,
                 dict(c.CheckpointLoader._schemes), {str(kind) for kind in torch.serialization.get_safe_globals()})
before = state()
import gbseg, gbseg.losses, gbseg.boosting
gbseg.ExpGBLoss
assert state()[:5] == before[:5] and not [kind for kind in state()[5] if "gbseg" in kind]
import gbseg.mm
now = state()
assert now[:2] == before[:2] and now[5] >= before[5] and not [kind for kind in now[5] if "gbseg" in kind]
assert now[2] != before[2] and now[3] != before[3] and now[4][""] != before[4][""]
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=300)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return exec, (f"open({str(self.marker)!r}, 'w')",)


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """MMEngine's loaders of URLs and model zoos fetch by torch.hub; the file is read like any other."""
    served, home = tmp_path / "served", tmp_path / "hub"
    served.mkdir()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(home))
    torch.save({"state_dict": {"a": torch.arange(3)}, "n": np.float64(1)}, served / "good.pth")
    torch.save({"state_dict": {}, "mine": Evil(tmp_path / "ran")}, served / "evil.pth")
    (served / "page.pth").write_text("<html>not found</html>")
    save_file({"a": torch.arange(3)}, served / "good.safetensors")
    with zipfile.ZipFile(served / "zipped.zip", "w") as archive:
        archive.write(served / "good.pth", "good.pth")
    data = bytearray((served / "good.pth").read_bytes())
    data[data.index(torch.arange(3).numpy().tobytes())] ^= 1
    (served / "flipped.pth").write_bytes(data)
    handler = functools.partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": print}), directory=str(served))
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        said: list[str] = []
        monkeypatch.setattr("gbseg.mm.checkpoint_loading.print_log", lambda text, *_: said.append(text))
        loaded = CheckpointLoader.load_checkpoint(f"{address}/good.pth", "cpu")
        assert loaded["state_dict"]["a"].tolist() == [0, 1, 2] and same(loaded["n"], np.float64(1))
        place = home / "checkpoints"
        assert said == [
            f"{address}/good.pth is fetched by torch.hub (unless {place}/good.pth is there already) and read as data: it runs "
            "no code."
        ]
        # a zipped checkpoint too, as torch.hub's own loader takes it
        for name in ("good.safetensors", "zipped.zip"):
            loaded = CheckpointLoader.load_checkpoint(f"{address}/{name}", "cpu")
            assert loaded.get("state_dict", loaded)["a"].tolist() == [0, 1, 2]
        with pytest.raises(CheckpointError, match=rf"{place}/flipped\.pth cannot be read: the checksum of its part"):
            CheckpointLoader.load_checkpoint(f"{address}/flipped.pth", "cpu")
        with pytest.raises(
            UnsafeCheckpointError, match=rf"{place}/evil\.pth cannot be read: it holds objects made by builtins\.exec"
        ):
            CheckpointLoader.load_checkpoint(f"{address}/evil.pth", "cpu")
        with pytest.raises(CheckpointError, match=rf"{place}/page\.pth cannot be read: "):
            CheckpointLoader.load_checkpoint(f"{address}/page.pth", "cpu")
        with pytest.raises(
            CheckpointError, match=r"none\.pth cannot be read: it cannot be fetched \(HTTPError: HTTP Error 404"
        ):
            CheckpointLoader.load_checkpoint(f"{address}/none.pth", "cpu")
        # names of models lead to URLs
        monkeypatch.setattr("mmengine.runner.checkpoint.get_torchvision_models", lambda: {"net": f"{address}/evil.pth"})
        monkeypatch.setattr("mmengine.runner.checkpoint.get_external_models", lambda: {"net": f"{address}/evil.pth"})
        monkeypatch.setattr("mmengine.runner.checkpoint.get_mmcls_models", lambda: {"net": f"{address}/evil.pth"})
        for scheme in ("torchvision", "open-mmlab", "mmcls"):
            with pytest.raises(UnsafeCheckpointError, match=r"builtins\.exec"):
                CheckpointLoader.load_checkpoint(f"{scheme}://net", "cpu")
        runner: Runner = Runner.from_cfg(tiny.config(tmp_path / "run", load_from=f"{address}/evil.pth"))
        with pytest.raises(UnsafeCheckpointError, match=r"builtins\.exec"):
            runner.load_or_resume()
    finally:
        server.shutdown()
        server.server_close()
    assert not (tmp_path / "ran").exists()


def test_open_files(tmp_path: Path) -> None:
    """How MMEngine's loader of S3 hands checkpoints over."""
    torch.save({"state_dict": {"a": torch.arange(3)}}, tmp_path / "a.pth")
    save_file({"a": torch.arange(3)}, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        for file in (io.BytesIO((tmp_path / name).read_bytes()), (tmp_path / name).open("rb")):
            with file:
                loaded = load_safely(file, "cpu")
            assert loaded.get("state_dict", loaded)["a"].tolist() == [0, 1, 2]
    data = bytearray((tmp_path / "a.pth").read_bytes())
    data[data.index(torch.arange(3).numpy().tobytes())] ^= 1
    for content, reason in ((data, "the checksum of its part"), (data[:-30], "its end is missing"), (b"", "the file is empty")):
        with pytest.raises(CheckpointError, match=f"the checkpoint that was fetched cannot be read: {reason}"):
            load_safely(io.BytesIO(content), "cpu")


@HOOKS.register_module()
class GenerousHook(Hook):
    """Puts objects of its own into checkpoints: after all others, and into the message hub."""

    priority = "LOWEST"

    def before_train(self, runner: Runner) -> None:
        """Into the message hub, with something that may stay."""
        runner.message_hub.update_info("mine", Mine())
        runner.message_hub.update_info("array", np.arange(3))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """At the top, in a dictionary of its own, and in meta."""
        checkpoint["own"] = {"good": 1, "bad": [Mine()]}
        checkpoint["function"] = os.getcwd
        checkpoint["meta"]["note"] = "kept"


def test_the_writer_leaves_out_what_its_reader_refuses(tmp_path: Path) -> None:
    """By name, in a warning, from the first checkpoint on; the run resumes from what is there."""
    generous = {"custom_hooks": [{"type": "EMAHook"}, {"type": "GenerousHook"}]}
    assert tiny.run(tmp_path, target=_train_here, **generous) == 0
    text = tiny.output(tmp_path)
    lines = [line for line in text.splitlines() if "left out of the checkpoints" in line]
    assert len(lines) == 1 and "WARNING" in lines[0]
    for named in (
        f"message_hub.runtime_info.mine (objects made by {__name__}.Mine)",
        f"own.bad (objects made by {__name__}.Mine)",
        "function (objects made by posix.getcwd)",
    ):
        assert named in lines[0]
    for path in (*tmp_path.glob("iter_*.pth"), *tmp_path.glob("best_*.pth")):
        checkpoint = read_checkpoint(path)
        assert checkpoint["own"] == {"good": 1} and "function" not in checkpoint and checkpoint["meta"]["note"] == "kept"
        info = checkpoint["message_hub"]["runtime_info"]
        assert "mine" not in info and info["array"].tolist() == [0, 1, 2]
    assert tiny.run(tmp_path, target=_train_here, resume=True, **generous, **{"train_cfg.max_iters": 15}) == 0
    assert "resumed epoch: 0, iter: 12" in tiny.output(tmp_path)


def test_the_writer_changes_nothing_else(tmp_path: Path) -> None:
    """Good bytes are written as they are, weights in any case, and objects of the run are left alone."""
    buffer = io.BytesIO()
    torch.save(_zoo("mmengine"), buffer)
    data = buffer.getvalue()
    assert without_unsafe_entries(data, tmp_path / "a.pth") is data
    DurableBackend().put(buffer.getvalue(), tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == buffer.getvalue()
    DurableBackend().put(b"PK no archive", tmp_path / "b.pth")
    assert (tmp_path / "b.pth").read_bytes() == b"PK no archive"
    weights = collections.OrderedDict(a=torch.ones(2), extra=Mine())
    weights._metadata = {"": {"version": 1}}
    buffer = io.BytesIO()
    torch.save({"state_dict": weights, "mine": Mine(), "meta": {}}, buffer)
    with _logged() as said:
        DurableBackend().put(buffer.getvalue(), tmp_path / "c.pth")
    kept = torch.load(tmp_path / "c.pth", weights_only=False)
    assert list(kept) == ["state_dict", "meta"] and kept["state_dict"]["extra"].number == 3
    assert (
        "left out of the checkpoints, since they are no data, and to load them could run code: mine (objects made by" in said[0]
    )
    assert (
        f"state_dict of the checkpoints hold objects made by {__name__}.Mine, so that only `gbseg convert-checkpoint`"
        in said[0]
    )


def test_the_first_checkpoint_is_read_back(tmp_path: Path) -> None:
    """A disk that does not keep what is written ends the run at its first checkpoint, and not at its end."""
    assert tiny.run(tmp_path, target=_train_on_a_bad_disk) == 1
    text = tiny.output(tmp_path)
    assert "CheckpointWriteError: the first checkpoint of this run was written, but the checkpoint " in text
    assert "iter_3.pth cannot be read: the checksum of its part" in text and "Iter(train) [ 4/12]" not in text


def test_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only with --trust; what is left out is named; an existing file is never replaced."""
    source, target, marker = tmp_path / "old.pth", tmp_path / "new.pth", tmp_path / "ran"
    content = {**_zoo("mmengine"), "mine": Evil(marker), "list": [{"a": 1, "b": Mine()}, {"c": 2, Path: 3}]}
    torch.save(content, source, _use_new_zipfile_serialization=False)
    command = ["convert-checkpoint", str(source), str(target)]
    assert main(command) == 1
    message = capsys.readouterr().err
    assert (
        f"to convert {source} is to load it in full, which runs whatever code the file holds, with your rights: if you trust"
        in message
    )
    assert "repeat the command with --trust." in message and not marker.exists() and not target.exists()
    assert main([*command, "--trust"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"left out: list[0].b (objects made by {__name__}.Mine)",
        f"left out: list[1].{Path} (as a key) (objects made by pathlib.Path)",
        f"{target} holds the rest of {source}",
    ]
    # exec returns None, so that nothing of the hostile object is there to be left out
    assert marker.exists()
    converted = read_checkpoint(target)
    assert converted["list"] == [{"a": 1}, {"c": 2}] and converted["mine"] is None
    assert same(converted["message_hub"], content["message_hub"]) and same(converted["meta"], content["meta"])
    assert converted["state_dict"]._metadata == content["state_dict"]._metadata
    assert main([*command, "--trust"]) == 1
    assert f"{target} exists: name another file." in capsys.readouterr().err


def test_conversion_of_what_needs_none_runs_nothing(tmp_path: Path) -> None:
    torch.save(_zoo("mmcv"), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert convert_checkpoint(tmp_path / "old.pth", tmp_path / "new.pth") == {}
    assert zipfile.is_zipfile(tmp_path / "new.pth") and "config" in read_checkpoint(tmp_path / "new.pth")["meta"]


def test_conversion_of_other_things(tmp_path: Path) -> None:
    """A whole module has weights; a list has none; a class that is not there cannot be loaded; damage stays damage."""
    module = nn.Sequential(nn.Linear(2, 3))
    torch.save(module, tmp_path / "module.pth")
    assert convert_checkpoint(tmp_path / "module.pth", tmp_path / "a.pth") == {}
    assert same(read_checkpoint(tmp_path / "a.pth")["state_dict"], module.state_dict())
    torch.save([Mine()], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="it holds a list, and not a dictionary of weights"):
        convert_checkpoint(tmp_path / "list.pth", tmp_path / "b.pth")
    torch.save({"a": Mine()}, tmp_path / "gone.pth")
    data = (tmp_path / "gone.pth").read_bytes().replace(__name__.encode(), b"x" * len(__name__))
    torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "gone.pth") as old, zipfile.ZipFile(tmp_path / "gone2.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(__name__.encode(), b"x" * len(__name__)))
    with pytest.raises(
        CheckpointError, match=r"ModuleNotFoundError: No module named 'x+'; to convert it, install what defines"
    ):
        convert_checkpoint(tmp_path / "gone2.pth", tmp_path / "c.pth")
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="its end is missing"):
        convert_checkpoint(tmp_path / "cut.pth", tmp_path / "d.pth")
    assert not [path for path in tmp_path.iterdir() if path.name in ("b.pth", "c.pth", "d.pth")]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"meta": {}, "optimizer": {}}, r"has no weights of this network: none of its 2 entries \(meta, optimizer\)"),
        ({"state_dict": {"trunk.weight": torch.zeros(3, 2)}}, r"none of its 1 entries \(trunk.weight\)"),
        ({"state_dict": {"weight": torch.zeros(3, 5)}}, "has no weights of this network"),
        ({"state_dict": {"weight": "w", "bias": torch.zeros(3)}}, "weight is a str, and not a tensor"),
    ],
)
def test_fine_tuning_needs_a_weight_that_fits(stored: dict, message: str) -> None:
    """mmengine warned, and trained on from random weights."""
    with pytest.raises(ValueError, match=message):
        require_some_weights(torch.nn.Linear(2, 3), stored, "other.pth")
    require_some_weights(torch.nn.Linear(2, 3), {"state_dict": {"module.bias": torch.zeros(3), "head": 1}}, "part.pth")
