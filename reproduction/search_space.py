"""What `gbseg search-boost` draws its trials from: boosts, their parameters, targets and stabilisers, and learning rates.

``RANGES``, ``SPAN``, ``RATE`` and the three switches of `suggest` are the whole space.
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
from reproduction.runs import Run, images_of

if TYPE_CHECKING:
    from optuna import Trial as Draws

__all__ = ["BOOSTED", "RANGES", "RATE", "SIDES", "SOFTMAX", "SPAN", "Base", "Candidate", "read_base", "suggest"]

SIDES = BOOSTED, SOFTMAX = ("boosted", "softmax")

# limits, alpha on a logarithmic scale; or a list of values
RANGES: dict[str, dict[str, tuple[float, float] | list[float]]] = {
    # a target below zero has no minimum here, and at zero it is cross-entropy with a penalty
    "exponential": dict(alpha=(1e-3, 1.0), t_neg=[0.0, 0.1, 0.3, 1.0]),
    "cubic": dict(alpha=(1e-4, 1e-1), beta=(-1.0, 1.0), t_neg=(-4.0, 1.0)),
    "linear": dict(t_neg=(-4.0, 1.0)),
    "mirrored": dict(alpha=(1e-3, 1.0), beta=(-1.0, 1.0), t_neg=(-4.0, 1.0)),
}
# t_pos - t_neg, logarithmic; drawn in place of t_pos, so that t_pos > t_neg always
SPAN = (1.0, 30.0)
# times the config's own rate, logarithmic
RATE = (0.1, 10.0)
# the norm at which gradients are clipped, times the span, as a boosted gradient is that much larger
CLIP = 1.0
SMALL_INIT = 0.01

_LOSSES: dict[str, Callable[[dict[str, float], tuple[float, float]], dict[str, Any]]] = {
    "exponential": lambda p, targets: dict(type="ExpGBLoss", **p, targets=targets),
    "cubic": lambda p, targets: dict(type="Pow3GBLoss", **p, targets=targets),
    "linear": lambda p, targets: dict(type="LinearLoss", **p, targets=targets),
    "mirrored": lambda p, targets: dict(type="BoostedLoss", boost=dict(type="MirroredExponentialBoost", **p), targets=targets),
}


@dataclass(frozen=True)
class Base:
    """What a search reads off its config.

    Attributes:
        path: the config's file.
        options: keys with dots and their values, laid over the file's.
        rate: the learning rate that its own loss has, in the unit of the softmax: under SGD multiplied by how many times as
            strong as the softmax that loss is.
        decay: the weight decay in the same unit.
        sgd: whether a loss's strength matters to the optimizer. Adam and its like divide it out.
        own_head: whether the head is a `GBClsHead`, which knows ``init_bias`` and ``init_std``.
        images: how many there are to train on, before any are held out.
    """

    path: Path
    options: dict[str, Any]
    rate: float
    decay: float
    sgd: bool
    own_head: bool
    images: int


def _strength(loss: Any) -> float:
    """How many times as large as the softmax's a loss's gradients are at the start: the span of its targets, or its scale."""
    factor = loss.loss_weight if isinstance(loss, GuardedLoss) else 1.0
    if isinstance(loss, BoostedLoss):
        return factor * (loss.targets[1] - loss.targets[0])
    return factor * getattr(loss, "scale", 1.0)


def read_base(config: Config, options: dict[str, Any]) -> Base:
    """Read a config, and see whether outputs can be searched for with it.

    Args:
        config: from `gbseg.mm.config.load_config`, with the options.
        options: them.

    Raises:
        ValueError: it is no classifier, its data cannot be held out, or its runs are not counted in iterations.
        BadDataFileError: its data are missing or damaged.
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
        images=images_of({**config.train_dataloader.dataset.to_dict(), "part": "train", "num": None}, scope),
    )


