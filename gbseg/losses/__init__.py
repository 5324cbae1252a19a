"""Boosted losses: `reference` defines them, `modules` is what configs name, `guarded` and `labels` guard their input;
`baselines` is what they are compared with.
"""

from gbseg._moved import moved_names
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
from gbseg.losses.resize import boosted_resize_loss

__all__ = [
    "BadLabelError",
    "BoostedLoss",
    "ExpGBLoss",
    "L1Loss",
    "LinearLoss",
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

__getattr__ = moved_names(__name__)
