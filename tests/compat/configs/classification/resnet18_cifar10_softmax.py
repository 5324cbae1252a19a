# ResNet-18 on CIFAR-10 with the softmax.
#
#   python tools/train.py configs/classification/resnet18_cifar10_softmax.py --amp
#
# The recipe and its assumptions are in _base_/resnet18_cifar10.py.
_base_ = ["_base_/resnet18_cifar10.py"]

model = dict(head=dict(loss=dict(type="SoftmaxLoss")))
optim_wrapper = dict(optimizer=dict(lr=0.1))
