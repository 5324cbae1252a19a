"""Networks of timm as trunks of PixelNet: shapes, normalisation, weights of a file, and the configs that train them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("mmseg")
pytest.importorskip("timm")
import timm
from mmengine.registry import MODELS, DefaultScope
from safetensors.torch import save_file

from gbseg.data.scenes import write_scenes
from gbseg.mm.config import load_config
from gbseg.mm.models import TimmTrunk
from gbseg.mm.training import train

CONFIGS = Path(__file__).parents[2] / "configs/mm"
ANY_SIZE = dict(dynamic_img_size=True, dynamic_img_pad=True)
# small settings of the three kinds: a residual network, ConvNeXt, a DINOv2-style transformer
SMALL: dict[str, dict[str, Any]] = {
    "resnet50": dict(name="resnet10t"),
    "convnext_tiny": dict(name="convnext_atto"),
    "dinov2": dict(
        name="vit_small_patch14_dinov2",
        out_indices=(0, 1),
        options=dict(img_size=56, depth=2, embed_dim=24, num_heads=2, **ANY_SIZE),
    ),
}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("size", [(56, 112), (75, 101)])
def test_channels_and_strides_are_those_of_the_maps(kind: str, size: tuple[int, int]) -> None:
    """As configs copy them into the head; of sizes that no stride divides, to the next position."""
    trunk = TimmTrunk(**SMALL[kind]).eval()
    with torch.no_grad():
        maps = trunk(torch.rand(1, 3, *size) * 255)
    assert tuple(feature.shape[1] for feature in maps) == trunk.channels
    for feature, stride in zip(maps, trunk.strides, strict=True):
        for side, length in zip(size, feature.shape[2:], strict=True):
            assert side // stride <= length <= math.ceil(side / stride)


def test_the_input_is_normalised_as_timm_does() -> None:
    """The maps of a BGR image in 0..255 are the network's own of the RGB image with timm's mean and deviation.

    Without the flip of the channels, or with another mean: other maps.
    """
    trunk = TimmTrunk("resnet10t").eval()
    image = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(trunk.net.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = trunk.net((image - mean) / std)
        found = trunk(image.flip(1) * 255)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def _whole(kind: str) -> torch.nn.Module:
    """The network with its classifier, as timm publishes it."""
    torch.manual_seed(1)
    return timm.create_model(SMALL[kind]["name"], **SMALL[kind].get("options", {}))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kind", SMALL)
def test_weights_of_a_file(kind: str, suffix: str, tmp_path: Path) -> None:
    """A file of the whole network, classifier included, is read by `init_weights`; the maps are those of that network.

    Without ``init_weights``: random ones.
    """
    whole, path = _whole(kind), tmp_path / f"weights{suffix}"
    state = {name: value.contiguous() for name, value in whole.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    trunk = TimmTrunk(**SMALL[kind], weights=str(path)).eval()
    image = torch.rand(1, 3, 56, 56)
    before = trunk(image)
    trunk.init_weights()
    normalised = (image.flip(1) - trunk.mean) / trunk.std
    indices = SMALL[kind].get("out_indices")
    with torch.no_grad():
        expected: list[Tensor] = whole.eval().forward_intermediates(normalised, indices=indices, intermediates_only=True)
        found = trunk(image)
    torch.testing.assert_close(found[-1], expected[-1])
    assert not torch.allclose(before[-1], found[-1])


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"conv.weight": torch.zeros(2)}, r"it has no weights for \d+ of its tensors, such as conv1"),
        ({"conv1.0.weight": torch.zeros(2)}, "size mismatch for conv1.0.weight"),
    ],
    ids=["other names", "other shape"],
)
def test_weights_of_another_network_are_refused(state: dict[str, Tensor], reason: str, tmp_path: Path) -> None:
    """timm itself leaves the trunk at random, with a warning: without the comparison the first file is taken."""
    path = tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.raises(ValueError, match=rf"TimmTrunk: .*other.pth does not fit timm's resnet10t: .*{reason}"):
        TimmTrunk("resnet10t", weights=str(path)).init_weights()


def test_a_name_that_timm_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"timm [\d.]+ has no network 'resnet5'; it has .*resnet50"):
        TimmTrunk("resnet5")


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gbseg.mm.models.timm_trunk.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'TimmTrunk needs timm: pip install "gbseg\[timm\]"'):
        TimmTrunk("resnet10t")


@pytest.mark.parametrize(("key", "values"), [("in_channels", (64, 256, 512, 1024)), ("strides", (4, 4, 8, 16, 32))])
def test_a_head_for_other_maps_is_refused(key: str, values: tuple[int, ...]) -> None:
    """Without the check: a matrix product that does not fit, at the first image, or features read at the wrong place."""
    config = load_config(CONFIGS / "pixelnet_timm_resnet50.py", {f"model.decode_head.{key}": values})
    if key == "in_channels":
        config.model.decode_head.strides = (2, 4, 8, 16)
        config.model.decode_head.in_index = (1, 2, 3, 4)
    with DefaultScope.overwrite_default_scope("mmseg"), pytest.raises(ValueError, match=rf"resnet50 have .*decode_head.{key}="):
        MODELS.build(config.model)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), train=4, val=2, size=(64, 80))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_the_configs_train(kind: str, scenes: Path, tmp_path: Path) -> None:
    """Three iterations with random weights at a small size: the loss is finite, and trunk and head change."""
    config = load_config(CONFIGS / f"pixelnet_timm_{kind}.py")
    for split in ("train", "val", "test"):
        loader = config[f"{split}_dataloader"]
        loader.update(batch_size=2 if split == "train" else 1, num_workers=0, persistent_workers=False)
        listed = "train" if split == "train" else "val"
        loader.dataset.update(data_root=str(scenes), ann_file=f"ImageSets/Segmentation/{listed}.txt")
        loader.dataset.data_prefix.seg_map_path = "SegmentationClass"
    config.train_dataloader.dataset.pipeline[2].scale = (56, 56)
    config.model.test_cfg.input = (56, 56)
    config.model.decode_head.sampler.num = 100
    config.merge_from_dict(
        {"train_cfg.max_iters": 3, "train_cfg.val_interval": 3, "default_hooks.logger.interval": 1, "param_scheduler": []}
    )
    config.vis_backends = config.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    folder = train(config, tmp_path / "run", seed=0)
    (file,) = folder.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 3 and all(math.isfinite(value) and value > 0 for value in losses)
    assert any("mIoU" in row for row in rows)
    trained = torch.load(folder / "iter_3.pth", weights_only=False)["state_dict"]
    with DefaultScope.overwrite_default_scope("mmseg"):
        torch.manual_seed(0)
        start = MODELS.build(config.model)
    assert trained.keys() == start.state_dict().keys()
    gradients = {name for name, value in start.named_parameters() if not torch.equal(value, trained[name])}
    assert len(gradients) > 0.9 * len(list(start.parameters()))
