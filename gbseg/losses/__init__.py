"""Boosted losses.

``reference`` defines the loss, ``functional`` chooses the fastest of the ``kernels``, ``resize`` and ``linear`` join it with
the layer before it, ``modules`` are the losses that configs name, with the checks of their inputs, ``labels`` reports bad
labels, ``links`` turns logits into probabilities, ``ohem`` keeps to hard pixels, and ``baselines`` are the losses that boosting
is compared with.
"""

from gbseg._moved import add_moved_names
from gbseg.losses.baselines import (
    L1Loss,
    SigmoidBCELoss,
    SigmoidMSELoss,
    SoftmaxLoss,
    TanhMSELoss,
    WestonWatkinsLoss,
)
from gbseg.losses.functional import fused_boosted_loss
from gbseg.losses.labels import BadLabelError
from gbseg.losses.linear import boosted_linear_loss
from gbseg.losses.modules import BoostedLoss, ExpGBLoss, LinearLoss, Pow3GBLoss
from gbseg.losses.ohem import OhemLoss
from gbseg.losses.resize import boosted_resize_loss

__all__ = [
    "BadLabelError",
    "BoostedLoss",
    "ExpGBLoss",
    "L1Loss",
    "LinearLoss",
    "OhemLoss",
    "Pow3GBLoss",
    "SigmoidBCELoss",
    "SigmoidMSELoss",
    "SoftmaxLoss",
    "TanhMSELoss",
    "WestonWatkinsLoss",
    "boosted_linear_loss",
    "boosted_resize_loss",
    "fused_boosted_loss",
]

add_moved_names(__name__)
