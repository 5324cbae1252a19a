"""Prediction of single images from Python: a config, a checkpoint, and an image in any common form."""

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope
from mmseg.structures import SegDataSample
from PIL import Image
from torch import Tensor

from gbseg.data.images import ImageError, check_file, pillow_reads, to_bgr
from gbseg.evaluation.probabilities import probabilities_of
from gbseg.files import checkpoint_path
from gbseg.mm.checkpoint_loading import read_checkpoint
from gbseg.mm.checkpoint_weights import load_weights
from gbseg.mm.component_errors import config_errors
from gbseg.mm.config import inner_test_dataset, load_config, max_pixels, merge_options, without_annotations
from gbseg.mm.models.link_tta import SCALES, LinkTTAModel
from gbseg.mm.models.pixelnet_segmentor import PixelNet
from gbseg.palettes import default_palette
from gbseg.prediction.tiles import Axis, Span, spans

__all__ = ["Segmentation", "Segmenter"]

STRIP = 2**22  # values of logits that are upsampled at once


@dataclass
class Segmentation:
    """One image's prediction, at the size of the upright image.

    Attributes:
        labels: (H, W), class numbers; uint8, or int32 with more than 256 classes.
        image: (H, W, 3) uint8, RGB: the network's input before normalisation.
        class_names: one per class.
        palette: (red, green, blue) of every class, 0..255.
    """

    labels: np.ndarray
    image: np.ndarray = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    palette: tuple[tuple[int, int, int], ...] = field(repr=False)
    _predict: Callable[[], np.ndarray] = field(repr=False, compare=False)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(C, H, W) float32 by the link of the model's loss, summing to one over C.

        They take 4 * C * H * W bytes and are computed at the first access: then the network runs once more, unless the
        segmenter was called with ``probabilities=True``.
        """
        return self._predict()

    def overlay(self, alpha: float = 0.6) -> np.ndarray:
        """The image blended with the colours of the classes, (H, W, 3) uint8, RGB.

        Like `gbseg.report.label_overlay.overlay`, ``round((1 - alpha) * image + alpha * colour)``, except that every
        number is a class (a prediction has no void), and that the image is unchanged where the class is called background.

        Raises:
            ValueError: alpha is not in 0..1.
        """
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must lie in 0..1, not {alpha}")
        colours = np.array(self.palette, dtype=np.float64)
        shares = np.array([0.0 if name == "background" else alpha for name in self.class_names])
        blended = np.empty_like(self.image)
        # in strips, since the blend is computed in float64
        for top in range(0, len(self.labels), 256):
            rows = slice(top, top + 256)
            share = shares[self.labels[rows], None]
            blended[rows] = np.rint((1.0 - share) * self.image[rows] + share * colours[self.labels[rows]])
        return blended


class Segmenter:
    """A trained segmentor as a function of an image.

    ::

        segmenter = gbseg.Segmenter("configs/subset/expgb.py", "work_dirs/expgb/iter_1500.pth")
        result = segmenter("photo.jpg")
        result.labels, result.probabilities, result.overlay()

    It works for every segmentor that an mmseg config builds. An image goes through the config's own test pipeline (without
    annotations), and its labels are those that ``tools/test.py --out`` writes for it. Files are read by the config's loader:
    rotated by their EXIF orientation, alpha ignored, 16 bits cut to the upper 8, the first of several frames. The same rules
    hold for images in memory, see `gbseg.data.images.to_bgr`.

    An image with more than ``2 * tile**2`` pixels (2048 x 1024 by default), or an input of that size for the network, is
    predicted in tiles, and only their middles are used. If the network's receptive field exceeds ``overlap / 2`` pixels, labels
    near the seams can differ from those of the image as one input; global pooling is over a tile instead of the image.
    A PixelNet with a fixed ``test_cfg.input`` sees the full image at that size. Only upsampling is done in strips, and the
    labels are the same. With ``tta`` over several scales single pixels at borders may differ, since the mean is computed at the
    largest scale and then upsampled.

    Args:
        config: a file, ``gbseg::NAME.py``, or a config; of one run.
        checkpoint: file with the weights, of which only data is read (`gbseg.mm.checkpoint_loading`); mmengine's file
            ``last_checkpoint`` stands for the one that it names.
        device: 'cpu', 'cuda:1', ...; None uses a GPU if there is one.
        cfg_options: keys with dots and their values, which override the config's.
        amp: mixed precision (bfloat16 on a CPU).
        tta: average probabilities over scales and flips (`gbseg.mm.models.LinkTTAModel`, with the settings of the config's
            ``tta_model`` if it is one); the labels are the argmax of the mean.
        tile: the side of a tile in pixels, a multiple of 32.
        overlap: how many pixels neighbouring tiles share, a multiple of 32.
        allow_mismatch: take what fits of a checkpoint of another network or boost, as the config's key of this name.

    Raises:
        FileNotFoundError: there is no such config or checkpoint.
        gbseg.config_files.ConfigError: the config cannot be read or built; the message names the key.
        gbseg.mm.checkpoint_loading.CheckpointError: the checkpoint is damaged, or holds more than data.
        gbseg.mm.checkpoint_weights.MismatchError: the checkpoint is of another network, number of classes or boost.
        ValueError: the config lists several runs; the head has one output channel; tile
            or overlap is not such a multiple.
    """

    def __init__(
        self,
        config: str | os.PathLike | Config,
        checkpoint: str | os.PathLike,
        device: str | torch.device | None = None,
        *,
        cfg_options: Mapping[str, object] | None = None,
        amp: bool = False,
        tta: bool = False,
        tile: int = 1024,
        overlap: int = 256,
        allow_mismatch: bool = False,
    ) -> None:
        spans(1, tile, overlap)
        if isinstance(config, Config):
            config = copy.deepcopy(config)
            merge_options(config, cfg_options or {})
        else:
            config = load_config(os.fspath(config), cfg_options)
        if config.get("runs"):
            raise ValueError(f"{config.filename} lists the runs {', '.join(config.runs)}: take one of them by its own config.")
        checkpoint = checkpoint_path(checkpoint)
        self.tile, self.overlap, self.amp = tile, overlap, amp
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._max_pixels = max_pixels(config)
        with config_errors(config), DefaultScope.overwrite_default_scope(config.get("default_scope", "mmseg")):
            dataset = inner_test_dataset(config)
            network = MODELS.build(config.model)
            loader, *transforms = without_annotations(dataset.pipeline)
            self._load_file = TRANSFORMS.build(loader)
            self._pipeline = Compose(transforms)
            metainfo = getattr(DATASETS.get(dataset.type), "METAINFO", {}) | dict(dataset.get("metainfo") or {})
        stored = read_checkpoint(checkpoint)
        load_weights(network, stored, checkpoint, config, allow_mismatch or config.get("allow_mismatch", False))
        self.num_classes = network.out_channels
        if self.num_classes == 1:
            raise ValueError("a head of one output channel gives no probability for every class: use num_classes=2.")
        self._link = probabilities_of(network)
        self._label_type = np.uint8 if self.num_classes <= 256 else np.int32
        meta = stored.get("meta") if "state_dict" in stored else None
        metas = ((meta or {}).get("dataset_meta"), metainfo)
        self.class_names, self.palette = _names_and_colours(metas, self.num_classes)
        self.network = network.to(self.device).eval()
        self.model: Any = network
        if tta:
            settings = dict(config.get("tta_model") or {})
            settings = settings if settings.pop("type", None) == "LinkTTAModel" else {}
            if config.get("tta_pipeline") is not None:
                warnings.warn(
                    "the config's tta_pipeline is for tools/test.py: a Segmenter averages over the scales "
                    f"{tuple(settings.get('scales') or SCALES)}.",
                    stacklevel=2,
                )
            with config_errors(config, key="tta_model"):
                self.model = LinkTTAModel(module=network, **settings).eval()

    def __call__(
        self, image: str | os.PathLike | Image.Image | np.ndarray, *, bgr: bool = False, probabilities: bool = False
    ) -> Segmentation:
        """Predict one image.

        Args:
            image: a file; a PIL image; or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or uint16.
            bgr: the channels of an array are BGR, as in OpenCV; by default RGB.
            probabilities: compute them together with the labels.

        Raises:
            gbseg.data.images.ImageError: the image cannot be read, or is too small for the network.
            ValueError: the network's logits are NaN or infinite.
        """
        loaded = self._load(image, bgr)
        labels, computed = self._predict(loaded, probabilities)
        shown = loaded["img"] if loaded["img"].ndim == 3 else loaded["img"][..., None].repeat(3, 2)
        shown = np.ascontiguousarray(shown[..., 2::-1].astype(np.uint8, copy=False))
        result = Segmentation(labels, shown, self.class_names, self.palette, lambda: self._predict(loaded, True)[1])
        if probabilities:
            result.probabilities = computed
        return result

    def _load(self, image: str | os.PathLike | Image.Image | np.ndarray, bgr: bool) -> dict:
        """The output of the pipeline's loader."""
        if isinstance(image, str | os.PathLike):
            size = check_file(image, self._max_pixels, decode=True)
            loaded = {"img_path": str(image), "seg_fields": []}
            try:
                with pillow_reads(size):
                    return self._load_file(loaded)
            except (AssertionError, OSError, ValueError, RuntimeError, cv2.error) as error:
                raise ImageError(f"{image} cannot be read by the config's loader: {error}; save it as an 8-bit PNG") from error
        if not isinstance(image, np.ndarray | Image.Image):
            raise ImageError(f"an image is a path, a PIL image or a numpy array, not {type(image).__name__}")
        array = to_bgr(image, bgr)
        if getattr(self._load_file, "to_float32", False):
            array = array.astype(np.float32)
        shape = array.shape[:2]
        return {"img": array, "img_path": None, "img_shape": shape, "ori_shape": shape, "seg_fields": []}

    def _predict(self, loaded: dict, probabilities: bool) -> tuple[np.ndarray, np.ndarray]:
        """Labels (H, W) and probabilities (C, H, W), which are empty unless they are asked for."""
        dtype = torch.bfloat16 if self.device.type == "cpu" else torch.float16
        height, width = loaded["ori_shape"][:2]
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=self.amp):
            try:
                packed = self._pipeline(dict(loaded))
            except cv2.error as error:
                # 1 x 300 pixels resized to a third have no height left
                message = f"an image of {width} x {height} pixels does not pass the config's test pipeline: {error}"
                raise ImageError(message) from error
            inputs, sample = packed["inputs"], packed["data_samples"]
            height, width = sample.ori_shape[:2]
            if max(height * width, inputs.shape[-2] * inputs.shape[-1]) > 2 * self.tile**2:
                return self._predict_in_tiles(inputs, sample, probabilities)
            values, labels = self._run(inputs, sample)
            arrays = self._to_probabilities(values).float().cpu().numpy() if probabilities else np.empty(0)
            return labels.cpu().numpy().astype(self._label_type), arrays

    def _run(self, inputs: Tensor, sample: SegDataSample) -> tuple[Tensor, Tensor]:
        """Logits (with tta probabilities) (C, H, W) and labels (H, W) of one input, at the sample's ``ori_shape``."""
        try:
            [sample] = self.model.test_step({"inputs": [inputs], "data_samples": [sample]})
        except (RuntimeError, ValueError) as error:
            height, width = inputs.shape[-2:]
            if min(height, width) >= 32 or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ImageError(f"{width} x {height} pixels are too few for this network: {error}") from error
        values = sample.seg_logits.data if "seg_logits" in sample else sample.probabilities.data
        # the argmax of NaN would be some class; minus infinity is a class that was ruled out
        if not torch.isfinite(values.amax(dim=0)).all():
            raise ValueError(
                "the network's logits are NaN or infinite, so that its labels would mean nothing: look for a training that "
                "diverged before this checkpoint, or predict without amp."
            )
        return values, sample.pred_sem_seg.data.squeeze(0)

    def _to_probabilities(self, values: Tensor) -> Tensor:
        return values if self.model is not self.network else self._link(values.unsqueeze(0)).squeeze(0)

    def _predict_in_tiles(self, inputs: Tensor, sample: SegDataSample, probabilities: bool) -> tuple[np.ndarray, np.ndarray]:
        """As `_predict`, with the logits of one tile, and of a strip of it at the original size, in memory at a time."""
        height, width = sample.ori_shape[:2]
        labels = np.empty((height, width), self._label_type)
        arrays = np.empty((self.num_classes, height, width) if probabilities else 0, np.float32)
        nearest = isinstance(self.network, PixelNet)
        aligned = bool(getattr(self.network, "align_corners", False))
        if getattr(self.network, "input_size", None) is None:
            grid_height, grid_width = inputs.shape[-2:]
            tiles = self._overlapping_tiles(inputs, sample)
        else:
            # the size at which a PixelNet sees every image; with tta the largest one
            scales = (self.model.scales or SCALES) if isinstance(self.model, LinkTTAModel) else (1,)
            grid_height, grid_width = self.network.scaled_input(max(scales))
            sample.set_metainfo(dict(ori_shape=(grid_height, grid_width)))
            values = self._run(inputs, sample)[0]
            tiles = iter([(Span(0, grid_height, 0, grid_height), Span(0, grid_width, 0, grid_width), values)])
        vertical, horizontal = (
            Axis(extent, upsampled, nearest, aligned) for extent, upsampled in ((grid_height, height), (grid_width, width))
        )
        for rows, columns, values in tiles:
            if nearest and not probabilities:
                values = values.argmax(0, keepdim=True)
            down, across = vertical.pixels(rows), horizontal.pixels(columns)
            step = max(1, STRIP // (len(values) * max(len(across), 1)))
            for top in range(down.start, down.stop, step):
                strip = range(top, min(top + step, down.stop))
                block = horizontal.read(vertical.read(values, rows, strip, 1), columns, across, 2)
                region = np.s_[strip.start : strip.stop, across.start : across.stop]
                labels[region] = (block.argmax(0) if block.is_floating_point() else block[0]).cpu().numpy()
                if probabilities:
                    arrays[:, region[0], region[1]] = self._to_probabilities(block).float().cpu().numpy()
        return labels, arrays

    def _overlapping_tiles(self, inputs: Tensor, sample: SegDataSample) -> Iterator[tuple[Span, Span, Tensor]]:
        height, width = inputs.shape[-2:]
        for rows in spans(height, self.tile, self.overlap):
            for columns in spans(width, self.tile, self.overlap):
                tile = inputs[:, rows.start : rows.stop, columns.start : columns.stop].contiguous()
                shape = tuple(tile.shape[-2:])
                tile_sample = sample.new()
                tile_sample.set_metainfo(dict(ori_shape=shape, img_shape=shape, pad_shape=shape))
                yield rows, columns, self._run(tile, tile_sample)[0]


def _names_and_colours(metas: Sequence[Any], num_classes: int) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Those of the first source with as many classes as the network; otherwise numbers and `default_palette`.

    The sources are of checkpoints and configs of anybody: what is no list of names or colours counts as absent.
    """

    def usable(key: str, is_usable: Callable[[Any], bool]) -> Iterator[list]:
        for meta in metas:
            values = meta.get(key) if isinstance(meta, Mapping) else None
            values = values.tolist() if isinstance(values, np.ndarray) else values
            if isinstance(values, list | tuple) and len(values) == num_classes and all(map(is_usable, values)):
                yield list(values)

    names = list(map(str, next(usable("classes", lambda name: isinstance(name, str | int)), range(num_classes))))
    colours = next(usable("palette", _is_colour), default_palette(names))
    return tuple(names), tuple((int(red), int(green), int(blue)) for red, green, blue in colours)


def _is_colour(value: Any) -> bool:
    try:
        return len(value) == 3 and all(0 <= int(part) <= 255 for part in value)
    except (TypeError, ValueError):
        return False
