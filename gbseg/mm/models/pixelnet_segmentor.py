"""PixelNet as a segmentor: the size at which it predicts, and how labels are upsampled to the original size."""

import torch.nn.functional as F
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from gbseg.mm.models.pixelnet_head import PixelNetHead
from gbseg.mm.models.timm_trunk import TimmTrunk
from gbseg.pixelnet.adaptive import check_grid

__all__ = ["PixelNet"]


@MODELS.register_module()
class PixelNet(EncoderDecoder):
    """MMSegmentation's ``EncoderDecoder`` with PixelNet's way of predicting.

    ``test_cfg['input']`` is the size at which the network sees an image: ``(height, width)`` resizes it (the authors test at
    224 x 224 and ignore the aspect ratio), 'original' does not. Labels are the argmax at that size, upsampled to the original
    size by nearest neighbour and compared there; ``seg_logits`` are upsampled the same way. An image smaller than the deepest
    stride is padded to it with its border pixels, and the prediction of the padding is dropped.

    ``test_cfg['mode'] = 'adaptive'`` evaluates the MLP only where labels change or are uncertain
    (`gbseg.mm.models.PixelNetHead.adaptive`), starting from a grid of every ``test_cfg['coarse']``-th pixel (8), with the
    margin ``test_cfg['margin']`` (0.2).

    A sample's metadata may hold ``input_scale``, a factor of ``test_cfg['input']`` (test-time augmentation).

    Raises:
        ValueError: ``test_cfg['input']`` is neither; 'mode' is unknown, 'coarse' not a power of 2 or 'margin' negative; the
            mode is 'adaptive' and the head no ``PixelNetHead``; the trunk's padding is not the head's offset; images of one
            batch were padded differently or have different ``input_scale``.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        config = self.test_cfg or {}
        size, mode = config.get("input", "original"), config.get("mode", "whole")
        if size != "original" and not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
            raise ValueError(f"test_cfg['input'] is 'original' or (height, width), got {size!r}.")
        self.input_size: tuple[int, int] | None = None if size == "original" else tuple(size)
        if mode not in ("whole", "slide", "adaptive"):
            raise ValueError(f"test_cfg['mode'] is 'whole', 'slide' or 'adaptive', got {mode!r}.")
        if mode == "adaptive":
            if not isinstance(self.decode_head, PixelNetHead):
                raise ValueError(f"test_cfg['mode'] = 'adaptive' needs a PixelNetHead, not {type(self.decode_head).__name__}.")
            check_grid(config.get("coarse", 8), config.get("margin", 0.2))
        self.deepest_stride = int(max(getattr(self.decode_head, "strides", None) or (32,)))
        padding = getattr(self.backbone, "image_padding", 0)
        offset = getattr(self.decode_head, "offset", 0)
        if padding != offset:
            raise ValueError(
                f"the trunk pads images by {padding} pixels and the head reads its maps at offset={offset}: "
                "set decode_head.offset to backbone.image_padding, or every feature is read at the wrong place."
            )
        if isinstance(self.backbone, TimmTrunk) and isinstance(self.decode_head, PixelNetHead) and not self.with_neck:
            wanted = {"in_channels": self.backbone.channels, "strides": self.backbone.strides}
            for name, values in wanted.items():
                chosen = tuple(values[index] for index in self.decode_head.in_index if index < len(values))
                if tuple(getattr(self.decode_head, name) or chosen) != chosen:
                    raise ValueError(
                        f"the maps of timm's {self.backbone.name} have the {name.removeprefix('in_')} {values}: set "
                        f"decode_head.{name}={chosen}, which is {tuple(getattr(self.decode_head, name))}."
                    )

    def inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits by ``test_cfg['mode']``: MMSegmentation's 'whole' and 'slide', and 'adaptive'."""
        if (self.test_cfg or {}).get("mode") == "adaptive":
            return self.whole_inference(inputs, batch_img_metas)
        return super().inference(inputs, batch_img_metas)

    def scaled_input(self, scale: float) -> tuple[int, int]:
        """``test_cfg['input']`` times ``scale``, each side rounded to a multiple of the deepest stride; unrounded for 1."""
        if self.input_size is None:
            raise ValueError("test_cfg['input'] is 'original': there is no fixed size to scale.")
        if scale == 1:
            return self.input_size
        height, width = (max(1, int(side * scale / self.deepest_stride + 0.5)) for side in self.input_size)
        return height * self.deepest_stride, width * self.deepest_stride

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Labels and logits of every image at its original size."""
        samples = data_samples if data_samples is not None else [SegDataSample() for _ in inputs]
        paddings = [_padding(sample) for sample in samples]
        given = tuple(inputs.shape[2:])
        if self.input_size is not None:
            # padding of the preprocessor is no part of the image, and must not be resized with it
            if len(set(paddings)) > 1:
                raise ValueError("images of one batch were padded differently: with test_cfg['input'] use a batch size of 1.")
            scales = {sample.metainfo.get("input_scale", 1) for sample in samples}
            if len(scales) > 1:
                raise ValueError(f"images of one batch have different values of input_scale: {sorted(scales)}.")
            size = self.scaled_input(*scales)
            inputs = F.interpolate(_remove_padding(inputs, paddings[0]), size, mode="bilinear", align_corners=False)
            paddings = [(0, 0, 0, 0)] * len(inputs)
        height, width = inputs.shape[2:]
        # pooling leaves nothing of a side that is shorter than the stride
        right, bottom = (max(0, self.deepest_stride - side) for side in (width, height))
        if right or bottom:
            inputs = F.pad(inputs, (0, right, 0, bottom), mode="replicate")
        shape = inputs.shape[2:]
        metas = [dict(ori_shape=shape, img_shape=shape, pad_shape=shape, padding_size=[0] * 4)] * len(inputs)
        logits = self.inference(inputs, metas)[..., :height, :width]
        for sample, image_logits, padding in zip(samples, logits, paddings, strict=True):
            image_logits = _remove_padding(image_logits, padding)
            if sample.metainfo.get("flip"):
                horizontal = sample.metainfo.get("flip_direction", "horizontal") == "horizontal"
                image_logits = image_logits.flip(2 if horizontal else 1)
            ori_shape = tuple(sample.metainfo.get("ori_shape", given))[:2]
            # nearest-exact reads the pixel under the centre; 'nearest' would shift the labels by up to half a pixel
            upsampled = F.interpolate(image_logits.unsqueeze(0), ori_shape, mode="nearest-exact").squeeze(0)
            labels = upsampled.argmax(0, keepdim=True)
            sample.set_data(dict(seg_logits=PixelData(data=upsampled), pred_sem_seg=PixelData(data=labels)))
        return samples


def _padding(sample: SegDataSample) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) pixels that a preprocessor put around an image; mmseg has two keys for them."""
    left, right, top, bottom = sample.metainfo.get("img_padding_size", sample.metainfo.get("padding_size", (0, 0, 0, 0)))
    return left, right, top, bottom


def _remove_padding(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    left, right, top, bottom = padding
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]
