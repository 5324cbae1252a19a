# ResNet-50 by MMPretrain's usual recipe (resnet50_8xb32_in1k): batches of 256, 100 epochs, SGD with momentum 0.9, a tenth of
# the rate after 30, 60 and 90 epochs. The paper has no ResNet.
_base_ = ["imagenet.py"]

epoch = 5005  # iterations: 1,281,167 images in batches of 256, rounded up
model = dict(
    backbone=dict(type="ResNet", depth=50, num_stages=4, out_indices=(3,), style="pytorch"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="GBClsHead", num_classes=1000, in_channels=2048, init_std=0.01, topk=(1, 5)),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", momentum=0.9))
param_scheduler = [
    dict(type="MultiStepLR", milestones=[30 * epoch, 60 * epoch, 90 * epoch], gamma=0.1, by_epoch=False),
]
train_cfg = dict(type="ResumableIterLoop", max_iters=100 * epoch, val_interval=epoch)
