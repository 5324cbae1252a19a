# ResNet-50 with pow3-GB on ImageNet. Not run here; the paper says of AlexNet that it did not work, because of the many classes.
#
#   python tools/prepare_imagenet.py data/imagenet
#   python tools/train.py configs/classification/resnet50_imagenet_pow3gb.py --amp
#
# alpha, beta and targets are those of the paper's CIFAR-10 experiment. Assumed: rate and weight decay as for exp-GB, since the
# output errors are about t_pos = 10 times the softmax's as well; there is no identity with cross-entropy behind it.
_base_ = ["_base_/resnet50_imagenet.py"]

model = dict(head=dict(loss=dict(type="Pow3GBLoss", alpha=0.001, beta=0.4, targets=(0, 10))))
optim_wrapper = dict(optimizer=dict(lr=0.01, weight_decay=1e-3))
