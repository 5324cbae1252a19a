"""The classification head: an affine layer, any loss, and scores through that loss's link instead of a softmax."""

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from gbseg.losses.links import probabilities_of_losses, starting_logits
from gbseg.mm.compat import DataSample, LinearClsHead

__all__ = ["GBClsHead"]


@MODELS.register_module()
class GBClsHead(LinearClsHead):
    """MMPretrain's ``LinearClsHead`` with ``pred_score`` as probabilities through the loss's link.

    ``pred_label`` is the argmax of the logits. Instead of data samples, the labels alone are accepted, an (N,) tensor, as the
    in-memory data sets give them, and in training (N, C) soft labels, which Mixup and CutMix make of them
    (`gbseg.mm.models.classification_preprocessor`).

    Args:
        num_classes: C.
        in_channels: features of the last stage.
        loss: config of the loss; boosted, or any whose link `gbseg.evaluation.probabilities.probabilities_of` knows.
        init_std: standard deviation of the Gaussian weights; None: He initialisation.
        init_bias: None; 'prior' (the loss's ``prior_logits`` of uniform frequencies); or C frequencies.
        batch_norm: normalise the logits over the batch, for networks with "batch normalization in all layers" (paper, 2.1).
            The bias then belongs to the normalisation. exp-GB tolerates larger rates with it, because its curvature in the
            output layer no longer grows with the number of features.
        settings: further arguments of ``LinearClsHead``: topk, cal_acc.

    Raises:
        ValueError: ``init_bias`` with a loss that has no ``prior_logits``, or not C frequencies.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        loss: dict | nn.Module,
        init_std: float | None = None,
        init_bias: str | Sequence[float] | None = None,
        batch_norm: bool = False,
        **settings: object,
    ) -> None:
        super().__init__(num_classes, in_channels, init_cfg=None, loss=loss, **settings)
        if batch_norm:
            # part of `fc`, so that its output are the logits in both cases
            self.fc = nn.Sequential(nn.Linear(in_channels, num_classes, bias=False), nn.BatchNorm1d(num_classes))
        self.init_std = init_std
        self.init_bias = starting_logits(self.loss_module, init_bias, num_classes, type(self).__name__)
        self.link = probabilities_of_losses([self.loss_module])

    def init_weights(self) -> None:
        """Gaussian or He weights, and the output bias that ``init_bias`` names."""
        layers = [module for module in self.fc.modules() if isinstance(module, nn.Linear | nn.BatchNorm1d)]
        if self.init_std is None:
            nn.init.kaiming_normal_(layers[0].weight, nonlinearity="linear")
        else:
            nn.init.normal_(layers[0].weight, std=self.init_std)
        nn.init.zeros_(layers[-1].bias)
        if self.init_bias is not None:
            with torch.no_grad():
                layers[-1].bias.copy_(self.init_bias)

    def loss(self, feats: tuple[Tensor, ...], data_samples: list[DataSample] | Tensor, **kwargs: object) -> dict[str, Tensor]:
        """The loss, and the accuracies if ``cal_acc``."""
        if isinstance(data_samples, Tensor):
            # the parent only concatenates labels: one sample may hold all of them, soft ones as well
            data_samples = [DataSample(gt_label=data_samples.to(feats[-1].device))]
        return super().loss(feats, data_samples, **kwargs)

    def predict(
        self, feats: tuple[Tensor, ...], data_samples: list[DataSample | None] | Tensor | None = None
    ) -> list[DataSample]:
        """Data samples with ``pred_score`` and ``pred_label``."""
        logits = self(feats)
        if isinstance(data_samples, Tensor):
            data_samples = [DataSample().set_gt_label(label) for label in data_samples]
        samples = data_samples if data_samples is not None else [None] * len(logits)
        scores, labels = self.link(logits), logits.argmax(1, keepdim=True)
        return [
            (DataSample() if sample is None else sample).set_pred_score(score).set_pred_label(label)
            for sample, score, label in zip(samples, scores, labels, strict=True)
        ]
