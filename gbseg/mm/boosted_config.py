"""Boost the config of a network that is made for a softmax, MMSegmentation's, MMPretrain's or MMDetection's.

`boost_config` is what ``gbseg boost`` prints and ``gbseg train --boost`` trains. Every softmax cross-entropy becomes a boosted
loss of the same strength, wherever it stands: in heads and lists of heads, in lists of losses, in heads inside of heads, and
where a head's class has it as its default. What cannot be converted stays, and is named with the reason.
"""

import copy
import inspect
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope

from gbseg.config_files import ConfigError
from gbseg.files import write_atomically
from gbseg.losses import BoostedLoss, ExpGBLoss, LinearLoss, Pow3GBLoss, SoftmaxLoss
from gbseg.mm.compat import BaseDecodeHead, ClsHead
from gbseg.mm.config import load_config
from gbseg.mm.config_lines import inherited_difference, value_text

__all__ = ["BOOSTS", "BoostedConfig", "ConfigChange", "LeftAlone", "boost_config", "boosted", "write_config"]

BOOSTS = {"exp": ExpGBLoss, "pow3": Pow3GBLoss, "linear": LinearLoss, "softmax": SoftmaxLoss}
"""The losses by the names that ``--boost`` takes."""

# heads that take a softmax of their outputs themselves, whatever their loss is
_OWN_SOFTMAX = "loss_cls", "SideAdapterCLIPHead"
_CROSS_ENTROPY = ("CrossEntropyLoss", "LabelSmoothLoss", "OhemCrossEntropy")
# what of a cross-entropy is taken over, or says nothing in a boosted loss
_KNOWN = {
    *("type", "_scope_", "_delete_", "use_sigmoid", "use_mask", "use_soft", "avg_non_ignore", "pos_weight", "mode"),
    *("label_smooth_val", "num_classes", "thres", "min_kept", "ignore_label"),
}
_OPTIONS = ("class_weight", "reduction", "ignore_index", "loss_name", "label_smoothing", "sync_divisor", "class_weight_mode")


class ConfigChange(NamedTuple):
    """A key with dots whose value is replaced, and the reason; ``old`` is None where there was none."""

    key: str
    old: Any
    new: Any
    reason: str

    def __str__(self) -> str:
        old = [] if self.old is None else [f"  - {value_text(self.old)}"]
        return "\n".join([self.key, *old, f"  + {value_text(self.new)}", f"    {self.reason}"])


class LeftAlone(NamedTuple):
    """A loss that stays as it is, and the reason."""

    key: str
    loss: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.loss} stays: {self.reason}"


class BoostedConfig(NamedTuple):
    """What `boosted` returns.

    Attributes:
        config: the new config.
        changes: everything that differs from the old one.
        left: losses that were not converted.
    """

    config: Config
    changes: list[ConfigChange]
    left: list[LeftAlone]

    def __str__(self) -> str:
        return "\n".join(map(str, [*self.changes, *self.left]))


class _Settings(NamedTuple):
    """The loss to write: its name in `BOOSTS`, and the arguments that all of them share."""

    boost: str
    arguments: dict[str, Any]
    # how many times as strong as a cross-entropy
    strength: float
    is_softmax: bool
    reason: str


class _CrossEntropy(NamedTuple):
    """What a loss is as a softmax cross-entropy.

    Attributes:
        weight: its factor.
        options: what both kinds of losses have.
        divides_by_all: whether the mean is over all pixels, ignored ones too.
        ohem: the settings of `gbseg.losses.OhemLoss` around it, None if there is none.
    """

    weight: float
    options: dict[str, Any]
    divides_by_all: bool = False
    ohem: dict[str, Any] | None = None


class _Refused(Exception):
    """A loss cannot be converted; the message is the reason."""


def boost_config(
    config: Config,
    boost: str = "exp",
    *,
    alpha: float | None = None,
    targets: Sequence[float] | None = None,
    max_delta: float | str | None = "auto",
    heads: Sequence[str] | None = None,
) -> Config:
    """A copy of a config with boosted losses in place of the softmax; what is changed and what is not is logged.

    Args:
        config: of one run; from ``Config.fromfile`` or `gbseg.mm.config.load_config`.
        boost: 'exp' (`ExpGBLoss`), 'pow3' (`Pow3GBLoss`), 'linear' (`LinearLoss`), or 'softmax', which takes it back
            (`gbseg.losses.SoftmaxLoss`).
        alpha: of the boost; None: the loss's own default.
        targets: ``(t_neg, t_pos)``; None: the loss's own default.
        max_delta: the bound of the error; 'auto' as `boosted` says, None for none.
        heads: the heads to convert, e.g. ``['decode_head']`` or ``['decode']``; None: all of them.

    Raises:
        ConfigError: the config has no such head, no loss that can be converted, or several ``runs``.
        ValueError: an argument does not fit the boost.
    """
    result = boosted(config, boost, alpha=alpha, targets=targets, max_delta=max_delta, heads=heads)
    print_log(f"boost_config ({boost}) changes\n{result}", "current", logging.INFO)
    return result.config


