# UPerNet with Swin-T on VOC 2012 + SBD with exp-GB: MMSegmentation's
# swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py, boosted as
# `gbseg boost` does: the loss, by 1 / 16 of the old weight, so that rate, weight decay and clip norm keep their meaning.
#
#   python tools/train.py configs/mm/upernet_swin_expgb.py --amp
#
# Rate and augmentation are those of that config, the schedule is a quarter as long, for 16 images a step (4 GPUs of 4). Not
# run in full here.
_base_ = ["mmseg::_base_/models/upernet_swin.py", "_base_/voc.py", "mmseg::_base_/schedules/schedule_40k.py"]

checkpoint = "https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/swin/swin_tiny_patch4_window7_224_20220317-1cdeb081.pth"
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(init_cfg=dict(type="Pretrained", checkpoint=checkpoint)),
    decode_head=dict(
        num_classes=21,
        loss_decode=dict(_delete_=True, type="ExpGBLoss", alpha=0.1, targets=(0, 16), max_delta=16, loss_weight=1 / 16),
    ),
    auxiliary_head=dict(
        num_classes=21,
        loss_decode=dict(_delete_=True, type="ExpGBLoss", alpha=0.1, targets=(0, 16), max_delta=16, loss_weight=0.4 / 16),
    ),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(
            absolute_pos_embed=dict(decay_mult=0.0),
            relative_position_bias_table=dict(decay_mult=0.0),
            norm=dict(decay_mult=0.0),
        )
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=1500, end=40000, by_epoch=False),
]