@dataclass(frozen=True)
class Candidate:
    """A setting that may be better than the others of its side.

    Attributes:
        side: 'boosted' or 'softmax'.
        number: of the trial, from 0.
        boost: a key of `RANGES`, or 'softmax'.
        params: all that was drawn, by name; ``rate`` is in the softmax's unit.
        span: ``t_pos - t_neg``; 1 for the softmax.
        rate: the learning rate of the optimizer.
        options: keys of the config and their values.
    """

    side: str
    number: int
    boost: str
    params: dict[str, Any]
    span: float
    rate: float
    options: dict[str, Any]

    @property
    def loss(self) -> dict[str, Any]:
        """Its loss, as a config writes it."""
        return {key: value for key, value in self.options["model.head.loss"].items() if key != "_delete_"}

    def run(self, base: Base, stage: str, epochs: int, seed: int, data: dict[str, Any], amp: bool, home: Path) -> Run:
        """The run of this setting on some data."""
        options = {**base.options, **self.options, **data}
        return Run(self.boost, stage, self.rate, seed, epochs, base.path, options, amp, 1, False, home)


def _short(value: float) -> float:
    """Four digits: what a config can be given by hand is what was tried."""
    return float(f"{value:.4g}")


def _draw(draws: Draws, boost: str, name: str, values: tuple[float, float] | list[float]) -> float:
    # Optuna wants one distribution a name
    key = f"{boost} {name}"
    if isinstance(values, list):
        return draws.suggest_categorical(key, values)
    return _short(draws.suggest_float(key, *values, log=name == "alpha"))


def suggest(draws: Draws, side: str, base: Base) -> Candidate:
    """Draw a setting.

    Both sides draw a rate, whether gradients are clipped and whether the last layer starts small. The boosted side draws a
    boost, its alpha and beta, targets, whether deltas are bounded by the span (``max_delta``), and whether the output bias
    starts at the prior, as well. The softmax, with fewer to find, gets as many trials.

    A boosted loss is ``span`` times as strong as the softmax, so under SGD it gets a rate divided and a decay multiplied by
    the span (`gbseg.losses.SoftmaxLoss`); the clip norm is multiplied by it under any optimizer.

    Args:
        draws: an Optuna trial.
        side: 'boosted' or 'softmax'.
        base: of the config.
    """
    rate = _short(base.rate * draws.suggest_float("rate", *RATE, log=True))
    loss: dict[str, Any]
    params: dict[str, Any] = {"rate": rate, "clip": draws.suggest_categorical("clip", [False, True])}
    options: dict[str, Any] = {}
    if base.own_head:
        params["small_init"] = draws.suggest_categorical("small_init", [False, True])
        if params["small_init"]:
            options["model.head.init_std"] = SMALL_INIT
        options["model.head.init_bias"] = None
    if side == SOFTMAX:
        boost, span, loss = SOFTMAX, 1.0, {"type": "SoftmaxLoss"}
    else:
        boost = draws.suggest_categorical("boost", list(RANGES))
        drawn = {name: _draw(draws, boost, name, values) for name, values in RANGES[boost].items()}
        t_neg = drawn.pop("t_neg")
        t_pos = _short(t_neg + draws.suggest_float("span", *SPAN, log=True))
        span = t_pos - t_neg
        params |= {"boost": boost, **drawn, "t_neg": t_neg, "t_pos": t_pos}
        loss = _LOSSES[boost](drawn, (t_neg, t_pos))
        params["bounded"] = draws.suggest_categorical("bounded", [False, True])
        if params["bounded"]:
            loss["max_delta"] = _short(span)
        if base.own_head:
            params["prior"] = draws.suggest_categorical("prior", [False, True])
            options["model.head.init_bias"] = "prior" if params["prior"] else None
    options["model.head.loss"] = {"_delete_": True, **loss}
    if params["clip"]:
        options["optim_wrapper.clip_grad"] = {"max_norm": _short(CLIP * span)}
    strength = span if base.sgd else 1.0
    if base.decay:
        options["optim_wrapper.optimizer.weight_decay"] = base.decay * strength
    return Candidate(side, draws.number, boost, params, span, _short(rate / strength), options)
