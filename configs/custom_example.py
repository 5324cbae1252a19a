# Your own data: a folder of images and masks, any number of classes, PixelNet with exp-GB.
#
#   python tools/doctor.py configs/custom_example.py     # is everything there, and do the masks mean what you think?
#   python tools/browse.py configs/custom_example.py     # what the network sees
#   python tools/train.py configs/custom_example.py --amp
#
# docs/your_own_data.md goes through it from the folder to the predictions. Edit the next lines; the rest follows from them.
# Layout: <data_root>/images/{train,val}/NAME.jpg (or .png, ...) and <data_root>/masks/{train,val}/NAME.png, whose pixels are
# class numbers: 0 for the first class, 255 for pixels that do not count.
_base_ = ["_base_/runtime.py", "_base_/pixelnet.py"]

data_root = "data/my_dataset"
classes = ("background", "disc", "square")
palette = None  # or one (red, green, blue) a class, for the pictures
size = (224, 224)  # height and width at which the network sees an image
max_iters = 2000
warmup = max(1, max_iters // 40)  # iterations in which the rate rises

metainfo = dict(classes=classes, palette=palette)
model = dict(
    backbone=dict(taps=("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"), frozen_stages=4),
    decode_head=dict(
        in_channels=(64, 128, 256, 512, 512),
        strides=(1, 2, 4, 8, 16),
        hidden=(256, 256),
        norm="LN",
        init_std=None,
        init_bias="prior",
        num_classes=len(classes),
        sampler=dict(type="BalancedPixelSampler", num=2000),  # every class of an image alike; UniformPixelSampler: every pixel
        loss_decode=dict(type="ExpGBLoss", alpha=0.1, targets=(0, 16)),
    ),
    test_cfg=dict(input=size),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", imdecode_backend="pillow"),  # pillow reads palette indices, cv2 would read colours
    dict(type="ResizeAligned", scale=size[::-1], keep_ratio=False),  # labels by pixel centres, as the image
    dict(type="RandomFlip", prob=0.5),
    dict(type="ChannelGain", low=0.8, high=1.3),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", imdecode_backend="pillow"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=5,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(
        type="FolderSegmentation",
        data_root=data_root,
        metainfo=metainfo,
        # ignored=(11,),  # in each data set: labels that do not count, besides 255, where nobody could tell the class
        data_prefix=dict(img_path="images/train", seg_map_path="masks/train"),
        pipeline=train_pipeline,
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=5)  # of all processes; --auto-scale-lr
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="FolderSegmentation",
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path="images/val", seg_map_path="masks/val"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="VOCMetric")
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=warmup, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=warmup, end=max_iters, by_epoch=False),
]
train_cfg = dict(type="ResumableIterLoop", max_iters=max_iters, val_interval=200)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(interval=200))
