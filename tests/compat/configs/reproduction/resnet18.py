# The readers' question: a modern network and optimizer. ResNet-18 on CIFAR-10 with SGD and with AdamW.
#
#   python tools/reproduce.py resnet18                        # 'full' needs a GPU
#   python tools/reproduce.py resnet18 --budget reduced       # a quarter of the channels, 10,000 images, 5 epochs
#
# Under SGD exp-GB gets the softmax's rates divided and its decay multiplied by t_pos; 'same decay' is the paper's way, a
# smaller rate and the decay left alone, and its control is cross-entropy times t_pos. AdamW does not see a loss's scale.
title = "ResNet-18 on CIFAR-10 with SGD and AdamW"
claim = "(the readers' question, not the paper's) boosted outputs beat the softmax on a modern network with a modern optimizer."
verdict, figure = "contest", "curves"
contests = dict(
    # both sides with the decay scaled and with the same
    expgb_sgd=dict(boosted=["expgb_sgd", "expgb_sgd_same_decay"], softmax=["softmax_sgd", "softmax_times_16_sgd"]),
    pow3gb_sgd=dict(boosted=["pow3gb_sgd"], softmax=["softmax_sgd"]),
    expgb_adamw=dict(boosted=["expgb_adamw"], softmax=["softmax_adamw"]),
    pow3gb_adamw=dict(boosted=["pow3gb_adamw"], softmax=["softmax_adamw"]),
)
adamw = {"optim_wrapper.optimizer": dict(_delete_=True, type="AdamW", lr=1e-3, weight_decay=0.05)}
same_decay = {"optim_wrapper.optimizer.weight_decay": 5e-4}
scaled = {"model.head.loss.scale": 16.0, "optim_wrapper.optimizer.weight_decay": 5e-4}
# five each, for all as far upwards as any arm needed at the budget 'reduced'
sgd_rates, adamw_rates = [0.03, 0.1, 0.3, 1.0, 3.0], [0.0005, 0.002, 0.008, 0.032, 0.128]
sixteenth = [rate / 16 for rate in (0.03, 0.1, 0.3, 1.0, 3.0)]
arms = dict(
    softmax_sgd=dict(config="classification/resnet18_cifar10_softmax.py", rates=sgd_rates),
    expgb_sgd=dict(config="classification/resnet18_cifar10_expgb.py", rates=sixteenth),
    pow3gb_sgd=dict(config="classification/resnet18_cifar10_pow3gb.py", rates=[0.001, 0.003, 0.01, 0.03, 0.1]),
    expgb_sgd_same_decay=dict(config="classification/resnet18_cifar10_expgb.py", options=same_decay, rates=sixteenth),
    softmax_times_16_sgd=dict(config="classification/resnet18_cifar10_softmax.py", options=scaled, rates=sixteenth),
    softmax_adamw=dict(config="classification/resnet18_cifar10_softmax.py", options=adamw, rates=adamw_rates),
    expgb_adamw=dict(config="classification/resnet18_cifar10_expgb.py", options=adamw, rates=adamw_rates),
    pow3gb_adamw=dict(config="classification/resnet18_cifar10_pow3gb.py", options=adamw, rates=adamw_rates),
)
metric = "accuracy/top1"
amp = True
sweep = dict(epochs=10, held_out=5000, choose="last")
final = dict(epochs=30, trials=5)
reduced = {
    "model.backbone.base_channels": 16,
    "model.backbone.stem_channels": 16,
    "model.head.in_channels": 128,
    "train_dataloader.dataset.num": 10000,
}
budgets = dict(
    reduced=dict(options=reduced, sweep=dict(epochs=2, held_out=2000), final=dict(epochs=5, trials=4)),
)
