"""MMPretrain's preprocessor for classifiers, whose Mixup and CutMix also reach batches whose labels are one tensor."""

import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import Tensor

from gbseg.mm.compat import ClsDataPreprocessor as MMPretrainPreprocessor

__all__ = ["ClsDataPreprocessor"]


class ClsDataPreprocessor(MMPretrainPreprocessor):
    """MMPretrain's ``ClsDataPreprocessor``, which passes labels of `gbseg.mm.datasets.array_dataset.ArrayImages` on unmixed.

    Those are an (N,) tensor instead of data samples. In training with ``batch_augments`` (Mixup, CutMix, ResizeMix; also as
    the classifier's ``train_cfg``) or ``to_onehot``, they become the (N, C) soft labels of the mixed images, which
    `gbseg.mm.models.classification_head.GBClsHead` gives to the loss. Data samples are treated as by MMPretrain.

    Args:
        settings: arguments of MMPretrain's ``ClsDataPreprocessor``; mixing needs ``num_classes``, which `gbseg.mm` takes from
            the head where it is not given.

    Raises:
        ValueError: labels are to be mixed and ``num_classes`` is not set.
    """

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalised inputs with their labels; in training mixed."""
        batch = super().forward(data, training)
        labels = batch["data_samples"]
        if not (training and self.to_onehot and isinstance(labels, Tensor)):
            return batch
        if self.num_classes is None:
            raise ValueError("to mix images, their labels must become one-hot: set model.data_preprocessor.num_classes.")
        inputs = batch["inputs"]
        scores = F.one_hot(labels.to(inputs.device), self.num_classes).float()
        if self.batch_augments is not None:
            inputs, scores = self.batch_augments(inputs, scores)
        return {"inputs": inputs, "data_samples": scores}


# under MMPretrain's name, which its ImageClassifier takes where a config names none: a config that asks for Mixup gets it
MODELS.register_module(module=ClsDataPreprocessor, force=True)
