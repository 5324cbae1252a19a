# ConvNeXt-T on ImageNet with exp-GB: MMPretrain's
# convnext/convnext-tiny_32xb128_in1k.py, boosted as `gbseg boost` does.
#
#   python tools/train.py configs/mm/convnext_tiny_expgb.py --amp
#
# The loss has 1 / 16 of the old weight, so that rate, weight decay and clip norm keep their meaning; labels are as
# smooth as they were.
# Data: data/imagenet/{train,val}/<class>/, as tools/prepare_imagenet.py makes them. Not run in full here.
_base_ = ["mmpretrain::convnext/convnext-tiny_32xb128_in1k.py"]
custom_imports = dict(imports=["gbseg.mm"])
custom_hooks = [
    dict(type="EMAHook", momentum=1e-4, priority="ABOVE_NORMAL"),
    dict(type="NonFiniteGuardHook"),
]

model = dict(
    head=dict(
        loss=dict(
            _delete_=True, type="ExpGBLoss", alpha=0.1, targets=(0, 16), max_delta=16, loss_weight=1 / 16, label_smoothing=0.1
        )
    )
)
