"""PixelNet's head: an MLP over hypercolumns, trained at sampled pixels and evaluated at all of them.

Shapes: N images, P points per image, K channels of a hypercolumn, C classes, H x W the image.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from gbseg.losses.functional import require_labels
from gbseg.losses.labels import BadLabelError
from gbseg.losses.links import starting_logits
from gbseg.pixelnet.adaptive import adaptive_logits
from gbseg.pixelnet.hypercolumn import FirstLayer, Level, compute_dtype, gather_linear
from gbseg.pixelnet.sampling import PixelSampler

__all__ = ["PixelNetHead", "relu_dropout"]

_NORMS = {"BN": nn.BatchNorm1d, "LN": nn.LayerNorm}


def relu_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``F.dropout(F.relu(x), p)`` with cheaper random numbers on a CPU; may overwrite ``x``.

    On a CPU, ``p`` is rounded to a multiple of 2^-16. Random numbers come from torch's global generator.

    Args:
        x: of any shape.
        p: the probability that a unit is set to zero.
        training: False: nothing is dropped.
    """
    if not training or not 0 < round(p * 2**16) < 2**16 or x.device.type != "cpu" or torch.compiler.is_compiling():
        # in place only where autograd does not need the input
        return F.dropout(torch.relu(x) if x.requires_grad else torch.relu_(x), p, training)
    # four draws of 16 bits from one of 64: bernoulli_ for every unit takes an eighth of PixelNet's training step
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    draws = bits.view(torch.int16)[: x.numel()].view(x.shape)
    # not x > 0: NaN has to stay NaN
    dropped = (draws < round(p * 2**16) - 2**15) | (x.detach() <= 0)
    return x.masked_fill(dropped, 0.0).mul_(1 / (1 - p))


