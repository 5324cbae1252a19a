"""Read configs: files, inheritance by ``gbseg::`` and ``mmseg::``, options of the command line, and configs of several runs."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict

from gbseg.config_files import config_folder, find_config
from gbseg.mm.compat import base_configs_by_prefix

__all__ = ["config_folder", "default_work_dir", "inner_test_dataset", "load_config", "run_configs", "without_annotations"]


def load_config(path: str | Path, options: Mapping[str, object] | None = None) -> Config:
    """Read a config file.

    Args:
        path: a file, or ``gbseg::demo_expgb.py`` and ``mmseg::...`` for those that are installed.
        options: keys with dots and their values, which override the file's (``--cfg-options``).

    Raises:
        FileNotFoundError: there is no such config; the message lists where it was looked for.
    """
    file = find_config(path)
    with base_configs_by_prefix(config_folder, {"gbseg": None, "mmseg": "mmseg"}):
        config = Config.fromfile(str(file))
    if options:
        config.merge_from_dict(dict(options))
        # runs that are files of their own get the same options
        config.cfg_options = dict(options)
    return config


def default_work_dir(config: Config) -> Path:
    """The folder for a config's logs and checkpoints: its own ``work_dir``, or ``work_dirs/<name of the file>``."""
    return Path(config.get("work_dir") or Path("work_dirs") / Path(config.filename).stem)


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
    runs = {}
    for name, changes in config.runs.items():
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
        elif isinstance(transform, list | tuple):
            # alternatives of TestTimeAug; an empty list of them would leave no combination at all
            transform = without_annotations(transform)
            if not transform:
                continue
        kept.append(transform)
    return kept
