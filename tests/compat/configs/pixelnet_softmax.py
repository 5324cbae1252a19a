# PixelNet on VOC 2012 + SBD with softmax and cross-entropy: rows S-60 and S-40 of the paper's Table 3 (67.1 and 64.4 mIoU
# on VOC test; S-40 is the checkpoint at iteration 67,184).
#
#   python tools/train.py configs/pixelnet_softmax.py --amp
#
# The paper gives rate 1e-3 and 60 epochs. avg_non_ignore divides by the pixels that count, as the boosted losses do. Else as
# pixelnet_expgb.py.
_base_ = ["pixelnet_expgb.py"]

model = dict(decode_head=dict(loss_decode=dict(_delete_=True, type="CrossEntropyLoss", avg_non_ignore=True)))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_iters=100776)
# every 8,398 iterations (5 epochs), so that the checkpoint of epoch 40 is one of them; all twelve are kept
default_hooks = dict(checkpoint=dict(interval=8398, max_keep_ckpts=12))