def boosted(
    config: Config,
    boost: str = "exp",
    *,
    alpha: float | None = None,
    targets: Sequence[float] | None = None,
    max_delta: float | str | None = "auto",
    heads: Sequence[str] | None = None,
) -> BoostedConfig:
    """`boost_config`, with what it changes.

    * A cross-entropy becomes the boosted loss with ``loss_weight / (t_pos - t_neg)``: rate, weight decay and clip norm of the
      config keep their meaning. Class weights become ``class_weight_mode='labels'``, label smoothing and ignored labels stay.
    * Where the boost's probabilities are no softmax, whatever takes one itself is replaced: the sampler of hard pixels, the
      model for test-time augmentation, the scores of MMPretrain's heads (`gbseg.mm.hooks.link_scores`).
    * ``custom_imports`` and ``NonFiniteGuardHook`` are added.

    ``max_delta='auto'`` bounds the error of exp-GB by ``t_pos``, since its curvature has no bound, and leaves the others
    unbounded.

    The arguments and what is raised are those of `boost_config`.
    """
    if config.get("runs"):
        raise ConfigError(f"{config.filename} lists the runs {', '.join(config.runs)}: boost the config of one of them.")
    if not config.get("model"):
        raise ConfigError(f"{config.filename} has no model: there is nothing to boost.")
    settings = _settings(boost, alpha, targets, max_delta)
    new = copy.deepcopy(config)
    changes: list[ConfigChange] = []
    left: list[LeftAlone] = []
    with DefaultScope.overwrite_default_scope(config.get("default_scope") or "mmseg"):
        owners = list(_owners(new.model, "model"))
        chosen = _chosen_heads(owners, heads, config)
        for place, owner, kind in owners:
            if place in chosen:
                _convert(place, owner, kind, settings, changes, left)
        if not changes:
            what = "; ".join(map(str, left)) or "none of its heads has a loss"
            raise ConfigError(f"{config.filename} has no softmax cross-entropy to convert: {what}.")
        _replace_softmaxes(new, owners, settings, changes)
    _add_parts(new, settings, changes)
    return BoostedConfig(new, changes, left)


def _settings(boost: str, alpha: float | None, targets: Any, max_delta: float | str | None) -> _Settings:
    """The loss to write.

    Raises:
        ValueError: an argument does not fit the boost.
    """
    if boost not in BOOSTS:
        raise ValueError(f"boost is one of {', '.join(BOOSTS)}, not {boost!r}.")
    given = {"alpha": alpha, "targets": None if targets is None else tuple(targets)}
    if boost == "softmax":
        bounded = {"max_delta": None if max_delta == "auto" else max_delta}
        if names := [name for name, value in (given | bounded).items() if value is not None]:
            raise ValueError(f"the softmax has no {', '.join(names)}.")
        return _Settings(boost, {}, 1.0, True, "gbseg's cross-entropy, whose mean is over the labelled pixels")
    if boost == "linear" and alpha is not None:
        raise ValueError("the linear boost g(x) = x has no alpha.")
    kind = BOOSTS[boost]
    plain = kind(**{name: value for name, value in given.items() if value is not None})
    t_neg, t_pos = plain.targets
    strength = t_pos - t_neg
    arguments: dict[str, Any] = {} if boost == "linear" else {"alpha": plain.boost.alpha}
    arguments["targets"] = tuple(map(_short, plain.targets))
    if max_delta == "auto":
        bound = t_pos if boost == "exp" else None
    elif isinstance(max_delta, str) or (max_delta is not None and math.isinf(max_delta)):
        raise ValueError(f"max_delta is a finite number, or none for no bound, not {max_delta}.")
    else:
        bound = max_delta
    if bound is not None:
        kind(max_delta=bound)
        arguments["max_delta"] = _short(bound)
    is_softmax = boost == "exp" and t_neg == 0
    reason = f"1 / {strength:g} of the weight, since its gradient is {strength:g} times as strong"
    if boost == "exp":
        reason += ": rate, weight decay and clip norm keep their meaning"
    if bound is not None:
        reason += f"; max_delta={arguments['max_delta']} bounds the error of an output"
        reason += "" if max_delta != "auto" else " (--max-delta none leaves it unbounded, as the paper does)"
    return _Settings(boost, arguments, strength, is_softmax, reason)


