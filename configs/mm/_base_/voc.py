# VOC 2012 + SBD as MMSegmentation's networks train on it: random crops of 512 x 512 out of images of 0.5 to 2 times their size.
# Training list train_aug (10,582 images) and VOC val (1,449), so that scores compare with MMSegmentation's. In place of its
# _base_/datasets and _base_/default_runtime.py; labels are resized by the pixels' centres, and the metric gives the report.
custom_imports = dict(imports=["gbseg.mm"])
default_scope = "mmseg"

crop_size = (512, 512)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True, resize_type="ResizeAligned"),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
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
    type="VOCSegmentation",
    data_root="data/VOCdevkit/VOC2012",
    data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassAug"),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(ann_file="ImageSets/Segmentation/train_aug.txt", pipeline=train_pipeline, **data),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)  # of all processes; --auto-scale-lr
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(ann_file="ImageSets/Segmentation/val.txt", pipeline=test_pipeline, **data),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="VOCMetric")
test_evaluator = val_evaluator
tta_model = dict(type="LinkTTAModel", scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)

custom_hooks = [dict(type="NonFiniteGuardHook")]
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl"))
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="SegLocalVisualizer", vis_backends=vis_backends)
log_processor = dict(by_epoch=False)
log_level = "INFO"
load_from = None
resume = False
