# CIFAR-10 in memory: 50,000 + 10,000 images of 32 x 32, batches of 100 (assumed: the paper does not say), channels standardised
# by the training set's mean and deviation, no augmentation unless a config sets pad=4, flip=True.
_base_ = ["runtime.py"]

data = dict(type="ArrayImages", source="CIFAR10", data_root="data")  # data/cifar-10-batches-py
train_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type="as_is"),
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(part="train", **data),
)
auto_scale_lr = dict(enable=False, base_batch_size=100)  # of all processes; --auto-scale-lr
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    collate_fn=dict(type="as_is"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(part="test", **data),
)
test_dataloader = val_dataloader
model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7], to_rgb=False),
)
epoch = 500  # iterations
custom_hooks = [dict(type="ChannelsLastHook")]  # faster on CPUs and on GPUs with tensor cores
