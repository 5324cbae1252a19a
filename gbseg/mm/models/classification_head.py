"""The classification head: an affine layer, any loss, and scores through that loss's link instead of a softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from gbseg.losses.links import probabilities_of_losses, starting_logits
from gbseg.mm.compat import DataSample, LinearClsHead

__all__ = ["GBClsHead"]


@MODELS.register_module()
class GBClsHead(LinearClsHead):
    """MMPretrain's `LinearClsHead`, whose ``pred_score`` are probabilities through the loss's link.

    ``pred_label`` is the argmax of the logits. Data samples may also be the labels themselves, an (N,) tensor, as the data
    sets held in memory hand them on.

    Args:
        num_classes: C.
        in_channels: features of the last stage.
        loss: its config; boosted, or any whose link `gbseg.evaluation.probabilities` knows.
        init_std: deviation of the Gaussian weights; None: He initialisation.
        init_bias: None; 'prior' (the loss's `prior_logits` of uniform frequencies); or C frequencies.
        batch_norm: normalise the logits over the batch, for networks with "batch normalization in all layers" (paper, 2.1).
            The bias is the normalisation's then. exp-GB bears larger rates with it: its curvature in the output layer no
            longer grows with the number of features.
        settings: those of `LinearClsHead`: topk, cal_acc.

    Raises:
        ValueError: ``init_bias`` with a loss that has no `prior_logits`, or not C frequencies.
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
            # one module, so that what `fc` returns are the logits, with normalisation as without
            self.fc = nn.Sequential(nn.Linear(in_channels, num_classes, bias=False), nn.BatchNorm1d(num_classes))
        self.init_std = init_std
        self.init_bias = starting_logits(self.loss_module, init_bias, num_classes, type(self).__name__)
        self.link = probabilities_of_losses([self.loss_module])

    def init_weights(self) -> None:
        """Gaussian or He weights, and the output bias that ``init_bias`` names."""
        affine, last = (self.fc[0], self.fc[1]) if isinstance(self.fc, nn.Sequential) else (self.fc, self.fc)
        if self.init_std is None:
            nn.init.kaiming_normal_(affine.weight, nonlinearity="linear")
        else:
            nn.init.normal_(affine.weight, std=self.init_std)
        nn.init.zeros_(last.bias)
        if self.init_bias is not None:
            with torch.no_grad():
                last.bias.copy_(self.init_bias)

    def _get_loss(self, cls_score: Tensor, data_samples: list[DataSample] | Tensor, **kwargs: object) -> dict[str, Tensor]:
        if isinstance(data_samples, Tensor):
            # only what the parent reads: one sample that holds all labels
            data_samples = [DataSample(gt_label=data_samples.to(cls_score.device))]
        return super()._get_loss(cls_score, data_samples, **kwargs)

    def _get_predictions(self, cls_score: Tensor, data_samples: list[DataSample | None] | Tensor | None) -> list[DataSample]:
        if isinstance(data_samples, Tensor):
            data_samples = [DataSample().set_gt_label(label) for label in data_samples]
        samples = data_samples if data_samples is not None else [None] * len(cls_score)
        scores, labels = self.link(cls_score), cls_score.argmax(1, keepdim=True)
        return [
            (DataSample() if sample is None else sample).set_pred_score(score).set_pred_label(label)
            for sample, score, label in zip(samples, scores, labels, strict=True)
        ]
