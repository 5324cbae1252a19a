# MNIST in memory: 60,000 + 10,000 digits, pixels in 0..1, no augmentation; the network of Table 1, 784-392-50-10 with ReLU.
# Assumed, because the paper does not say: 392 and 50 are hidden widths, batches of 100, He initialisation, plain SGD.
_base_ = ["runtime.py"]

data = dict(type="ArrayImages", source="MNIST", data_root="data/mnist")
train_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type="as_is"),
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(part="train", **data),
)
auto_scale_lr = dict(enable=False, base_batch_size=100)  # of all processes; --auto-scale-lr
val_dataloader = dict(
    batch_size=1000,
    num_workers=0,
    collate_fn=dict(type="as_is"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(part="test", **data),
)
test_dataloader = val_dataloader
model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(mean=[0.0], std=[255.0], to_rgb=False),
    backbone=dict(type="MLP", in_features=784, hidden=(392, 50)),
    head=dict(type="GBClsHead", num_classes=10, in_channels=50, topk=(1, 5)),
)
epoch = 600  # iterations
train_cfg = dict(type="ResumableIterLoop", max_iters=100 * epoch, val_interval=epoch)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1))
