"""Networks of timm as trunks: their feature maps, for PixelNet's head or any other decode head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor

from gbseg.mm.checkpoint_loading import read_checkpoint

__all__ = ["TimmTrunk"]


@MODELS.register_module()
class TimmTrunk(BaseModule):
    """A network of timm without its classifier, made by ``timm.create_model(..., features_only=True)``.

    The input is BGR in 0..255. The trunk itself applies the normalisation that timm gives for the network, so a config's data
    preprocessor has no ``mean``, ``std`` or ``bgr_to_rgb``.

    Args:
        name: of the network, e.g. 'resnet50', 'convnext_tiny', 'vit_small_patch14_dinov2'.
        out_indices: the stages, or the blocks of a vision transformer, whose maps are returned; None: timm's choice.
        weights: None (timm's initialisation), or the file of timm's weights of this network, ``.safetensors`` or a checkpoint
            of PyTorch; loaded by `init_weights`. Nothing is downloaded.
        options: further arguments of ``timm.create_model``. ``dict(dynamic_img_size=True, dynamic_img_pad=True)`` lets a vision
            transformer take images of any size.
        init_cfg: as for mmengine's ``BaseModule``; use ``weights`` instead.

    Attributes:
        channels: those of each map; a head's ``in_channels``.
        strides: pixels of the image per position of each map; a head's ``strides``.

    Shapes:
        (N, 3, H, W) -> a tuple of (N, channels[l], H / strides[l], W / strides[l]), one per map.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such network, or ``weights`` are not of it.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] | None = None,
        weights: str | None = None,
        options: Mapping[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if find_spec("timm") is None:
            raise ImportError('TimmTrunk needs timm: pip install "gbseg[timm]".')
        import timm

        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name}*")[:5])
            raise ValueError(f"timm {timm.__version__} has no network {name!r}{f'; it has {near}' if near else ''}.")
        self.name = name
        self.weights = weights
        self.arguments = {**(options or {}), "features_only": True}
        if out_indices is not None:
            self.arguments["out_indices"] = tuple(out_indices)
        self.net: Any = timm.create_model(name, **self.arguments)
        self.channels = tuple(self.net.feature_info.channels())
        self.strides = tuple(self.net.feature_info.reduction())
        normalisation = timm.data.resolve_data_config(pretrained_cfg=self.net.pretrained_cfg)
        for key in ("mean", "std"):
            values = torch.tensor(normalisation[key]).view(1, 3, 1, 1) * 255
            self.register_buffer(key, values, persistent=False)

    def init_weights(self) -> None:
        """The weights that the config names, if it names any."""
        if self.weights is None:
            return
        import timm

        checkpoint = read_checkpoint(self.weights)
        state = checkpoint.get("state_dict", checkpoint)
        nets = []
        try:
            # timm translates the names of older files, and drops the classifier
            for seed in (0, 1):
                with torch.random.fork_rng():
                    torch.manual_seed(seed)
                    overlay = {"state_dict": dict(state)}
                    nets.append(timm.create_model(self.name, pretrained=True, pretrained_cfg_overlay=overlay, **self.arguments))
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"TimmTrunk: {self.weights} does not fit timm's {self.name}: {reason}") from error
        # timm leaves what a file lacks at random, without an error: then it differs
        pairs = zip(*(net.named_parameters() for net in nets), strict=True)
        if missing := [name for (name, one), (_, other) in pairs if not torch.equal(one, other)]:
            raise ValueError(
                f"TimmTrunk: {self.weights} does not fit timm's {self.name}: it has no weights for {len(missing)} of its "
                f"tensors, such as {missing[0]}."
            )
        self.net.load_state_dict(nets[0].state_dict())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The maps of a batch of BGR images in 0..255."""
        return tuple(self.net((image.flip(1) - self.mean) / self.std))
