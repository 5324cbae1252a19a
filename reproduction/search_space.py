"""The search space of ``gbseg search-boost``: boosts, their parameters, targets and stabilisers, and learning rates.

It consists of ``RANGES``, ``SPAN``, ``RATE`` and the four switches of `suggest`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from gbseg.losses import BoostedLoss
from gbseg.losses.modules import GuardedLoss
from reproduction.runs import Run, count_images

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

__all__ = ["BOOSTED", "RANGES", "RATE", "SIDES", "SOFTMAX", "SPAN", "Base", "Candidate", "read_base", "suggest"]

SIDES = BOOSTED, SOFTMAX = ("boosted", "softmax")

RANGES: dict[str, dict[str, tuple[float, float] | list[float]]] = {
    # with t_neg below zero there is no minimum; with zero it is cross-entropy with a penalty
    "exponential": dict(alpha=(1e-3, 1.0), t_neg=[0.0, 0.1, 0.3, 1.0]),
    "cubic": dict(alpha=(1e-4, 1e-1), beta=(-1.0, 1.0), t_neg=(-4.0, 1.0)),
    "linear": dict(t_neg=(-4.0, 1.0)),
    "mirrored": dict(alpha=(1e-3, 1.0), beta=(-1.0, 1.0), t_neg=(-4.0, 1.0)),
}
"""Boost -> parameter -> its limits, or the list of its values. alpha is drawn on a logarithmic scale."""
SPAN = (1.0, 30.0)
"""Limits of ``t_pos - t_neg``, on a logarithmic scale. It is drawn instead of t_pos, so that t_pos > t_neg always."""
RATE = (0.1, 10.0)
"""Limits of the learning rate relative to the config's, on a logarithmic scale."""
CLIP = 1.0
"""The norm at which gradients are clipped, relative to the span: a boosted gradient is that much larger."""
SMALL_INIT = 0.01
"""``init_std`` of the head where its last layer starts small."""

_LOSSES: dict[str, Callable[[dict[str, float], tuple[float, float]], dict[str, Any]]] = {
    "exponential": lambda p, targets: dict(type="ExpGBLoss", **p, targets=targets),
    "cubic": lambda p, targets: dict(type="Pow3GBLoss", **p, targets=targets),
    "linear": lambda p, targets: dict(type="LinearLoss", **p, targets=targets),
    "mirrored": lambda p, targets: dict(type="BoostedLoss", boost=dict(type="MirroredExponentialBoost", **p), targets=targets),
}


@dataclass(frozen=True)
class Base:
    """What a search reads from its config.

    Attributes:
        path: the config file.
        options: dotted keys and values that override the file's.
        rate: the config's learning rate in the softmax's unit: under SGD, multiplied by the strength of its loss relative to
            the softmax.
        decay: the weight decay in the same unit.
        sgd: whether the loss's scale matters to the optimizer. Adam and similar optimizers normalise it away.
        own_head: whether the head is a `GBClsHead`, which has ``init_bias`` and ``init_std``.
        images: number of training images before any are held out.
    """

    path: Path
    options: dict[str, Any]
    rate: float
    decay: float
    sgd: bool
    own_head: bool
    images: int


def _strength(loss: Any) -> float:
    """The initial size of a loss's gradients relative to the softmax's: the span of its targets, or its scale."""
    factor = loss.loss_weight if isinstance(loss, GuardedLoss) else 1.0
    if isinstance(loss, BoostedLoss):
        return factor * (loss.targets[1] - loss.targets[0])
    return factor * getattr(loss, "scale", 1.0)


def read_base(config: Config, options: dict[str, Any]) -> Base:
    """Read what a search needs from a config, and check that the search supports it.

    Args:
        config: the config as `gbseg.mm.config.load_config` returns it, with the options.
        options: the options.

    Raises:
        ValueError: the config describes no classifier, its data cannot be held out, or its loop does not count iterations.
        BadDataFileError: the config's data are missing or damaged.
    """
    name = Path(config.filename).name
    kind = config.model.type if "model" in config else "no model"
    if str(kind).rpartition(".")[2] != "ImageClassifier" or "loss" not in config.model.get("head", {}):
        raise ValueError(
            f"{name} describes {kind} and no ImageClassifier whose head has a loss: search-boost compares the outputs of "
            "classifiers, e.g. of configs/classification/cifar5_softmax.py."
        )
    for loader in ("train_dataloader", "val_dataloader"):
        dataset = config[loader].dataset if loader in config else {}
        if dataset.get("type") != "ArrayImages":
            raise ValueError(
                f"{name}: {loader}.dataset is {dataset.get('type')}; search-boost holds training images out, "
                "which ArrayImages does (MNIST, CIFAR-10, or a folder of one-sized images)."
            )
    topk = config.get("val_evaluator", {}).get("topk", 1)
    if config.get("val_evaluator", {}).get("type") != "Accuracy" or 1 not in (
        topk if isinstance(topk, tuple | list) else [topk]
    ):
        raise ValueError(f"{name}: val_evaluator must be Accuracy with 1 in its topk, whose error the search minimises.")
    if "max_iters" not in config.get("train_cfg", {}):
        raise ValueError(f"{name}: train_cfg counts no max_iters; search-boost needs a loop by iterations (ResumableIterLoop).")
    scope = config.get("default_scope", "mmpretrain")
    with DefaultScope.overwrite_default_scope(scope):
        strength = _strength(MODELS.build(config.model.head.loss))
    optimizer = config.optim_wrapper.optimizer
    sgd = optimizer.type == "SGD"
    return Base(
        path=Path(config.filename),
        options=dict(options),
        rate=optimizer.lr * (strength if sgd else 1.0),
        decay=optimizer.get("weight_decay", 0.0) / (strength if sgd else 1.0),
        sgd=sgd,
        own_head=config.model.head.type == "GBClsHead",
        images=count_images({**config.train_dataloader.dataset.to_dict(), "part": "train", "num": None}, scope),
    )


