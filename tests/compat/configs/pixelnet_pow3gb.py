# PixelNet on VOC 2012 + SBD with cubic gradient boosting: row P-40 of the paper's Table 3 (66.1 mIoU on VOC test).
#
#   python tools/train.py configs/pixelnet_pow3gb.py --amp
#
# The paper gives rate 5e-5 and 40 epochs; alpha, beta and the targets are its CIFAR-10 values. Else as pixelnet_expgb.py.
_base_ = ["pixelnet_expgb.py"]

model = dict(decode_head=dict(loss_decode=dict(_delete_=True, type="Pow3GBLoss", alpha=0.001, beta=0.4, targets=(0, 10))))
optim_wrapper = dict(optimizer=dict(lr=5e-5))
