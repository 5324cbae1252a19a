"""PixelNet's parts in plain PyTorch: which pixels are sampled, hypercolumns at them, and the first layer over them.

The network itself, as MMSegmentation components, is `gbseg.mm.models`.
"""

from gbseg._moved import add_moved_names, register_as_before
from gbseg.pixelnet.sampling import BalancedPixelSampler, UniformPixelSampler

__all__ = ["BalancedPixelSampler", "UniformPixelSampler"]

add_moved_names(__name__)
register_as_before()
