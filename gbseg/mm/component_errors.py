"""One sentence about a config that cannot be built: its file, the key, what is wrong there, and what may be meant."""

import inspect
import math
import re
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import METRICS, MODELS, Registry
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from gbseg.config_files import ConfigError, near
from gbseg.errors import is_refusal
from gbseg.mm.compat import SET_UP, BuildStep, before_call_hook, build_steps

__all__ = [
    "build_error",
    "config_errors",
    "leave_out_arguments",
    "missing_packages",
    "wrong_arguments",
    "wrong_type",
    "wrong_values",
]

# a backend of the visualizer -> the package that it imports when it is first used
_BACKENDS = {
    "AimVisBackend": "aim",
    "ClearMLVisBackend": "clearml",
    "DVCLiveVisBackend": "dvclive",
    "MLflowVisBackend": "mlflow",
    "NeptuneVisBackend": "neptune",
    "TensorboardVisBackend": "tensorboard",
    "WandbVisBackend": "wandb",
}
# what mmengine takes out of a data loader's settings before PyTorch gets them
_LOADER = ("disable_subprocess_warning", "num_batch_per_epoch")
# where a text or a number means nothing
_LOADERS = [f"{split}_dataloader{part}" for split in ("train", "val", "test") for part in ("", ".dataset", ".sampler")]
_DICTS = (
    *("model", "model.decode_head", "model.data_preprocessor", *_LOADERS, "train_cfg", "val_cfg", "test_cfg"),
    *("val_evaluator", "test_evaluator", "optim_wrapper", "optim_wrapper.optimizer", "param_scheduler", "auto_scale_lr"),
    *("default_hooks", "custom_hooks", "env_cfg", "randomness", "log_processor", "visualizer", "visualizer.vis_backends"),
    *("prepare", "runs", "compare", "custom_imports", "tta_model", "data_preprocessor"),
)
# which MMSegmentation looks at after the whole validation
_IOU_METRICS = ("mIoU", "mDice", "mFscore")
_OWN = (ImportError, OSError, ValueError, RuntimeError)


@contextmanager
def config_errors(config: Config, only_building: bool = False, key: str = "") -> Iterator[None]:
    """Turn an exception that is raised while a config is built into one sentence.

    What gbseg itself refuses keeps its type and its message, to which the key is added as a note.

    Args:
        config: what is built.
        only_building: other things happen inside as well, such as training: let exceptions pass that are raised while nothing
            is built.
        key: of the part of the config that is used, where no component is built of it.

    Raises:
        ConfigError: the config cannot be built.
    """
    try:
        yield
    # any exception: whatever a config names runs its own code on any value
    except Exception as raised:
        error = before_call_hook(raised)
        if isinstance(error, ConfigError | torch.OutOfMemoryError) or (only_building and not any(build_steps(error))):
            raise
        if is_refusal(error):
            place = _locate(error, config)[0] or key
            # a checkpoint is named in its error, and may come from --resume
            if place and place != "load_from" and not hasattr(error, "__notes__"):
                error.add_note(f"It comes from {place} in {_name(config)}.")
            raise
        raise ConfigError(build_error(error, config, key)) from error


def build_error(error: Exception, config: Config, key: str = "") -> str:
    """Say which part of a config an exception is about, and what is wrong there.

    Args:
        error: raised while the config was built, with its traceback.
        config: the config.
        key: of the part of the config that is used, where no component is built of it.
    """
    methods, steps = build_steps(error)
    place, node = _locate(error, config)
    place = place or key
    where = f"{_name(config)}: {place}" if place else _name(config)
    text = " ".join(str(error).split())
    if steps:
        registry, settings, added = steps[-1]
        # what somebody else has put into the settings
        added |= frozenset(settings) - frozenset(node) if isinstance(node, Mapping) and isinstance(settings, Mapping) else added
        problem = wrong_type(registry, settings)
        refused = re.search(r"unexpected keyword argument '(\w+)'", text)
        if problem is None and (refused or re.search(r"missing \d+ required|takes no arguments", text)):
            problem = wrong_arguments(registry, settings, added, config, refused[1] if refused else None)
        if problem is not None:
            return f"{where}: {problem}"
    if (absent := re.fullmatch(r"'Config(?:Dict)?' object has no attribute '(\w+)'", text)) or (
        isinstance(error, KeyError) and (absent := re.fullmatch(r"'(\w+)'", text))
    ):
        return f"{where} has no {absent[1]}, which is needed."
    if (refused := re.search(r"(\w+)\(\) got an unexpected keyword argument '(\w+)'", text)) and refused[1] in SET_UP:
        guess = _guess(refused[2], _parameters(getattr(Runner, refused[1]))[0])
        return f"{_name(config)}: {SET_UP[refused[1]]} takes no {refused[2]}{guess}"
    # an exception of another kind says too little without its name, and an assertion often says nothing
    text = text[:300].rstrip(".") or _last_line(error)
    text = text if isinstance(error, _OWN) else f"{type(error).__name__}: {text}"
    return f"{where}: {text}.{_values(node) if steps or methods else ''}"


