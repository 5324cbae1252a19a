"""README's config trains, as it stands, at the config's own rate."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from doc_pages import ROOT, code_blocks

pytest.importorskip("mmseg")
from mmengine.runner import Runner

from gbseg.data.scenes import write_scenes
from gbseg.mm.config import load_config


@pytest.mark.parametrize("optimizer", [None, dict(type="AdamW", lr=1e-3, weight_decay=0.01)], ids=["sgd", "adamw"])
def test_readmes_config_trains(optimizer: dict | None, tmp_path: Path) -> None:
    """PSPNet of MMSegmentation with README's lines; only data, crop, batch size and length are made small."""
    voc = write_scenes(tmp_path / "voc", train=8, val=2, size=(48, 64))
    (_, block), *_ = code_blocks("python", [ROOT / "README.md"])
    paths = dict(
        type="PascalVOCDataset",
        data_root=str(voc),
        ann_file="ImageSets/Segmentation/train.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="RandomCrop", crop_size=(32, 32)),
            dict(type="PackSegInputs"),
        ],
    )
    file = tmp_path / "config.py"
    file.write_text(
        f"{block}\n"
        f"data = dict(_delete_=True, **{paths!r})\n"
        "train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=data)\n"
        "val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None\n"
        "train_cfg = dict(type='IterBasedTrainLoop', max_iters=6)\n"
        "default_hooks = dict(checkpoint=None, logger=dict(interval=1))\n"
        f"randomness = dict(seed=0)\nwork_dir = {str(tmp_path / 'work')!r}\n"
    )
    config = load_config(file)
    assert config.optim_wrapper.optimizer.type == "SGD" and config.optim_wrapper.optimizer.lr == 0.01
    if optimizer:
        config.optim_wrapper = dict(type="OptimWrapper", optimizer=optimizer)
    # the weights of ImageNet are not here
    config.model.pretrained = config.model.backbone.init_cfg = None
    config.model.data_preprocessor.size = (32, 32)
    runner = Runner.from_cfg(config)
    runner.train()
    history = runner.message_hub.log_scalars
    assert any(type(hook).__name__ == "NonFiniteGuardHook" for hook in runner.hooks)
    for name in ("decode", "aux"):
        losses = [float(value) for value in history[f"train/{name}.loss_expgb"].data[0]]
        assert len(losses) == 6 and all(math.isfinite(loss) for loss in losses)
        # boosted as cross-entropy: of its size at the start, and falling
        assert sum(losses[-2:]) < sum(losses[:2])
