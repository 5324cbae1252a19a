"""Remedies as lines of a config: in a config that inherits the one that was checked, they are all that is to do."""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config

from gbseg.config_files import config_folder
from gbseg.doctor.finding import Finding
from gbseg.mm.config_lines import file_lines, inherited_difference

__all__ = ["Changes", "base_name", "config_lines", "head_keys", "import_gbseg", "inner_data", "inner_datasets_of", "remedied"]

Changes = tuple[tuple[str, Any], ...]
"""Keys with dots, and indices in brackets, of a config, and their new values."""


def remedied(config: Config, level: str, where: str, text: str, advice: str, *changes: tuple[str, Any]) -> Finding:
    """A finding whose remedy are changes of the config.

    Args:
        config: what was checked.
        level: of the finding, as ``where`` and ``text``.
        where: see ``level``.
        text: see ``level``.
        advice: what the lines do; they follow it.
        changes: keys with dots and their new values.
    """
    return Finding(level, where, text, f"{advice}:\n{config_lines(config, changes)}", changes)


def config_lines(config: Config, changes: Iterable[tuple[str, Any]]) -> str:
    """The lines with which a config that inherits ``config`` has other values; lists are written as a whole."""
    old = config.to_dict()
    new = copy.deepcopy(old)
    for key, value in changes:
        *parts, last = re.findall(r"[^.\[\]]+", key)
        node: Any = new
        for part in parts:
            place = int(part) if isinstance(node, list) else part
            child = node[place] if isinstance(node, list) else node.get(place)
            child = list(child) if isinstance(child, tuple) else child if isinstance(child, dict | list) else {}
            node[place] = child
            node = child
        node[int(last) if isinstance(node, list) else last] = copy.deepcopy(value)
    return file_lines(inherited_difference(old, new))


def base_name(config: Config) -> str:
    """How a config in the current folder names this one in its ``_base_``."""
    file = Path(config.filename).absolute()
    for package in ("gbseg", "mmseg", "mmpretrain"):
        with suppress(ModuleNotFoundError):
            if file.is_relative_to(folder := config_folder(package)):
                return f"{package}::{file.relative_to(folder)}"
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def import_gbseg(config: Config) -> Changes:
    """The change by which ``custom_imports`` registers all of gbseg, for MMSegmentation's own tools; none where it does."""
    imports = (config.get("custom_imports") or {}).get("imports") or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    return () if "gbseg.mm" in imports else (("custom_imports.imports", [*imports, "gbseg.mm"]),)


def head_keys(config: Config) -> list[str]:
    """The keys of the decode heads and the auxiliary heads."""
    keys = []
    for name in ("decode_head", "auxiliary_head"):
        heads = (config.get("model") or {}).get(name)
        if isinstance(heads, list | tuple):
            keys += [f"model.{name}[{index}]" for index in range(len(heads))]
        elif heads:
            keys.append(f"model.{name}")
    return keys


def inner_datasets_of(config: Config) -> list[tuple[str, Mapping[str, Any]]]:
    """Key and settings of every data set of a config, inside its wrappers."""
    loaders = {f"{split}_dataloader": config.get(f"{split}_dataloader") for split in ("train", "val", "test")}
    return [found for key, loader in loaders.items() if loader for found in inner_data(f"{key}.dataset", loader["dataset"])]


def inner_data(key: str, dataset: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Key and settings of the data sets inside a wrapper's settings."""
    inner = {f"{key}.datasets[{index}]": part for index, part in enumerate(dataset.get("datasets") or ())}
    if isinstance(dataset.get("dataset"), Mapping):
        inner[f"{key}.dataset"] = dataset["dataset"]
    for part_key, part in inner.items():
        yield from inner_data(part_key, part)
    if not inner:
        yield key, dataset
