# Fig. 1a, pow3-GB: CIFAR-10, four convolutions and an affine layer with batch normalisation, ten epochs at a fixed rate.
#
#   python tools/train.py configs/classification/cifar5_pow3gb.py --amp
#
# The rate is the best of five on held-out training images (results/fig1a). The network, the batches and the optimizer are
# assumptions stated in _base_/cifar5.py and _base_/cifar10.py.
_base_ = ["_base_/cifar5.py"]

model = dict(head=dict(loss=dict(type="Pow3GBLoss", alpha=0.001, beta=0.4, targets=(0, 10))))
optim_wrapper = dict(optimizer=dict(lr=0.01))
