"""Config files and checkpoints of small segmentors, for tests of prediction: real networks, of a twentieth of the width."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.registry import MODELS, DefaultScope

from gbseg.mm.config import load_config
from gbseg.palettes import VOC_CLASSES, VOC_PALETTE

ROOT = Path(__file__).parents[2]
LOSSES = {
    "exp": "dict(type='ExpGBLoss', alpha=0.1, targets=(0, 16))",
    "pow3": "dict(type='Pow3GBLoss', alpha=0.001, beta=0.4, targets=(0, 10))",
    "softmax": "dict(type='CrossEntropyLoss')",
}
# all that they see of an image lies within 20 pixels of a position
PIXELNET = """
    type='PixelNet', data_preprocessor=dict(type='SegDataPreProcessor', size_divisor=1, pad_val=0, seg_pad_val=255),
    backbone=dict(type='VGG16Trunk', width=0.05, taps=('conv1_2', 'conv2_2', 'conv3_3')),
    decode_head=dict(type='PixelNetHead', in_channels=(3, 6, 13), strides=(1, 2, 4), num_classes=21, hidden=(8,),
        loss_decode={loss}),
    test_cfg=dict(mode='whole', input={size})"""
FCN = """
    type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor', size_divisor=1, pad_val=0, seg_pad_val=255),
    backbone=dict(type='VGG16Trunk', width=0.05, taps=('conv1_2', 'conv2_2')),
    decode_head=dict(type='FCNHead', in_channels=6, in_index=1, channels=8, num_convs=1, concat_input=False, num_classes=21,
        loss_decode={loss}),
    train_cfg=dict(), test_cfg=dict(mode='whole')"""
CONFIG = """
_base_ = ['{root}/configs/_base_/runtime.py', '{root}/configs/_base_/voc.py']
model = dict({model})
test_pipeline = [
    dict(type='LoadImageFromFile'), {resize}
    dict(type='LoadAnnotations', imdecode_backend='pillow'), dict(type='PackSegInputs')]
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    data_root='{data}', ann_file='ImageSets/Segmentation/val.txt', pipeline=test_pipeline,
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass')))
test_cfg = dict(type='TestLoop')
{extra}
"""


def write_segmentor(
    folder: Path,
    kind: str = "pixelnet",
    size: object = "original",
    loss: str = "pow3",
    data: Path | str = "nowhere",
    resize: str = "",
    extra: str = "",
    change: tuple[str, str] = ("", ""),
) -> tuple[Path, Path]:
    """A config file (``change``: text in it, and what takes its place) and a checkpoint whose labels vary in an image."""
    model = (PIXELNET if kind == "pixelnet" else FCN).format(loss=LOSSES[loss], size=repr(size))
    config_file, checkpoint = folder / f"{kind}.py", folder / f"{kind}.pth"
    folder.mkdir(parents=True, exist_ok=True)
    text = CONFIG.format(root=ROOT, model=model, data=data, resize=resize, extra=extra)
    config_file.write_text(text.replace(*change))
    config = load_config(config_file)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        network = MODELS.build(config.model)
    network.init_weights()
    for module in network.decode_head.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.5)
    # classes of nearly equal level, so that the content of an image decides
    with torch.no_grad():
        last = network.decode_head.linears[-1] if kind == "pixelnet" else network.decode_head.conv_seg
        shape = (-1, 1) if last.weight.ndim == 2 else (-1, 1, 1, 1)
        last.weight.sub_(last.weight.flatten(1).mean(1).view(shape))
        last.bias.normal_()
        last.weight.div_(last.weight.flatten(1).norm(dim=1).view(shape) / 4)
    meta = {"dataset_meta": {"classes": VOC_CLASSES, "palette": [list(colour) for colour in VOC_PALETTE[:21]]}}
    torch.save({"state_dict": network.state_dict(), "meta": meta}, checkpoint)
    return config_file, checkpoint
