"""Boosted losses: `reference` defines them, `modules` is what configs name, `labels` guards their input."""

from gbseg.losses.labels import BadLabelError
from gbseg.losses.modules import BoostedLoss, ExpGBLoss, LinearLoss, Pow3GBLoss

__all__ = ["BadLabelError", "BoostedLoss", "ExpGBLoss", "LinearLoss", "Pow3GBLoss"]
