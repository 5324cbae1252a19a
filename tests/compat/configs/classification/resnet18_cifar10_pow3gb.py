# ResNet-18 on CIFAR-10 with pow3-GB.
#
#   python tools/train.py configs/classification/resnet18_cifar10_pow3gb.py --amp
#
# The recipe and its assumptions are in _base_/resnet18_cifar10.py.
_base_ = ["_base_/resnet18_cifar10.py"]

model = dict(head=dict(loss=dict(type="Pow3GBLoss", alpha=0.001, beta=0.4, targets=(0, 10))))
optim_wrapper = dict(optimizer=dict(lr=0.01, weight_decay=5e-3))
