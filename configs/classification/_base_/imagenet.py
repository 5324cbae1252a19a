# ImageNet (ILSVRC 2012): 1,281,167 + 50,000 images in folders of their 1,000 classes, made by tools/prepare_imagenet.py.
# Augmentation and test crop are MMPretrain's usual ones: random resized crop to 224 x 224 (area 8 to 100%) and flip; short
# side to 256 and the central 224 x 224. Channels are standardised by ImageNet's mean and deviation.
# Data that lie elsewhere, or of another number of classes: docs/classification.md.
_base_ = ["runtime.py"]

custom_imports = dict(imports=["gbseg.mm"])
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=224),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeEdge", scale=256, edge="short"),
    dict(type="CenterCrop", crop_size=224),
    dict(type="PackInputs"),
]
data = dict(type="ClassFolders", data_root="data/imagenet")
train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(data_prefix="train", pipeline=train_pipeline, **data),
)
auto_scale_lr = dict(enable=False, base_batch_size=256)  # of all processes; --auto-scale-lr
val_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(data_prefix="val", pipeline=test_pipeline, **data),
)
test_dataloader = val_dataloader
model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
)
default_hooks = dict(checkpoint=dict(interval=2000))
