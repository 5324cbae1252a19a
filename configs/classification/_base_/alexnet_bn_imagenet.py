# AlexNet with batch normalisation (Table 2, Fig. 4), ten epochs at a fixed rate. The paper gives the rates. The
# rest is assumed, as in the original AlexNet: batches of 128, SGD with momentum 0.9 and weight decay 5e-4 (on all parameters),
# output weights Gaussian of deviation 0.01. Widths: gbseg.mm.models.AlexNetBN. Augmentation: imagenet.py, where the original
# took random 224 x 224 crops of images of 256 x 256 and shifted colours.
_base_ = ["imagenet.py"]

epoch = 10010  # iterations: 1,281,167 images in batches of 128, rounded up
train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(base_batch_size=128)
model = dict(
    backbone=dict(type="AlexNetBN"),
    head=dict(type="GBClsHead", num_classes=1000, in_channels=4096, init_std=0.01, topk=(1, 5)),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", momentum=0.9, weight_decay=5e-4))
train_cfg = dict(type="ResumableIterLoop", max_iters=10 * epoch, val_interval=epoch)
