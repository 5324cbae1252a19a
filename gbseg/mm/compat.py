"""Every reliance on what MMEngine and its family do not promise: one function or class each, with its reason.

Tried with onedl-mmengine 0.10.12, onedl-mmcv 2.3.6, onedl-mmsegmentation 1.4.2 and onedl-mmpretrain 1.3.6.
``tests/mm/test_compat.py`` looks at every private thing that is used here. When a new version moves one, that test fails and
names what to change in this module; no other module of the package touches a private name of these libraries.
"""

import inspect
import io
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TextIO

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIMIZERS, Registry, registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, checkpoint
from rich.console import Console
from rich.text import Text
from torch import Tensor, _weights_only_unpickler, nn
from torch.utils.data import DataLoader, Dataset

# imported here for the rest of the package, because their first import prints that an optional package is missing
with redirect_stdout(io.StringIO()):
    from mmpretrain.datasets import CustomDataset as CustomDataset
    from mmpretrain.models.heads import ClsHead as ClsHead
    from mmpretrain.models.heads import LinearClsHead as LinearClsHead
    from mmpretrain.models.utils import ClsDataPreprocessor as ClsDataPreprocessor
    from mmpretrain.structures import DataSample as DataSample
    from mmseg.datasets import BaseSegDataset as BaseSegDataset
    from mmseg.datasets.transforms import Albu as Albu
    from mmseg.datasets.transforms import Resize as PlainResize
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead as BaseDecodeHead
    from mmseg.utils import io as volumes


@contextmanager
def base_configs_by_prefix(folder: Callable[[str], Path], scopes: Mapping[str, str | None]) -> Iterator[None]:
    """Let ``Config.fromfile`` find ``_base_ = '<package>::<file>'`` in ``folder(package)``, as long as the context lasts.

    mmengine looks for the *distribution* ``mmsegmentation``, which onedl-mmsegmentation is not, and does not know gbseg.
    ``Config._get_cfg_path`` resolves the prefix; it is replaced for the packages in ``scopes`` and put back afterwards.

    Args:
        folder: gives the folder of a package's configs.
        scopes: package -> the scope in which mmengine looks up the types that the base config names.
    """
    original = Config.__dict__["_get_cfg_path"]

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        package, _, name = cfg_path.partition("::")
        if package not in scopes or not name:
            return original.__func__(cfg_path, filename)
        return str(folder(package) / name), scopes[package]

    Config._get_cfg_path = staticmethod(get_cfg_path)
    try:
        yield
    finally:
        Config._get_cfg_path = original


SET_UP = {
    "setup_env": "env_cfg",
    "set_randomness": "randomness",
    "build_log_processor": "log_processor",
    "build_logger": "log_level",
    "build_visualizer": "visualizer",
    "build_model": "model",
    "wrap_model": "model_wrapper_cfg",
    "register_default_hooks": "default_hooks",
    "register_custom_hooks": "custom_hooks",
    "build_train_loop": "train_cfg",
    "build_optim_wrapper": "optim_wrapper",
    "scale_lr": "auto_scale_lr",
    "build_param_scheduler": "param_scheduler",
    "_check_scheduler_cfg": "param_scheduler",
    "build_val_loop": "val_cfg",
    "build_test_loop": "test_cfg",
    "build_dataloader": "",
    "build_evaluator": "",
    "_init_model_weights": "model",
    "load_or_resume": "load_from",
    "_maybe_compile": "compile",
}
"""The methods of mmengine's ``Runner`` that make something of a config, and the key of each; '' where there are several."""


class BuildStep(NamedTuple):
    """A component that was being built when an exception was raised.

    Attributes:
        registry: where its type is looked up, None for what has no type.
        settings: its part of the config, as it was handed over.
        added: names of arguments that did not come from the config.
    """

    registry: Registry | None
    settings: Any
    added: frozenset[str] = frozenset()


