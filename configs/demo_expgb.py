# The demo: PixelNet on generated scenes, exp-GB against softmax + cross-entropy. No download, no GPU.
#
#   python tools/train.py configs/demo_expgb.py
#
# Not PixelNet's settings but what learns in minutes: a quarter of VGG-16's widths from scratch with batch normalisation, an MLP
# of 128-128, class-balanced pixels, AdamW with a linear decay. Each loss has the better of two rates, 0.003 and 0.01 (one
# seed, 240 iterations in bfloat16, mIoU on val: softmax 29.5 and 32.8, exp-GB 30.3 and 29.7). Time and result: docs/demo.md.
_base_ = ["_base_/runtime.py", "_base_/voc.py", "_base_/pixelnet.py"]

data_root = "data/scenes"
size = (128, 160)
prepare = dict(type="write_scenes", root=data_root, train=240, val=60, size=size, seed=0)

model = dict(
    backbone=dict(taps=("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"), width=0.25, batch_norm=True, weights=None),
    decode_head=dict(
        in_channels=(16, 32, 64, 128, 128),
        strides=(1, 2, 4, 8, 16),
        hidden=(128, 128),
        dropout=0.1,
        norm="BN",
        init_std=None,
        init_bias="prior",
        sampler=dict(type="BalancedPixelSampler", num=1000),
        loss_decode=dict(type="ExpGBLoss", alpha=0.1, targets=(0, 16)),
    ),
    test_cfg=dict(input="original"),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", imdecode_backend="pillow"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="ChannelGain", low=0.8, high=1.3),
    dict(type="PackSegInputs"),
]
folders = dict(img_path="JPEGImages", seg_map_path="SegmentationClass")
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root, ann_file="ImageSets/Segmentation/train.txt", data_prefix=folders, pipeline=train_pipeline
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=8)  # of all processes; --auto-scale-lr
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, ann_file="ImageSets/Segmentation/val.txt", data_prefix=folders),
)
test_dataloader = val_dataloader

optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=3e-3, weight_decay=1e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=30, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=30, end=360, by_epoch=False),
]
# 30 iterations are one epoch of 240 scenes
train_cfg = dict(type="ResumableIterLoop", max_iters=360, val_interval=60)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(interval=180), logger=dict(interval=30))

runs = dict(
    softmax=dict(
        model=dict(
            decode_head=dict(init_bias=None, loss_decode=dict(_delete_=True, type="CrossEntropyLoss", avg_non_ignore=True))
        ),
        optim_wrapper=dict(optimizer=dict(lr=1e-2)),
    ),
    expgb=dict(),
)
compare = dict(metric="mIoU", baseline="softmax", epoch_length=30, images=4)