def wrong_type(registry: Registry | None, settings: Any) -> str | None:
    """Say what is wrong with the type of a component; None if it is known.

    Args:
        registry: where it is looked up; None for a data loader, which has no type.
        settings: the component's part of a config.
    """
    if not isinstance(settings, Mapping):
        return f"a dict with a type is needed, not {settings!r}."
    if registry is None:
        return None
    kind = settings.get("type")
    if kind is None:
        others = near("type", settings)
        return f"it has no type; is {others[0]} meant to be it?" if others else "it has no type."
    if isinstance(kind, str) and _kind(registry, settings) is None:
        names: list[str] = []
        node: Registry | None = registry
        while node is not None:
            names += node.module_dict
            node = node.parent
        return f"there is no {registry.name} called {kind}{_guess(kind, names)}"
    return None if isinstance(kind, str) or callable(kind) else f"type is {kind!r}, which is neither a name nor a class."


def wrong_arguments(
    registry: Registry | None,
    settings: Mapping[str, Any],
    added: Collection[str] = (),
    config: Config | None = None,
    refused: str | None = None,
) -> str | None:
    """Say which arguments a component does not take, or needs and does not get; None as far as its signature tells.

    Args:
        registry: where its type is looked up; None for a data loader.
        settings: the component's part of a config, of a known type.
        added: names of arguments that do not come from the config.
        config: the whole config, to tell whether arguments were inherited.
        refused: the argument that was refused, where the signature does not tell.
    """
    kind = _kind(registry, settings)
    name, (parameters, takes_any) = getattr(kind, "__name__", str(kind)), _parameters(kind)
    given = set(settings) - {"type", "_scope_", "_delete_"}
    given -= set(_LOADER) if kind is DataLoader else set()
    extra = sorted(given & {refused} if takes_any else given - set(parameters) - set(added))
    if not extra:
        missing = [key for key, required in parameters.items() if required and key not in given | set(added)]
        return f"{name} needs {' and '.join(missing)}." if missing and kind is not DataLoader else None
    text = f"{name} takes no {' and no '.join(extra)}"
    if config is not None and not any(_is_written(key, config) for key in extra):
        options = config.get("cfg_options") or {}
        option = next((key for key, value in options.items() if key.endswith(".type") and value == settings.get("type")), None)
        where = f"write _delete_=True beside type={name!r}." if option is None else f"add {option[:-4]}_delete_=True to them."
        text += f", which it inherits{'' if option is None else ', and --cfg-options replaces the type alone'}: {where}"
    else:
        text += _guess(extra[0], {*parameters, "type"} - set(added))
    return f"{text} It takes {', '.join(key for key in parameters if key not in added) or 'none'}."


def _kind(registry: Registry | None, settings: Mapping[str, Any]) -> Any:
    """The class or function that the settings are for; None if the registry does not know it."""
    if registry is None:
        return DataLoader
    if not isinstance(settings["type"], str):
        return settings["type"]
    # an unknown name with a dot raises
    with suppress(RuntimeError):
        return registry.get(settings["type"])
    return None


def _is_written(key: str, config: Config) -> bool:
    """Whether a config's own file, or an option of the command line, names a key."""
    with suppress(OSError, TypeError, ValueError):
        text = Path(config.filename).read_text(encoding="utf-8")
        return re.search(rf"\b{re.escape(key)}\b", " ".join([text, *(config.get("cfg_options") or {})])) is not None
    return True