def _short(value: float) -> float:
    """The number as people write it: 16 for 16.0."""
    return int(value) if float(value).is_integer() else value


def _owners(node: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Every component of a part of a config outside of losses: its key, its settings, and its class where that is known."""
    if isinstance(node, Mapping):
        if "type" in node:
            yield place, node, _class(node["type"])
        for key, value in node.items():
            if not _is_loss(key, value):
                yield from _owners(value, f"{place}.{key}")
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _owners(value, f"{place}[{index}]")


def _is_loss(key: str, value: Any) -> bool:
    """Whether an argument is the settings of a loss, or a list of them."""
    values = value if isinstance(value, list | tuple) and value else [value]
    return str(key).startswith("loss") and all(isinstance(loss, Mapping) and "type" in loss for loss in values)


def _class(kind: Any) -> Any:
    """The class that a config names; None where it is not known, e.g. since its module cannot be imported."""
    if not isinstance(kind, str):
        return kind
    with suppress(Exception), MODELS.switch_scope_and_registry(None) as registry:
        return registry.get(kind)
    return None


def _name(settings: Mapping[str, Any]) -> str:
    """The name of a type, without its scope."""
    kind = settings["type"]
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def _default_losses(kind: Any, given: Iterable[str]) -> dict[str, Any]:
    """The losses that a class has where its config names none, by argument.

    Args:
        kind: the class.
        given: the arguments in the config. A parent whose required ones are not among them is not called with its defaults:
            KNet's head passes its parent by.
    """
    found: dict[str, Any] = {}
    known = {*given}
    for parent in kind.__mro__[:-1] if inspect.isclass(kind) else ():
        if "__init__" not in vars(parent):
            continue
        parameters = list(inspect.signature(vars(parent)["__init__"]).parameters.values())[1:]
        variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        named = {parameter.name: parameter.default for parameter in parameters if parameter.kind not in variadic}
        if not known >= {name for name, default in named.items() if default is inspect.Parameter.empty}:
            break
        found = {name: default for name, default in named.items() if _is_loss(name, default)} | found
        known |= set(named)
        # **kwargs go to the next parent
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _heads_of(place: str) -> set[str]:
    """The heads that a key goes through, by their keys: 'model.decode_head[0]' gives 'decode_head'."""
    return {part.partition("[")[0] for part in place.split(".")[1:]} or {"model"}


def _chosen_heads(owners: Sequence[tuple[str, Any, Any]], heads: Sequence[str] | None, config: Config) -> set[str]:
    """The keys of the components whose losses are to be converted.

    Raises:
        ConfigError: there is no head of a name.
    """
    with_losses = [
        place for place, owner, kind in owners if any(_is_loss(*item) for item in owner.items()) or _default_losses(kind, owner)
    ]
    if heads is None:
        return set(with_losses)
    known = {name for place in with_losses for name in _heads_of(place)}
    chosen: set[str] = set()
    for head in heads:
        name = head if head in known else f"{head}_head"
        if name not in known:
            raise ConfigError(f"{config.filename} has no head {head} with a loss; it has {', '.join(sorted(known)) or 'none'}.")
        chosen |= {place for place in with_losses if name in _heads_of(place)}
    return chosen


def _convert(
    place: str, owner: Any, kind: Any, settings: _Settings, changes: list[ConfigChange], left: list[LeftAlone]
) -> None:
    """Convert the losses of one component, in place."""
    given = {key: value for key, value in owner.items() if _is_loss(key, value)}
    for key, value in {**_default_losses(kind, owner), **given}.items():
        is_list = isinstance(value, list | tuple)
        old_losses = list(value) if is_list else [value]
        losses = list(old_losses)
        single_channel = key == "loss_decode" and owner.get("out_channels") == 1 and _is_plain_head(kind)
        if single_channel and all(_name(loss) == "CrossEntropyLoss" and loss.get("use_sigmoid") for loss in losses):
            losses = [{**loss, "use_sigmoid": False} for loss in losses]
            for name, new_value in (("out_channels", owner.get("num_classes")), ("threshold", None)):
                reason = "one output with a sigmoid becomes one for each class"
                changes.append(ConfigChange(f"{place}.{name}", owner.get(name), new_value, reason))
                owner[name] = new_value
        for index, (old, loss) in enumerate(zip(old_losses, losses, strict=True)):
            key_of_loss = f"{place}.{key}[{index}]" if is_list else f"{place}.{key}"
            try:
                new, reason = _converted(loss, owner, kind, key, settings)
            except _Refused as refused:
                if key in given or _name(loss) in _CROSS_ENTROPY:
                    left.append(LeftAlone(key_of_loss, _name(loss), str(refused)))
                continue
            if new != loss:
                losses[index] = ConfigDict(new)
                reason += "" if key in given else f"; the old one is the default of {_name(owner)}"
                changes.append(ConfigChange(key_of_loss, dict(old), new, reason))
        if losses != old_losses:
            owner[key] = losses if is_list else losses[0]


def _is_plain_head(kind: Any) -> bool:
    """Whether a decode head computes its loss as `BaseDecodeHead` does."""
    return inspect.isclass(kind) and getattr(kind, "loss_by_feat", None) is BaseDecodeHead.loss_by_feat


def _converted(loss: Mapping[str, Any], owner: Mapping[str, Any], kind: Any, key: str, settings: _Settings) -> tuple[dict, str]:
    """The settings of the loss in place of ``loss``, and the reason.

    Raises:
        _Refused: there is none.
    """
    found = _as_cross_entropy(loss)
    if key == "loss" and inspect.isclass(kind) and not issubclass(kind, ClsHead) and not hasattr(kind, "_get_predictions"):
        raise _Refused(f"{_name(owner)} does not classify images")
    if not settings.is_softmax and {key, _name(owner)} & {*_OWN_SOFTMAX}:
        raise _Refused(f"{_name(owner)} takes a softmax of its outputs itself, which {settings.boost} does not train")
    options = dict(found.options)
    if options.get("class_weight") is None:
        options.pop("class_weight", None)
        options.pop("class_weight_mode", None)
    new: dict[str, Any] = {"type": BOOSTS[settings.boost].__name__, **settings.arguments}
    weight = found.weight / settings.strength
    if weight != 1:
        new["loss_weight"] = weight
    new |= options
    reasons = [settings.reason]
    if found.divides_by_all and key == "loss_decode":
        reasons.append("the old mean was over all pixels, ignored ones too, and this one is over those that count")
    if found.ohem is not None:
        name = new.pop("loss_name", None)
        new = {"type": "OhemLoss", **found.ohem, **({} if name is None else {"loss_name": name}), "loss": new}
        reasons.append("hard pixels are chosen by the probabilities of the loss's link")
    return new, "; ".join(reasons)


def _as_cross_entropy(loss: Mapping[str, Any]) -> _CrossEntropy:
    """What a loss is as a cross-entropy; of a boosted one, that of the same strength.

    Raises:
        _Refused: it is none.
    """
    name = _name(loss)
    options = {key: loss[key] for key in _OPTIONS if loss.get(key) is not None}
    weight = float(loss.get("loss_weight", 1.0))
    if name == "OhemLoss":
        inner = _as_cross_entropy(loss["loss"])
        ohem = {key: loss[key] for key in ("thresh", "min_kept", "ignore_index") if key in loss}
        named = {"loss_name": loss["loss_name"]} if "loss_name" in loss else {}
        return inner._replace(ohem=ohem, options=inner.options | named)
    own = {kind.__name__: kind for kind in (*BOOSTS.values(), BoostedLoss)}
    if name in own:
        if name == "SoftmaxLoss":
            if loss.get("penalty") or loss.get("scale", 1) != 1:
                raise _Refused("it is a control with a scale or a penalty, and no plain softmax")
            return _CrossEntropy(weight, options)
        if "class_weight" in options and loss.get("class_weight_mode", "outputs") == "outputs":
            raise _Refused("its class_weight multiplies outputs, which no cross-entropy does: set class_weight_mode='labels'")
        arguments = {key: loss[key] for key in ("boost", "targets") if key in loss}
        t_neg, t_pos = own[name](**arguments).targets
        return _CrossEntropy(weight * (t_pos - t_neg), options)
    if name not in _CROSS_ENTROPY:
        raise _Refused("it is no cross-entropy")
    if loss.get("use_mask"):
        raise _Refused("it is of masks, one output each, and no choice between classes")
    if loss.get("use_sigmoid") or loss.get("mode") == "multi_label":
        raise _Refused("it is a sigmoid of each output, and no choice between classes")
    if strange := sorted(set(loss) - _KNOWN - {*_OPTIONS, "loss_weight"}):
        raise _Refused(f"a boosted loss has no {', '.join(strange)}")
    if loss.get("pos_weight") is not None:
        raise _Refused("a boosted loss has no pos_weight")
    if "class_weight" in options:
        options["class_weight_mode"] = "labels"
    if name == "LabelSmoothLoss":
        share = loss["label_smooth_val"]
        options["label_smoothing"] = share / (1 + share) if loss.get("mode") == "classy_vision" else share
    hard_pixels = None
    if name == "OhemCrossEntropy":
        hard_pixels = {
            "thresh": loss.get("thres", 0.7),
            "min_kept": loss.get("min_kept", 100000),
            "ignore_index": loss.get("ignore_label", 255),
        }
        options.setdefault("loss_name", "loss_ohem")
    divides_by_all = name == "CrossEntropyLoss" and not loss.get("avg_non_ignore") and "class_weight" not in options
    return _CrossEntropy(weight, options, divides_by_all, hard_pixels)


def _replace_softmaxes(
    config: Config, owners: Sequence[tuple[str, Any, Any]], settings: _Settings, changes: list[ConfigChange]
) -> None:
    """Replace what takes a softmax of the outputs itself, where the boost's probabilities are another function."""
    if settings.is_softmax:
        return
    for place, owner, _ in owners:
        sampler = owner.get("sampler")
        if isinstance(sampler, Mapping) and _name(sampler) == "OHEMPixelSampler" and sampler.get("thresh") is not None:
            new = {**sampler, "type": "LinkOHEMPixelSampler"}
            new.pop("_scope_", None)
            changes.append(
                ConfigChange(f"{place}.sampler", dict(sampler), new, "its thresh is a probability by the loss's link")
            )
            owner["sampler"] = ConfigDict(new)
    tta = config.get("tta_model")
    if isinstance(tta, Mapping) and _name(tta) == "SegTTAModel":
        new = {**tta, "type": "LinkTTAModel"}
        new.pop("_scope_", None)
        changes.append(ConfigChange("tta_model", dict(tta), new, "it averages probabilities by the loss's link, not softmaxes"))
        config.tta_model = ConfigDict(new)


def _add_parts(config: Config, settings: _Settings, changes: list[ConfigChange]) -> None:
    """Add the imports and hooks that a boosted config needs."""
    imports = config.get("custom_imports") or {}
    names = imports.get("imports") or []
    names = [names] if isinstance(names, str) else list(names)
    if "gbseg.mm" not in names:
        new = {**imports, "imports": [*names, "gbseg.mm"]}
        reason = "so that MMSegmentation's own tools know the losses and hooks"
        changes.append(ConfigChange("custom_imports", dict(imports) or None, new, reason))
        config.custom_imports = ConfigDict(new)
    if settings.boost == "softmax":
        return
    wanted = {"NonFiniteGuardHook": "it stops at the first loss or gradient that is not finite, and says why"}
    is_classifier = config.get("default_scope") == "mmpretrain"
    if is_classifier and not settings.is_softmax:
        wanted["LinkScoresHook"] = "scores are probabilities by the loss's link, which is no softmax"
    old = list(config.get("custom_hooks") or [])
    present = {_name(hook) for hook in old if isinstance(hook, Mapping)}
    new_hooks = [*old, *(ConfigDict(type=name) for name in wanted if name not in present)]
    if len(new_hooks) > len(old):
        reason = "; ".join(reason for name, reason in wanted.items() if name not in present)
        changes.append(ConfigChange("custom_hooks", old or None, new_hooks, reason))
        config.custom_hooks = new_hooks


def write_config(result: BoostedConfig, source: str | Path, path: Path) -> None:
    """Write a short config that inherits from the original, and gives what `boosted` gave.

    Args:
        result: from `boosted`.
        source: the original, as `gbseg.mm.config.load_config` takes it.
        path: the file.

    Raises:
        FileExistsError: there is something.
        FileWriteError: the file cannot be written.
        ValueError: its name does not end in ``.py``.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists: name another file, or remove it.")
    if path.suffix != ".py":
        raise ValueError(f"{path} is to be a config: let its name end in .py.")
    base = str(source)
    if "::" not in base:
        base = os.path.relpath(base, path.parent or ".")
    original = load_config(source)
    delta = inherited_difference(original.to_dict(), result.config.to_dict())
    delta.pop("cfg_options", None)
    reasons = [
        fill(f"{change.key}: {change.reason}", 110, initial_indent="# ", subsequent_indent="#   ") for change in result.changes
    ]
    text = "\n".join([*reasons, f"_base_ = [{base!r}]", Config(delta).pretty_text])
    write_atomically(text.encode(), path)
