# Exponential gradient boosting on the real VOC subset; see _base_.py for what is kept and what is changed.
#
#   python tools/train.py configs/subset/expgb.py --amp
#
# How the rate was found: results/subset/README.md. The clip norm is t_pos times the softmax's:
# exp-GB is cross-entropy, t_pos times as strong, plus a penalty on the normaliser (docs/method.md).
_base_ = ["_base_.py"]

model = dict(decode_head=dict(loss_decode=dict(type="ExpGBLoss", alpha=0.1, targets=(0, 16))))
optim_wrapper = dict(optimizer=dict(lr=0.003), clip_grad=dict(max_norm=80))
