# The column that Table 1 leaves out, softmax and cross-entropy: MNIST, a 784-392-50-10 network with ReLU, 100 epochs.
#
#   python tools/train.py configs/classification/mnist_softmax.py
#
# The rate is the best of six on held-out training images (results/table1). The network, the batches and the initialisation are
# assumptions stated in _base_/mnist.py.
_base_ = ["_base_/mnist.py"]

model = dict(head=dict(loss=dict(type="SoftmaxLoss")))
optim_wrapper = dict(optimizer=dict(lr=0.5))
