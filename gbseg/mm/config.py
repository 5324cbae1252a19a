"""Read configs: files, inheritance by ``gbseg::`` and ``mmseg::``, options of the command line, and configs of several runs."""

import copy
import inspect
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from gbseg.config_files import ConfigError, config_folder, find_config, misspelt_names, near, read_sources
from gbseg.data.images import MAX_PIXELS
from gbseg.mm.compat import base_configs_by_prefix
from gbseg.mm.component_errors import leave_out_arguments

__all__ = [
    "KEYS",
    "config_folder",
    "config_warnings",
    "default_work_dir",
    "inner_test_dataset",
    "load_config",
    "max_pixels",
    "merge_options",
    "run_configs",
    "without_annotations",
]

# train_pipeline, a variable of most configs, is no misspelling of it
_PIPELINE = "tta_pipeline"
KEYS = frozenset(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"} | {
    # of gbseg
    *("prepare", "runs", "compare", "max_pixels", "allow_mismatch", "val_loss"),
    # read by MMEngine's runners beside their arguments, and by MMSegmentation's and MMPretrain's tools
    *("activation_checkpointing", "compile", "custom_imports", "efficient_conv_bn_eval", "find_unused_parameters"),
    *("model_wrapper_cfg", "runner_type", "strategy", "sync_bn", "tta_model", _PIPELINE),
}
"""The top-level keys that training and testing look at; other names in a config are its own variables."""


def load_config(path: str | Path, options: Mapping[str, object] | None = None) -> Config:
    """Read a config file.

    Args:
        path: a file, or ``gbseg::demo_expgb.py`` and ``mmseg::...`` for those that are installed.
        options: keys with dots and their values, which override the file's (``--cfg-options``).

    Raises:
        FileNotFoundError: there is no such config.
        ConfigError: it cannot be read, or an option fits no key; the message names file and line, or the option.
    """
    file = find_config(path)
    read_sources(file)
    try:
        with base_configs_by_prefix(config_folder, {"gbseg": None, "mmseg": "mmseg"}):
            config = Config.fromfile(str(file))
    # any exception: this runs the config
    except Exception as error:
        raise ConfigError(_why_unreadable(file, error)) from error
    if options:
        merge_options(config, options)
        # runs that are files of their own get the same options
        config.cfg_options = dict(options)
    return config


def _why_unreadable(file: Path, error: BaseException) -> str:
    """What is wrong with a config that MMEngine cannot read."""
    text = " ".join(str(error).split())
    if isinstance(error, ImportError) and "custom modules" in text:
        # the first reason: which module is missing
        while (reason := error.__cause__ or error.__context__) is not None:
            error = reason
        return f"the config {file}: custom_imports fails: {error}. Put the module's folder on PYTHONPATH."
    if "cannot inherit from base because" in text:
        key = text.partition("=")[0]
        return f"the config {file}: {key} is a dict, and none in what it inherits: add _delete_=True to {key} to replace it."
    lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    in_config = next((f"{name}, line {line}" for name, line in reversed(lines) if Path(name) in read_sources(file)), file)
    return f"the config {in_config}: {type(error).__name__}: {text[:300]}."


def merge_options(config: Config, options: Mapping[str, object]) -> None:
    """Override keys of a config.

    Args:
        config: is changed in place.
        options: keys with dots and their values.

    Raises:
        ConfigError: a key would create a top-level name that nothing looks at, or goes through a value that has no keys.
    """
    for option in options:
        top, *parts = option.split(".")
        if top not in config and top not in KEYS:
            guess = f", perhaps {match[0]}" if (match := near(top, [*KEYS, *config])) else ""
            raise ConfigError(f"--cfg-options {option}: there is no key {top}{guess}. A name of your own belongs in the file.")
        node = config.get(top, {})
        for depth, part in enumerate(parts):
            place = ".".join([top, *parts[:depth]])
            if isinstance(node, list):
                if not (part.isdecimal() and int(part) < len(node)):
                    raise ConfigError(f"--cfg-options {option}: {place} is a list of {len(node)}, from 0; it has no {part}.")
                node = node[int(part)]
            elif not isinstance(node, Mapping):
                raise ConfigError(f"--cfg-options {option}: {place} is {node!r}, which has no {part}: set {place} as a whole.")
            else:
                # what has a type is refused, or not, by that
                if part not in node and "type" not in node and (match := near(part, node, cutoff=0.8)):
                    text = f"--cfg-options {option} makes a new key {part} in {place}, which has {match[0]}: is that meant?"
                    warnings.warn(text, stacklevel=3)
                node = node.get(part, {})
    try:
        # a copy, because merging removes _delete_ from its argument
        config.merge_from_dict(copy.deepcopy(dict(options)))
        for option in options:
            if option.partition("_evaluator.")[0] in ("val", "test") and option.endswith(".type"):
                _fit_metric(config, option.removesuffix(".type"), options)
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"--cfg-options {', '.join(options)} cannot be merged into the config: {error}.") from error