@dataclass(frozen=True)
class Candidate:
    """A setting that a trial tries.

    Attributes:
        side: 'boosted' or 'softmax'.
        number: number of the trial, from 0.
        boost: a key of `RANGES`, or 'softmax'.
        params: everything that was drawn, by name; ``rate`` is in the softmax's unit.
        span: ``t_pos - t_neg``; 1 for the softmax.
        rate: the optimizer's learning rate.
        options: dotted keys of the config and their values.
    """

    side: str
    number: int
    boost: str
    params: dict[str, Any]
    span: float
    rate: float
    options: dict[str, Any]

    def run(self, base: Base, stage: str, epochs: int, seed: int, data: dict[str, Any], amp: bool, home: Path) -> Run:
        """The run of this setting, with ``data`` as options of the data loaders."""
        options = {**base.options, **self.options, **data}
        return Run(self.boost, stage, self.rate, seed, epochs, base.path, options, amp, 1, False, home)


def _round(value: float) -> float:
    """Round to four digits, so that a setting can be copied by hand."""
    return float(f"{value:.4g}")


def _suggest(trial: BaseTrial, boost: str, name: str, values: tuple[float, float] | list[float]) -> float:
    # Optuna allows one distribution per name
    key = f"{boost} {name}"
    if isinstance(values, list):
        return trial.suggest_categorical(key, values)
    return _round(trial.suggest_float(key, *values, log=name == "alpha"))


def suggest(trial: BaseTrial, side: str, base: Base) -> Candidate:
    """Draw a setting.

    Both sides draw a rate, whether gradients are clipped, and whether the last layer starts small. The boosted side also draws
    a boost with its parameters, targets, whether deltas are bounded by the span (``max_delta``), and whether the output bias
    starts at the prior. The softmax has fewer parameters and gets as many trials.

    A boosted loss is ``span`` times as strong as the softmax. So under SGD its rate is divided and its decay multiplied by the
    span (`gbseg.losses.SoftmaxLoss`). The clip norm is multiplied by the span under any optimizer.

    Args:
        trial: an Optuna trial.
        side: 'boosted' or 'softmax'.
        base: what was read from the config.
    """
    rate = _round(base.rate * trial.suggest_float("rate", *RATE, log=True))
    loss: dict[str, Any]
    params: dict[str, Any] = {"rate": rate, "clip": trial.suggest_categorical("clip", [False, True])}
    options: dict[str, Any] = {}
    if base.own_head:
        params["small_init"] = trial.suggest_categorical("small_init", [False, True])
        if params["small_init"]:
            options["model.head.init_std"] = SMALL_INIT
        options["model.head.init_bias"] = None
    if side == SOFTMAX:
        boost, span, loss = SOFTMAX, 1.0, {"type": "SoftmaxLoss"}
    else:
        boost = trial.suggest_categorical("boost", list(RANGES))
        shape = {name: _suggest(trial, boost, name, values) for name, values in RANGES[boost].items()}
        t_neg = shape.pop("t_neg")
        t_pos = _round(t_neg + trial.suggest_float("span", *SPAN, log=True))
        span = t_pos - t_neg
        params |= {"boost": boost, **shape, "t_neg": t_neg, "t_pos": t_pos}
        loss = _LOSSES[boost](shape, (t_neg, t_pos))
        params["bounded"] = trial.suggest_categorical("bounded", [False, True])
        if params["bounded"]:
            loss["max_delta"] = _round(span)
        if base.own_head:
            params["prior"] = trial.suggest_categorical("prior", [False, True])
            options["model.head.init_bias"] = "prior" if params["prior"] else None
    options["model.head.loss"] = {"_delete_": True, **loss}
    if params["clip"]:
        options["optim_wrapper.clip_grad"] = {"max_norm": _round(CLIP * span)}
    strength = span if base.sgd else 1.0
    if base.decay:
        options["optim_wrapper.optimizer.weight_decay"] = base.decay * strength
    return Candidate(side, trial.number, boost, params, span, _round(rate / strength), options)
