"""The private parts of MMEngine and its family that gbseg.mm.compat rests on are where they were in the versions tried.

A failure here means that a new version has moved something: change the function of gbseg/mm/compat.py that the message names.
"""

import contextlib
import functools
import inspect
import io
import logging
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")
import mmengine
import mmpretrain
import mmseg
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import JsonHandler, register_handler
from mmengine.fileio.io import file_handlers
from mmengine.hooks import CheckpointHook, Hook, IterTimerHook, RuntimeInfoHook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel, BaseTTAModel, ImgDataPreprocessor, MMDistributedDataParallel, PretrainedInit
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, RUNNERS, DefaultScope
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, checkpoint, load_checkpoint
from mmengine.structures import PixelData
from mmpretrain.models.heads import ClsHead
from mmpretrain.models.utils import ClsDataPreprocessor
from mmseg.datasets.transforms import Albu
from mmseg.models import SegDataPreProcessor
from mmseg.models.decode_heads import FCNHead
from mmseg.structures import SegDataSample
from mmseg.utils import io as volumes
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gbseg.mm.models
from gbseg.mm import compat, data_file_loading
from gbseg.mm.checkpoint_loading import load_safely
from gbseg.mm.config import config_folder

PACKAGES = ("onedl-mmengine", "onedl-mmcv", "onedl-mmsegmentation", "onedl-mmpretrain")


