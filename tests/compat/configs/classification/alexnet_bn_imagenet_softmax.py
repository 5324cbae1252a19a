# Table 2 and Fig. 4, softmax: ImageNet, AlexNet with batch normalisation, ten epochs at the paper's fixed rate.
#
#   python tools/prepare_imagenet.py data/imagenet
#   python tools/train.py configs/classification/alexnet_bn_imagenet_softmax.py --amp
#
# The paper: top-1 error 58.47%, top-5 error 33.55% (median of five trials). Not run here: the full set is not at hand.
# The network, the batches, momentum, decay and augmentation are assumptions stated in _base_/.
_base_ = ["_base_/alexnet_bn_imagenet.py"]

model = dict(head=dict(loss=dict(type="SoftmaxLoss")))
optim_wrapper = dict(optimizer=dict(lr=0.01))
