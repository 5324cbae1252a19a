# Table 1: MNIST with logistic, tanh and linear outputs, and the softmax that the paper left out. 20 trials, 100 epochs.
#
#   python tools/reproduce.py table1                          # about 4 hours of one core
#   python tools/reproduce.py table1 --trials 2 --budget small
#
# Each output has six rates, factors of two apart, up to where training collapses; two seeds, 20 epochs, 10,000 training images
# held out. The rate with the lowest error there is used for all trials on all 60,000 images.
title = "Table 1: output activations on MNIST"
claim = "linear outputs converge in about 25% fewer epochs than squashed ones, with no higher error; the softmax is miserable."
paper = dict(sigmoid="1.8% in epoch 98.5", tanh="1.7% in epoch 95.0", linear="1.7% in epoch 73.5", softmax="left out")
verdict, figure = "table1", "curves"
arms = dict(
    sigmoid=dict(config="classification/mnist_sigmoid.py", rates=[0.1, 0.2, 0.4, 0.8, 1.6, 3.2]),
    tanh=dict(config="classification/mnist_tanh.py", rates=[0.01, 0.02, 0.04, 0.08, 0.16, 0.32]),
    linear=dict(config="classification/mnist_linear.py", rates=[0.01, 0.02, 0.04, 0.08, 0.16, 0.32]),
    softmax=dict(config="classification/mnist_softmax.py", rates=[0.03, 0.06, 0.12, 0.25, 0.5, 1.0]),
)
metric = "accuracy/top1"
together = 10  # trials trained at once, vectorised
sweep = dict(epochs=20, seeds=2, held_out=10000, choose="min")
final = dict(epochs=100, trials=20)
budgets = dict(
    small=dict(
        options={"train_dataloader.dataset.num": 10000},
        sweep=dict(epochs=3, seeds=1),
        final=dict(epochs=10, trials=2),
    ),
)
