# OCRNet with HRNet-W18 on VOC 2012 + SBD with exp-GB: MMSegmentation's
# ocrnet/ocrnet_hr18_4xb4-20k_voc12aug-512x512.py, boosted as
# `gbseg boost` does: the loss, by 1 / 16 of the old weight, so that rate, weight decay and clip norm keep their meaning.
#
#   python tools/train.py configs/mm/ocrnet_expgb.py --amp
#
# Rate and schedule are those of that config, for 16 images a step (4 GPUs of 4). Not run in full here.
_base_ = ["mmseg::_base_/models/ocrnet_hr18.py", "_base_/voc.py", "mmseg::_base_/schedules/schedule_20k.py"]

# a list is replaced as a whole, so its heads are changed here
heads = _base_.model.decode_head
for head, weight in zip(heads, (0.4, 1.0), strict=True):
    head.num_classes = 21
    head.loss_decode = dict(type="ExpGBLoss", alpha=0.1, targets=(0, 16), max_delta=16, loss_weight=weight / 16)
model = dict(data_preprocessor=dict(size=_base_.crop_size), decode_head=heads)
del head, weight