def build_steps(error: BaseException) -> tuple[list[str], list[BuildStep]]:
    """What was built of a config when an exception was raised, from outside to inside.

    mmengine says nothing about it; the local variables of its functions do, as long as the exception has its traceback.

    Returns:
        The names of `SET_UP` that were running, and the components.
    """
    methods, steps = [], []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        place, name, values = frame.f_globals.get("__name__"), frame.f_code.co_name, frame.f_locals
        if place == "mmengine.registry.build_functions" and name in ("build_from_cfg", "build_scheduler_from_cfg"):
            added = frozenset(values.get("default_args") or ()) - frozenset(values["cfg"] if _has_keys(values["cfg"]) else ())
            steps.append(BuildStep(values["registry"], values["cfg"], added))
        elif place == "mmengine.registry.build_functions" and name == "build_runner_from_cfg":
            steps.append(BuildStep(values["registry"], {"type": values["cfg"].get("runner_type")}))
        elif place == "mmengine.runner.runner" and name in SET_UP:
            methods.append(name)
            if name == "build_dataloader":
                steps.append(BuildStep(None, values["dataloader"]))
        elif name == "__call__" and isinstance(values.get("self"), DefaultOptimWrapperConstructor):
            # it looks the optimizer up by itself
            steps.append(BuildStep(OPTIMIZERS, values["self"].optimizer_cfg))
    return methods, steps


def before_call_hook(error: Exception) -> Exception:
    """What a hook has raised: ``Runner.call_hook`` replaces a ``TypeError``, and hides it and its traceback."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return error.__context__ if isinstance(error.__context__, TypeError) and frame.f_code.co_name == "call_hook" else error


def _has_keys(value: Any) -> bool:
    return isinstance(value, Mapping | Config)


def unwrap_model(model: nn.Module) -> nn.Module:
    """The network inside mmengine's wrappers for several processes and for test-time augmentation.

    ``is_model_wrapper`` does not count ``BaseTTAModel``. Both kinds keep the network as ``module``.
    """
    network: Any = model
    while is_model_wrapper(network) or isinstance(network, BaseTTAModel):
        network = network.module
    return network


def observe_losses(model: nn.Module, observe: Callable[[dict[str, Tensor]], Tensor | None]) -> None:
    """Call ``observe`` with the loss terms whenever a model sums them up; replaces an earlier observer.

    ``BaseModel.train_step`` calls ``self.parse_losses`` right before the backward pass, and no hook runs between the two. The
    method is wrapped on the instance. A model without that method is left alone.

    Args:
        model: the model, which may be wrapped.
        observe: gets the terms that are logged; what it returns, unless None, multiplies the loss of the backward pass.
    """
    stop_observing_losses(model)
    network = unwrap_model(model)
    plain: Any = getattr(network, "parse_losses", None)
    if plain is None:
        return

    def parse_losses(losses: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        total, log_vars = plain(losses)
        factor = observe(log_vars)
        return total if factor is None else total * factor, log_vars

    # what `stop_observing_losses` puts back: somebody else may have wrapped the method on the instance
    parse_losses.replaced = vars(network).get("parse_losses")  # type: ignore[attr-defined]
    vars(network)["parse_losses"] = parse_losses


def stop_observing_losses(model: nn.Module) -> None:
    """Undo `observe_losses`; a ``parse_losses`` that somebody else put on the instance stays."""
    attributes = vars(unwrap_model(model))
    if hasattr(attributes.get("parse_losses"), "replaced"):
        replaced = attributes.pop("parse_losses").replaced
        attributes.update({} if replaced is None else {"parse_losses": replaced})


def intercept_steps(wrapper: OptimWrapper, may_step: Callable[[Tensor], bool], scaler_skipped: Callable[[], None]) -> None:
    """Ask ``may_step`` before each step of an optimizer, with a norm of the gradient; `release_steps` undoes it.

    ``OptimWrapper.update_params`` calls ``self.step``, which clips by ``self.clip_func(parameters, **self.clip_grad_kwargs)``,
    and then ``zero_grad``; no hook runs in between. ``step`` is wrapped on the instance. With clipping by the norm, that norm
    is computed once for both; without, it is the largest entry, which cannot overflow where all entries are finite.

    Args:
        wrapper: the wrapper.
        may_step: gets the norm, where the gradients are; without its consent no step is taken.
        scaler_skipped: called after a step that a ``GradScaler`` did not take. With one, which looks by itself and whose
            gradients are scaled, ``may_step`` is not asked.
    """
    plain_step, plain_clip = wrapper.step, wrapper.clip_func if wrapper.clip_grad_kwargs else None

    def step(**kwargs: Any) -> None:
        if is_scaled(wrapper):
            taken: list[bool] = []
            with wrapper.optimizer.register_step_post_hook(lambda *_: taken.append(True)):
                plain_step(**kwargs)
            if not taken:
                scaler_skipped()
            return
        parameters = [parameter for group in wrapper.optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.requires_grad and parameter.grad is not None]
        norm = None
        if plain_clip is nn.utils.clip_grad_norm_ and gradients:
            settings = {key: value for key, value in wrapper.clip_grad_kwargs.items() if key in ("norm_type", "foreach")}
            norm = nn.utils.get_total_norm(gradients, **settings)

            def clip(parameters: list[Tensor], max_norm: float, error_if_nonfinite: bool = False, **settings: Any) -> Any:
                """``torch.nn.utils.clip_grad_norm_``, with the norm that is known."""
                if error_if_nonfinite and not norm.isfinite():
                    return plain_clip(parameters, max_norm, error_if_nonfinite=True, **settings)
                nn.utils.clip_grads_with_norm_(parameters, max_norm, norm, settings.get("foreach"))
                return norm

            wrapper.clip_func = clip
        if may_step(largest_entry(gradients) if norm is None else whole(norm)):
            plain_step(**kwargs)

    # what `release_steps` puts back
    step.replaced = vars(wrapper).get("step"), plain_clip  # type: ignore[attr-defined]
    if hasattr(plain_step, "_with_counter"):
        # mmengine's schedulers count the steps in this method, and warn if it is another
        step._with_counter = True  # type: ignore[attr-defined]
    vars(wrapper)["step"] = step


def is_scaled(wrapper: OptimWrapper) -> bool:
    """Whether a ``GradScaler`` scales the loss; ``AmpOptimWrapper`` has it as ``loss_scaler``."""
    scaler = getattr(wrapper, "loss_scaler", None)
    return scaler is not None and bool(scaler.is_enabled())


def release_steps(wrapper: OptimWrapper) -> None:
    """Undo `intercept_steps`; a ``step`` that somebody else has put on the instance since stays."""
    attributes = vars(wrapper)
    if hasattr(attributes.get("step"), "replaced"):
        step, clip = attributes.pop("step").replaced
        attributes.update({} if step is None else {"step": step})
        attributes.update({} if clip is None else {"clip_func": clip})


def _is_sharded(tensor: Tensor) -> bool:
    """Whether it is a ``DTensor``, of which each process holds a part (FSDP2); to import the class takes half a second."""
    return hasattr(tensor, "full_tensor")


def whole(norm: Any) -> Tensor:
    """A norm of all processes' parts, by one reduction of a number where tensors are sharded."""
    return norm.full_tensor() if _is_sharded(norm) else norm


