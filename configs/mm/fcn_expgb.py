# FCN with ResNet-50 on VOC 2012 + SBD with exp-GB: MMSegmentation's
# fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py, boosted as
# `gbseg boost` does: the loss, by 1 / 16 of the old weight, so that rate, weight decay and clip norm keep their meaning.
#
#   python tools/train.py configs/mm/fcn_expgb.py --amp
#
# Rate and schedule are those of that config, for 16 images a step (4 GPUs of 4). Not run in full here.
_base_ = [
    "mmseg::_base_/models/fcn_r50-d8.py",
    "_base_/voc.py",
    "mmseg::_base_/schedules/schedule_20k.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(
        num_classes=21,
        loss_decode=dict(_delete_=True, type="ExpGBLoss", alpha=0.1, targets=(0, 16), max_delta=16, loss_weight=1 / 16),
    ),
    auxiliary_head=dict(
        num_classes=21,
        loss_decode=dict(_delete_=True, type="ExpGBLoss", alpha=0.1, targets=(0, 16), max_delta=16, loss_weight=0.4 / 16),
    ),
)
