"""Networks that configs name: PixelNet, the paper's small classifiers, and the model that averages over augmentations."""

from mmengine.registry import MODELS

from gbseg.mm.models.classification_head import GBClsHead
from gbseg.mm.models.classification_preprocessor import ClsDataPreprocessor
from gbseg.mm.models.classifiers import MLP, AlexNetBN, AllConvNet, SmallConvNet
from gbseg.mm.models.link_tta import LinkTTAModel
from gbseg.mm.models.ohem_sampler import LinkOHEMPixelSampler
from gbseg.mm.models.pixelnet_head import PixelNetHead
from gbseg.mm.models.pixelnet_segmentor import PixelNet
from gbseg.mm.models.timm_trunk import TimmTrunk
from gbseg.mm.models.vgg16_trunk import VGG16Trunk
from gbseg.pixelnet.sampling import BalancedPixelSampler, UniformPixelSampler

__all__ = [
    "MLP",
    "AlexNetBN",
    "AllConvNet",
    "ClsDataPreprocessor",
    "GBClsHead",
    "LinkOHEMPixelSampler",
    "LinkTTAModel",
    "PixelNet",
    "PixelNetHead",
    "SmallConvNet",
    "TimmTrunk",
    "VGG16Trunk",
]

for _sampler in (BalancedPixelSampler, UniformPixelSampler):
    MODELS.register_module(module=_sampler)
