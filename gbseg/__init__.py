"""gbseg: train networks with boosted linear outputs instead of a softmax.

With torch alone: ``from gbseg import ExpGBLoss``. Where mmengine is installed, the losses are registered in its root
registry by this import, so that ``custom_imports = dict(imports=['gbseg'])`` is all that a foreign config needs.
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
