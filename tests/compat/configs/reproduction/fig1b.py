# Fig. 1b: the all-convolutional network of ten layers on CIFAR-10, softmax, exp-GB {0, 6} and pow3-GB {-2, 10}, ten epochs.
#
#   python tools/reproduce.py fig1b                           # 'full' needs a GPU
#   python tools/reproduce.py fig1b --budget reduced          # a quarter of the channels, 10,000 images, 5 epochs
#
# Four rates each, one seed. Plain SGD without decay, so the controls of fig1a.py need no runs of their own here either.
# Fig. 2, 3 and 5 are drawn from the gradients that these runs record: fig2.py, fig3.py, fig5.py.
title = "Fig. 1b: ten layers on CIFAR-10"
claim = "for the first 2 to 5 epochs the error drops significantly faster with boosting, and the softmax gets stuck early."
verdict, figure = "gain", "curves"
gradients = dict(
    type="GradientStatsHook",
    # the normalised sums of layers 1, 3, 5, 7 and 9
    layers=["backbone.layers.1", "backbone.layers.7", "backbone.layers.13", "backbone.layers.19", "backbone.layers.25"],
    interval=50,
)
arms = dict(
    softmax=dict(config="classification/cifar10layer_softmax.py", rates=[0.03, 0.1, 0.3, 1.0]),
    expgb=dict(config="classification/cifar10layer_expgb.py", rates=[0.003, 0.01, 0.03, 0.1]),
    pow3gb=dict(config="classification/cifar10layer_pow3gb.py", rates=[0.001, 0.003, 0.01, 0.03]),
)
metric = "accuracy/top1"
amp = True
sweep = dict(epochs=3, held_out=5000, choose="last")
final = dict(epochs=10, trials=5, options={"custom_hooks": [dict(type="ChannelsLastHook"), gradients]})
budgets = dict(
    reduced=dict(
        options={"model.backbone.width": 0.25, "train_dataloader.dataset.num": 10000},
        sweep=dict(epochs=3, held_out=2000),
        final=dict(
            epochs=5,
            trials=4,
            options={"custom_hooks": [dict(type="ChannelsLastHook"), {**gradients, "interval": 10}]},
        ),
    ),
)
