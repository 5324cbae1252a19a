"""A config's model, losses, rate and hooks: whether they fit each other."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, LOOPS, METRICS, MODELS, OPTIM_WRAPPERS, TRANSFORMS
from torch import nn

from gbseg.boosting import CubicBoost, ExponentialBoost
from gbseg.doctor.finding import ERROR, NOTE, OK, WARNING, Finding
from gbseg.losses.modules import BoostedLoss

__all__ = ["LOWEST", "STABLE", "STABLE_CLIPPED", "check_model", "types_in"]

# The strength of an SGD step, r = rate * loss_weight * t_pos / (1 - momentum), with t_pos = 1 for cross-entropy: exp-GB is
# cross-entropy, t_pos times as strong (gbseg/losses/modules.py). What has been measured on the VOC subset (results/subset,
# and 20 iterations of MMSegmentation's FCN-ResNet50 for exp-GB at r = 1.6):
#   not clipped: exp-GB trains at r = 0.16 and 0.3, diverges at 0.48 and 1.6; pow3-GB trains at 0.3
#   clipped:     exp-GB trains up to 4.8, pow3-GB up to 3; the softmax up to 3, at 10 it falls apart
# and the smallest r of any setting that is known to work is 0.005 (the paper's pow3-GB).
STABLE, STABLE_CLIPPED, LOWEST = 0.4, 5.0, 0.004
_SGD = ("SGD",)


def check_model(config: Config) -> Iterator[Finding]:
    """The model builds; losses, rate, auxiliary heads, hooks, imports and weights fit together."""
    model = config.get("model")
    if not model:
        yield Finding(ERROR, "model", "the config has no model.", "inherit one, e.g. _base_ = ['gbseg::_base_/pixelnet.py'].")
        return
    yield _builds(model)
    main, auxiliary = _heads(model, "decode_head"), _heads(model, "auxiliary_head")
    if not main:
        yield Finding(NOTE, "loss", "the model has no decode_head: its losses were not looked at.")
    losses = {f"{name}{label}": loss for name, head in {**main, **auxiliary}.items() for label, loss in _losses(head)}
    boosted = {name: loss for name, loss in losses.items() if isinstance(loss, BoostedLoss)}
    yield from _rates(config, losses)
    yield from _auxiliary(main, auxiliary)
    yield from _ignored(model, {**main, **auxiliary})
    yield from _guard(config, bool(boosted))
    yield from _imports(config)
    yield from _weights(config)


def _heads(model: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    heads = model.get(key)
    if not heads:
        return {}
    if isinstance(heads, Mapping):
        return {key: heads}
    return {f"{key}[{index}]": head for index, head in enumerate(heads)}


def _losses(head: Mapping[str, Any]) -> Iterator[tuple[str, nn.Module]]:
    """The losses of a head with what to put behind its name; those that cannot be built are `_builds`'s business."""
    configs = _configs(head)
    several = not isinstance(head.get("loss_decode"), Mapping)
    for index, one in enumerate(configs):
        try:
            with warnings.catch_warnings(action="ignore"):
                loss = MODELS.build(dict(one))
            yield f".loss_decode[{index}]" if several else ".loss_decode", loss
        except (KeyError, TypeError, ValueError):
            continue


def _builds(model: Mapping[str, Any]) -> Finding:
    with warnings.catch_warnings(action="ignore"):
        return _build(model)


def _build(model: Mapping[str, Any]) -> Finding:
    # a copy each time: MMSegmentation's segmentors write into the config that they are built of
    try:
        try:
            # without memory, and without the time that initialisation takes
            with torch.device("meta"):
                network = MODELS.build(copy.deepcopy(model))
        except (RuntimeError, NotImplementedError):
            # many backbones read values while they are built
            network = MODELS.build(copy.deepcopy(model))
    # the settings of anybody's model, refused in anybody's way
    except Exception as error:
        return Finding(ERROR, "model", f"it cannot be built: {error}", "correct the key that the message names.")
    size = sum(parameter.numel() for parameter in network.parameters())
    return Finding(OK, "model", f"{model.get('type', 'the model')} builds, {size / 1e6:,.1f} million parameters.")


def _multiplier(wrapper: Mapping[str, Any], head: str) -> float:
    """The factor of the rate that ``paramwise_cfg`` gives a head; mmengine takes the longest key that a name contains."""
    keys = (wrapper.get("paramwise_cfg") or {}).get("custom_keys") or {}
    name = f"{head.partition('[')[0]}.weight"
    for key in sorted(sorted(keys), key=len, reverse=True):
        if key in name:
            return keys[key].get("lr_mult", 1.0)
    return 1.0