def _fit_metric(config: Config, place: str, options: Mapping[str, object]) -> None:
    """Leave out what a metric's new type does not take of what it inherits: who names another metric means that one."""
    node: Any = config
    for part in place.split("."):
        node = node[int(part)] if isinstance(node, list) else node[part]
    if text := leave_out_arguments(config, place, node, options):
        warnings.warn(f"--cfg-options {text}", stacklevel=4)


def config_warnings(config: Config) -> Iterator[tuple[str, str]]:
    """What is probably meant otherwise in a config: misspelt keys, and options that change nothing.

    Args:
        config: from `load_config`.

    Yields:
        What is the case, and what to do.
    """
    # a config that was made of a text has no file, and its file may be gone by now
    if config.filename and Path(config.filename).is_file():
        for path, name, key in misspelt_names(Path(config.filename), KEYS - {_PIPELINE}):
            yield f"{path} sets {name}, which nothing reads.", f"write {key}, if that is meant."
    for option in config.get("cfg_options") or {}:
        if (name := option.partition(".")[0]) not in KEYS:
            text = f"--cfg-options {option} changes a variable of the file, and the file was computed before."
            yield text, f"give the keys that it computes from {name}, e.g. train_cfg.max_iters, or change the file."


def default_work_dir(config: Config) -> Path:
    """The folder for a config's logs and checkpoints: its own ``work_dir``, or ``work_dirs/<name of the file>``."""
    return Path(config.get("work_dir") or Path("work_dirs") / Path(config.filename).stem)


def max_pixels(config: Config) -> int:
    """The most pixels that an image or a mask may have: a config's ``max_pixels``, or `gbseg.data.images.MAX_PIXELS`.

    Raises:
        ValueError: it is no positive whole number.
    """
    limit = config.get("max_pixels", MAX_PIXELS)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ValueError(f"max_pixels is the most pixels of an image or a mask, such as {MAX_PIXELS} (2**30), not {limit!r}.")
    return limit


def run_configs(config: Config, work_dir: Path) -> dict[str, tuple[Config, Path]]:
    """The runs that a config lists, each with its own config and folder; a config without ``runs`` is one run named ''.

    ``runs`` maps a name to what that run changes in the config around it, or to a config file beside it. The folder of a run
    is ``work_dir/<name>``.
    """
    if not config.get("runs"):
        return {"": (config, work_dir)}
    not_inherited = ("runs", "prepare", "compare")
    # options of the command line hold for every run and take precedence over the run's own changes
    options = {key: value for key, value in config.get("cfg_options", {}).items() if key.split(".")[0] not in not_inherited}
    if not isinstance(config.runs, Mapping):
        raise ConfigError(f"{config.filename}: runs is {config.runs!r}; it maps names to what each run changes, or to files.")
    runs = {}
    for name, changes in config.runs.items():
        if not isinstance(changes, str | Mapping):
            raise ConfigError(f"{config.filename}: runs.{name} is {changes!r}; it is a dict of changes, or a config file.")
        if isinstance(changes, str):
            run_config = load_config(Path(config.filename).parent / changes, options)
        else:
            run_config = copy.deepcopy(config)
            for key in not_inherited:
                run_config.pop(key, None)
            # a copy, because merging removes _delete_ from its argument
            run_config.merge_from_dict(copy.deepcopy(dict(changes)))
            run_config.merge_from_dict(copy.deepcopy(options))
        runs[name] = (run_config, work_dir / name)
    return runs


def inner_test_dataset(config: Config) -> ConfigDict:
    """The settings of a config's test set, inside wrappers such as ``RepeatDataset``."""
    dataset = config.test_dataloader.dataset
    while "pipeline" not in dataset and "dataset" in dataset:
        dataset = dataset.dataset
    return dataset


def without_annotations(pipeline: Sequence) -> list:
    """A test pipeline without the transforms that need labels, inside ``TestTimeAug`` as well."""
    kept = []
    for transform in pipeline:
        if isinstance(transform, Mapping):
            if "Annotation" in str(transform["type"]):
                continue
            if "transforms" in transform:
                transform = {**transform, "transforms": without_annotations(transform["transforms"])}
        elif isinstance(transform, list | tuple) and not (transform := without_annotations(transform)):
            # alternatives of TestTimeAug; an empty list of them would leave no combination at all
            continue
        kept.append(transform)
    return kept
