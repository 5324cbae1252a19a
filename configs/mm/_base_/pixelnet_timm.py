# What the configs of PixelNet's head on timm's networks share: the head beside its maps, the rate, a tenth of it in the
# trunk, and the schedule. exp-GB as `gbseg boost` writes it.
_base_ = ["../../_base_/runtime.py", "../../_base_/voc.py", "../../_base_/pixelnet.py"]

max_iters = 20000
model = dict(
    backbone=dict(_delete_=True, type="TimmTrunk", weights=None),
    decode_head=dict(
        hidden=(512, 512),
        dropout=0.1,
        norm="LN",
        init_std=None,
        init_bias="prior",
        loss_decode=dict(type="ExpGBLoss", alpha=0.1, targets=(0, 16), max_delta=16, loss_weight=1 / 16),
    ),
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=500, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=500, end=max_iters, by_epoch=False),
]
train_cfg = dict(type="ResumableIterLoop", max_iters=max_iters, val_interval=2000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