@MODELS.register_module()
class PixelNetHead(BaseModule):
    """MLP over hypercolumns of any list of feature maps, as an MMSegmentation decode head.

    Training evaluates the sampled pixels only. Prediction is dense, ``chunk`` pixels at a time, so its memory beyond the
    feature maps and the (N, C, H, W) logits does not grow with the image. At a sampled pixel, training and dense prediction
    compute the same logits.

    Args:
        in_channels: channels of each feature map.
        num_classes: C.
        in_index: indices of the backbone's outputs to use; None uses all in their order.
        strides: pixels of the image per position of each map; None divides the image's size by the map's (for trunks whose
            maps do not follow a stride).
        hidden: widths of the hidden layers (authors: two of 4096).
        dropout: probability of dropout after every hidden layer.
        norm: 'BN', 'LN' or None, between a hidden layer and its ReLU.
        tap_scale: one constant factor per feature map; None is 1. VGG-16's maps differ 100-fold in scale, which the authors
            leave to 100,000 iterations.
        sampler: a registered pixel sampler; None is ``UniformPixelSampler``.
        loss_decode: the loss, or a list of losses (each logged under its ``loss_name``); None is ``ExpGBLoss``.
        ignore_index: label of pixels that are neither sampled nor counted.
        init_std: standard deviation of the Gaussian weights (authors: 0.001); biases are 0. None: He initialisation of the
            hidden layers and 0.001 in the last, so that training starts at the output bias and not at random logits, whose
            exponentials can be large.
        init_bias: None; 'prior': the first loss's ``prior_logits`` of uniform frequencies; or a list of C frequencies.
        chunk: how many pixels a prediction evaluates at once.
        offset: the trunk's ``image_padding``.
        align_corners: read by MMSegmentation's segmentors when they resize logits.
        init_cfg: as for mmengine's ``BaseModule``.

    Raises:
        ValueError: settings of different lengths, an unknown norm, no hidden layer, ``chunk < 1``, or ``init_bias`` with a loss
            that has no link.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        in_index: Sequence[int] | None = None,
        strides: Sequence[float] | None = None,
        hidden: Sequence[int] = (4096, 4096),
        dropout: float = 0.5,
        norm: str | None = None,
        tap_scale: Sequence[float] | None = None,
        sampler: dict | PixelSampler | None = None,
        loss_decode: dict | Sequence[dict] | None = None,
        ignore_index: int = 255,
        init_std: float | None = 0.001,
        init_bias: str | Sequence[float] | None = None,
        chunk: int = 4096,
        offset: float = 0.0,
        align_corners: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        for name, values in (("in_index", in_index), ("strides", strides), ("tap_scale", tap_scale)):
            if values is not None and len(values) != len(in_channels):
                raise ValueError(f"PixelNetHead: {name} has {len(values)} values for {len(in_channels)} feature maps.")
        if norm is not None and norm not in _NORMS:
            raise ValueError(f"PixelNetHead: norm must be one of {sorted(_NORMS)} or None, got {norm!r}.")
        if chunk < 1:
            raise ValueError(f"PixelNetHead: chunk is a number of pixels and must be >= 1, got {chunk}.")
        if not hidden:
            raise ValueError("PixelNetHead: hidden needs at least one layer.")
        self.in_channels = tuple(in_channels)
        self.in_index = tuple(in_index) if in_index is not None else tuple(range(len(self.in_channels)))
        self.strides = None if strides is None else tuple(strides)
        self.tap_scale = tap_scale if tap_scale is None else tuple(tap_scale)
        self.num_classes = self.out_channels = num_classes
        self.ignore_index = ignore_index
        self.init_std = init_std
        self.chunk = chunk
        # number of pixels for which the small maps are projected once
        self.tile = 4 * chunk
        self.offset = offset
        self.align_corners = align_corners
        self.threshold = None
        self.sampler = MODELS.build(sampler or dict(type="UniformPixelSampler")) if not callable(sampler) else sampler
        losses = loss_decode if loss_decode is not None else dict(type="ExpGBLoss")
        losses = [losses] if isinstance(losses, dict) else losses
        self.loss_decode = nn.ModuleList(MODELS.build(loss) for loss in losses)
        self.init_bias = starting_logits(self.loss_decode[0], init_bias, num_classes, "PixelNetHead")
        widths = [sum(self.in_channels), *hidden]
        linears = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, [*hidden, num_classes], strict=True))
        # the type of a ModuleList does not say what its modules are
        self.linears = cast("Sequence[nn.Linear]", linears)
        self.norms = nn.ModuleList(nn.Identity() if norm is None else _NORMS[norm](width) for width in hidden)
        self.dropout = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Gaussian or He weights, zero biases, and the output bias that ``init_bias`` names."""
        for linear in self.linears:
            if self.init_std is None and linear is not self.linears[-1]:
                nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            else:
                nn.init.normal_(linear.weight, std=self.init_std or 0.001)
            nn.init.zeros_(linear.bias)
        if self.init_bias is not None:
            with torch.no_grad():
                self.linears[-1].bias.copy_(self.init_bias)

    def levels(self, inputs: Sequence[Tensor], size: tuple[int, int]) -> list[Level]:
        """The feature maps as levels of hypercolumns, for an image of ``size`` (H, W)."""
        features = [inputs[index] for index in self.in_index]
        if self.strides is None:
            strides = [(size[0] / f.shape[2], size[1] / f.shape[3]) for f in features]
        else:
            strides = [(stride, stride) for stride in self.strides]
        return [Level(f, stride, self.offset) for f, stride in zip(features, strides, strict=True)]

    def classify(self, levels: Sequence[Level], points: Tensor) -> Tensor:
        """Logits (N, P, C) at points (N, P, 2), (row, column)."""
        return self._hidden(gather_linear(levels, points, self._first_weight(), self.linears[0].bias))

    def _first_weight(self) -> Tensor:
        weight = self.linears[0].weight
        if self.tap_scale is None:
            return weight
        # scaling a tap is scaling its columns; part by part, so that no host tensor is copied to the device
        parts = weight.split(self.in_channels, dim=1)
        return torch.cat([part * scale for part, scale in zip(parts, self.tap_scale, strict=True)], dim=1)

    def _hidden(self, x: Tensor) -> Tensor:
        """The layers after the first linear one: (N, P, D) to (N, P, C)."""
        # sums over levels are in float32 for weights of any dtype
        x = x.to(self.linears[0].weight.dtype)
        for linear, norm in zip(self.linears[1:], self.norms, strict=True):
            # a batch normalisation counts every point of every image as a row
            x = norm(x.flatten(0, 1)).view_as(x)
            x = linear(relu_dropout(x, self.dropout.p, self.dropout.training))
        return x

    def forward(self, inputs: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Dense logits (N, C, H, W).

        Args:
            inputs: the backbone's feature maps.
            size: the image's (H, W); None takes the first map's size times its stride.

        Raises:
            ValueError: neither ``size`` nor ``strides`` is given.
        """
        if size is None:
            if self.strides is None:
                raise ValueError("PixelNetHead: give the image's size (H, W), or strides from which it follows.")
            height, width = inputs[self.in_index[0]].shape[2:]
            size = (round(height * self.strides[0]), round(width * self.strides[0]))
        levels = self.levels(inputs, size)
        batch = levels[0].feature.shape[0]
        dtype = torch.float64 if levels[0].feature.dtype == torch.float64 else torch.float32
        logits = inputs[0].new_empty((batch, self.num_classes, *size), dtype=dtype)
        weight = self._first_weight()
        for image in range(batch):
            image_levels = _select_image(levels, image)
            for rows, columns in _tiles(size, self.tile):
                points = torch.cartesian_prod(
                    torch.arange(rows.start, rows.stop, device=logits.device),
                    torch.arange(columns.start, columns.stop, device=logits.device),
                )
                crops = [level.crop((rows[0], rows[-1]), (columns[0], columns[-1])) for level in image_levels]
                tile = self._evaluate(crops, points, weight).T.view(-1, len(rows), len(columns))
                logits[image, :, rows.start : rows.stop, columns.start : columns.stop] = tile
        return logits

    def _evaluate(self, levels: Sequence[Level], points: Tensor, weight: Tensor) -> Tensor:
        """Logits (P, C) at points (P, 2) of one image: small maps are projected once, then ``chunk`` points at a time."""
        bias = self.linears[0].bias
        layer = None if torch.is_grad_enabled() else FirstLayer(levels, weight, bias, len(points), compute_dtype(weight))
        logits = []
        for part in points.unsqueeze(0).split(self.chunk, dim=1):
            x = gather_linear(levels, part, weight, bias) if layer is None else layer(part).unsqueeze(0)
            logits.append(self._hidden(x)[0])
        return torch.cat(logits)

    def adaptive(
        self, inputs: Sequence[Tensor], size: tuple[int, int], coarse: int = 8, margin: float = 0.2
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, C, H, W), evaluated only where needed, see `gbseg.pixelnet.adaptive.adaptive_logits`.

        Args:
            inputs: the backbone's feature maps.
            size: the image's (H, W).
            coarse: spacing of the first grid in pixels, a power of 2; 1 evaluates every pixel.
            margin: a pixel is evaluated if its two likeliest classes are closer than this in probability.

        Returns:
            The logits, and (N, H, W) whether a pixel was evaluated.

        Raises:
            ValueError: ``coarse`` is not a power of 2, or ``margin`` is negative.
        """
        levels = self.levels(inputs, size)
        weight = self._first_weight()
        link = getattr(self.loss_decode[0], "probabilities", torch.softmax)

        def evaluate(image_levels: Sequence[Level], points: Tensor) -> Tensor:
            logits = []
            for part in points.split(self.tile):
                (top, left), (bottom, right) = part.amin(0).tolist(), part.amax(0).tolist()
                crops = [level.crop((top, bottom), (left, right)) for level in image_levels]
                values = self._evaluate(crops, part, weight)
                logits.append(values if values.dtype == torch.float64 else values.float())
            return torch.cat(logits)

        logits, evaluated = zip(
            *(
                adaptive_logits(
                    partial(evaluate, _select_image(levels, image)), size, partial(link, dim=0), coarse, margin, weight.device
                )
                for image in range(levels[0].feature.shape[0])
            ),
            strict=True,
        )
        return torch.stack(logits), torch.stack(evaluated)

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: list, train_cfg: dict | None = None) -> dict[str, Tensor]:
        """The losses at sampled pixels, and ``acc_seg``, the percentage of them that are classified correctly."""
        label = torch.stack([sample.gt_sem_seg.data for sample in batch_data_samples]).squeeze(1)
        if label.device.type == "cpu" and not torch.compiler.is_compiling():
            # the loss sees points only; here the message can name file and pixel, whichever loss it is
            for sample, image_label in zip(batch_data_samples, label, strict=True):
                try:
                    require_labels(image_label, self.num_classes, self.ignore_index)
                except BadLabelError as error:
                    path = sample.metainfo.get("seg_map_path", sample.metainfo.get("img_path", "a label map"))
                    raise BadLabelError(f"{path}: {error}") from None
        points, label = self.sampler(label, self.num_classes, self.ignore_index)
        size = tuple(batch_data_samples[0].gt_sem_seg.shape)
        logits = self.classify(self.levels(inputs, size), points).transpose(1, 2)
        losses: dict[str, Tensor] = {}
        for loss in self.loss_decode:
            value, name = loss(logits, label, ignore_index=self.ignore_index), str(loss.loss_name)
            losses[name] = losses[name] + value if name in losses else value
        with torch.no_grad():
            valid_mask = label != self.ignore_index
            correct = (logits.argmax(1) == label) & valid_mask
            losses["acc_seg"] = 100 * correct.sum() / valid_mask.sum().clamp(min=1)
        return losses

    def predict(self, inputs: Sequence[Tensor], batch_img_metas: list[dict], test_cfg: dict | None = None) -> Tensor:
        """Logits (N, C, H, W) of images whose metadata hold their size at the network's input.

        With ``test_cfg['mode'] = 'adaptive'`` they come from `adaptive`, with ``coarse`` and ``margin`` of ``test_cfg``.
        Otherwise every pixel is evaluated.
        """
        meta = batch_img_metas[0]
        # the shape to which the batch was padded; without padding there is only img_shape
        shape = meta["img_shape"] if isinstance(meta["img_shape"], torch.Size) else meta.get("pad_shape", meta["img_shape"])
        size = (int(shape[0]), int(shape[1]))
        test_cfg = test_cfg or {}
        if test_cfg.get("mode") == "adaptive":
            options = {key: test_cfg[key] for key in ("coarse", "margin") if key in test_cfg}
            return self.adaptive(inputs, size, **options)[0]
        return self.forward(inputs, size)


def _select_image(levels: Sequence[Level], image: int) -> list[Level]:
    """The maps of one image of the batch."""
    return [Level(level.feature[image : image + 1], level.stride, level.offset) for level in levels]


def _tiles(size: tuple[int, int], pixels: int) -> Iterator[tuple[range, range]]:
    """Rows and columns of tiles of at most ``pixels`` pixels, over the full width if a row fits."""
    height, width = size
    tile_width = min(width, pixels)
    tile_height = max(1, pixels // tile_width)
    for top in range(0, height, tile_height):
        for left in range(0, width, tile_width):
            yield range(top, min(top + tile_height, height)), range(left, min(left + tile_width, width))
