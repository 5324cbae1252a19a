"""The losses inside models of MMSegmentation and MMPretrain, by the configs that those packages ship."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from gbseg.data.scenes import write_scenes
from gbseg.mm.config import load_config

SEED = 0
REAL = Path(__file__).parents[3] / "shared/data/VOCdevkit/VOC2012"


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real VOC subset where it lies beside the checkout, else generated scenes in the same layout."""
    return REAL if REAL.is_dir() else write_scenes(tmp_path_factory.mktemp("voc"), train=8, val=2, size=(96, 128))


def adapted(base: str, voc: Path, tmp_path: Path, crop: int, head: str, extra: str = "") -> Config:
    """A config of mmseg, changed in loss, custom_imports, data paths, class count, crop and batch size; weights off.

    The rates are the softmax's own, so the loss is weighted by 1/t_pos; without that, SGD at 0.01 diverges in 20 iterations.
    """
    text = f"""
_base_ = ['{base}']
custom_imports = dict(imports=['gbseg'])
crop = ({crop}, {crop})
model = dict(
    data_preprocessor=dict(size=crop), pretrained=None, backbone=dict(init_cfg=None),
    decode_head=dict(num_classes=21, {head} loss_decode=dict(_delete_=True, type='ExpGBLoss', loss_weight=1 / 16)){extra})
paths = dict(
    _delete_=True, type='PascalVOCDataset', data_root='{voc}',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2 * {crop}, {crop}), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop, cat_max_ratio=0.75), dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'), dict(type='PackSegInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(2 * {crop}, {crop}), keep_ratio=True),
    dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(
    ann_file='ImageSets/Segmentation/train.txt', pipeline=train_pipeline, **paths))
val_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(
    ann_file='ImageSets/Segmentation/val.txt', indices=2, pipeline=test_pipeline, **paths))
test_dataloader = val_dataloader
train_cfg = dict(type='IterBasedTrainLoop', max_iters=20, val_interval=20)
default_hooks = dict(checkpoint=None, logger=dict(interval=1))
randomness = dict(seed={SEED})
work_dir = '{tmp_path / "work"}'
"""
    file = tmp_path / "config.py"
    file.write_text(text)
    return load_config(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "crop", "head", "extra"),
    [
        ("mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py", 64, "", ", auxiliary_head=dict(num_classes=21)"),
        ("mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py", 64, "", ""),
    ],
    ids=["fcn-r50", "segformer-b0"],
)
def test_mmseg_model_trains_20_iterations_and_evaluates(
    base: str, crop: int, head: str, extra: str, voc: Path, tmp_path: Path
) -> None:
    config = adapted(base, voc, tmp_path, crop, head, extra)
    runner = Runner.from_cfg(config)
    before = [p.detach().clone() for p in runner.model.parameters()]
    runner.train()
    history = runner.message_hub.log_scalars
    losses, _ = history["train/decode.loss_expgb"].data
    assert len(losses) == 20
    assert bool(torch.isfinite(torch.tensor([float(loss) for loss in losses])).all())
    assert 0 <= history["val/mIoU"].current() <= 100
    changed = [not torch.equal(a, b) for a, b in zip(before, runner.model.parameters(), strict=True)]
    assert sum(changed) / len(changed) > 0.9


def test_mmpretrain_resnet18_takes_it_as_the_loss_of_its_head(tmp_path: Path) -> None:
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    file = tmp_path / "config.py"
    file.write_text(
        "_base_ = ['mmpretrain::resnet/resnet18_8xb16_cifar10.py']\n"
        "custom_imports = dict(imports=['gbseg'])\n"
        "model = dict(head=dict(loss=dict(_delete_=True, type='ExpGBLoss', targets=(0, 6))))\n"
    )
    config = load_config(file)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    # two classes that differ in brightness: twenty steps must separate them
    label = torch.arange(8) % 2
    image = label.view(-1, 1, 1, 1) * 1.0 + 0.1 * torch.randn(8, 3, 32, 32)
    samples = [DataSample().set_gt_label(int(k)) for k in label]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        loss = model(image, samples, mode="loss")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    expected = model.head.loss_module(model(image), label, avg_factor=8)
    torch.testing.assert_close(model(image, samples, mode="loss")["loss"], expected)
    assert losses[-1] < 0.2 * losses[0]
    assert [int(s.pred_label) for s in model(image, samples, mode="predict")] == label.tolist()
