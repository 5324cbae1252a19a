# exp-GB, pow3-GB and softmax on the real VOC subset, one after the other, and their comparison.
#
#   python tools/train.py configs/subset/compare.py --amp     # --resume goes on after an interruption
#   python tools/compare.py configs/subset/compare.py         # draws table, curves and predictions again
#
# Results: results/subset/README.md. Everything goes to work_dirs/compare/, which git ignores: the photographs are not ours.
_base_ = ["_base_.py"]

runs = dict(softmax="softmax.py", expgb="expgb.py", pow3gb="pow3gb.py")
compare = dict(metric="mIoU-7", baseline="softmax", images=[20, 60, 110, 160, 210, 260])
