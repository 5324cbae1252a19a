# Table 2: AlexNet with batch normalisation on ImageNet 2012, top-1 error, ten epochs. Needs data/imagenet and a GPU: not run.
#
#   python tools/reproduce.py table2
#
# The paper's rates, 0.01 for the softmax and 0.001 for exp-GB, are the middle ones of three; 50,000 training images held out.
# expgb_scaled_decay has the decay that exp-GB's identity asks for beside a rate divided by t_pos; softmax_times_10 is the
# control with the larger deltas and nothing else: cross-entropy times t_pos, the decay left alone.
title = "Table 2: AlexNet with batch normalisation on ImageNet, top-1"
claim = "exp-GB reaches 53.95% top-1 error in ten epochs where the softmax reaches 58.47%; pow3-GB does not work."
paper = dict(softmax="58.47%", expgb="53.95%", pow3gb="did not work")
verdict, figure = "contest", "curves"
contests = dict(imagenet=dict(boosted=["expgb", "expgb_scaled_decay"], softmax=["softmax", "softmax_times_10"]))
judged = "best"  # the paper's are minimum errors

tenth = [0.0003, 0.001, 0.003]
arms = dict(
    softmax=dict(config="classification/alexnet_bn_imagenet_softmax.py", rates=[0.003, 0.01, 0.03]),
    softmax_times_10=dict(
        config="classification/alexnet_bn_imagenet_softmax.py", rates=tenth, options={"model.head.loss.scale": 10.0}
    ),
    expgb=dict(config="classification/alexnet_bn_imagenet_expgb.py", rates=tenth),
    expgb_scaled_decay=dict(
        config="classification/alexnet_bn_imagenet_expgb.py",
        rates=tenth,
        options={"optim_wrapper.optimizer.weight_decay": 5e-3},
    ),
    pow3gb=dict(config="classification/alexnet_bn_imagenet_pow3gb.py", rates=[0.0001, 0.0003, 0.001]),
)
metric = "accuracy/top1"
amp = True
sweep = dict(epochs=2, held_out=50000, choose="last", options={"val_dataloader.dataset.data_prefix": "train"})
final = dict(epochs=10, trials=5)