def largest_entry(tensors: Sequence[Tensor]) -> Tensor:
    """The largest absolute value in all tensors in one pass; NaN where one is NaN. Nothing is waited for."""
    sharded = [tensor for tensor in tensors if _is_sharded(tensor)]
    local = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors if not _is_sharded(tensor)]
    norms = [whole(nn.utils.get_total_norm(group, norm_type=math.inf)).float() for group in (local, sharded) if group]
    return torch.stack(norms).max() if norms else torch.zeros(())


FAMILY = ("gbseg", "mmcv", "mmdet", "mmengine", "mmpretrain", "mmseg")
"""The packages whose registered components may be built of a file's settings."""


@contextmanager
def registered_types_only() -> Iterator[None]:
    """Let MMEngine's registries build what is registered, and import nothing that a config names, as long as this lasts.

    ``Registry.get`` imports ``a.b`` for ``type='a.b.C'`` and calls whatever ``C`` is there, and the module ``a.registry`` for
    a scope ``a``; both by functions in its module. Packages of the MM family are imported as ever.
    """
    before = dict(import_module=registry.import_module, get_object_from_string=registry.get_object_from_string)

    def import_module(name: str, *args: Any) -> Any:
        if name.split(".")[0] not in FAMILY:
            raise ImportError(f"{name} is not imported, because a file names it")
        return before["import_module"](name, *args)

    vars(registry).update(import_module=import_module, get_object_from_string=lambda name: None)
    try:
        yield
    finally:
        vars(registry).update(before)


def replace_dataset(loader: DataLoader, dataset: Dataset) -> None:
    """Give a finished DataLoader another data set of the same length.

    ``DataLoader.__setattr__`` refuses it, because the sampler could no longer fit; ``__dict__`` goes past it.
    """
    loader.__dict__["dataset"] = dataset


