# The five-layer network of Fig. 1a: four 3 x 3 convolutions and an affine layer, batch normalisation in all but the last.
# Assumed: 32, 64, 128 and 128 channels, max pooling after three of them, averages of 2 x 2 before the affine layer (with all
# 2,048 features of 4 x 4 positions exp-GB diverges at a rate of 0.01, with 512 it does not), plain SGD at a fixed rate, ten
# epochs, no decay.
_base_ = ["cifar10.py"]

model = dict(
    backbone=dict(type="SmallConvNet", widths=(32, 64, 128, 128)),
    head=dict(type="GBClsHead", num_classes=10, in_channels=128 * 2 * 2, topk=(1, 5)),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1))
train_cfg = dict(type="ResumableIterLoop", max_iters=10 * 500, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500))
