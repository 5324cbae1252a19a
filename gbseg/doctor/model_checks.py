"""Checks whether a config's model, losses, learning rate and hooks fit each other."""

import contextlib
import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, LOOPS, METRICS, MODELS, OPTIM_WRAPPERS, TASK_UTILS, TRANSFORMS
from torch import nn

from gbseg._moved import MODULES as MOVED
from gbseg.boosting import CubicBoost, ExponentialBoost
from gbseg.doctor.finding import ERROR, NOTE, OK, WARNING, Finding
from gbseg.doctor.remedy import base_name, config_lines, head_keys, import_gbseg, remedied
from gbseg.doctor.schedule_checks import check_optimizer
from gbseg.losses import OhemLoss
from gbseg.losses.modules import BoostedLoss
from gbseg.mm.component_errors import build_error

__all__ = ["LOWEST", "STABLE", "STABLE_CLIPPED", "check_model", "sub_configs", "types_in"]

# The strength of an SGD step is r = rate * loss_weight * t_pos / (1 - momentum), with t_pos = 1 for cross-entropy: exp-GB is
# cross-entropy, t_pos times as strong (gbseg/losses/modules.py). What has been measured on the VOC subset (results/subset,
# and 20 iterations of MMSegmentation's FCN-ResNet50 for exp-GB at r = 1.6):
#   not clipped: exp-GB trains at r = 0.16 and 0.3, diverges at 0.48 and 1.6; pow3-GB trains at 0.3
#   clipped:     exp-GB trains up to 4.8, pow3-GB up to 3; the softmax up to 3, at 10 it falls apart
# and the smallest r of any setting that is known to work is 0.005 (the paper's pow3-GB).
STABLE, STABLE_CLIPPED, LOWEST = 0.4, 5.0, 0.004
# what a loss may keep when it becomes another
_OPTIONS = ("class_weight", "class_weight_mode", "reduction", "ignore_index", "loss_name", "label_smoothing")
_CROSS_ENTROPIES = ("CrossEntropyLoss", "OhemCrossEntropy", "LabelSmoothLoss", "SoftmaxLoss")


def check_model(config: Config) -> Iterator[Finding]:
    """Check that the model builds, and that losses, rate, auxiliary heads, hooks, imports and weights fit together."""
    model = config.get("model")
    if not model:
        bases = f"_base_ = [{base_name(config)!r}, 'gbseg::_base_/pixelnet.py']" if config.filename else "_base_ = [...]"
        yield Finding(ERROR, "model", "the config has no model.", f"inherit one, e.g. PixelNet:\n{bases}")
        return
    network, finding = _build(config)
    yield finding
    if network is not None:
        yield from check_optimizer(config, network)
    main_heads, auxiliary_heads = sub_configs(model, "decode_head"), sub_configs(model, "auxiliary_head")
    if not main_heads:
        yield Finding(NOTE, "loss", "the model has no decode_head: its losses were not looked at.")
    heads = {**main_heads, **auxiliary_heads}
    losses = {name: loss for head_name, head in heads.items() for name, loss in _losses(head_name, head).items()}
    yield from _check_rates(config, losses)
    yield from _check_auxiliary_losses(config, main_heads, auxiliary_heads)
    yield from _check_heads(config, heads)
    yield from _check_softmaxes(config, heads)
    yield from _check_nonfinite_guard(config, any(_boosted(loss) is not None for loss in losses.values()))
    yield from _check_imports(config)
    yield from _check_weights(config)


