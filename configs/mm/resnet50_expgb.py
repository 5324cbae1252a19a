# ResNet-50 on ImageNet with exp-GB: MMPretrain's
# resnet/resnet50_8xb32_in1k.py, boosted as `gbseg boost` does.
#
#   python tools/train.py configs/mm/resnet50_expgb.py --amp
#
# The loss has 1 / 16 of the old weight, so that rate, weight decay and clip norm keep their meaning; the rest is as it was.
# Data: data/imagenet/{train,val}/<class>/, as tools/prepare_imagenet.py makes them. Not run in full here.
_base_ = ["mmpretrain::resnet/resnet50_8xb32_in1k.py"]
custom_imports = dict(imports=["gbseg.mm"])
custom_hooks = [dict(type="NonFiniteGuardHook")]

model = dict(head=dict(loss=dict(type="ExpGBLoss", alpha=0.1, targets=(0, 16), max_delta=16, loss_weight=1 / 16)))
