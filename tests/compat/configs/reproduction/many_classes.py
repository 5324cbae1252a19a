# The paper's remark on ImageNet, "pow3-GB did not work (too many classes)", and whether exp-GB needs batch normalisation:
# the five-layer network on 200 classes of 32 x 32 images.
#
#   python tools/reproduce.py many_classes                    # data/imagenet200_32px, about 40 minutes of one core
#
# Plain SGD without decay, so the controls of fig1a.py need no runs of their own here either.
title = "Many classes: 200 of ImageNet's at 32 x 32"
claim = "with many classes pow3-GB does not work, while exp-GB still outperforms the softmax, but needs batch normalisation."
verdict, figure = "many_classes", "curves"
options = {
    "train_dataloader.dataset.source": "folder",
    "train_dataloader.dataset.data_root": "data/imagenet200_32px",
    "val_dataloader.dataset.source": "folder",
    "val_dataloader.dataset.data_root": "data/imagenet200_32px",
    "model.head.num_classes": 200,
}
plain = {"model.backbone.batch_norm": False, "model.head.batch_norm": False}
expgb = {"model.head.loss": dict(type="ExpGBLoss", alpha=0.01, targets=(0, 10))}  # the paper's for ImageNet
arms = dict(
    softmax=dict(config="classification/cifar5_softmax.py", rates=[0.03, 0.1, 0.3, 1.0, 3.0]),
    expgb=dict(config="classification/cifar5_expgb.py", options=expgb, rates=[0.003, 0.01, 0.03, 0.1, 0.3]),
    pow3gb=dict(config="classification/cifar5_pow3gb.py", rates=[0.003, 0.01, 0.03, 0.1, 0.3]),
    softmax_without_bn=dict(config="classification/cifar5_softmax.py", options=plain, rates=[0.01, 0.03, 0.1, 0.3, 1.0]),
    expgb_without_bn=dict(
        config="classification/cifar5_expgb.py", options={**plain, **expgb}, rates=[0.0003, 0.001, 0.003, 0.01, 0.03]
    ),
    pow3gb_without_bn=dict(
        config="classification/cifar5_pow3gb.py", options=plain, rates=[0.0001, 0.0003, 0.001, 0.002, 0.003]
    ),
)
metric = "accuracy/top1"
amp = True
sweep = dict(epochs=3, held_out=2000, choose="last")
final = dict(epochs=5, trials=4)