def sub_configs(config: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    """The settings under a key that holds those of one head or loss, or a list of them, by their key in the config."""
    parts = config.get(key) or []
    if isinstance(parts, Mapping):
        return {key: parts}
    return {f"{key}[{index}]": part for index, part in enumerate(parts)}


def _losses(head_name: str, head: Mapping[str, Any], key: str = "loss_decode") -> dict[str, nn.Module]:
    """The losses of a head by their key in the config; `_build` reports those that cannot be built."""
    losses = {}
    for name, config in sub_configs(head, key).items():
        with warnings.catch_warnings(action="ignore"), contextlib.suppress(KeyError, TypeError, ValueError):
            losses[f"{head_name}.{name}"] = MODELS.build(dict(config))
    return losses


def _build(config: Config) -> tuple[nn.Module | None, Finding]:
    # a copy each time: MMSegmentation's segmentors write into the config that they are built from
    model = config.model
    with warnings.catch_warnings(action="ignore"):
        try:
            try:
                # needs no memory, and no time for the initialisation
                with torch.device("meta"):
                    network = MODELS.build(copy.deepcopy(model))
            except (RuntimeError, NotImplementedError):
                # many backbones read values while they are built
                network = MODELS.build(copy.deepcopy(model))
        # any exception: a user's model may refuse its settings with any of them
        except Exception as error:
            text = f"it cannot be built: {build_error(error, config, 'model')}"
            return None, Finding(ERROR, "model", text, "correct the key that the message names.")
    size = sum(parameter.numel() for parameter in network.parameters())
    return network, Finding(OK, "model", f"{model.get('type', 'the model')} builds, {size / 1e6:,.1f} million parameters.")


def _lr_mult(wrapper: Mapping[str, Any], head: str) -> float:
    """The factor of the rate that ``paramwise_cfg`` gives a head; mmengine takes the longest key that a name contains."""
    keys = (wrapper.get("paramwise_cfg") or {}).get("custom_keys") or {}
    name = f"{head.partition('[')[0]}.weight"
    matches = [keys[key].get("lr_mult", 1.0) for key in sorted(sorted(keys), key=len, reverse=True) if key in name]
    return matches[0] if matches else 1.0


class _Step(NamedTuple):
    """The strength of the SGD step that a loss makes.

    Attributes:
        r: ``rate * lr_mult * loss_weight * t_pos / (1 - momentum)``.
        limit: the largest that is known to train.
        unbounded: whether it is a boosted loss whose gradient has no bound by itself.
        clipped: whether the gradient is clipped, or the error is bounded.
        weight: the factor of the loss.
        boosted_weight: the factor with which it is as strong as a cross-entropy, where it is stronger; else ``weight``.
        formula: how ``r`` comes about.
    """

    r: float
    limit: float
    unbounded: bool
    clipped: bool
    weight: float
    boosted_weight: float
    formula: str


def _strength(loss: BoostedLoss) -> float:
    """How many times as strong as a cross-entropy a boosted loss is, as ``gbseg boost`` has it."""
    t_neg, t_pos = loss.targets
    return t_pos - t_neg


def _step(wrapper: Mapping[str, Any], name: str, loss: nn.Module) -> _Step | None:
    """The step of a loss; None where the optimizer scales it itself, or the loss is another."""
    optimizer = wrapper.get("optimizer") or {}
    rate = optimizer.get("lr")
    boosted = _boosted(loss)
    if optimizer.get("type") != "SGD" or rate is None or (boosted is None and type(loss).__name__ != "CrossEntropyLoss"):
        return None
    unbounded = boosted is not None and isinstance(boosted.boost, ExponentialBoost | CubicBoost)
    t_pos = abs(boosted.targets[1]) if boosted is not None else 1.0
    weight = float(getattr(boosted or loss, "loss_weight", 1.0))
    lr_mult, momentum = _lr_mult(wrapper, name), optimizer.get("momentum", 0.0)
    r = rate * lr_mult * weight * t_pos / (1 - momentum)
    factors = [f"rate {rate:g}"] + [f"lr_mult {lr_mult:g}"] * (lr_mult != 1) + [f"loss_weight {weight:.4g}"]
    factors += [f"t_pos {t_pos:g}"] * (boosted is not None)
    formula = f"{' * '.join(factors)} / (1 - momentum {momentum:g}) = {r:.3g}"
    clipped = bool(wrapper.get("clip_grad")) or (boosted is not None and boosted.max_delta is not None)
    limit = STABLE_CLIPPED if clipped or not unbounded else STABLE
    boosted_weight = weight
    if boosted is not None and unbounded and r > limit and weight * _strength(boosted) > 1.001 and _strength(boosted) > 1:
        boosted_weight = float(f"{weight / _strength(boosted):.6g}")
    return _Step(r, limit, unbounded, clipped, weight, boosted_weight, formula)


def _check_rates(config: Config, losses: Mapping[str, nn.Module]) -> Iterator[Finding]:
    wrapper = config.get("optim_wrapper") or {}
    optimizer = wrapper.get("optimizer")
    if not optimizer:
        if config.get("train_cfg"):
            text = "the config trains and has no optim_wrapper.optimizer."
            change = ("optim_wrapper", dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=0.0001, weight_decay=0.01)))
            yield remedied(config, ERROR, "rate", text, "add one, e.g.", change)
        return
    steps = {name: _step(wrapper, name, loss) for name, loss in losses.items()}
    # one rate for all losses: after their weights are changed, what is too strong comes down, else what is too weak goes up
    factors = []
    for step in steps.values():
        if step is not None and step.r > 0:
            r = step.r * step.boosted_weight / step.weight
            wanted = (0.3 if step.unbounded else 1.0) if r > step.limit else max(0.005, LOWEST) if r < LOWEST else r
            factors.append(wanted / r)
    factor = min(factors, default=1.0)
    factor = factor if factor < 1 else max(factors, default=1.0)
    lower = ("optim_wrapper.optimizer.lr", float(f"{factor * (optimizer.get('lr') or 0):.2g}"))
    for name, loss in losses.items():
        step, boosted = steps[name], _boosted(loss)
        kind = type(boosted or loss).__name__
        if step is None:
            if boosted is not None and isinstance(boosted.boost, ExponentialBoost | CubicBoost):
                text = f"{name}: {optimizer.get('type')} scales its steps itself; the rate of a softmax suits {kind} too."
                yield Finding(OK, "rate", text)
            continue
        said = f"{name}: {kind} with a step of {step.formula}"
        if step.r > step.limit and not step.unbounded:
            text = f"{said}; at 10 the softmax fell apart on the VOC subset."
            yield remedied(config, WARNING, "rate", text, "lower the rate", lower)
        elif step.r > step.limit and boosted is not None:
            t_pos = abs(boosted.targets[1])
            measured = (
                "clipped, it was tried up to 4.8" if step.clipped else "without clipping it trained at 0.3 and diverged at 0.48"
            )
            strength = f"{kind} is {t_pos:g} times as strong, so the step is {step.formula}"
            text = f"{name}: a rate that is meant for a softmax? {strength}; {measured}."
            changes, advice = [], "lower the rate"
            if step.boosted_weight != step.weight:
                changes = [(f"model.{_of_boosted(name, loss)}.loss_weight", step.boosted_weight)]
                advice = f"divide the loss by {_strength(boosted):g} (rate, decay and clip norm then keep their meaning)"
            if not changes or factor < 1:
                changes.append(lower)
                advice += " and lower the rate" if len(changes) > 1 else ""
            finding = remedied(config, WARNING, "rate", text, advice, *changes)
            if not step.clipped and step.r <= STABLE_CLIPPED:
                clip = config_lines(config, [("optim_wrapper.clip_grad", dict(max_norm=5 * t_pos))])
                finding = finding._replace(remedy=f"{finding.remedy}\nor clip the gradient (at 5 times t_pos):\n{clip}")
            yield finding
        elif step.r < LOWEST:
            guess = ": a rate as it is given for exp-GB, whose loss is t_pos times as strong?"
            if boosted is not None:
                guess = ". Perhaps the rate was divided by t_pos and the loss was weighted by 1 / t_pos as well."
            text = f"{said}; the smallest that is known to learn is 0.005{guess}"
            yield remedied(config, WARNING, "rate", text, "raise the rate, to that limit at least", lower)
        else:
            yield Finding(OK, "rate", f"{said}, {'clipped' if step.clipped else 'not clipped'}.")


