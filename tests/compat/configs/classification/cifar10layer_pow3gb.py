# Fig. 1b, pow3-GB: CIFAR-10, ten layers with batch normalisation, ten epochs at a fixed rate.
#
#   python tools/train.py configs/classification/cifar10layer_pow3gb.py --amp
#
# The network, the batches and the optimizer are assumptions stated in _base_/cifar10layer.py and _base_/cifar10.py.
_base_ = ["_base_/cifar10layer.py"]

model = dict(head=dict(loss=dict(type="Pow3GBLoss", alpha=0.001, beta=0.4, targets=(-2, 10))))
optim_wrapper = dict(optimizer=dict(lr=0.01))
