"""PixelNet as a segmentor: which size a prediction runs at, and how its labels reach the original size."""

from __future__ import annotations

import torch.nn.functional as F
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from gbseg.mm.models.pixelnet_head import PixelNetHead
from gbseg.pixelnet.adaptive import check_grid

__all__ = ["PixelNet"]


@MODELS.register_module()
class PixelNet(EncoderDecoder):
    """MMSegmentation's `EncoderDecoder` with PixelNet's way of predicting.

    ``test_cfg['input']`` says at which size the network sees an image: ``(height, width)`` resizes it (the authors test at
    224 x 224, aspect ignored), 'original' does not. Labels are the argmax at that size, enlarged to the original size by
    nearest neighbour and compared there; ``seg_logits`` are enlarged the same way. An image smaller than the deepest stride is
    continued by its border pixels up to it, and the prediction there is dropped.

    ``test_cfg['mode'] = 'adaptive'`` evaluates the MLP only where labels change or are close (`PixelNetHead.adaptive`), from a
    grid of every ``test_cfg['coarse']``-th pixel (8), with the margin ``test_cfg['margin']`` (0.2).

    A sample's metadata may hold ``input_scale``, a factor of ``test_cfg['input']`` (test-time augmentation).

    Raises:
        ValueError: ``test_cfg['input']`` is neither; 'mode', 'coarse' or 'margin' makes no sense, or the head is none that
            adapts; the trunk's padding is not the head's offset; images of one batch were padded differently or have different
            ``input_scale``.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        size = (self.test_cfg or {}).get("input", "original")
        if size != "original" and not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
            raise ValueError(f"test_cfg['input'] is 'original' or (height, width), got {size!r}.")
        self.input_size: tuple[int, int] | None = None if size == "original" else tuple(size)
        self._check_mode()
        self.deepest_stride = int(max(getattr(self.decode_head, "strides", None) or (32,)))
        padding = getattr(self.backbone, "image_padding", 0)
        offset = getattr(self.decode_head, "offset", 0)
        if padding != offset:
            raise ValueError(
                f"the trunk pads images by {padding} pixels and the head reads its maps at offset={offset}: "
                "set decode_head.offset to backbone.image_padding, or every feature is read at the wrong place."
            )

    def _check_mode(self) -> None:
        config = self.test_cfg or {}
        mode = config.get("mode", "whole")
        if mode not in ("whole", "slide", "adaptive"):
            raise ValueError(f"test_cfg['mode'] is 'whole', 'slide' or 'adaptive', got {mode!r}.")
        if mode != "adaptive":
            return
        if not isinstance(self.decode_head, PixelNetHead):
            raise ValueError(f"test_cfg['mode'] = 'adaptive' needs a PixelNetHead, not {type(self.decode_head).__name__}.")
        check_grid(config.get("coarse", 8), config.get("margin", 0.2))

    def inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """MMSegmentation's, with the mode 'adaptive' beside 'whole' and 'slide'."""
        if (self.test_cfg or {}).get("mode") == "adaptive":
            return self.whole_inference(inputs, batch_img_metas)
        return super().inference(inputs, batch_img_metas)

    def scaled_input(self, scale: float) -> tuple[int, int]:
        """``test_cfg['input']`` times ``scale``, each side rounded to a multiple of the deepest stride; unrounded for 1."""
        if scale == 1:
            return self.input_size
        stride = self.deepest_stride
        return tuple(max(1, int(side * scale / stride + 0.5)) * stride for side in self.input_size)

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Labels and logits of every image at its original size."""
        samples = data_samples if data_samples is not None else [SegDataSample() for _ in inputs]
        paddings = [_padding(sample) for sample in samples]
        given = tuple(inputs.shape[2:])
        if self.input_size is not None:
            # what a preprocessor padded is no part of the image, and must not be squeezed into it
            if len(set(paddings)) > 1:
                raise ValueError("images of one batch were padded differently: with test_cfg['input'] use a batch size of 1.")
            scales = {sample.metainfo.get("input_scale", 1) for sample in samples}
            if len(scales) > 1:
                raise ValueError(f"images of one batch have different values of input_scale: {sorted(scales)}.")
            size = self.scaled_input(*scales)
            inputs = F.interpolate(_cut(inputs, paddings[0]), size, mode="bilinear", align_corners=False)
            paddings = [(0, 0, 0, 0)] * len(inputs)
        height, width = inputs.shape[2:]
        # poolings leave nothing of a side that is shorter than the stride
        short = [max(0, self.deepest_stride - side) for side in (width, height)]
        if any(short):
            inputs = F.pad(inputs, (0, short[0], 0, short[1]), mode="replicate")
        size = inputs.shape[2:]
        metas = [dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)] * len(inputs)
        logits = self.inference(inputs, metas)[..., :height, :width]
        for sample, one, padding in zip(samples, logits, paddings, strict=True):
            one = _cut(one, padding)
            if sample.metainfo.get("flip"):
                one = one.flip(2 if sample.metainfo.get("flip_direction", "horizontal") == "horizontal" else 1)
            shape = tuple(sample.metainfo.get("ori_shape", given))[:2]
            # nearest-exact reads the pixel under the centre; 'nearest' would shift the labels by up to half a pixel
            enlarged = F.interpolate(one.unsqueeze(0), shape, mode="nearest-exact").squeeze(0)
            sample.set_data(
                dict(
                    seg_logits=PixelData(data=enlarged),
                    pred_sem_seg=PixelData(data=enlarged.argmax(0, keepdim=True)),
                )
            )
        return samples


def _padding(sample: SegDataSample) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) pixels that a preprocessor put around an image; mmseg has two keys for them."""
    meta = sample.metainfo
    return tuple(meta.get("img_padding_size", meta.get("padding_size", (0, 0, 0, 0))))


def _cut(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    left, right, top, bottom = padding
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]
