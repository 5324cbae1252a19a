"""Modules and names of earlier versions, by the table ``moved_names.json`` beside this module.

They work until 1.0, with a warning that names the new place.
"""

import json
import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_TABLE: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("moved_names.json").read_text(encoding="utf-8"))

MODULES = _TABLE["modules"]
"""Old module -> new module."""

NAMES = _TABLE["names"]
"""Old name -> new name, where a name has not simply moved along with its module."""


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is {new} now; the old name goes with gbseg 1.0.", FutureWarning, stacklevel=3)


def _load(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def add_moved_names(module: str) -> None:
    """Give a module that still exists and has lost names a ``__getattr__`` (PEP 562) that finds them.

    It is set on the module, so that a type checker goes on reporting names that are in neither place.
    """

    def __getattr__(name: str) -> Any:
        old = f"{module}.{name}"
        if old not in NAMES:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(old, NAMES[old])
        return _load(NAMES[old])

    vars(sys.modules[module])["__getattr__"] = __getattr__


class _MovedModule(ModuleType):
    """Stands at a module's old place, and looks its names up at the new one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        old = f"{self.__name__}.{name}"
        if old in NAMES:
            _warn(old, NAMES[old])
            return _load(NAMES[old])
        return import_module(old) if old in MODULES else getattr(import_module(MODULES[self.__name__]), name)

    def __setattr__(self, name: str, value: object) -> None:
        # importing gbseg.engine.train must not put that module in the place of the function gbseg.engine.train
        if f"{self.__name__}.{name}" not in NAMES:
            super().__setattr__(name, value)


class MovedModuleFinder(MetaPathFinder, Loader):
    """Finds modules at their old places."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """A spec for the names of `MODULES`."""
        return ModuleSpec(name, cls(), is_package=True) if name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A stand-in for the module."""
        return _MovedModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Load the module at its new place, which registers what it registers.

        Raises:
            ModuleNotFoundError: a module that is no part of the installed package any more.
        """
        new = MODULES[module.__name__]
        if new.startswith("reproduction") and find_spec("reproduction") is None:
            raise ModuleNotFoundError(
                f"{module.__name__} is no part of the package any more: it is the folder reproduction/ of a checkout.",
                name=module.__name__,
            )
        _warn(module.__name__, new)
        import_module(new)


def register_as_before() -> None:
    """Register the components for MMEngine that importing a package registered when they were a part of it."""
    if "mmengine.registry" in sys.modules and all(find_spec(name) for name in ("mmseg", "mmpretrain")):
        import_module("gbseg.mm")
