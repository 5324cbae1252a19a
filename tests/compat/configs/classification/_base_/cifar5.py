# The five-layer network of Fig. 1a: four 3 x 3 convolutions and an affine layer, "batch normalization in all layers", so behind
# the affine layer as well. Assumed: 32, 64, 128 and 128 channels, max pooling after three of them and averages of 2 x 2 after
# the last, plain SGD at a fixed rate, ten epochs, no decay.
_base_ = ["cifar10.py"]

model = dict(
    backbone=dict(type="SmallConvNet", widths=(32, 64, 128, 128)),
    head=dict(type="GBClsHead", num_classes=10, in_channels=128 * 2 * 2, batch_norm=True, topk=(1, 5)),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1))
train_cfg = dict(type="ResumableIterLoop", max_iters=10 * 500, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500))