def leave_out_arguments(config: Config, place: str, settings: Any, given: Collection[str]) -> str | None:
    """Take out of a metric's settings what its type, given by an option, does not take, and the type before it did.

    Args:
        config: the whole config.
        place: the key of the metric.
        settings: its part of the config, changed in place.
        given: keys with dots that were given by options and stay.

    Returns:
        What was left out, in a sentence; None if nothing was.
    """
    if not isinstance(settings, dict):
        return None
    with METRICS.switch_scope_and_registry(config.get("default_scope")) as registry:
        kind = _kind(registry, settings)
    parameters, takes_any = _parameters(kind)
    if kind is None or takes_any:
        return None
    extra = [key for key in settings if key not in {*parameters, "type", "_scope_"} and f"{place}.{key}" not in given]
    for key in extra:
        del settings[key]
    return f"{place}.type={settings['type']} leaves out {', '.join(extra)}, which it does not take." if extra else None


def missing_packages(config: Config) -> Iterator[tuple[str, str]]:
    """Backends of the visualizer whose package is not installed.

    Yields:
        What is the case, and what to do.
    """
    visualizer = config.get("visualizer")
    backends = (visualizer.get("vis_backends") or []) if isinstance(visualizer, Mapping) else []
    for index, backend in enumerate(backends if isinstance(backends, Sequence) else []):
        kind = backend.get("type") if isinstance(backend, Mapping) else None
        name = str(getattr(kind, "__name__", kind)).rpartition(".")[2]
        if name in _BACKENDS and find_spec(_BACKENDS[name]) is None:
            package = _BACKENDS[name]
            text = f"visualizer.vis_backends[{index}]: {name} needs {package}, which is not installed."
            yield text, f"pip install {package}, or leave the backend out."


def wrong_values(config: Config) -> Iterator[tuple[str, str]]:
    """Values with which a training does nothing, or fails in its first iterations: lengths, intervals, clipping, the scope.

    Yields:
        What is the case, and what to do.
    """
    for key in _DICTS:
        node: Any = config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Config | Mapping) else None
        # False leaves preparation or comparison out
        if isinstance(node, str | int | float) and node is not False:
            yield f"{key} is {node!r}.", "A dict, or a list of them, is needed there."
    if not isinstance(config.get("val_loss", False), bool | None):
        yield f"val_loss is {config.val_loss!r}.", "True or False is needed."
    hooks = {key: config.get(key) for key in ("default_hooks", "custom_hooks")}
    intervals = [(key, part) for name, hook in hooks.items() for key, part in _nodes(name, hook) if key.endswith(".interval")]
    loop = config.get("train_cfg")
    for name in ("max_iters", "max_epochs", "val_interval") if isinstance(loop, Mapping) else ():
        value = loop.get(name)
        # a validation that never comes has the interval -1
        if value is not None and not (isinstance(value, int | float) and (value > 0 or (name == "val_interval" and value < 0))):
            yield f"train_cfg.{name} is {value!r}.", "A number from 1 is needed."
    for key, value in intervals:
        if isinstance(value, str | Sequence | Mapping):
            yield f"{key} is {value!r}.", "A number is needed."
    wrapper = config.get("optim_wrapper")
    clip = wrapper.get("clip_grad") if isinstance(wrapper, Mapping) else None
    if isinstance(clip, Mapping):
        function = nn.utils.clip_grad_value_ if clip.get("type") == "value" else nn.utils.clip_grad_norm_
        parameters = inspect.signature(function).parameters
        for key in set(clip) - set(parameters) - {"type"}:
            yield f"optim_wrapper.clip_grad takes no {key}{_guess(key, parameters)}", f"It takes {', '.join(parameters)}."
    for key, metrics in ((key, config.get(key)) for key in ("val_evaluator", "test_evaluator")):
        for place, metric in _nodes(key, metrics):
            kind = metric.get("type") if isinstance(metric, Mapping) else None
            if str(getattr(kind, "__name__", kind)).rpartition(".")[2] == "IoUMetric" and "iou_metrics" in metric:
                names = metric["iou_metrics"]
                names = [names] if isinstance(names, str) else names
                if not isinstance(names, list | tuple) or not names or not set(map(str, names)) <= set(_IOU_METRICS):
                    yield (
                        f"{place}.iou_metrics is {metric['iou_metrics']!r}.",
                        f"A list of {', '.join(_IOU_METRICS)} is needed.",
                    )
    scope = config.get("default_scope")
    if isinstance(scope, str) and scope not in MODELS.children and not (scope.isidentifier() and find_spec(scope)):
        yield f"default_scope is {scope!r}, and there is no such package.", "Write mmseg, mmpretrain, or where the types are."


