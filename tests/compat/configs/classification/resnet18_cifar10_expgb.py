# ResNet-18 on CIFAR-10 with exp-GB: the softmax's rate divided, its decay multiplied by t_pos = 16 (docs/verdict.md).
#
#   python tools/train.py configs/classification/resnet18_cifar10_expgb.py --amp
#
# The recipe and its assumptions are in _base_/resnet18_cifar10.py.
_base_ = ["_base_/resnet18_cifar10.py"]

model = dict(head=dict(loss=dict(type="ExpGBLoss", alpha=0.1, targets=(0, 16))))
optim_wrapper = dict(optimizer=dict(lr=0.1 / 16, weight_decay=5e-4 * 16))
