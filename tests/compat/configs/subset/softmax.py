# Softmax + cross-entropy on the real VOC subset; see _base_.py for what is kept and what is changed.
#
#   python tools/train.py configs/subset/softmax.py --amp
#
# How the rate was found: results/subset/README.md. A zero output bias is the prior of a softmax.
_base_ = ["_base_.py"]

model = dict(decode_head=dict(init_bias=None, loss_decode=dict(_delete_=True, type="CrossEntropyLoss", avg_non_ignore=True)))
optim_wrapper = dict(optimizer=dict(lr=0.1), clip_grad=dict(max_norm=5))
