# ResNet-50 with exp-GB on ImageNet: MMPretrain's usual recipe, translated. Not run here, and not in the paper.
#
#   python tools/prepare_imagenet.py data/imagenet
#   python tools/train.py configs/classification/resnet50_imagenet_expgb.py --amp
#
# exp-GB with targets (0, t_pos) is t_pos times the cross-entropy plus a penalty on the normaliser, so that under SGD the same
# recipe is the softmax's rate divided by t_pos (0.1 / 10) and its weight decay times t_pos (1e-4 * 10). alpha = t_pos / 1000
# classes starts the normaliser at its place. What then differs from the softmax is the penalty alone.
_base_ = ["_base_/resnet50_imagenet.py"]

model = dict(head=dict(loss=dict(type="ExpGBLoss", alpha=0.01, targets=(0, 10))))
optim_wrapper = dict(optimizer=dict(lr=0.01, weight_decay=1e-3))
