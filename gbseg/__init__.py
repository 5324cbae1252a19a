"""gbseg: train networks with boosted linear outputs instead of a softmax.

With torch alone: ``from gbseg import ExpGBLoss``. Where mmengine is installed, ``import gbseg`` registers the losses in its
root registry, so that ``custom_imports = dict(imports=['gbseg'])`` is all that a foreign config needs. ``Segmenter``
(prediction) and ``boost_config`` need the MM packages. Everything is loaded when it is asked for: preparing data needs no
torch.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from gbseg._moved import MovedModuleFinder

if TYPE_CHECKING:
    from gbseg.losses import BadLabelError, BoostedLoss, ExpGBLoss, LinearLoss, Pow3GBLoss
    from gbseg.mm.boosted_config import boost_config
    from gbseg.prediction.segmenter import Segmenter

__version__ = "0.2.0"

__all__ = [
    "BadLabelError",
    "BoostedLoss",
    "ExpGBLoss",
    "LinearLoss",
    "Pow3GBLoss",
    "Segmenter",
    "__version__",
    "boost_config",
]

# what needs the MM packages
_MM = {"Segmenter": "gbseg.prediction.segmenter", "boost_config": "gbseg.mm.boosted_config"}


def __getattr__(name: str) -> object:
    """The names of ``__all__``, loaded when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'gbseg' has no attribute {name!r}")
    if name in _MM and find_spec("mmseg") is None:
        raise ImportError(f"gbseg.{name} needs the MM packages: pip install 'gbseg[mm]'")
    return getattr(import_module(_MM.get(name, "gbseg.losses")), name)


def _register() -> None:
    """Register the losses in mmengine's root registry: a look-up goes from its scope to the parents, never to siblings."""
    from mmengine.registry import MODELS

    from gbseg import losses

    for name in losses.__all__:
        if name.endswith("Loss"):
            MODELS.register_module(module=getattr(losses, name))


class _RegisterLater:
    """An import hook that registers the losses when mmengine's registry is loaded.

    Nothing simpler registers in every order of imports. MMEngine has no entry points, and its registry looks only into modules
    of its own. To import it here, or to register in gbseg.losses, would not do: ``import gbseg`` alone must load neither
    mmengine nor torch, and a config may name a loss although nothing imported gbseg.losses.
    """

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "mmengine.registry":
            return None
        sys.meta_path.remove(cls)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


# in front: a folder that still holds the bytecode of an old module would be found as a namespace package
sys.meta_path.insert(0, MovedModuleFinder)
if "mmengine.registry" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterLater)
