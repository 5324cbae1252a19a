# The ten-layer network of Fig. 1b, 2, 3 and 5: All-CNN-C (Springenberg et al., 2014) with batch normalisation and a fully
# connected layer in place of its average pooling. Channels 96 and 192 as there, the last convolution 10: assumed. Plain SGD
# at a fixed rate, ten epochs, no weight decay, no dropout: assumed.
_base_ = ["cifar10.py"]

model = dict(
    backbone=dict(type="AllConvNet", width=1.0),
    head=dict(type="GBClsHead", num_classes=10, in_channels=10 * 8 * 8, topk=(1, 5)),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1))
train_cfg = dict(type="ResumableIterLoop", max_iters=10 * 500, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500))
