# Fig. 1b, exp-GB: CIFAR-10, ten layers with batch normalisation, ten epochs at a fixed rate.
#
#   python tools/train.py configs/classification/cifar10layer_expgb.py --amp
#
# The network, the batches and the optimizer are assumptions stated in _base_/cifar10layer.py and _base_/cifar10.py.
_base_ = ["_base_/cifar10layer.py"]

model = dict(head=dict(loss=dict(type="ExpGBLoss", alpha=0.1, targets=(0, 6))))
optim_wrapper = dict(optimizer=dict(lr=0.03))