def update_val_interval(loop: IterBasedTrainLoop | EpochBasedTrainLoop) -> None:
    """Set ``loop.val_interval`` to that of ``dynamic_intervals`` at the next iteration or epoch.

    Only the private method that the ``run`` of mmengine's loops calls does that, and those of `gbseg.mm.loops` have another
    ``run``.
    """
    loop._decide_current_val_interval()


def resumes(runner: Runner) -> bool:
    """Whether the runner is about to resume: ``Runner.load_or_resume`` decides by these fields, and they have no getter."""
    return runner._resume and not runner._has_loaded


def checkpoint_to_load(runner: Runner) -> str | None:
    """The checkpoint that the runner loads, or has loaded (``load_from``); None without one. There is no getter."""
    return runner._load_from


def resume_from(runner: Runner, path: str | None) -> None:
    """Make the runner resume from this checkpoint, or start anew (None). ``Runner`` takes both in its constructor only."""
    runner._resume = path is not None
    if path is not None:
        runner._load_from = path


HISTORY_BUFFER = "mmengine.logging.history_buffer.HistoryBuffer"
"""By which name mmengine's history of a logged value is stored in checkpoints; the module is not the one to import it from."""


def history_buffer(state: dict[str, Any]) -> HistoryBuffer:
    """A history of logged values from its stored state, whose keys are its private attributes.

    Its own ``__setstate__`` would replace functions of the class by what the file names.
    """
    return HistoryBuffer(state["_log_history"], state["_count_history"], state["max_length"])


def replace_torch_load(load: Callable[..., Any], load_url: Callable[..., Any]) -> None:
    """Let mmengine's loaders of checkpoints call these functions instead of ``torch.load`` and ``torch.hub``'s.

    All of them (http, torchvision, open-mmlab, ...) end in two functions of their module, the first of which unpickles anything
    if the safe attempt fails. ``CheckpointLoader.register_scheme`` replaces single loaders; that of model names looks up a URL
    first, and then calls the one for URLs directly.

    Raises:
        ImportError: mmengine has no such functions, so it would load checkpoints in another way.
    """
    names = {"_safe_torch_load": load, "load_url": load_url}
    if missing := [name for name in names if not hasattr(checkpoint, name)]:
        raise ImportError(
            f"this mmengine has no {' and no '.join(missing)}, so gbseg cannot see to it that checkpoints run no code: install "
            "the version that gbseg[mm] asks for"
        )
    vars(checkpoint).update(names)


def file_being_loaded(file: Any, default: str) -> str:
    """The name of a file that one of mmengine's handlers reads.

    ``mmengine.fileio.load`` gives a handler the content alone; its local variable ``file`` has the name.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "mmengine.fileio.io" and frame.f_code.co_name == "load":
            file = frame.f_locals["file"]
            break
        frame = frame.f_back
    return file if isinstance(file, str) else getattr(file, "name", default)


def replace_volume_pickle(loads: Callable[[bytes], Any]) -> None:
    """Let mmseg's ``datafrombytes(content, backend='pickle')`` call this instead of ``pickle.loads``.

    Its loaders (``LoadBiomedicalData`` and others, with ``decode_backend='pickle'``) have the function under its own name.

    Raises:
        ImportError: mmseg does not read pickles in this way, so it would run the code that they hold.
    """
    if "pickle" not in vars(volumes):
        raise ImportError("this mmseg reads pickles in another way, so gbseg cannot see to it that they run no code")
    vars(volumes)["pickle"] = SimpleNamespace(loads=loads)


@contextmanager
def replaced_in_torchs_list(names: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` call these where its own list has the same names, as long as the context lasts.

    It looks its own list up first, so that ``torch.serialization.add_safe_globals`` cannot replace ``bytearray``, of which a
    file can ask for any number of bytes. The list is what a private, cached function gives.
    """
    allowed = _weights_only_unpickler._get_allowed_globals()
    before = {name: allowed[name] for name in names if name in allowed}
    allowed.update({name: names[name] for name in before})
    try:
        yield
    finally:
        allowed.update(before)


