# SegFormer-B0 on VOC 2012 + SBD with exp-GB: MMSegmentation's
# segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py, boosted as
# `gbseg boost` does: the loss, by 1 / 16 of the old weight, so that rate, weight decay and clip norm keep their meaning.
#
#   python tools/train.py configs/mm/segformer_expgb.py --amp
#
# Rate and augmentation are those of that config, the schedule is a quarter as long, for 16 images a step (4 GPUs of 4). Not
# run in full here.
_base_ = ["mmseg::_base_/models/segformer_mit-b0.py", "_base_/voc.py", "mmseg::_base_/schedules/schedule_40k.py"]

checkpoint = "https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/segformer/mit_b0_20220624-7e0fe6dd.pth"
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(init_cfg=dict(type="Pretrained", checkpoint=checkpoint)),
    decode_head=dict(
        num_classes=21,
        loss_decode=dict(_delete_=True, type="ExpGBLoss", alpha=0.1, targets=(0, 16), max_delta=16, loss_weight=1 / 16),
    ),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(pos_block=dict(decay_mult=0.0), norm=dict(decay_mult=0.0), head=dict(lr_mult=10.0))),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=1500, end=40000, by_epoch=False),
]
