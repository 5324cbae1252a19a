# The stabilisers and the controls on CIFAR-10: does any boosted output, stabilised, beat a well-tuned softmax?
#
#   python tools/reproduce.py ablation_cifar10                # all of CIFAR-10, ten epochs
#   python tools/reproduce.py ablation_cifar10 --budget reduced
#
# The five-layer network of Fig. 1a, plain SGD. The softmax is offered what exp-GB and pow3-GB are as far as it means something:
# its prior is its zero bias, and its deltas are bounded. Its fourth try is a tenth of exp-GB's penalty on the normaliser, what
# language models call z-loss.
title = "Stabilisers and controls on CIFAR-10"
claim = "(ours) some boosted output, stabilised or not, ends below a softmax that was tuned as well."
verdict, figure = "contest", "curves"

config = "classification/cifar5_softmax.py"
loss = "model.head.loss"
prior = {"model.head.init_bias": "prior"}
clip = "optim_wrapper.clip_grad"
warm_up = {"param_scheduler": [dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=500)]}
expgb_16 = dict(type="ExpGBLoss", alpha=0.1, targets=(0, 16))
pow3gb_10 = dict(type="Pow3GBLoss", alpha=0.001, beta=0.4, targets=(0, 10))
# four rates each, around those that Fig. 1a's sweep chose
softmax_rates, expgb_rates, pow3gb_rates = [0.1, 0.3, 1.0, 3.0], [0.003, 0.01, 0.03, 0.1], [0.003, 0.01, 0.03, 0.1]
arms = dict(
    softmax=dict(rates=softmax_rates),
    softmax_clip=dict(rates=softmax_rates, options={clip: dict(max_norm=1.0)}),
    softmax_warm_up=dict(rates=softmax_rates, options=warm_up),
    softmax_tenth_penalty=dict(rates=softmax_rates, options={loss: dict(penalty=0.1, alpha=0.1, t_pos=16.0)}),
    expgb_1=dict(rates=softmax_rates, options={loss: dict(type="ExpGBLoss", alpha=0.1, targets=(0, 1))}),
    expgb_16=dict(rates=expgb_rates, options={loss: expgb_16}),
    expgb_16_prior=dict(rates=expgb_rates, options={loss: expgb_16, **prior}),
    expgb_16_clip=dict(rates=expgb_rates, options={loss: expgb_16, clip: dict(max_norm=16.0)}),
    expgb_16_max_delta=dict(rates=expgb_rates, options={loss: {**expgb_16, "max_delta": 16.0}}),
    expgb_16_warm_up=dict(rates=expgb_rates, options={loss: expgb_16, **warm_up}),
    pow3gb_10=dict(rates=pow3gb_rates, options={loss: pow3gb_10}),
    pow3gb_10_prior=dict(rates=pow3gb_rates, options={loss: pow3gb_10, **prior}),
    pow3gb_10_clip=dict(rates=pow3gb_rates, options={loss: pow3gb_10, clip: dict(max_norm=10.0)}),
    pow3gb_10_warm_up=dict(rates=pow3gb_rates, options={loss: pow3gb_10, **warm_up}),
    linear_1=dict(rates=[0.03, 0.1, 0.3, 1.0], options={loss: dict(type="LinearLoss", targets=(0, 1))}),
    linear_10=dict(rates=[0.003, 0.01, 0.03, 0.1], options={loss: dict(type="LinearLoss", targets=(0, 10))}),
    sigmoid_bce=dict(rates=softmax_rates, options={loss: dict(type="SigmoidBCELoss")}),
)
softmax = ["softmax", "softmax_clip", "softmax_warm_up", "softmax_tenth_penalty"]
contests = dict(
    expgb=dict(boosted=["expgb_16", "expgb_16_clip", "expgb_16_max_delta", "expgb_16_warm_up"], softmax=softmax),
    pow3gb=dict(boosted=["pow3gb_10", "pow3gb_10_prior", "pow3gb_10_clip", "pow3gb_10_warm_up"], softmax=softmax),
)
metric = "accuracy/top1"
amp = True
sweep = dict(epochs=3, held_out=5000, choose="last")
final = dict(epochs=10, trials=4)
budgets = dict(
    reduced=dict(
        options={"train_dataloader.dataset.num": 10000}, sweep=dict(epochs=3, held_out=2000), final=dict(epochs=5, trials=4)
    ),
)
