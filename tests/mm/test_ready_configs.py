"""The configs of ``configs/mm/``: the boosted models of MMSegmentation and MMPretrain, and that they train."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg")
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from gbseg.data.scenes import write_scenes
from gbseg.losses import ExpGBLoss
from gbseg.mm.boosted_config import boost_config
from gbseg.mm.config import load_config
from gbseg.mm.training import train

CONFIGS = Path(__file__).parents[2] / "configs/mm"
ORIGINALS = {
    "fcn": "mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py",
    "pspnet": "mmseg::pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512.py",
    "deeplabv3plus": "mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-20k_voc12aug-512x512.py",
    "upernet_swin": "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "segformer": "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
    "segnext": "mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py",
    "ocrnet": "mmseg::ocrnet/ocrnet_hr18_4xb4-20k_voc12aug-512x512.py",
    "resnet50": "mmpretrain::resnet/resnet50_8xb32_in1k.py",
    "convnext_tiny": "mmpretrain::convnext/convnext-tiny_32xb128_in1k.py",
    "vit_base": "mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py",
}


def _plain(value: Any) -> Any:
    """Without the scopes of what is inherited from ``mmseg::``, and with all sequences as lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != "_scope_"}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def test_every_ready_config_has_an_original() -> None:
    names = {path.stem for path in CONFIGS.glob("*.py")}
    assert {f"{name}_expgb" for name in ORIGINALS} == {name for name in names if not name.startswith("pixelnet")}


@pytest.mark.parametrize("name", ORIGINALS)
def test_it_is_the_boosted_original(name: str) -> None:
    """Model, optimizer and hooks; VOC's number of classes in those of ADE20K, and another length of their schedules.

    Without the line of the loss, or with another weight in it: the models differ.
    """
    ours, original = load_config(CONFIGS / f"{name}_expgb.py"), load_config(ORIGINALS[name])
    if "ade20k" in ORIGINALS[name]:
        for head in ("decode_head", "auxiliary_head"):
            if head in original.model:
                original.model[head].num_classes = 21
    boosted = boost_config(original)
    for key in ("model", "optim_wrapper", "custom_hooks", "custom_imports"):
        assert _plain(ours.to_dict()[key]) == _plain(boosted.to_dict()[key]), key
    schedules = [
        [{**step, "end": None} if "ade20k" in ORIGINALS[name] else step for step in _plain(config.to_dict()["param_scheduler"])]
        for config in (ours, original)
    ]
    assert schedules[0] == schedules[1]
    with DefaultScope.overwrite_default_scope(ours.default_scope):
        model = MODELS.build(ours.model)
    losses = [module for module in model.modules() if isinstance(module, ExpGBLoss)]
    assert {loss.max_delta for loss in losses} == {16.0}
    assert len(losses) == 1 + ("auxiliary_head" in ours.model or name == "ocrnet")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated scenes in VOC's layout, and as folders of two classes in ``train`` and ``val``."""
    root = write_scenes(tmp_path_factory.mktemp("scenes"), train=4, val=2, size=(96, 128))
    for number, image in enumerate(sorted((root / "JPEGImages").iterdir())):
        for split in ("train", "val"):
            folder = root / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, folder)
    return root


def _small(config: Config, scenes: Path) -> None:
    """A crop of 64 x 64 or the classifier's own, two images a step, two iterations, random weights, on the scenes."""
    segmentor = config.default_scope == "mmseg"
    for split in ("train", "val", "test"):
        loader = config[f"{split}_dataloader"]
        loader.update(batch_size=2 if split == "train" else 1, num_workers=0, persistent_workers=False)
        pipeline = loader.dataset.pipeline
        if segmentor:
            listed = "train" if split == "train" else "val"
            loader.dataset.update(data_root=str(scenes), ann_file=f"ImageSets/Segmentation/{listed}.txt")
            loader.dataset.data_prefix.seg_map_path = "SegmentationClass"
            next(step for step in pipeline if "Resize" in step.type).scale = (128, 64)
            for step in pipeline:
                if step.type == "RandomCrop":
                    step.crop_size = (64, 64)
        else:
            folder = "train" if split == "train" else "val"
            loader.dataset = dict(type="CustomDataset", data_prefix=str(scenes / folder), pipeline=pipeline)
            config.data_preprocessor.num_classes = config.model.head.num_classes = 2
            config.model.head.topk = (1,)
            config[f"{'val' if split == 'train' else split}_evaluator"].topk = (1,)
    if segmentor:
        config.model.data_preprocessor.size = (64, 64)
    config.model.pretrained = None if segmentor else config.model.get("pretrained")
    config.model.backbone.init_cfg = None
    config.train_cfg = dict(type="IterBasedTrainLoop", max_iters=2, val_interval=2)
    config.param_scheduler = []
    config.auto_scale_lr = None
    config.default_hooks.logger.interval = 1
    config.default_hooks.checkpoint.by_epoch = False
    config.log_processor = dict(by_epoch=False)
    config.vis_backends = config.visualizer.vis_backends = [dict(type="LocalVisBackend")]


# all ten did, when this was written; one of each kind of head goes on doing it
@pytest.mark.slow
@pytest.mark.parametrize("name", ["pspnet", "segformer", "segnext", "ocrnet", "resnet50", "vit_base"])
def test_it_trains_and_evaluates(name: str, scenes: Path, tmp_path: Path) -> None:
    """Two iterations of the config as it stands, but for data, crop, batch and random weights."""
    config = load_config(CONFIGS / f"{name}_expgb.py")
    _small(config, scenes)
    folder = train(config, tmp_path / "run", seed=0)
    (file,) = folder.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 2 and all(math.isfinite(value) and value > 0 for value in losses)
    weights = torch.load(folder / "iter_2.pth", weights_only=False)["state_dict"]
    assert all(bool(value.isfinite().all()) for value in weights.values())
    (score,) = [row[key] for row in rows for key in ("mIoU", "accuracy/top1") if key in row]
    assert 0 <= score <= 100