def _name(config: Config) -> str:
    return str(config.filename or "the config")


def _guess(name: str, candidates: Iterable[str]) -> str:
    """How a sentence ends that says that a name is unknown."""
    candidates = list(candidates)
    # of a beginning, what goes on from there
    similar = near(name, candidates, 3) or [c for c in candidates if len(name) > 3 and c.lower().startswith(name.lower())]
    return f"; is {' or '.join(similar)} meant?" if similar else "."


def _parameters(kind: Any) -> tuple[dict[str, bool], bool]:
    """The arguments that a class or a function takes by name, each with whether it is required; and whether it takes any."""
    functions = [kind]
    if inspect.isclass(kind):
        functions = [vars(parent)["__init__"] for parent in kind.__mro__[:-1] if "__init__" in vars(parent)]
    required: dict[str, bool] = {}
    for function in functions:
        try:
            parameters = list(inspect.signature(function).parameters.values())[inspect.isclass(kind) :]
        except (TypeError, ValueError):
            return required, True
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                # what a parent requires may be given by its child
                required.setdefault(parameter.name, parameter.default is parameter.empty and function is functions[0])
        # **kwargs go to the next parent
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return required, False
    return required, bool(functions)


def _locate(error: Exception, config: Config) -> tuple[str, Any]:
    """The key of what was being built, and its part of the config; '' where it cannot be found there."""
    methods, steps = build_steps(error)
    root = ("", dict(config.items()))
    key = SET_UP[methods[-1]] if methods else ""
    place = (key, root[1].get(key)) if key in root[1] else root
    located = True
    for step in steps:
        if step.registry is None:
            # the loop's
            split = next((name[6:-5] for name in reversed(methods) if name.endswith("_loop")), "train")
            place = f"{split}_dataloader", root[1].get(f"{split}_dataloader")
            continue
        # a mere value may occur elsewhere as well
        starts = (place, root) if isinstance(step.settings, Mapping) else (place,)
        parts = (part for start in starts for same in (_is_same, _is_of_type) for part in _nodes(*start) if same(part[1], step))
        match = next(parts, None)
        place, located = match or place, match is not None
    return place if located else (place[0], None)


def _nodes(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Everything in a part of a config, with its key."""
    yield key, node
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _nodes(f"{key}.{name}" if key else str(name), value)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _nodes(f"{key}[{index}]", value)


def _is_same(node: Any, step: BuildStep) -> bool:
    # arrays in a config have no truth value
    with suppress(ValueError, RuntimeError):
        return isinstance(node, Mapping) == isinstance(step.settings, Mapping) and bool(node == step.settings)
    return False


def _is_of_type(node: Any, step: BuildStep) -> bool:
    kinds = [part.get("type") if isinstance(part, Mapping) else None for part in (node, step.settings)]
    return kinds[0] is not None and kinds[0] == kinds[1]


def _last_line(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.line} (line {frame.lineno} of {frame.filename})"


def _values(settings: Any) -> str:
    """Advice on values that are texts and look like numbers; else the values among which one is wrong."""
    plain = {key: value for key, value in settings.items() if key != "type"} if isinstance(settings, Mapping) else {}
    for key, value in plain.items():
        with suppress(ValueError):
            if isinstance(value, str) and math.isfinite(float(value)):
                return f" {key}={value!r} is a text: write {key}={value}."
    shown = ", ".join(f"{key}={value!r}" for key, value in plain.items() if not isinstance(value, Mapping | list))
    return f" Its values: {shown[:200]}." if shown else ""
