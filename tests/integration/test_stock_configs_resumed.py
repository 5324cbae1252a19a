"""Configs of MMSegmentation and MMPretrain as they are: killed, resumed by ``gbseg train``, and as if nothing had been."""

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")
import engine_tiny as tiny

from gbseg.data.scenes import write_scenes

pytestmark = pytest.mark.slow

SEGFORMER = """
_base_ = ['mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py']
crop = (64, 64)
model = dict(
    data_preprocessor=dict(size=crop), pretrained=None, backbone=dict(init_cfg=None), decode_head=dict(num_classes=21))
paths = dict(
    _delete_=True, type='PascalVOCDataset', data_root='{data}',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(128, 64), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop, cat_max_ratio=0.75), dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'), dict(type='PackSegInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(128, 64), keep_ratio=True),
    dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(num_workers={workers}, persistent_workers={workers} > 0, dataset=dict(
    ann_file='ImageSets/Segmentation/train.txt', pipeline=train_pipeline, **paths))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    ann_file='ImageSets/Segmentation/val.txt', pipeline=test_pipeline, **paths))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=8, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=3), logger=dict(interval=1))
"""

RESNET = """
_base_ = ['mmpretrain::resnet/resnet18_8xb16_cifar10.py']
folder = dict(_delete_=True, type='CustomDataset', data_prefix='{data}')
train_pipeline = [dict(type='LoadImageFromFile'), *_base_.train_pipeline]
test_pipeline = [dict(type='LoadImageFromFile'), *_base_.test_pipeline]
model = dict(head=dict(num_classes=2))
train_dataloader = dict(
    batch_size=4, num_workers={workers}, persistent_workers={workers} > 0, dataset=dict(pipeline=train_pipeline, **folder))
val_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline, **folder))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=3)
"""

KILLED = """
_base_ = ['{base}']
custom_imports = dict(imports=['engine_tiny'])
custom_hooks = [dict(type='KillHook', stage='{stage}', at={at}, priority='LOWEST')]
"""


def _photographs(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(10):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), generator.integers(0, 256, (32, 32, 3), np.uint8))
    return folder


def _train(folder: Path, *arguments: str) -> None:
    """``gbseg train`` in this process, whose output goes to a file."""
    from gbseg.cli import main

    os.chdir(folder)
    sys.stdout = sys.stderr = Path(folder, "out.txt").open("a", buffering=1)  # noqa: SIM115  (until the process ends)
    torch.set_num_threads(1)
    raise SystemExit(main(["train", *arguments]))


def _run(folder: Path, *arguments: str) -> int:
    process = tiny.SERVER.Process(target=_train, args=(folder, *arguments))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


@pytest.mark.parametrize(("name", "workers"), [("segformer", 0), ("resnet", 2)])
def test_killed_and_resumed(tmp_path: Path, name: str, workers: int) -> None:
    """The weights, the optimizer and the random states are bit-equal. With ``--stock-loop`` they are not (last lines)."""
    if name == "segformer":
        data = write_scenes(tmp_path / "voc", train=6, val=2, size=(96, 128))
        text, stage, at, last = SEGFORMER, "before_train_iter", 6, "iter_8.pth"
    else:
        data, text, stage, at, last = _photographs(tmp_path / "images"), RESNET, "after_train_iter", 5, "epoch_3.pth"
    config, killed = tmp_path / "config.py", tmp_path / "killed.py"
    config.write_text(text.format(data=data, workers=workers))
    killed.write_text(KILLED.format(base=config, stage=stage, at=at))
    seed = ["--cfg-options", "randomness.seed=3"]
    assert _run(tmp_path, str(config), "--work-dir", "whole", *seed) == 0, tiny.output(tmp_path)
    assert "resumed exactly; --stock-loop leaves them" in tiny.output(tmp_path)
    assert _run(tmp_path, str(killed), "--work-dir", "parts", *seed) == -9, tiny.output(tmp_path)
    assert _run(tmp_path, str(config), "--work-dir", "parts", "--resume", *seed) == 0, tiny.output(tmp_path)
    whole, parts = (torch.load(tmp_path / folder / last, weights_only=False) for folder in ("whole", "parts"))
    for key in ("state_dict", "optimizer", "param_schedulers", "training_state"):
        assert tiny.differences(whole[key], parts[key]) == [], key
    if name == "resnet":
        stock = ["--stock-loop", *seed]
        assert _run(tmp_path, str(killed), "--work-dir", "stock", *stock) == -9, tiny.output(tmp_path)
        assert _run(tmp_path, str(config), "--work-dir", "stock", "--resume", *stock) == 0, tiny.output(tmp_path)
        assert _run(tmp_path, str(config), "--work-dir", "stock whole", *stock) == 0, tiny.output(tmp_path)
        whole, parts = (torch.load(tmp_path / folder / last, weights_only=False) for folder in ("stock whole", "stock"))
        assert "training_state" not in whole
        assert tiny.differences(whole["state_dict"], parts["state_dict"]) != []
