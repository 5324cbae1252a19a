# ResNet-18 for images of 32 x 32 (3 x 3 stem, no pooling), as its users train it: shifted and mirrored images, batches of 128,
# SGD with Nesterov momentum, decay 5e-4, 30 epochs, the rate rising for two and then falling to 0 along a cosine.
_base_ = ["cifar10.py"]

model = dict(
    backbone=dict(type="ResNet_CIFAR", depth=18, num_stages=4, out_indices=(3,), style="pytorch"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="GBClsHead", num_classes=10, in_channels=512, topk=(1, 5)),
)
train_dataloader = dict(batch_size=128, dataset=dict(pad=4, flip=True))
auto_scale_lr = dict(base_batch_size=128)
epoch = 391  # iterations
epochs = 30
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=2 * epoch),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=2 * epoch, end=epochs * epoch, eta_min=0),
]
train_cfg = dict(type="ResumableIterLoop", max_iters=epochs * epoch, val_interval=epoch)
default_hooks = dict(checkpoint=dict(interval=epoch))
