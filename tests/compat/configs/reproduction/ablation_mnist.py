# What is it: the exponent, the missing normaliser, or the bigger targets? Every loss on the network of Table 1, plain SGD.
#
#   python tools/reproduce.py ablation_mnist                  # about half an hour of one core
#
# Clipping and warm-up are compared in ablation_cifar10.py: runs trained together have neither.
# 10,000 training images, 20 epochs; every output has its own sweep of six rates and five trials. To be read in pairs:
# * the exponent, at targets of one size: expgb_16 against linear_16;
# * the missing normaliser: the softmax against softmax_penalty, whose normaliser is held at t_pos / alpha = 160, against
#   softmax_tenth_penalty, held less, and against sigmoid_bce, which has none;
# * the bigger targets: softmax_times_16 has the larger deltas and nothing else, expgb_16_level_10 (alpha 1.6) those of expgb_16
#   with the normaliser held where expgb_1 holds it. Under plain SGD the first is the softmax, the second is expgb_1, at a
#   sixteenth of the rate: they check that. expgb_1 against expgb_16 is the level, 10 against 160, not the targets' size.
title = "Ablation on MNIST: exponent, normaliser, targets"
claim = "(ours) some boosted output, stabilised or not, ends below a softmax that was tuned as well."
verdict, figure = "contest", "curves"

config = "classification/mnist_softmax.py"
loss = "model.head.loss"
prior = {"model.head.init_bias": "prior"}
high, middle = [0.03, 0.1, 0.3, 0.6, 1.0, 2.0], [0.01, 0.03, 0.1, 0.3, 0.6, 1.0]
sixteenth = [rate / 16 for rate in middle]
low, lowest = [0.003, 0.01, 0.03, 0.1, 0.2, 0.4], [0.001, 0.003, 0.006, 0.01, 0.03, 0.06]
expgb_16 = dict(type="ExpGBLoss", alpha=0.1, targets=(0, 16))
pow3gb_10 = dict(type="Pow3GBLoss", alpha=0.001, beta=0.4, targets=(0, 10))
mirrored = dict(type="BoostedLoss", boost=dict(type="MirroredExponentialBoost", alpha=0.1, beta=0.4), targets=(0, 10))
arms = dict(
    softmax=dict(rates=high),
    softmax_times_16=dict(rates=[rate / 16 for rate in high], options={loss: dict(scale=16.0)}),
    softmax_penalty=dict(rates=middle, options={loss: dict(penalty=1.0, alpha=0.1, t_pos=16.0)}),
    softmax_tenth_penalty=dict(rates=middle, options={loss: dict(penalty=0.1, alpha=0.1, t_pos=16.0)}),
    sigmoid_bce=dict(rates=middle, options={loss: dict(type="SigmoidBCELoss")}),
    sigmoid_mse=dict(rates=[0.1, 0.3, 0.6, 1.0, 2.0, 4.0], options={loss: dict(type="SigmoidMSELoss")}),
    linear_1=dict(rates=low, options={loss: dict(type="LinearLoss", targets=(0, 1))}),
    linear_16=dict(rates=lowest, options={loss: dict(type="LinearLoss", targets=(0, 16))}),
    expgb_1=dict(rates=middle, options={loss: dict(type="ExpGBLoss", alpha=0.1, targets=(0, 1))}),
    expgb_16_level_10=dict(
        rates=sixteenth,
        options={loss: dict(type="ExpGBLoss", alpha=1.6, targets=(0, 16))},
    ),
    expgb_16=dict(rates=sixteenth, options={loss: expgb_16}),
    expgb_16_prior=dict(rates=sixteenth, options={loss: expgb_16, **prior}),
    expgb_16_max_delta=dict(rates=sixteenth, options={loss: {**expgb_16, "max_delta": 16.0}}),
    pow3gb_10=dict(rates=lowest, options={loss: pow3gb_10}),
    pow3gb_10_prior=dict(rates=lowest, options={loss: pow3gb_10, **prior}),
    mirrored=dict(rates=lowest, options={loss: mirrored}),
    hinge=dict(rates=low, options={loss: dict(type="WestonWatkinsLoss")}),
    l1=dict(rates=low, options={loss: dict(type="L1Loss")}),
)
# a tenth of the penalty is what language models call z-loss; the whole penalty, at these rates, would be exp-GB itself
softmax = ["softmax", "softmax_tenth_penalty"]
contests = dict(
    expgb=dict(boosted=["expgb_1", "expgb_16"], softmax=softmax),
    expgb_stabilised=dict(boosted=["expgb_16_prior", "expgb_16_max_delta"], softmax=softmax),
    pow3gb=dict(boosted=["pow3gb_10", "pow3gb_10_prior"], softmax=softmax),
)
options = {"train_dataloader.dataset.num": 10000}
metric = "accuracy/top1"
together = 10
sweep = dict(epochs=15, held_out=10000, choose="last")
final = dict(epochs=20, trials=5)
