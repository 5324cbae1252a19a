# Table 2, pow3-GB: ImageNet, AlexNet with batch normalisation. In the paper it "did not work", because of the many classes.
#
#   python tools/prepare_imagenet.py data/imagenet
#   python tools/train.py configs/classification/alexnet_bn_imagenet_pow3gb.py --amp
#
# The paper gives neither settings nor numbers: alpha, beta and targets are those of its CIFAR-10 experiment, the rate is
# exp-GB's. All assumed, as are the network, the batches, momentum, decay and augmentation (stated in _base_/). Not run here.
_base_ = ["_base_/alexnet_bn_imagenet.py"]

model = dict(head=dict(loss=dict(type="Pow3GBLoss", alpha=0.001, beta=0.4, targets=(0, 10))))
optim_wrapper = dict(optimizer=dict(lr=0.001))
