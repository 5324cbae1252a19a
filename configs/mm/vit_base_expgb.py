# ViT-B/16 on ImageNet with exp-GB: MMPretrain's
# vision_transformer/vit-base-p16_64xb64_in1k.py, boosted as `gbseg boost` does.
#
#   python tools/train.py configs/mm/vit_base_expgb.py --amp
#
# The loss has 1 / 16 of the old weight, so that rate, weight decay and clip norm keep their meaning; 0.1 / 1.1 is
# what its mode of label smoothing mixes in.
# Data: data/imagenet/{train,val}/<class>/, as tools/prepare_imagenet.py makes them. Not run in full here.
_base_ = ["mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py"]
custom_imports = dict(imports=["gbseg.mm"])
custom_hooks = [dict(type="NonFiniteGuardHook")]

model = dict(
    head=dict(
        loss=dict(
            _delete_=True,
            type="ExpGBLoss",
            alpha=0.1,
            targets=(0, 16),
            max_delta=16,
            loss_weight=1 / 16,
            label_smoothing=0.1 / 1.1,
        )
    )
)
