"""gbseg: train networks with boosted linear outputs instead of a softmax.

With torch alone: ``from gbseg import ExpGBLoss``. Where mmengine is installed, the losses are registered in its root
registry by this import, so that ``custom_imports = dict(imports=['gbseg'])`` is all that a foreign config needs. `Segmenter`
(prediction; needs the MM packages) is loaded when it is asked for.
"""

from importlib.util import find_spec

from gbseg.losses import BadLabelError, BoostedLoss, ExpGBLoss, LinearLoss, Pow3GBLoss

__version__ = "0.1.0"

__all__ = ["BadLabelError", "BoostedLoss", "ExpGBLoss", "LinearLoss", "Pow3GBLoss", "__version__"]

if find_spec("mmengine") is not None:
    from mmengine.registry import MODELS

    # the root: a look-up goes from its own scope to the parents, never to siblings (mmseg does not see mmpretrain's)
    for _loss in (BoostedLoss, ExpGBLoss, Pow3GBLoss, LinearLoss):
        MODELS.register_module(module=_loss)


def __getattr__(name: str) -> object:
    """`Segmenter`, whose MM packages take seconds to import and need not be installed for the losses."""
    if name != "Segmenter":
        raise AttributeError(f"module 'gbseg' has no attribute {name!r}")
    if find_spec("mmseg") is None:
        raise ImportError("gbseg.Segmenter needs the MM packages: pip install 'gbseg[mm]'")
    from gbseg.engine.segmenter import Segmenter

    return Segmenter
