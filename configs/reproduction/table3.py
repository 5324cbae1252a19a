# Table 3: PixelNet on VOC 2012 with SBD's labels. Needs the data, VGG-16 with fc6 and fc7, and a GPU: 'full' was not run.
#
#   python tools/reproduce.py table3
#   python tools/reproduce.py table3 --budget subset          # the real VOC subset: 464 images, conv taps; 8 hours of one core
#
# The paper tests on VOC's server (`gbseg test --submit`); here the score is of the 100 images of SBD's train list that the
# authors held out, and for the subset of VOC val, of which it trains on nothing. An earlier run of the subset: results/subset.
title = "Table 3: PixelNet on VOC 2012"
claim = "after 40 epochs exp-GB has 67.3 mIoU and pow3-GB 66.1 where the softmax has 64.4, and 67.1 after 60."
paper = dict(softmax="64.4 mIoU", expgb="67.3 mIoU", pow3gb="66.1 mIoU")
verdict, figure = "contest", "curves"
contests = dict(expgb=dict(boosted=["expgb"], softmax=["softmax"]), pow3gb=dict(boosted=["pow3gb"], softmax=["softmax"]))

arms = dict(
    softmax=dict(config="pixelnet_softmax.py", rates=[3e-4, 1e-3, 3e-3]),
    expgb=dict(config="pixelnet_expgb.py", rates=[3e-5, 1e-4, 3e-4]),
    pow3gb=dict(config="pixelnet_pow3gb.py", rates=[1.7e-5, 5e-5, 1.5e-4]),
)
metric = "mIoU"  # errors are 100 - mIoU
amp = True
sweep = dict(epochs=5, every=5, choose="last")
final = dict(epochs=40, every=5, trials=1)
lists = "ImageSets/Segmentation/train.txt"
budgets = dict(
    subset=dict(
        metric="mIoU-7",
        arms=dict(
            softmax=dict(config="subset/softmax.py", rates=[0.03, 0.1, 0.3]),
            expgb=dict(config="subset/expgb.py", rates=[0.001, 0.003, 0.01]),
            pow3gb=dict(config="subset/pow3gb.py", rates=[0.003, 0.01, 0.03]),
        ),
        sweep=dict(
            epochs=4,
            every=4,
            # 64 of the training images held out; val is not looked at
            options={
                "train_dataloader.dataset.indices": list(range(400)),
                "val_dataloader.dataset.ann_file": lists,
                "val_dataloader.dataset.indices": list(range(400, 464)),
            },
        ),
        final=dict(epochs=16, every=4),
    ),
)
