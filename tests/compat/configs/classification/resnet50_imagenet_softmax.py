# ResNet-50 with the softmax on ImageNet, by MMPretrain's usual recipe.
#
#   python tools/prepare_imagenet.py data/imagenet
#   python tools/train.py configs/classification/resnet50_imagenet_softmax.py --amp
#
# MMPretrain reports a top-1 accuracy of 76.55% and a top-5 accuracy of 93.06% for this recipe. Not run here.
_base_ = ["_base_/resnet50_imagenet.py"]

model = dict(head=dict(loss=dict(type="SoftmaxLoss")))
optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=1e-4))