def _boosted(loss: nn.Module) -> BoostedLoss | None:
    """The boosted loss that a loss is, or whose hard pixels it takes."""
    loss = loss.loss if isinstance(loss, OhemLoss) else loss
    return loss if isinstance(loss, BoostedLoss) else None


def _of_boosted(name: str, loss: nn.Module) -> str:
    return f"{name}.loss" if isinstance(loss, OhemLoss) else name


def _check_auxiliary_losses(config: Config, main: Mapping[str, Any], auxiliary: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether auxiliary heads have losses of the same family as the main head; all of them train the same backbone."""
    settings = {f"{name}.{key}": loss for name, head in main.items() for key, loss in sub_configs(head, "loss_decode").items()}
    main_losses = {key: loss for name, head in main.items() for key, loss in _losses(name, head).items()}
    boosted = {key: loss for key, loss in main_losses.items() if _boosted(loss) is not None}
    for name, head in auxiliary.items():
        losses = _losses(name, head)
        differing = {key: loss for key, loss in losses.items() if (_boosted(loss) is None) == bool(boosted)}
        if boosted and len(differing) < len(losses):
            # beside a boosted loss, what is no choice between classes may stay
            differing = {key: loss for key, loss in differing.items() if type(loss).__name__ in _CROSS_ENTROPIES}
        if not differing:
            continue
        kind = type(next(iter(differing.values()))).__name__
        chosen: dict[str, Any] = {"type": "CrossEntropyLoss"}
        factor = 1.0
        if boosted:
            key, loss = next(iter(boosted.items()))
            text = f"{name} is left on {kind} while decode_head has {type(loss).__name__}: both train the same backbone."
            chosen = dict(settings[key]["loss"] if isinstance(loss, OhemLoss) else settings[key])
            # with the weight that the decode head has when its own remedy is followed
            step = _step(config.get("optim_wrapper") or {}, key, loss)
            factor = step.boosted_weight if step is not None else float(getattr(_boosted(loss), "loss_weight", 1.0))
        else:
            kinds = ", ".join(type(loss).__name__ for loss in main_losses.values()) or "no known loss"
            text = f"{name} has {kind} while decode_head has {kinds}."
            chosen = next((dict(settings[key]) for key in main_losses), chosen)
        changes = []
        for key, old in differing.items():
            old_boosted = _boosted(old)
            weight = getattr(old_boosted or old, "loss_weight", 1.0) * (1.0 if old_boosted is None else _strength(old_boosted))
            changes.append((f"model.{key}", {**chosen, "loss_weight": float(f"{weight * factor:.6g}")}))
        advice = "give it the decode head's loss, with the weight that it has (gbseg boost converts all heads at once)"
        yield remedied(config, WARNING, "auxiliary", text, advice, *changes)


def _is_boosted(config: Mapping[str, Any]) -> bool:
    kind = MODELS.get(config["type"]) if isinstance(config.get("type"), str) else config.get("type")
    return isinstance(kind, type) and issubclass(kind, BoostedLoss)


def _check_heads(config: Config, heads: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Whether padding is ignored, and all heads have the same classes."""
    preprocessor = config.model.get("data_preprocessor") or {}
    padding = preprocessor.get("seg_pad_val", 255)
    main = next(iter(heads.values()), {})
    # without a preprocessor there is nothing to set but the heads
    wanted = main.get("ignore_index", 255) if preprocessor else padding
    for name, head in heads.items():
        ignore_index = head.get("ignore_index", 255)
        if padding != ignore_index:
            text = f"what a batch is padded with gets the label {padding} (data_preprocessor.seg_pad_val)"
            text += f", which {name} does not ignore (ignore_index={ignore_index})."
            changes: list[tuple[str, Any]] = [("model.data_preprocessor.seg_pad_val", wanted)] if preprocessor else []
            changes += [(f"{key}.ignore_index", wanted) for key in head_keys(config)]
            yield remedied(config, ERROR, "labels", text, "ignore the same label everywhere", *changes)
        if head.get("out_channels") == 1 and any(_is_boosted(loss) for loss in sub_configs(head, "loss_decode").values()):
            text = f"{name}.out_channels=1 is a sigmoid head, and a boosted loss takes an output for each class."
            key, count = f"model.{name}", head.get("num_classes")
            changes = [(f"{key}.out_channels", count), (f"{key}.threshold", None)]
            yield remedied(config, ERROR, "loss", text, "give it an output for each class", *changes)
    counts = {name: head.get("num_classes") for name, head in heads.items()}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name} {count}" for name, count in counts.items())
        count = next(
            (head.get("num_classes") for name, head in reversed(list(heads.items())) if name.startswith("decode_head")), None
        )
        changes = [(f"{key}.num_classes", count) for key in head_keys(config)]
        text = f"the heads have different num_classes: {text}."
        yield remedied(config, ERROR, "model", text, "set the same in all of them, e.g. that of decode_head", *changes)


