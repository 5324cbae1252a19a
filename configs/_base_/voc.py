# PASCAL VOC in its own layout. The network sees 224 x 224, aspect ignored (PixelNet's analysis setting); test images stay as
# they are, the model resizes them (test_cfg.input) and its labels are compared at the original size.
dataset_type = "VOCSegmentation"
data_root = "data/VOCdevkit/VOC2012"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", imdecode_backend="pillow"),  # pillow reads palette indices
    dict(type="ResizeAligned", scale=(224, 224), keep_ratio=False),  # labels by pixel centres, as the image
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
        type=dataset_type,
        data_root=data_root,
        ann_file="ImageSets/Segmentation/paper_train.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassAug"),
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
        type=dataset_type,
        data_root=data_root,
        ann_file="ImageSets/Segmentation/paper_val.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassAug"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="VOCMetric")
test_evaluator = val_evaluator
# --tta averages probabilities over these scales, each as it is and mirrored; of a fixed test_cfg.input, the network's size
tta_model = dict(type="LinkTTAModel", scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)