class CheckpointSteps(CheckpointHook):
    """mmengine's ``CheckpointHook``, whose three private steps that write files are methods to be overridden.

    Each of them removes or replaces a file before the new one is written, so a crash in between loses both. The methods, the
    attributes and the entries of the message hub below are the hook's own and are not documented.
    """

    # the checkpoint of iteration or epoch ``step``, without the outdated one, and the file ``last_checkpoint``
    write_regular = CheckpointHook._save_checkpoint_with_step
    # the best checkpoint, where ``metrics`` are the best so far; then the regular one again
    write_best = CheckpointHook._save_best_checkpoint
    # the ``published_keys`` of a checkpoint, in a file of their own
    write_published = CheckpointHook._publish_model

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        self.write_regular(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        self.write_best(runner, metrics)

    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        self.write_published(runner, ckpt_path)

    def before_train(self, runner: Runner) -> None:
        """mmengine's, which removes files whose names are made of the kept steps in the message hub: of numbers alone here."""
        info = runner.message_hub.runtime_info
        if not all(isinstance(step, int) for step in info.get("keep_ckpt_ids", ())):
            del info["keep_ckpt_ids"]
        super().before_train(runner)

    def best_paths(self) -> set[str | None]:
        """The best checkpoints; the hook has one attribute where ``save_best`` is one metric, and another for several."""
        return {getattr(self, "best_ckpt_path", None), *getattr(self, "best_ckpt_path_dict", {}).values()}

    def record_checkpoints(self, runner: Runner) -> None:
        """Put the kept and the last checkpoint into the message hub, where a resumed run finds them."""
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)

    def move_recorded_paths(self, runner: Runner, folder: Path) -> None:
        """Let the best and last checkpoint in the message hub be those of a folder, which may be a copy or have been moved."""
        info = runner.message_hub.runtime_info
        for key, value in info.items():
            if isinstance(value, str) and (key == "last_ckpt" or key.startswith("best_ckpt")):
                info[key] = str(folder / Path(value).name)

    def restore_last_checkpoint(self, runner: Runner) -> None:
        """Take the last checkpoint out of the message hub, which the hook itself does not do when a run is resumed."""
        self.last_ckpt = runner.message_hub.get_info("last_ckpt")


class EarlyWeightsRunner(Runner):
    """mmengine's ``Runner``, whose model can get its initial weights before it is wrapped.

    ``train`` gives them after the wrapping and after the optimizer was built, by a private method.
    """

    _is_initialized = False

    def initialize_weights(self) -> None:
        """Give the model its initial weights, those of the first process, for good."""
        super()._init_model_weights()
        self._is_initialized = True

    def _init_model_weights(self) -> None:
        if not self._is_initialized:
            super()._init_model_weights()


