"""PixelNet: hypercolumns of a trunk at sampled pixels, and an MLP over them, as MMSegmentation components."""

from gbseg.pixelnet.head import PixelNetHead
from gbseg.pixelnet.sampling import BalancedPixelSampler, UniformPixelSampler
from gbseg.pixelnet.segmentor import PixelNet
from gbseg.pixelnet.trunk import VGG16Trunk

__all__ = ["BalancedPixelSampler", "PixelNet", "PixelNetHead", "UniformPixelSampler", "VGG16Trunk"]
