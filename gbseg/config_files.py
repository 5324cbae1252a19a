"""Where config files are, what inherits from what, and which of their names are misspelt. No config is executed.

Paths are those of files, and ``gbseg::NAME.py`` for those that came with a package.
"""

import ast
import difflib
import os
from collections.abc import Collection, Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["ConfigError", "config_folder", "find_config", "misspelt_names", "near", "read_sources"]

SUFFIXES = (".py", ".json", ".yaml", ".yml")
# a key and its misspelling: of 1,617 configs of MMSegmentation and MMPretrain this takes one name for a misspelling ("models"
# for "model"), and it is one; at 0.7 "runner" and "resume_from" of older versions are as well
_RESEMBLANCE = 0.75


class ConfigError(ValueError):
    """A config cannot be read or built. The message names the file, the key, and what to do."""


def config_folder(package: str) -> Path:
    """The folder with the configs of 'gbseg' (in the wheel, or beside the package in a checkout), 'mmseg' or 'mmpretrain'.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"configs of {package} were asked for, and {package} is not installed.")
    package_folder = Path(spec.origin).parent
    if package != "gbseg":
        return package_folder / ".mim" / "configs"
    in_wheel, in_checkout = package_folder / "configs", package_folder.parent / "configs"
    return in_checkout if in_checkout.is_dir() and not in_wheel.is_dir() else in_wheel


def find_config(path: str | Path) -> Path:
    """The file of a config.

    Args:
        path: a file, or ``gbseg::demo_expgb.py`` and ``mmseg::...`` for those that are installed.

    Raises:
        FileNotFoundError: there is no such config; the message names those with a similar name.
        ModuleNotFoundError: the package before ``::`` is not installed.
        ConfigError: it is a folder, or no kind of file that can be a config.
    """
    package, _, name = str(path).partition("::")
    file = config_folder(package) / name if name else Path(path)
    if file.is_file() and file.suffix not in SUFFIXES:
        raise ConfigError(f"{file} is no config: its name does not end in {', '.join(SUFFIXES)}.")
    if not file.is_file():
        # beside a shipped config, those of the package that was asked for
        owner = package if name else "gbseg"
        folder = config_folder(owner)
        paths = [path.relative_to(folder) for path in folder.rglob("*.py")]
        shipped = {path.name: path for path in paths if not any(part.startswith("_") for part in path.parts)}
        similar = [f"{owner}::{shipped[near_name]}" for near_name in near(file.name, shipped, 3)]
        guess = f" Perhaps {' or '.join(similar)}?" if similar else ""
        if file.is_dir():
            raise ConfigError(f"{file} is a folder, not a config: name a file in it.{guess}")
        raise FileNotFoundError(f"there is no config {file}.{guess} {owner} brings {len(shipped)}, in {folder}.")
    return file


def near(name: str, candidates: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """The most similar of the candidates, upper and lower case alike.

    Args:
        name: what was written.
        candidates: what may have been meant.
        count: return so many at most.
        cutoff: the least ``difflib`` ratio.
    """
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, count, cutoff)]


def read_sources(file: Path) -> dict[Path, ast.Module]:
    """Parse a config and all that it inherits from.

    Args:
        file: from `find_config`.

    Returns:
        The syntax tree of every file; those that are not Python, and those that MMEngine alone can find, are left out.

    Raises:
        ConfigError: a file cannot be read or parsed or is empty, one of its ``_base_`` files does not exist, or they go in a
            circle.
    """
    trees: dict[Path, ast.Module] = {}

    def read(path: Path, heirs: tuple[Path, ...]) -> None:
        if path in heirs:
            raise ConfigError(f"{path} inherits from itself: {' <- '.join(heir.name for heir in (*heirs, path))}.")
        if path not in trees and path.suffix == ".py":
            trees[path] = _parse(path, path.stat().st_mtime_ns)
            for base in _bases(path, trees[path]):
                read(base, (*heirs, path))

    # as MMEngine does: links stay
    start = Path(os.path.abspath(file))  # noqa: PTH100
    read(start, ())
    if start in trees and not trees[start].body:
        raise ConfigError(f"the config {file} is empty: write at least _base_ = ['gbseg::demo_expgb.py'].")
    return trees


def misspelt_names(file: Path, keys: Collection[str]) -> list[tuple[Path, str, str]]:
    """Top-level names of a config, or of one that it inherits from, that are probably meant to be a key.

    Such a name resembles a key that its file does not set; no file reads it as a variable, and no other one sets it.

    Args:
        file: from `find_config`.
        keys: what is known.

    Returns:
        File, name and the key that it resembles. Files of MMSegmentation and MMPretrain are not the user's to correct, and are
        left out.

    Raises:
        ConfigError: as `read_sources` says.
    """
    trees = read_sources(file)
    assigned = {path: _assigned(tree) for path, tree in trees.items()}
    read = {name for tree in trees.values() for name in _read(tree)}
    installed = [config_folder(package) for package in ("mmseg", "mmpretrain") if find_spec(package)]
    misspelt = []
    for path, names in assigned.items():
        others = set().union(*(other for other_path, other in assigned.items() if other_path != path))
        if any(path.is_relative_to(folder) for folder in installed):
            continue
        for name in names:
            absent = [key for key in keys if key not in names]
            if name not in keys and name not in read | others and (match := near(name, absent, cutoff=_RESEMBLANCE)):
                misspelt.append((path, name, match[0]))
    return misspelt


@lru_cache(maxsize=4096)
def _parse(path: Path, modified: int) -> ast.Module:
    """The syntax tree of a file as it was at this time."""
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"the config {path} is no text in UTF-8: {error}.") from None
    except OSError as error:
        raise ConfigError(f"the config {path} cannot be read: {error.strerror}.") from None
    except SyntaxError as error:
        line = f" ({error.text.strip()[:80]})" if error.text else ""
        raise ConfigError(f"the config {path} is no valid Python in line {error.lineno}: {error.msg}{line}.") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"the config {path} is no valid Python: {error}.") from None


def _bases(path: Path, tree: ast.Module) -> list[Path]:
    value = next((node.value for node in tree.body if isinstance(node, ast.Assign) and "_base_" in _targets(node)), None)
    try:
        names = ast.literal_eval(value) if value is not None else []
    except ValueError:
        # computed: MMEngine alone can tell
        return []
    bases = []
    for name in names if isinstance(names, list | tuple) else [names]:
        if not isinstance(name, str):
            raise ConfigError(f"{path}: _base_ is a file or a list of files, not {names!r}.")
        package, _, rest = name.partition("::")
        try:
            base = config_folder(package) / rest if rest else (path.parent / name).expanduser()
        except ModuleNotFoundError as error:
            raise ConfigError(f"{path}: {error}") from None
        if base.is_file():
            bases.append(Path(os.path.abspath(base)))  # noqa: PTH100
        elif "{{" not in name and (not rest or package in ("gbseg", "mmseg")):
            # of other packages, MMEngine finds configs by their names in a list as well
            raise ConfigError(f"{path}: its _base_ {name!r} does not exist: there is no file {base}.")
    return bases


def _targets(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def _assigned(tree: ast.Module) -> list[str]:
    names = [name for node in tree.body if isinstance(node, ast.Assign) for name in _targets(node)]
    return [name for name in names if not name.startswith("_")]


def _read(tree: ast.Module) -> Iterable[str]:
    """Names that are read, also as ``_base_.name``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
