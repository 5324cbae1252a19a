# SegNeXt-T on VOC 2012 + SBD with exp-GB: MMSegmentation's
# segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py, boosted as
# `gbseg boost` does: the loss, by 1 / 16 of the old weight, so that rate, weight decay and clip norm keep their meaning.
#
#   python tools/train.py configs/mm/segnext_expgb.py --amp
#
# Rate and augmentation are those of that config, the schedule is a quarter as long, for 16 images a step (1 GPU). Not
# run in full here.
# There is no base of its model alone, so the data of that config are replaced here, by those of _base_/voc.py.
_base_ = ["mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py"]
custom_imports = dict(imports=["gbseg.mm"])
custom_hooks = [dict(type="NonFiniteGuardHook")]

model = dict(
    decode_head=dict(
        num_classes=21,
        loss_decode=dict(_delete_=True, type="ExpGBLoss", alpha=0.1, targets=(0, 16), max_delta=16, loss_weight=1 / 16),
    )
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True, resize_type="ResizeAligned"),
    dict(type="RandomCrop", crop_size=_base_.crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="LoadAnnotations"),  # labels keep their size
    dict(type="PackSegInputs"),
]
data = dict(
    _delete_=True,
    type="VOCSegmentation",
    data_root="data/VOCdevkit/VOC2012",
    data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassAug"),
)
train_dataloader = dict(
    sampler=dict(_delete_=True, type="ResumableSampler", shuffle=True),
    dataset=dict(ann_file="ImageSets/Segmentation/train_aug.txt", pipeline=train_pipeline, **data),
)
val_dataloader = dict(dataset=dict(ann_file="ImageSets/Segmentation/val.txt", pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
auto_scale_lr = dict(enable=False, base_batch_size=16)
val_evaluator = dict(_delete_=True, type="VOCMetric")
test_evaluator = val_evaluator
tta_pipeline = None
tta_model = dict(_delete_=True, type="LinkTTAModel", scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=1500, end=40000, by_epoch=False),
]
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
