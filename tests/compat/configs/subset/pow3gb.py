# Cubic gradient boosting on the real VOC subset; see _base_.py for what is kept and what is changed.
#
#   python tools/train.py configs/subset/pow3gb.py --amp
#
# How the rate was found: results/subset/README.md. The clip norm is t_pos times the softmax's.
_base_ = ["_base_.py"]

model = dict(decode_head=dict(loss_decode=dict(_delete_=True, type="Pow3GBLoss", alpha=0.001, beta=0.4, targets=(0, 10))))
optim_wrapper = dict(optimizer=dict(lr=0.01), clip_grad=dict(max_norm=50))