def _rates(config: Config, losses: Mapping[str, nn.Module]) -> Iterator[Finding]:
    wrapper = config.get("optim_wrapper") or {}
    optimizer = wrapper.get("optimizer")
    if not optimizer:
        if config.get("train_cfg"):
            yield Finding(ERROR, "rate", "the config trains and has no optim_wrapper.optimizer.", "add one.")
        return
    kind, rate = optimizer.get("type"), optimizer.get("lr")
    for name, loss in losses.items():
        boosted = isinstance(loss, BoostedLoss)
        unbounded = boosted and isinstance(loss.boost, (ExponentialBoost, CubicBoost))
        if kind not in _SGD or rate is None or not (boosted or type(loss).__name__ == "CrossEntropyLoss"):
            if unbounded:
                yield Finding(
                    OK, "rate", f"{name}: {kind} scales its steps itself; the rate of a softmax suits {_kind(loss)} too."
                )
            continue
        strong = abs(loss.targets[1]) if boosted else 1.0
        factor, momentum = _multiplier(wrapper, name), optimizer.get("momentum", 0.0)
        r = rate * factor * float(loss.loss_weight) * strong / (1 - momentum)
        terms = [f"rate {rate:g}"] + [f"lr_mult {factor:g}"] * (factor != 1) + [f"loss_weight {float(loss.loss_weight):.4g}"]
        terms += [f"t_pos {strong:g}"] * boosted
        formula = f"{' * '.join(terms)} / (1 - momentum {momentum:g}) = {r:.3g}"
        clipped = bool(wrapper.get("clip_grad")) or (boosted and loss.max_delta is not None)
        limit = STABLE_CLIPPED if clipped or not unbounded else STABLE
        if r > limit:
            yield Finding(WARNING, "rate", *_too_high(name, loss, formula, r, limit, clipped, strong, rate, unbounded))
        elif r < LOWEST:
            yield Finding(
                WARNING,
                "rate",
                f"{name}: {_kind(loss)} with a step of {formula}; the smallest that is known to learn is 0.005"
                + (
                    ". Perhaps the rate was divided by t_pos and the loss was weighted by 1 / t_pos as well."
                    if boosted
                    else ": a rate as it is given for exp-GB, whose loss is t_pos times as strong?"
                ),
                f"raise optim_wrapper.optimizer.lr: {max(0.005, LOWEST) / r * rate:.2g} would be at that limit.",
            )
        else:
            clip = "clipped" if clipped else "not clipped"
            yield Finding(OK, "rate", f"{name}: {_kind(loss)} with a step of {formula}, {clip}.")


def _too_high(
    name: str, loss: nn.Module, formula: str, r: float, limit: float, clipped: bool, strong: float, rate: float, unbounded: bool
) -> tuple[str, str]:
    if not unbounded:
        return (
            f"{name}: {_kind(loss)} with a step of {formula}; at 10 the softmax fell apart on the VOC subset.",
            f"lower optim_wrapper.optimizer.lr, e.g. to {rate * 1.0 / r:.2g}.",
        )
    text = (
        f"{name}: a rate that is meant for a softmax? {_kind(loss)} is {strong:g} times as strong, so the step is {formula}; "
        + ("clipped, it was tried up to 4.8." if clipped else "without clipping it trained at 0.3 and diverged at 0.48.")
    )
    remedy = f"set loss_weight=1 / {strong:g} in the loss (rate, decay and clip norm then keep their meaning)"
    if r / strong > limit:
        remedy += f" and lower the rate to {0.3 / r * strong * rate:.2g}"
    if not clipped:
        remedy += f", or clip: optim_wrapper.clip_grad=dict(max_norm={5 * strong:g}) (5 times t_pos), or bound it by max_delta"
    return text, remedy + "; and start the output bias at init_bias='prior' where the head has it."


def _kind(loss: nn.Module) -> str:
    return type(loss).__name__


def _auxiliary(main: Mapping[str, Any], auxiliary: Mapping[str, Any]) -> Iterator[Finding]:
    mains = [loss for head in main.values() for _, loss in _losses(head)]
    boosted = next((loss for loss in mains if isinstance(loss, BoostedLoss)), None)
    config = next((one for head in main.values() for one in _configs(head) if _is_boosted(one)), None)
    for name, head in auxiliary.items():
        kinds = [loss for _, loss in _losses(head)]
        left = [loss for loss in kinds if isinstance(loss, BoostedLoss) != (boosted is not None)]
        if not left:
            continue
        if boosted is not None:
            weight = float(getattr(left[0], "loss_weight", 1.0))
            settings = {key: value for key, value in config.items() if key not in ("type", "loss_weight", "_delete_")}
            args = "".join(f", {key}={value!r}" for key, value in settings.items())
            yield Finding(
                WARNING,
                "auxiliary",
                f"{name} is left on {_kind(left[0])} while decode_head has {_kind(boosted)}: both train the same backbone.",
                f"convert it: {name}=dict(loss_decode=dict(_delete_=True, type='{config['type']}'{args}, "
                f"loss_weight={weight * boosted.loss_weight:g})).",
            )
        else:
            yield Finding(
                WARNING,
                "auxiliary",
                f"{name} has {_kind(left[0])} while decode_head has {', '.join(map(_kind, mains)) or 'no known loss'}.",
                "give both heads losses of one family.",
            )


