# Table 1, linear outputs: MNIST, a 784-392-50-10 network with ReLU, 100 epochs at a fixed rate.
#
#   python tools/train.py configs/classification/mnist_linear.py
#
# The rate is the best of six on held-out training images (results/table1). The network, the batches and the initialisation are
# assumptions stated in _base_/mnist.py.
_base_ = ["_base_/mnist.py"]

model = dict(head=dict(loss=dict(type="LinearLoss", targets=(0, 1))))
optim_wrapper = dict(optimizer=dict(lr=0.16))
