"""Test-time augmentation: the mean of probabilities over scales and flips, by the link of the model's loss."""

from collections.abc import Iterable, Iterator, Sequence

import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from gbseg.evaluation.probabilities import probabilities_of
from gbseg.mm.config import inner_test_dataset

__all__ = ["SCALES", "LinkTTAModel", "enable_tta"]

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Scales of `LinkTTAModel` by default."""


@MODELS.register_module()
class LinkTTAModel(BaseTTAModel):
    """Averages a segmentor's probabilities over augmented copies of an image, at the image's original size.

    With K augmentations A_k, each inverted on the way back to the original size,

        P = 1/K * sum_k A_k^-1 link(logits(A_k image)),   label = argmax_j P_j.

    ``link`` is `gbseg.evaluation.probabilities.probabilities_of` of the model: the softmax after cross-entropy and exp-GB with
    ``t_neg = 0``, and not the softmax after other boosts (mmseg's ``SegTTAModel`` averages softmaxes whatever the loss). The
    labels of one prediction are the argmax of its logits; here there are several, and their mean probability decides. Where
    every class is at or below ``t_neg`` the link is a softmax, so no prediction drops out of the mean.

    Two kinds of batches are accepted. Ordinary batches are augmented by this class, on the device: every scale as it is and,
    with ``flip``, mirrored. Batches of a ``TestTimeAug`` pipeline are averaged as they are.

    A scale multiplies the sides of the network's input (bilinear, no antialiasing): those of the image from the test pipeline,
    or, for a PixelNet with a fixed ``test_cfg.input``, that size (see `gbseg.mm.models.PixelNet.scaled_input`), since the
    network would resize every other image back to it.

    Args:
        module: the segmentor, or its config.
        data_preprocessor: that of the segmentor, if its config has none.
        scales: factors; None for `SCALES`. Not together with a ``TestTimeAug`` pipeline.
        flip: add the mirror image (left to right) of every scale.

    The samples returned have ``pred_sem_seg`` (1, H, W) int64 and ``probabilities`` (C, H, W) float. They have no
    ``seg_logits``, since a mean of probabilities has none.

    Raises:
        ValueError: a scale is not positive, or there is none; a model of one output channel, or without a known link; scales
            together with ``TestTimeAug``; images resized by ``TestTimeAug`` for a network of a fixed input size.
    """

    def __init__(
        self,
        module: dict | nn.Module,
        data_preprocessor: dict | nn.Module | None = None,
        scales: Sequence[float] | None = None,
        flip: bool = True,
    ) -> None:
        super().__init__(module, data_preprocessor)
        if scales is not None and (not len(scales) or not all(scale > 0 for scale in scales)):
            raise ValueError(f"scales are positive factors of the image's sides, at least one, got {scales!r}.")
        self.scales = None if scales is None else tuple(scales)
        self.flip = flip
        if getattr(self.module, "out_channels", 2) == 1:
            raise ValueError("test-time augmentation needs a probability for every class: give the head num_classes=2.")
        probabilities_of(self.module)

    def test_step(self, data: dict) -> list[SegDataSample]:
        """The merged predictions of a batch; holds the logits of one augmentation at a time."""
        return self._mean(self.module.test_step(batch) for batch in self._augmentations(data))

    def merge_preds(self, data_samples_list: list[Sequence[SegDataSample]]) -> list[SegDataSample]:
        """The merged predictions of images, each given as a sequence of one prediction per augmentation."""
        return self._mean(zip(*data_samples_list, strict=True))

    def _mean(self, predictions: Iterable[Sequence[SegDataSample]]) -> list[SegDataSample]:
        """The samples of a batch with the mean of its probabilities over augmentations."""
        link = probabilities_of(self.module)
        merged: list[SegDataSample] = []
        totals: list[Tensor] = []
        count = 0
        for count, samples in enumerate(predictions, start=1):
            probabilities = [link(sample.seg_logits.data.unsqueeze(0)).squeeze(0) for sample in samples]
            if count == 1:
                merged, totals = list(samples), probabilities
            else:
                totals = [total + term for total, term in zip(totals, probabilities, strict=True)]
        for sample, total in zip(merged, totals, strict=True):
            del sample.seg_logits  # those of the first augmentation
            mean = total / count
            sample.set_data(dict(probabilities=PixelData(data=mean), pred_sem_seg=PixelData(data=mean.argmax(0, keepdim=True))))
        return merged

    def _augmentations(self, data: dict) -> Iterator[dict]:
        if not isinstance(data["inputs"][0], list | tuple):
            for scale in self.scales or SCALES:
                for flip in (False, True) if self.flip else (False,):
                    pairs = [
                        self._augment(image, sample, scale, flip)
                        for image, sample in zip(data["inputs"], data["data_samples"], strict=True)
                    ]
                    yield {"inputs": [image for image, _ in pairs], "data_samples": [sample for _, sample in pairs]}
            return
        if self.scales is not None:
            raise ValueError("the data are augmented by TestTimeAug already: drop tta_pipeline, or scales from tta_model.")
        sizes = {tuple(images[0].shape[-2:]) for images in data["inputs"]}
        if getattr(self.module, "input_size", None) is not None and len(sizes) > 1:
            raise ValueError(
                f"tta_pipeline resizes images, and the network resizes all of them to test_cfg.input={self.module.input_size}, "
                "so that its scales do nothing: set tta_pipeline=None and tta_model=dict(type='LinkTTAModel', "
                "scales=(0.75, 1.0, 1.25)), which scale the network's input, or test_cfg.input='original'."
            )
        for index in range(len(data["inputs"])):
            yield {key: value[index] for key, value in data.items()}

    def _augment(self, image: Tensor, sample: SegDataSample, scale: float, flip: bool) -> tuple[Tensor, SegDataSample]:
        sample = sample.new()
        image = image.to(self.module.data_preprocessor.device).float()
        if getattr(self.module, "input_size", None) is not None:
            sample.set_metainfo(dict(input_scale=scale))
        elif scale != 1:
            size = [max(1, int(side * scale + 0.5)) for side in image.shape[-2:]]
            image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        if flip:
            image = image.flip(-1)
        shape = tuple(image.shape[-2:])
        sample.set_metainfo(dict(img_shape=shape, pad_shape=shape, flip=flip, flip_direction="horizontal" if flip else None))
        return image, sample


def enable_tta(config: Config) -> None:
    """Wrap a config's model for test-time augmentation, in place.

    Uses the config's ``tta_model`` if there is one, and ``tta_pipeline`` instead of the test pipeline; by default
    `LinkTTAModel` with `SCALES` and flips. mmseg's ``SegTTAModel``, which its default runtime names for every config,
    becomes a `LinkTTAModel`: after a cross-entropy that is the same.

    Raises:
        ValueError: the config has both ``tta_pipeline`` and ``scales`` in ``tta_model``.
    """
    settings = dict(config.get("tta_model") or dict(type="LinkTTAModel"))
    if settings["type"] in ("SegTTAModel", "mmseg.SegTTAModel"):
        settings["type"] = "LinkTTAModel"
    if config.get("tta_pipeline") is not None:
        if settings.get("scales") is not None:
            raise ValueError("the config has tta_pipeline and scales in tta_model: set one of them to None.")
        inner_test_dataset(config).pipeline = config.tta_pipeline
    config.model = ConfigDict(**settings, module=config.model)