def _configs(head: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    configs = head.get("loss_decode") or []
    return [configs] if isinstance(configs, Mapping) else configs


def _is_boosted(config: Mapping[str, Any]) -> bool:
    kind = MODELS.get(config["type"]) if isinstance(config.get("type"), str) else config.get("type")
    return isinstance(kind, type) and issubclass(kind, BoostedLoss)


def _ignored(model: Mapping[str, Any], heads: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    padding = (model.get("data_preprocessor") or {}).get("seg_pad_val", 255)
    for name, head in heads.items():
        ignored = head.get("ignore_index", 255)
        if padding != ignored:
            yield Finding(
                ERROR,
                "labels",
                f"what a batch is padded with gets the label {padding} (data_preprocessor.seg_pad_val), which {name} does not "
                f"ignore (ignore_index={ignored}).",
                f"set model.data_preprocessor.seg_pad_val={ignored}.",
            )
    counts = {name: head.get("num_classes") for name, head in heads.items()}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield Finding(ERROR, "model", f"the heads have different num_classes: {text}.", "set the same in all of them.")


def _guard(config: Config, boosted: bool) -> Iterator[Finding]:
    hooks = [*(config.get("default_hooks") or {}).values(), *(config.get("custom_hooks") or [])]
    if any(hook and hook.get("type") == "NonFiniteGuardHook" for hook in hooks):
        yield Finding(OK, "guard", "NonFiniteGuardHook stops before a loss that is not finite reaches weights or checkpoint.")
    elif boosted:
        yield Finding(
            WARNING,
            "guard",
            "there is no NonFiniteGuardHook: boosted gradients are unbounded, and a run that diverges would write NaN into its "
            "checkpoints.",
            "add custom_hooks = [dict(type='NonFiniteGuardHook')] and 'gbseg.mm' to custom_imports.",
        )


def _imports(config: Config) -> Iterator[Finding]:
    """Whether ``custom_imports`` brings every part of gbseg that the config names, for whoever runs it by mmseg's own tools."""
    imports = [name for name in (config.get("custom_imports") or {}).get("imports", []) if name.split(".")[0] == "gbseg"]
    registries = (DATA_SAMPLERS, DATASETS, HOOKS, LOOPS, METRICS, MODELS, OPTIM_WRAPPERS, TRANSFORMS)
    ours = {
        name: kind.__module__
        for registry in registries
        for name, kind in registry.module_dict.items()
        if kind.__module__.split(".")[0] == "gbseg"
    }
    # importing a part imports gbseg
    available = [import_module(name) for name in ([*imports, "gbseg"] if imports else [])]
    named = sorted(types_in(config.to_dict()) & set(ours))
    absent = [n for n in named if not any(ours[n] == module.__name__ or hasattr(module, n) for module in available)]
    if absent:
        wanted = sorted({"gbseg" if ours[name].startswith("gbseg.losses") else ours[name] for name in absent})
        yield Finding(
            ERROR,
            "imports",
            f"{', '.join(absent)} would be unknown to MMSegmentation's own tools: custom_imports does not name "
            f"{', '.join(wanted)}.",
            f"custom_imports = dict(imports={sorted({*imports, *wanted})!r})",
        )
    elif named:
        yield Finding(OK, "imports", f"custom_imports brings all {len(named)} parts of gbseg that the config names.")


def types_in(node: Any) -> set[str]:
    """Every ``type`` that a part of a config names, at any depth."""
    if isinstance(node, Mapping):
        own = {node["type"]} if isinstance(node.get("type"), str) else set()
        return own.union(*(types_in(child) for child in node.values()))
    return set().union(*map(types_in, node)) if isinstance(node, (list, tuple)) else set()


def _weights(config: Config) -> Iterator[Finding]:
    sources = {"load_from": config.get("load_from"), "model.pretrained": config.model.get("pretrained")}
    for name in ("backbone", "decode_head", "auxiliary_head"):
        part = config.model.get(name)
        if isinstance(part, Mapping):
            start = part.get("init_cfg")
            sources[f"model.{name}.weights"] = part.get("weights")
            sources[f"model.{name}.init_cfg"] = start.get("checkpoint") if isinstance(start, Mapping) else None
    for name, source in sources.items():
        if not isinstance(source, str):
            continue
        if "://" in source or source == "torchvision":
            yield Finding(NOTE, "weights", f"{name}={source!r} is fetched when training starts, unless it was before.")
        elif Path(source).is_file():
            yield Finding(OK, "weights", f"{name}: {source} is there.")
        else:
            yield Finding(
                ERROR, "weights", f"{name}: there is no file {Path(source).resolve()}.", f"put it there, or change {name}."
            )
