# Fig. 1a: five layers on all of CIFAR-10, softmax, exp-GB and pow3-GB, ten epochs.
#
#   python tools/reproduce.py fig1a --trials 4 --out results/fig1a     # 70 minutes on 2 cores
#
# Five rates each, half a decade apart; two seeds (with one, neighbouring rates differed by less than seeds do), three epochs,
# 5,000 training images held out; the mean error of those epochs decides, as the claim is about the first ones. Plain SGD
# without decay, so that two controls need no runs of their own: cross-entropy times t_pos at rate r is the softmax at
# t_pos * r, and cross-entropy with the penalty is exp-GB at its rate divided by t_pos (tests/losses/test_baselines.py has the
# losses, tests/reproduction/test_trials.py trains them).
title = "Fig. 1a: five layers on CIFAR-10"
claim = "exp-GB gives a consistent boost over the softmax, pow3-GB works better still: the error drops significantly faster."
verdict, figure = "gain", "curves"
best = "pow3gb"
arms = dict(
    softmax=dict(config="classification/cifar5_softmax.py", rates=[0.03, 0.1, 0.3, 1.0, 3.0]),
    expgb=dict(config="classification/cifar5_expgb.py", rates=[0.003, 0.01, 0.03, 0.1, 0.3]),
    pow3gb=dict(config="classification/cifar5_pow3gb.py", rates=[0.003, 0.01, 0.03, 0.1, 0.3]),
)
metric = "accuracy/top1"
amp = True
sweep = dict(epochs=3, held_out=5000, choose="mean", seeds=2)
final = dict(epochs=10, trials=20)