def rests_on(place: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of what ``place`` rests on: whatever goes wrong in it, the failure names the place to look at."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                test(*args, **kwargs)
            except (Exception, pytest.fail.Exception) as error:
                installed = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
                message = f"look at gbseg.mm.{place}: what it rests on has moved in one of {installed} ({error!r})"
                raise AssertionError(message) from error

        return run

    return decorate


def parameters(function: Any) -> list[str]:
    """The names of a function's parameters."""
    return list(inspect.signature(function).parameters)


def source(package: Any) -> str:
    """The text of a whole package or module."""
    path = Path(package.__file__)
    files = path.parent.rglob("*.py") if path.name == "__init__.py" else [path]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def test_versions() -> None:
    """The versions that compat.py names are the ones that the rest of this file runs with."""
    for name in PACKAGES:
        assert f"{name} {version(name)}" in " ".join(compat.__doc__.split()), (
            f"{name} {version(name)} is not among the versions at the top of gbseg/mm/compat.py: run this file, then add it"
        )


@rests_on("compat.base_configs_by_prefix")
def test_config_prefixes(tmp_path: Path) -> None:
    """mmengine resolves ``package::file`` by a static method, which gets the prefix and returns path and scope."""
    assert isinstance(Config.__dict__.get("_get_cfg_path"), staticmethod)
    assert parameters(Config._get_cfg_path) == ["cfg_path", "filename"]
    (tmp_path / "base.py").write_text("model = dict(type='A')\n")
    path = tmp_path / "config.py"
    path.write_text("_base_ = 'somewhere::base.py'\n")
    with compat.base_configs_by_prefix(lambda package: tmp_path, {"somewhere": "mmseg"}):
        config = Config.fromfile(path)
    assert config.model == {"type": "A", "_scope_": "mmseg"}
    # and it must still be needed: mmengine does not find them by itself
    with pytest.raises(Exception, match="external package"):
        Config.fromfile(path)


@pytest.mark.parametrize("package", ["mmseg", "mmpretrain"])
@rests_on("config.config_folder")
def test_config_folders(package: str) -> None:
    """The wheels of the family carry their configs in ``.mim``."""
    assert (config_folder(package) / "_base_").is_dir()


class Model(BaseModel):
    """One parameter, which is its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Any, mode: str) -> dict[str, torch.Tensor]:
        """The loss terms."""
        return {"a_loss": self.weight, "acc": torch.ones(())}


class TTAModel(BaseTTAModel):
    """A wrapper for test-time augmentation."""

    def merge_preds(self, data_samples_list: list) -> list:
        """Not needed."""
        return []


@rests_on("compat.unwrap_model")
def test_model_wrappers() -> None:
    """Wrappers for several processes and for test-time augmentation keep the network as ``module``."""
    network = Model()
    tta = TTAModel(module=network)
    assert compat.unwrap_model(network) is network
    assert compat.unwrap_model(nn.DataParallel(tta)) is network
    assert not hasattr(compat.unwrap_model(network), "module")
    assert issubclass(MMDistributedDataParallel, nn.parallel.DistributedDataParallel)


@rests_on("compat.EarlyWeightsRunner")
def test_initial_weights_are_given_by_one_method() -> None:
    """``train`` calls it after ``wrap_model`` and after the optimizer is built."""
    assert parameters(Runner._init_model_weights) == ["self"]
    lines = inspect.getsource(Runner.train)
    assert lines.index("build_optim_wrapper") < lines.index("self._init_model_weights()") < lines.index("self.load_or_resume()")


@rests_on("compat.checkpoint_content")
def test_a_checkpoint_is_written_by_one_function() -> None:
    """``Runner.save_checkpoint`` builds the content and calls a function of its module, once; ``master_only`` is around it."""
    method = inspect.unwrap(Runner.save_checkpoint)
    assert method is not Runner.save_checkpoint
    source_text = inspect.getsource(method)
    assert source_text.count(" save_checkpoint(") == 2, "the definition's call of the function, and its own name"
    assert callable(sys.modules[Runner.__module__].save_checkpoint)


@rests_on("compat.observe_losses")
def test_losses_are_observed() -> None:
    """`train_step` calls ``self.parse_losses`` between forward and backward pass, in wrapped models too."""
    for function in (BaseModel.train_step, MMDistributedDataParallel.train_step):
        text = inspect.getsource(function)
        assert 0 < text.find("parse_losses(losses)") < text.find("update_params(parsed_loss")
    seen: list[list[str]] = []

    class Wrapper(OptimWrapper):
        def update_params(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            seen.append(["update"])

    model = Model()
    wrapper = Wrapper(torch.optim.SGD(model.parameters(), 0.1))
    for _ in range(2):
        # the second one replaces the first
        compat.observe_losses(model, lambda log_vars: seen.append(list(log_vars)))
    model.train_step({"inputs": []}, wrapper)
    assert seen == [["loss", "a_loss", "acc"], ["update"]]
    compat.observe_losses(model, lambda log_vars: torch.tensor(2.0))
    assert float(model.parse_losses({"a_loss": torch.tensor(3.0)})[0]) == 6
    compat.stop_observing_losses(model)
    model.train_step({"inputs": []}, wrapper)
    assert seen[2:] == [["update"]]


@rests_on("compat.intercept_steps")
def test_steps_are_intercepted() -> None:
    """`update_params` calls ``self.step``, that clips by ``self.clip_func`` where ``clip_grad_kwargs`` says so, then zeroes."""
    text = inspect.getsource(OptimWrapper.update_params)
    assert 0 < text.find("self.backward(") < text.find("self.step(") < text.find("self.zero_grad(")
    assert "self.clip_func(params, **self.clip_grad_kwargs)" in inspect.getsource(OptimWrapper)
    assert "self.loss_scaler.step(self.optimizer" in inspect.getsource(AmpOptimWrapper.step)
    for clip, norm in (({"max_norm": 0.5}, 5.0), ({"type": "value", "clip_value": 0.1}, 4.0), (None, 4.0)):
        weight = nn.Parameter(torch.zeros(2))
        plain = OptimWrapper(torch.optim.SGD([weight], 1.0), clip_grad=clip)
        clip_func, asked, consent = getattr(plain, "clip_func", None), [], [False, True]
        compat.intercept_steps(plain, lambda value: asked.append(float(value)) or consent[len(asked) - 1], lambda: None)  # noqa: B023
        for _ in range(2):
            plain.update_params((weight * torch.tensor([3.0, 4.0])).sum())
            if len(asked) == 1:
                assert weight.tolist() == [0, 0] and weight.grad is None
        assert asked == [norm, norm]
        expected = {5.0: [-0.3, -0.4], 4.0: [-0.1, -0.1] if clip else [-3.0, -4.0]}[norm]
        assert weight.tolist() == pytest.approx(expected)
        compat.release_steps(plain)
        assert "step" not in vars(plain) and getattr(plain, "clip_func", None) is clip_func


@rests_on("compat.registered_types_only")
def test_registered_types_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry imports by two functions of its module, for a type with a path and for a scope; both are refused meanwhile."""
    for name in ("one_more", "other_scope"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("class Thing:\n    pass\n")
        (tmp_path / name / "registry.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with compat.registered_types_only():
        for settings in ({"type": "one_more.Thing"}, {"type": "BaseDataPreprocessor", "_scope_": "other_scope"}):
            with contextlib.suppress(KeyError, RuntimeError):
                MODELS.build(settings)
        assert MODELS.get("mmseg.SegDataPreProcessor") is SegDataPreProcessor
        assert not {"one_more", "other_scope"} & set(sys.modules)
    # and it must still be needed
    MODELS.build({"type": "one_more.Thing"})
    assert sys.modules.pop("one_more")


@rests_on("compat.replace_dataset")
def test_replaced_dataset() -> None:
    """A DataLoader refuses another data set, and looks only at ``__dict__['dataset']``."""
    first, second = TensorDataset(torch.zeros(4)), TensorDataset(torch.ones(4))
    loader = DataLoader(first)
    with pytest.raises(ValueError, match="dataset"):
        loader.dataset = second
    compat.replace_dataset(loader, second)
    assert loader.dataset is second and [float(x) for (x,) in loader] == [1.0] * 4


@rests_on("compat.update_val_interval and the run methods of loops")
def test_validation_interval() -> None:
    """The interval of the next iteration comes from the milestones; `iter` and `max_iters` are the loop's own."""
    loop = IterBasedTrainLoop(
        SimpleNamespace(visualizer=SimpleNamespace()), DataLoader(TensorDataset(torch.zeros(4))), 9, 1, 4, [(5, 2)]
    )
    intervals = []
    for iteration in (3, 4, 5):
        loop._iter = iteration
        compat.update_val_interval(loop)
        intervals.append((loop.iter, loop.val_interval))
    assert intervals == [(3, 4), (4, 2), (5, 2)]
    assert loop.max_iters == 9
    # ResumableIterLoop.run is this method's, with what resuming needs
    text = inspect.getsource(IterBasedTrainLoop.run)
    calls = ["before_train'", "before_train_epoch", "run_iter", "_decide_current_val_interval", "val_loop.run()"]
    calls.append("after_train_epoch")
    positions = [text.find(call) for call in calls]
    assert -1 not in positions and positions == sorted(positions)


@rests_on("compat.update_val_interval and the run methods of loops")
def test_validation_interval_of_epochs() -> None:
    """As above, for the loop over epochs."""
    runner = SimpleNamespace(visualizer=SimpleNamespace())
    loop = EpochBasedTrainLoop(runner, DataLoader(TensorDataset(torch.zeros(4))), 9, 1, 4, [(5, 2)])
    intervals = []
    for epoch in (3, 4, 5):
        loop._epoch = epoch
        compat.update_val_interval(loop)
        intervals.append((loop.epoch, loop.val_interval))
    assert intervals == [(3, 4), (4, 2), (5, 2)]
    assert (loop.max_epochs, loop.max_iters) == (9, 36)
    text = inspect.getsource(EpochBasedTrainLoop.run) + inspect.getsource(EpochBasedTrainLoop.run_epoch)
    first = ["before_train'", "run_epoch()", "_decide_current_val_interval", "val_loop.run()", "after_train'"]
    calls = [*first, "before_train_epoch", "model.train()", "run_iter", "after_train_epoch", "_epoch += 1"]
    positions = [text.find(call) for call in calls]
    assert -1 not in positions and positions == sorted(positions)


@pytest.fixture
def keep_default_scope() -> Iterator[None]:
    """A runner makes its scope the current one of the process, for all tests behind it."""
    scopes = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


@rests_on("compat.resumes, checkpoint_to_load and resume_from")
@pytest.mark.usefixtures("keep_default_scope")
def test_what_is_resumed(tmp_path: Path) -> None:
    """The runner decides by three private fields, right after the hooks' ``before_run``."""
    runner = Runner(
        nn.Linear(1, 1), str(tmp_path), load_from="a.pth", resume=True, experiment_name="compat_resume", log_level="ERROR"
    )
    called: list[tuple[str, str]] = []
    runner.resume = lambda path, *args, **kwargs: called.append(("resume", path))
    runner.load_checkpoint = lambda path, *args, **kwargs: called.append(("load", path))
    assert (compat.resumes(runner), compat.checkpoint_to_load(runner)) == (True, "a.pth")
    compat.resume_from(runner, "b.pth")
    runner.load_or_resume()
    assert called == [("resume", "b.pth")]
    assert not compat.resumes(runner)
    runner._has_loaded = False
    compat.resume_from(runner, None)
    runner.load_or_resume()
    assert called[1:] == [("load", "b.pth")]
    text = inspect.getsource(Runner.train)
    assert 0 < text.index("call_hook('before_run')") < text.index("load_or_resume()")


@rests_on("compat.CheckpointSteps")
def test_checkpoint_steps(tmp_path: Path) -> None:
    """The hook writes files in three private methods, keeps what it knows in these attributes, and tells the message hub."""
    assert parameters(CheckpointHook._save_checkpoint_with_step) == ["self", "runner", "step", "meta"]
    assert parameters(CheckpointHook._save_best_checkpoint) == ["self", "runner", "metrics"]
    assert parameters(CheckpointHook._publish_model) == ["self", "runner", "ckpt_path"]
    assert "_save_checkpoint_with_step(" in inspect.getsource(CheckpointHook._save_checkpoint)
    assert "_save_checkpoint_with_step(" in inspect.getsource(CheckpointHook._save_best_checkpoint)
    assert "_save_best_checkpoint(" in inspect.getsource(CheckpointHook.after_val_epoch)
    assert "_publish_model(" in inspect.getsource(CheckpointHook.after_train)
    # no other method writes a file
    writers = [
        name
        for name, function in inspect.getmembers(CheckpointHook, inspect.isfunction)
        if any(call in inspect.getsource(function) for call in ("save_checkpoint(\n", "save_checkpoint(checkpoint", "open("))
    ]
    assert sorted(writers) == ["_publish_model", "_save_best_checkpoint", "_save_checkpoint_with_step"]

    calls: list[str] = []

    class Steps(compat.CheckpointSteps):
        def write_regular(self, runner: Any, step: int, meta: dict) -> None:
            calls.append(f"regular {step}")
            self.last_ckpt = f"{step}.pth"
            self.keep_ckpt_ids.append(step)
            self.record_checkpoints(runner)

        def write_best(self, runner: Any, metrics: dict) -> None:
            calls.append("best")
            super().write_best(runner, metrics)

        def write_published(self, runner: Any, ckpt_path: str) -> None:
            calls.append(f"published {ckpt_path}")

    for save_best, best in (("a", {f"{tmp_path}/best_a_iter_4.pth"}), (["a", "b"], None)):
        hub = MessageHub(f"compat_{len(calls)}")
        runner = SimpleNamespace(
            work_dir=str(tmp_path), message_hub=hub, logger=logging.getLogger("nobody"), iter=3, epoch=0, max_iters=9
        )
        runner.save_checkpoint = lambda *args, **kwargs: calls.append(f"save {kwargs['filename']}")
        hook = Steps(interval=4, by_epoch=False, save_best=save_best, rule="greater", max_keep_ckpts=2, published_keys=["meta"])
        hook.before_train(runner)
        assert hook.keep_ckpt_ids == deque(maxlen=2) and hook.best_paths() == {None}
        hook.after_train_iter(runner, 3)
        runner.iter = 4
        hook.after_val_epoch(runner, {"a": 1.0, "b": 2.0})
        hook.after_train(runner)
        if best is None:
            best = {None} | {f"{tmp_path}/best_{name}_iter_4.pth" for name in "ab"}
        assert hook.best_paths() == best
        assert hub.get_info("keep_ckpt_ids") == [4, 4] and hub.get_info("last_ckpt") == "4.pth"
        hook.last_ckpt = None
        hook.restore_last_checkpoint(runner)
        assert hook.last_ckpt == "4.pth"
        resumed = Steps(interval=4, by_epoch=False, save_best=save_best, rule="greater", max_keep_ckpts=2)
        resumed.before_train(runner)
        assert list(resumed.keep_ckpt_ids) == [4, 4] and resumed.best_paths() == best
    first = ["regular 4", "best", "save best_a_iter_4.pth", "regular 4", "published 4.pth"]
    assert calls[:6] == [*first, f"published {tmp_path}/best_a_iter_4.pth"]
    assert calls[6:11] == ["regular 4", "best", "save best_a_iter_4.pth", "save best_b_iter_4.pth", "regular 4"]
    for name in ("args", "save_optimizer", "save_param_scheduler", "filename_tmpl", "file_backend", "out_dir", "backend_args"):
        assert hasattr(hook, name)
    assert is_main_process()


@rests_on("compat.logged_value and hooks.progress_bar")
def test_logged_values() -> None:
    """mmengine's hooks log under these names, and ``mean`` takes at most what there is."""
    hub = MessageHub("compat_logged")
    runner = SimpleNamespace(message_hub=hub)
    assert compat.logged_value(runner, "loss") is None
    hub.update_scalar("train/loss", 2.0)
    hub.update_scalar("train/loss", 3.0)
    assert compat.logged_value(runner, "loss") == 3.0
    assert [compat.logged_value(runner, "loss", window) for window in (1, 2, 50)] == [3.0, 2.5, 2.5]
    runner.optim_wrapper = SimpleNamespace(get_lr=lambda: {"lr": [0.1]})
    RuntimeInfoHook().before_train_iter(SimpleNamespace(**vars(runner), iter=0), 0)
    assert compat.logged_value(runner, "lr") == 0.1
    RuntimeInfoHook().after_train_iter(runner, 0, outputs={"aux_loss": torch.tensor(4.0)})
    assert compat.logged_value(runner, "aux_loss") == 4.0
    runner = SimpleNamespace(message_hub=hub, iter=2, max_iters=9)
    timer = IterTimerHook()
    timer.before_train(runner)
    timer.before_train_epoch(runner)
    timer.after_train_iter(runner, 2)
    assert compat.logged_value(runner, "time", 10) >= 0
    assert hub.get_info("eta") >= 0


@rests_on("compat.labels_of_batch")
def test_labels_of_a_batch() -> None:
    """Decode heads stack labels to (N, 1, H, W)."""
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, 2, 3), k))) for k in range(2)]
    loss = dict(type="ExpGBLoss")
    head = FCNHead(in_channels=1, channels=1, num_classes=2, num_convs=0, concat_input=False, loss_decode=loss)
    labels = compat.labels_of_batch(head, samples)
    assert labels.shape == (2, 2, 3) and labels[:, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize("kind", [ImgDataPreprocessor, SegDataPreProcessor, ClsDataPreprocessor])
@rests_on("compat.swaps_channels")
def test_swapped_channels(kind: type) -> None:
    """All three preprocessors know whether they swap."""
    swap = "to_rgb" if kind is ClsDataPreprocessor else "bgr_to_rgb"
    assert compat.swaps_channels(kind(**{swap: True}))
    assert not compat.swaps_channels(kind())


@rests_on("compat.set_classes")
def test_classes_that_a_data_set_found(tmp_path: Path) -> None:
    """They are what ``metainfo`` and ``CLASSES`` give."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    dataset = compat.CustomDataset(data_root=str(tmp_path))
    compat.set_classes(dataset, ["x", "y"])
    assert dataset.metainfo["classes"] == dataset.CLASSES == ("x", "y")


@rests_on("mm.models.classification_preprocessor.ClsDataPreprocessor")
def test_the_name_of_the_preprocessor() -> None:
    """Classifiers find it under MMPretrain's name, and MMPretrain's own passes labels in a tensor on."""
    assert type(MODELS.build(dict(type="mmpretrain.ClsDataPreprocessor"))) is gbseg.mm.models.ClsDataPreprocessor
    labels = torch.arange(3)
    plain = ClsDataPreprocessor(batch_augments=dict(augments=dict(type="Mixup", alpha=1.0)), num_classes=3)
    assert plain({"inputs": torch.zeros(3, 1, 2, 2), "data_samples": labels}, training=True)["data_samples"] is labels


@rests_on("compat.history_buffer")
def test_stored_curves() -> None:
    """The name by which a checkpoint stores the history of a logged value, and the keys of its state."""
    hub = MessageHub("compat_history")
    hub.update_scalar("train/loss", 1.0)
    hub.update_scalar("train/loss", 4.0, 2)
    history = hub.log_scalars["train/loss"]
    assert f"{type(history).__module__}.{type(history).__qualname__}" == compat.HISTORY_BUFFER
    restored = compat.history_buffer(history.__getstate__())
    assert restored.mean() == history.mean() == 5 / 3 and restored.max_length == history.max_length
    assert [values.dtype for values in restored.data] == [values.dtype for values in history.data]


@rests_on("compat.replace_torch_load")
def test_checkpoints_are_loaded_safely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loader of mmengine ends in one of the two functions that are replaced, and none is without them unnoticed."""
    source = re.sub(r"def _safe_torch_load.*?\n\n\n", "", inspect.getsource(checkpoint), flags=re.DOTALL)
    assert "torch.load(" not in source and source.count("_safe_torch_load(") == 4 and source.count("= load_url(") == 2
    for function in (Runner.load_checkpoint, PretrainedInit.__call__, load_checkpoint):
        assert "load_checkpoint(" in inspect.getsource(function)
    monkeypatch.delattr(checkpoint, "load_url")
    with pytest.raises(ImportError, match="this mmengine has no load_url, so gbseg cannot see to it"):
        compat.replace_torch_load(print, print)
    assert checkpoint._safe_torch_load is load_safely


@rests_on("compat.file_being_loaded")
def test_the_file_that_a_handler_reads(tmp_path: Path) -> None:
    """``load`` gives a handler the content, and has its name as ``file``; handlers are replaced for all callers."""
    seen = []

    class Handler(JsonHandler):
        def load_from_fileobj(self, file: Any, **options: Any) -> Any:
            seen.append(compat.file_being_loaded(file, "nothing"))
            return super().load_from_fileobj(file, **options)

    register_handler("seen")(Handler)
    try:
        (tmp_path / "a.seen").write_text("1")
        assert mmengine.load(tmp_path / "a.seen") == 1 and mmengine.load(io.StringIO("1"), "seen") == 1
        assert seen == [str(tmp_path / "a.seen"), "nothing"] and compat.file_being_loaded(io.BytesIO(), "x") == "x"
    finally:
        del file_handlers["seen"]
    for name in ("pkl", "pickle"):
        assert type(file_handlers[name]) is data_file_loading.PlainPickleHandler
    for name in ("yml", "yaml"):
        assert type(file_handlers[name]) is data_file_loading.PlainYamlHandler


@rests_on("compat.replace_volume_pickle")
def test_pickles_of_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmseg's loaders end in one function, which has ``pickle`` from its module and calls nothing else of it."""
    assert volumes.pickle.loads is data_file_loading.load_volume
    assert re.findall(r"pickle\.\w+", inspect.getsource(volumes)) == ["pickle.loads"]
    monkeypatch.delattr(volumes, "pickle")
    with pytest.raises(ImportError, match="this mmseg reads pickles in another way"):
        compat.replace_volume_pickle(print)


@rests_on("compat.replaced_in_torchs_list")
def test_torchs_own_list() -> None:
    """torch's unpickler asks this function for each name, and gets the same dictionary."""
    allowed = torch._weights_only_unpickler._get_allowed_globals()
    with compat.replaced_in_torchs_list({"builtins.bytearray": print, "no.name": print}):
        assert torch._weights_only_unpickler._get_allowed_globals()["builtins.bytearray"] is print and "no.name" not in allowed
    assert allowed["builtins.bytearray"] is bytearray
    assert "in _get_allowed_globals()" in inspect.getsource(torch._weights_only_unpickler.Unpickler.load)


@rests_on("compat.QuietTerminal")
def test_messages_that_only_the_file_gets() -> None:
    """Every wording is still mmengine's; a new one would come back to the terminal."""
    text = source(mmengine).replace("\\n", "\n")
    # where the code puts a message together
    parts = {"\n----": "'\n' + dash_line", "Config:\n": "Config:\n", compat._FILE_ONLY_ENDINGS[0]: "is skipped since its '"}
    for wording in (*compat._FILE_ONLY, *compat._FILE_ONLY_ENDINGS):
        assert parts.get(wording, wording) in text, wording
    record = logging.makeLogRecord({"msg": "Config:\nmodel = 1", "levelno": logging.INFO})
    assert not compat.QuietTerminal().filter(record)
    record.levelno = logging.ERROR
    assert compat.QuietTerminal().filter(record)


@rests_on("compat.OutputAboveBar")
def test_streams_that_loggers_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine's handler keeps the stream of its time, so that it is redirected by itself, and given back."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    logger = MMLogger("compat_streams", logger_name="compat_streams")
    assert [handler.stream for handler in logger.handlers] == [terminal]
    console = Console(file=io.StringIO())
    output = compat.OutputAboveBar(console, [logger])
    print("a line")
    logger.error("of the log")
    print("half", end="", file=sys.stderr)
    output.restore()
    assert (sys.stdout, sys.stderr, logger.handlers[0].stream) == (terminal, terminal, terminal)
    assert terminal.getvalue() == ""
    shown = console.file.getvalue()
    assert shown.startswith("a line\n") and "of the log" in shown and shown.endswith("half\n")


@rests_on("models.classification_head.GBClsHead")
def test_heads_of_mmpretrain() -> None:
    """`GBClsHead` overrides two private methods."""
    assert parameters(ClsHead._get_loss)[:3] == ["self", "cls_score", "data_samples"]
    assert parameters(ClsHead._get_predictions) == ["self", "cls_score", "data_samples"]
    assert "self._get_loss(" in inspect.getsource(ClsHead.loss)
    assert "self._get_predictions(" in inspect.getsource(ClsHead.predict)
    assert hasattr(mmpretrain, "__version__") and hasattr(mmseg, "__version__")


@rests_on("datasets.transforms.SeededAlbu")
def test_scores_by_a_link() -> None:
    """MMPretrain's heads score a softmax of what ``_get_predictions`` gets, and label by its argmax."""
    from mmpretrain.models.heads import LinearClsHead

    from gbseg.losses import Pow3GBLoss

    head, loss = LinearClsHead(4, 3), Pow3GBLoss()
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    plain = torch.stack([sample.pred_score for sample in head._get_predictions(logits, None)])
    torch.testing.assert_close(plain, logits.softmax(1))
    compat.score_by_link(head, loss.probabilities)
    samples = head._get_predictions(logits, None)
    torch.testing.assert_close(torch.stack([sample.pred_score for sample in samples]), loss.probabilities(logits))
    assert [int(sample.pred_label) for sample in samples] == logits.argmax(1).tolist()
    compat.score_by_link(nn.Linear(1, 1), loss.probabilities)


def test_albu() -> None:
    """mmseg's transform keeps albumentations' pipeline as ``aug``."""
    pytest.importorskip("albumentations")
    pipeline = Albu([dict(type="HorizontalFlip")]).aug
    assert hasattr(pipeline, "set_random_state")


@rests_on("compat.LabelResize")
def test_resizing_of_label_maps() -> None:
    """``Resize`` calls ``_resize_seg`` once, after the image, with the size in ``results['scale']``."""
    called = []

    class Resize(compat.LabelResize):
        def resize_labels(self, results: dict) -> None:
            called.append((results["scale"], results["img_shape"]))
            super().resize_labels(results)

    image, labels = np.zeros((6, 8, 3), np.uint8), np.arange(48, dtype=np.uint8).reshape(6, 8)
    results = Resize(scale=(4, 3))(dict(img=image, gt_seg_map=labels, seg_fields=["gt_seg_map"]))
    assert called == [((4, 3), (3, 4))] and results["gt_seg_map"].shape == (3, 4)


@pytest.mark.usefixtures("mmengine_scope")
@rests_on("compat.build_steps")
def test_what_was_being_built_when_an_exception_was_raised() -> None:
    """`build_steps` reads local variables of mmengine's functions, and the names of private methods of its runner."""
    assert all(callable(getattr(Runner, name)) for name in compat.SET_UP)
    parameters = inspect.signature(Runner.__init__).parameters
    assert {key for key in compat.SET_UP.values() if key} <= {*parameters, "model_wrapper_cfg", "compile"}

    def steps_of(build: Callable[[], Any]) -> tuple[list[str], list[tuple[str | None, Any]]]:
        with pytest.raises(Exception) as caught:
            build()
        methods, steps = compat.build_steps(caught.value)
        return methods, [(None if step.registry is None else step.registry.name, step.settings) for step in steps]

    layer, wrong = dict(type=nn.BatchNorm2d, num_features=2, zzz=1), dict(type="Nothing")

    class Outer:
        def __init__(self, part: dict) -> None:
            MODELS.build(part)

    nested = dict(type=Outer, part=layer)
    assert steps_of(lambda: MODELS.build(nested)) == ([], [("model", nested), ("model", layer)])
    model = torch.nn.Linear(1, 1)
    assert steps_of(lambda: build_optim_wrapper(model, dict(optimizer=wrong))) == ([], [("optimizer", wrong)])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = dict(type="PolyLR", convert_to_iter_based=True, zzz=1)
    build = functools.partial(PARAM_SCHEDULERS.build, scheduler, default_args=dict(optimizer=optimizer, epoch_length=5))
    assert steps_of(build) == ([], [("parameter scheduler", scheduler)])
    loader = dict(dataset=[1, 2], sampler=None, zzz=1)
    assert steps_of(lambda: Runner.build_dataloader(loader)) == (["build_dataloader"], [(None, loader)])
    assert steps_of(lambda: RUNNERS.build(dict(runner_type="Nothing"))) == ([], [("runner", dict(type="Nothing"))])
    assert compat.build_steps(ValueError("never raised")) == ([], [])


@rests_on("compat.before_call_hook")
def test_what_a_hook_has_raised(tmp_path: Path) -> None:
    class Failing(Hook):
        def before_run(self, runner: Runner) -> None:
            MODELS.build(dict(type=nn.Identity, part=[].get))  # type: ignore[attr-defined]

        def after_run(self, runner: Runner) -> None:
            MODELS.build(5)

    runner = Runner(model=BaseModelWithNothing(), work_dir=str(tmp_path), custom_hooks=[Failing()])
    with pytest.raises(TypeError, match="in <") as caught:
        runner.call_hook("after_run")
    original = compat.before_call_hook(caught.value)
    assert "in <" not in str(original)
    assert [step.settings for step in compat.build_steps(original)[1]] == [5]
    with pytest.raises(AttributeError) as other:
        runner.call_hook("before_run")
    assert compat.before_call_hook(other.value) is other.value


class BaseModelWithNothing(BaseModel):
    """No parameters."""

    def forward(self) -> None:
        """Nothing."""
