# The five-layer network of Fig. 1a: four 3 x 3 convolutions (32, 64, 128, 128 channels: assumed) and an affine layer, batch
# normalisation in all but the last. Plain SGD at a fixed rate, ten epochs, no weight decay: assumed too.
_base_ = ["cifar10.py"]

model = dict(
    backbone=dict(type="SmallConvNet", widths=(32, 64, 128, 128)),
    head=dict(type="GBClsHead", num_classes=10, in_channels=128 * 4 * 4, topk=(1, 5)),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1))
train_cfg = dict(type="ResumableIterLoop", max_iters=10 * 500, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500))
