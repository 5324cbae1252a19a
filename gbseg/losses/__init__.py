"""Boosted losses: `reference` defines them, `modules` is what configs name, `guarded` and `labels` guard their input;
`baselines` is what they are compared with.
"""

from gbseg.losses.baselines import (
    L1Loss,
    SigmoidBCELoss,
    SigmoidMSELoss,
    SoftmaxLoss,
    TanhMSELoss,
    WestonWatkinsLoss,
)
from gbseg.losses.labels import BadLabelError
from gbseg.losses.modules import BoostedLoss, ExpGBLoss, LinearLoss, Pow3GBLoss

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
]