def _link_differs(loss: nn.Module) -> bool:
    """Whether the loss turns logits into probabilities, and not by a softmax."""
    logits = torch.linspace(-2.0, 3.0, 6).unsqueeze(0)
    link = getattr(loss, "probabilities", None)
    return link is not None and not torch.allclose(link(logits), torch.softmax(logits, 1))


def _check_softmaxes(config: Config, heads: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Places where MMSegmentation takes a softmax of the logits, for losses whose link is another."""
    tta = (config.get("tta_model") or {}).get("type")
    for head_name, head in heads.items():
        losses = {name: loss for name, loss in _losses(head_name, head).items() if _link_differs(loss)}
        sampler = head.get("sampler") or {}
        thresh = sampler.get("thresh") if sampler.get("type") in ("OHEMPixelSampler", "mmseg.OHEMPixelSampler") else None
        if losses and thresh is not None:
            text = f"{head_name}.sampler compares thresh={thresh:g} with a softmax, no probability after {_kinds(losses)}."
            chosen = {**sampler, "type": "LinkOHEMPixelSampler"}
            changes = [(f"model.{head_name}.sampler", chosen), *import_gbseg(config)]
            yield remedied(config, WARNING, "softmax", text, "take the sampler that asks the loss", *changes)
        if losses and head_name.startswith("decode_head") and tta in ("SegTTAModel", "mmseg.SegTTAModel"):
            text = f"tta_model is {tta}, which averages softmaxes, not the probabilities of {_kinds(losses)}"
            changes = [("tta_model.type", "LinkTTAModel"), *import_gbseg(config)]
            yield remedied(config, NOTE, "softmax", f"{text}.", "gbseg's commands replace it; for other tools", *changes)
        queries = _losses(head_name, head, "loss_cls")
        differing = {name: loss for name, loss in queries.items() if _link_differs(loss)}
        if str(head.get("type")).endswith("SideAdapterCLIPHead"):
            differing.update(losses)
        if differing:
            text = (
                f"{head_name}: {head.get('type')} predicts by a softmax over the classes of a query, which {_kinds(differing)}"
            )
            changes = []
            for name, loss in differing.items():
                old: Any = config.model
                for part in re.findall(r"[^.\[\]]+", name):
                    old = old[int(part) if isinstance(old, list) else part]
                weight = old.get("loss_weight", 1.0) * (_strength(loss) if isinstance(loss, BoostedLoss) else 1.0)
                kept = {key: old[key] for key in _OPTIONS if key in old}
                new = dict(type="ExpGBLoss", targets=(0, 16), loss_weight=float(f"{weight / 16:.6g}"), **kept)
                changes.append((f"model.{name}", new))
            yield remedied(config, WARNING, "softmax", f"{text} does not train.", "take exp-GB, whose link it is", *changes)
        for name, loss in queries.items():
            if isinstance(loss, BoostedLoss) and loss.class_weight is not None and loss.class_weight_mode == "outputs":
                text = (
                    f"{name}: {head.get('type')} divides by the weights of its labels, while class_weight multiplies outputs."
                )
                change = (f"model.{name}.class_weight_mode", "labels")
                yield remedied(config, WARNING, "softmax", text, "weight the labels", change)


def _kinds(losses: Mapping[str, nn.Module]) -> str:
    return ", ".join(dict.fromkeys(type(loss).__name__ for loss in losses.values()))


def _check_nonfinite_guard(config: Config, boosted: bool) -> Iterator[Finding]:
    hooks = [*(config.get("default_hooks") or {}).values(), *(config.get("custom_hooks") or [])]
    if any(hook and hook.get("type") == "NonFiniteGuardHook" for hook in hooks):
        yield Finding(OK, "guard", "NonFiniteGuardHook stops before a loss that is not finite reaches weights or checkpoint.")
    elif boosted:
        text = "boosted gradients are unbounded, and a run that diverges would write NaN into its checkpoints."
        custom = [*(config.get("custom_hooks") or []), dict(type="NonFiniteGuardHook")]
        changes = [("custom_hooks", custom), *import_gbseg(config)]
        yield remedied(config, WARNING, "guard", f"there is no NonFiniteGuardHook: {text}", "add it", *changes)


def _check_imports(config: Config) -> Iterator[Finding]:
    """Whether ``custom_imports`` registers every part of gbseg that the config names, for mmseg's own tools."""
    imports = [name for name in (config.get("custom_imports") or {}).get("imports", []) if name.split(".")[0] == "gbseg"]
    registries = (DATA_SAMPLERS, DATASETS, HOOKS, LOOPS, METRICS, MODELS, OPTIM_WRAPPERS, TASK_UTILS, TRANSFORMS)
    entries = chain.from_iterable(registry.module_dict.items() for registry in registries)
    module_of = {name: kind.__module__ for name, kind in entries if kind.__module__.split(".")[0] == "gbseg"}
    # importing any part imports gbseg as well
    imported = [import_module(name) for name in ([*imports, "gbseg"] if imports else [])]
    # gbseg.mm registers everything, under its old names as well
    registers_all = any(f"{MOVED.get(name, name)}.".startswith("gbseg.mm.") for name in imports)
    named = sorted(types_in(config.to_dict()) & set(module_of))

    def registered(name: str) -> bool:
        return registers_all or any(module_of[name] == module.__name__ or hasattr(module, name) for module in imported)

    missing = [name for name in named if not registered(name)]
    if missing:
        required = sorted({"gbseg" if module_of[n].startswith("gbseg.losses") else module_of[n] for n in missing})
        text = f"{', '.join(missing)} would be unknown to MMSegmentation's own tools"
        text = f"{text}: custom_imports does not name {', '.join(required)}."
        yield remedied(config, ERROR, "imports", text, "import all of gbseg's parts", *import_gbseg(config))
    elif named:
        yield Finding(OK, "imports", f"custom_imports brings all {len(named)} parts of gbseg that the config names.")


def types_in(node: Any) -> set[str]:
    """Every ``type`` that a part of a config names, at any depth."""
    if isinstance(node, Mapping):
        types = {node["type"]} if isinstance(node.get("type"), str) else set()
        return types.union(*map(types_in, node.values()))
    return set().union(*map(types_in, node)) if isinstance(node, list | tuple) else set()


def _check_weights(config: Config) -> Iterator[Finding]:
    """Whether the files of pretrained weights exist."""
    sources = {"load_from": config.get("load_from"), "model.pretrained": config.model.get("pretrained")}
    for name in ("backbone", "decode_head", "auxiliary_head"):
        part = config.model.get(name)
        if isinstance(part, Mapping):
            init_cfg = part.get("init_cfg")
            sources[f"model.{name}.weights"] = part.get("weights")
            sources[f"model.{name}.init_cfg"] = init_cfg.get("checkpoint") if isinstance(init_cfg, Mapping) else None
    for name, source in sources.items():
        if not isinstance(source, str):
            continue
        if "://" in source or source == "torchvision":
            yield Finding(NOTE, "weights", f"{name}={source!r} is fetched when training starts, unless it was before.")
        elif Path(source).is_file():
            yield Finding(OK, "weights", f"{name}: {source} is there.")
        else:
            text = f"{name}: there is no file {Path(source).resolve()}."
            yield Finding(ERROR, "weights", text, f"put it there, or change {name}.")