def checkpoint_content(runner: Runner, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """What ``Runner.save_checkpoint`` would write with these arguments, on every process; nothing is written.

    The method builds the content and hands it to a function of its module, and the decorator ``master_only`` keeps it from
    all processes but the first.
    """
    written: list[dict[str, Any]] = []
    names = vars(sys.modules[Runner.__module__])
    plain = names["save_checkpoint"]
    names["save_checkpoint"] = lambda content, *_, **__: written.append(content)
    try:
        inspect.unwrap(Runner.save_checkpoint)(runner, *args, **kwargs)
    finally:
        names["save_checkpoint"] = plain
    return written[0]


def logged_value(runner: Runner, name: str, window: int | None = None) -> float | None:
    """What mmengine's ``RuntimeInfoHook`` or ``IterTimerHook`` logged in training, None if nothing.

    The names (``train/loss``, ``train/lr``, ``train/time``) are theirs and are not documented.

    Args:
        runner: the runner.
        name: without the prefix ``train/``.
        window: the mean over so many iterations; None for the last value.
    """
    history = runner.message_hub.log_scalars.get(f"train/{name}")
    if history is None:
        return None
    return float(history.current() if window is None else history.mean(window))


class LabelResize(PlainResize):
    """mmseg's ``Resize``, whose resizing of label maps is the method `resize_labels`; its own is private."""

    def _resize_seg(self, results: dict) -> None:
        self.resize_labels(results)

    def resize_labels(self, results: dict) -> None:
        """Resize the label maps of ``results['seg_fields']`` to ``results['scale']``."""
        super()._resize_seg(results)


def score_by_link(head: Any, link: Callable[[Tensor], Tensor]) -> None:
    """Let a classification head of MMPretrain's score by ``link`` of its logits instead of a softmax.

    ``_get_predictions`` takes the softmax of what it gets, and the argmax of that. The softmax of the logarithms of
    probabilities are the probabilities. The method is wrapped on the instance; a module without it is left alone.

    Args:
        head: a ``ClsHead``, or a classifier that scores itself.
        link: from logits (N, C) to probabilities.
    """
    plain = getattr(head, "_get_predictions", None)
    if plain is not None:
        vars(head)["_get_predictions"] = lambda cls_score, data_samples: plain(link(cls_score).log(), data_samples)


def labels_of_batch(head: BaseDecodeHead, samples: list[Any]) -> Tensor:
    """The labels (N, H, W) of a batch as MMSegmentation's decode heads stack them; only a private method does."""
    return head._stack_batch_gt(samples).squeeze(1)


def set_classes(dataset: CustomDataset, classes: Sequence[str]) -> None:
    """Name the classes of a data set that found them itself; ``metainfo`` gives a copy and has no setter."""
    dataset._metainfo["classes"] = tuple(classes)


def swaps_channels(preprocessor: nn.Module) -> bool:
    """Whether a preprocessor turns BGR into RGB or back. MMPretrain's for classifiers keeps it as ``to_rgb``."""
    return getattr(preprocessor, "_channel_conversion", False) or getattr(preprocessor, "to_rgb", False)


# how messages begin or end that only the log file needs: environment, config, hooks, and advice about mmengine's own names
_FILE_ONLY = (
    "\n----",
    "Config:\n",
    "Hooks will be executed",
    "Distributed training is not used",
    "The prefix is not set in metric class",
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    "paramwise_options -- ",
    "Exp name: ",
    "Loads checkpoint by",
    "Resumed iteration number is not divisible",  # by accumulative_counts: the gradients are restored
)
_FILE_ONLY_ENDINGS = ("is skipped since its requires_grad=False",)


class QuietTerminal(logging.Filter):
    """Keeps mmengine's longest messages off the terminal. They have no level or name of their own, only their wording."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Errors pass in any wording."""
        message = record.getMessage()
        return record.levelno > logging.WARNING or not (message.startswith(_FILE_ONLY) or message.endswith(_FILE_ONLY_ENDINGS))


class OutputAboveBar:
    """While a rich display stands on the terminal, sends all other output through its console, above the display.

    ``sys.stdout`` and ``sys.stderr`` are replaced, and so are the streams of the loggers' handlers: mmengine's keep the
    ``sys.stdout`` of the time when they were made, so they would write over the display.

    Args:
        console: of the display.
        loggers: whose handlers are redirected.
    """

    def __init__(self, console: Console, loggers: Iterable[logging.Logger]) -> None:
        self._streams = sys.stdout, sys.stderr
        self._handlers = ExitStack()
        above = {id(stream): _LinesAboveBar(console, stream) for stream in {sys.stdout, sys.stderr} if stream.isatty()}
        for handler in (handler for logger in loggers for handler in logger.handlers):
            if isinstance(handler, logging.StreamHandler) and id(handler.stream) in above:
                self._handlers.callback(handler.setStream, handler.stream)
                handler.setStream(above[id(handler.stream)])
        sys.stdout = above.get(id(sys.stdout), sys.stdout)
        sys.stderr = above.get(id(sys.stderr), sys.stderr)

    def restore(self) -> None:
        """Give all streams back."""
        for name, stream in zip(("stdout", "stderr"), self._streams, strict=True):
            current = getattr(sys, name)
            # it may have been replaced by somebody else since
            if isinstance(current, _LinesAboveBar):
                current.close_line()
                setattr(sys, name, stream)
        self._handlers.close()


class _LinesAboveBar:
    """Takes a terminal stream's place; complete lines appear above the display as they are."""

    def __init__(self, console: Console, stream: TextIO) -> None:
        self._console = console
        self._stream = stream
        self._pid = os.getpid()
        self._line = ""

    def write(self, text: str) -> int:
        # a forked worker of the data loader inherits this object, but not the display
        if os.getpid() != self._pid:
            return self._stream.write(text)
        lines, newline, rest = (self._line + text).rpartition("\n")
        self._line = rest
        if newline:
            # soft_wrap: a long line stays one line, so it can be copied, and grep finds it in a recording
            self._console.print(Text.from_ansi(lines), soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def close_line(self) -> None:
        if self._line:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
