"""Reading configs: files, ``gbseg::`` and ``mmseg::`` inheritance, and the options of a command line."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from mmengine.config import Config, ConfigDict

from gbseg.config_files import config_folder, find_config

__all__ = ["config_folder", "default_work_dir", "inner_test_dataset", "load_config", "run_configs", "without_annotations"]


@contextmanager
def _inheritance() -> Iterator[None]:
    """mmengine asks for the distribution called mmsegmentation and knows no gbseg; both prefixes are resolved here."""
    original = Config._get_cfg_path

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        package, _, name = cfg_path.partition("::")
        if package not in ("gbseg", "mmseg") or not name:
            return original(cfg_path, filename)
        # the scope makes mmengine look up the base's types in that package
        return str(config_folder(package) / name), "mmseg" if package == "mmseg" else None

    with patch.object(Config, "_get_cfg_path", staticmethod(get_cfg_path)):
        yield


def load_config(path: str | Path, options: Mapping[str, object] | None = None) -> Config:
    """Read a config file.

    Args:
        path: a file, or ``gbseg::demo_expgb.py`` and ``mmseg::...`` for those that are installed.
        options: keys with dots and their values, which override the file's (``--cfg-options``).

    Raises:
        FileNotFoundError: there is no such config; the message lists where it was looked for.
    """
    file = find_config(path)
    with _inheritance():
        config = Config.fromfile(str(file))
    if options:
        config.merge_from_dict(dict(options))
        # runs that are files of their own get the same options
        config.cfg_options = dict(options)
    return config


def default_work_dir(config: Config) -> Path:
    """Where a config's logs and checkpoints go if nobody says: its own ``work_dir``, or ``work_dirs/<its name>``."""
    return Path(config.get("work_dir") or Path("work_dirs") / Path(config.filename).stem)


def run_configs(config: Config, work_dir: Path) -> dict[str, tuple[Config, Path]]:
    """The runs of a config by name, each with its own config and folder; a config without ``runs`` is one run, ''.

    ``runs`` maps a name to what that run changes in the config around it, or to a config file beside it. A run lies in
    ``work_dir/<name>``.
    """
    runs = config.get("runs")
    if not runs:
        return {"": (config, work_dir)}
    own = ("runs", "prepare", "compare")
    # what the command line says holds for every run, also against the run's own changes
    options = {key: value for key, value in config.get("cfg_options", {}).items() if key.split(".")[0] not in own}
    found = {}
    for name, changes in runs.items():
        if isinstance(changes, str):
            one = load_config(Path(config.filename).parent / changes, options)
        else:
            one = copy.deepcopy(config)
            for key in own:
                one.pop(key, None)
            # a copy, because merging takes _delete_ out of what it is given
            one.merge_from_dict(copy.deepcopy(dict(changes)))
            one.merge_from_dict(copy.deepcopy(options))
        found[name] = (one, work_dir / name)
    return found


def inner_test_dataset(config: Config) -> ConfigDict:
    """The settings of a config's test set, inside whatever wraps it (``RepeatDataset`` and its like)."""
    dataset = config.test_dataloader.dataset
    while "pipeline" not in dataset and "dataset" in dataset:
        dataset = dataset.dataset
    return dataset


def without_annotations(pipeline: Sequence) -> list:
    """A test pipeline that needs no labels; inside ``TestTimeAug`` as well."""
    kept = []
    for step in pipeline:
        if isinstance(step, Mapping):
            if "Annotation" in str(step["type"]):
                continue
            if "transforms" in step:
                step = copy.deepcopy(step)
                step["transforms"] = without_annotations(step["transforms"])
        elif isinstance(step, list | tuple):
            # TestTimeAug's alternatives; of none there would be no combination at all
            step = without_annotations(step)
            if not step:
                continue
        kept.append(step)
    return kept
