# The real VOC 2012 subset (464 train, 285 val) with VGG-16's convolutional taps: what fits two CPU cores.
#
# Kept from PixelNet: 224 x 224, flip, channel gains, batches of 5 images x 2,000 pixels, SGD with momentum 0.9 and decay
# 5e-4, double rate and no decay on the MLP's biases, a fixed rate. Changed for 1,500 iterations instead of 67,184, for every
# loss alike: an MLP of 256-256 with He initialisation, each tap divided by its standard deviation (every eighth image of the
# train list with these weights), layer normalisation, the output bias at the prior, a warm-up of 50 iterations, a tenth of
# the rate in the trunk, and blocks 1 to 4 of VGG-16 frozen.
# The headline is mIoU-7: the subset has hundreds of images of these classes and a handful of most others.
_base_ = ["../_base_/runtime.py", "../_base_/voc.py", "../_base_/pixelnet.py"]

headline = ("background", "cat", "cow", "dog", "horse", "person", "sheep")
model = dict(
    backbone=dict(
        taps=("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"),
        weights="data/pretrained/vgg16_conv_bgr_caffe.safetensors",  # BGR, 0..255, minus the mean: convention 'caffe'
        frozen_stages=4,
    ),
    decode_head=dict(
        in_channels=(64, 128, 256, 512, 512),
        strides=(1, 2, 4, 8, 16),
        tap_scale=(1 / 165, 1 / 386, 1 / 433, 1 / 85.4, 1 / 8.47),
        hidden=(256, 256),
        norm="LN",
        init_std=None,
        init_bias="prior",
    ),
)
folders = dict(img_path="JPEGImages", seg_map_path="SegmentationClass")
train_dataloader = dict(dataset=dict(ann_file="ImageSets/Segmentation/train.txt", data_prefix=folders))
val_dataloader = dict(dataset=dict(ann_file="ImageSets/Segmentation/val.txt", data_prefix=folders))
test_dataloader = val_dataloader
val_evaluator = dict(headline=headline)
test_evaluator = val_evaluator
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=1e-3, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg=dict(bias_lr_mult=2.0, bias_decay_mult=0.0, custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
param_scheduler = [dict(type="LinearLR", start_factor=0.02, begin=0, end=50, by_epoch=False)]
train_cfg = dict(type="ResumableIterLoop", max_iters=1500, val_interval=300)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(interval=300))
