# MNIST in memory, batches of 100 (assumed), pixels in 0..1.
_base_ = ["runtime.py"]

data = dict(type="ArrayImages", source="MNIST", data_root="data/mnist")
train_dataloader = dict(
    batch_size=100,
    num_workers=0,
    collate_fn=dict(type="as_is"),
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(part="train", **data),
)
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
train_cfg = dict(type="ResumableIterLoop", max_iters=60000, val_interval=600)
