"""The paper's small classifiers, AlexNet with batch normalisation, and the classification head whose scores are a link.

Importing it registers them in mmengine's root, where mmpretrain's configs find them.
"""

from gbseg.classifiers.head import GBClsHead
from gbseg.classifiers.networks import MLP, AlexNetBN, AllConvNet, SmallConvNet

__all__ = ["MLP", "AlexNetBN", "AllConvNet", "GBClsHead", "SmallConvNet"]
