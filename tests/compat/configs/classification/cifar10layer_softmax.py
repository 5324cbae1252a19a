# Fig. 1b, softmax: CIFAR-10, ten layers with batch normalisation, ten epochs at the paper's fixed rate.
#
#   python tools/train.py configs/classification/cifar10layer_softmax.py --amp
#
# The network, the batches and the optimizer are assumptions stated in _base_/cifar10layer.py and _base_/cifar10.py.
_base_ = ["_base_/cifar10layer.py"]

model = dict(head=dict(loss=dict(type="SoftmaxLoss")))
optim_wrapper = dict(optimizer=dict(lr=1.0))
