"""Checks whether a config's model, losses, learning rate and hooks fit each other."""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, LOOPS, METRICS, MODELS, OPTIM_WRAPPERS, TASK_UTILS, TRANSFORMS
from torch import nn

from gbseg._moved import MODULES as MOVED
from gbseg.boosting import CubicBoost, ExponentialBoost
from gbseg.doctor.finding import ERROR, NOTE, OK, WARNING, Finding
from gbseg.doctor.schedule_checks import check_optimizer
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


def check_model(config: Config) -> Iterator[Finding]:
    """Check that the model builds, and that losses, rate, auxiliary heads, hooks, imports and weights fit together."""
    model = config.get("model")
    if not model:
        yield Finding(ERROR, "model", "the config has no model.", "inherit one, e.g. _base_ = ['gbseg::_base_/pixelnet.py'].")
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
    yield from _check_auxiliary_losses(main_heads, auxiliary_heads)
    yield from _check_heads(model, heads)
    yield from _check_softmaxes(config, heads)
    yield from _check_nonfinite_guard(config, any(isinstance(loss, BoostedLoss) for loss in losses.values()))
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


def _check_rates(config: Config, losses: Mapping[str, nn.Module]) -> Iterator[Finding]:
    wrapper = config.get("optim_wrapper") or {}
    optimizer = wrapper.get("optimizer")
    if not optimizer:
        if config.get("train_cfg"):
            yield Finding(ERROR, "rate", "the config trains and has no optim_wrapper.optimizer.", "add one.")
        return
    rate = optimizer.get("lr")
    for name, loss in losses.items():
        boosted = loss if isinstance(loss, BoostedLoss) else None
        unbounded = boosted is not None and isinstance(boosted.boost, ExponentialBoost | CubicBoost)
        kind = type(loss).__name__
        if optimizer.get("type") != "SGD" or rate is None or (boosted is None and kind != "CrossEntropyLoss"):
            if unbounded:
                text = f"{name}: {optimizer.get('type')} scales its steps itself; the rate of a softmax suits {kind} too."
                yield Finding(OK, "rate", text)
            continue
        t_pos = abs(boosted.targets[1]) if boosted is not None else 1.0
        loss_weight = float(getattr(loss, "loss_weight", 1.0))
        lr_mult, momentum = _lr_mult(wrapper, name), optimizer.get("momentum", 0.0)
        r = rate * lr_mult * loss_weight * t_pos / (1 - momentum)
        factors = [f"rate {rate:g}"] + [f"lr_mult {lr_mult:g}"] * (lr_mult != 1) + [f"loss_weight {loss_weight:.4g}"]
        factors += [f"t_pos {t_pos:g}"] * (boosted is not None)
        formula = f"{' * '.join(factors)} / (1 - momentum {momentum:g}) = {r:.3g}"
        step = f"{name}: {kind} with a step of {formula}"
        clipped = bool(wrapper.get("clip_grad")) or (boosted is not None and boosted.max_delta is not None)
        limit = STABLE_CLIPPED if clipped or not unbounded else STABLE
        if r > limit and not unbounded:
            text = f"{step}; at 10 the softmax fell apart on the VOC subset."
            remedy = f"lower optim_wrapper.optimizer.lr, e.g. to {rate * 1.0 / r:.2g}."
        elif r > limit:
            measured = "without clipping it trained at 0.3 and diverged at 0.48"
            remedy = f"set loss_weight=1 / {t_pos:g} in the loss (rate, decay and clip norm then keep their meaning)"
            if r / t_pos > limit:
                remedy += f" and lower the rate to {0.3 / r * t_pos * rate:.2g}"
            if clipped:
                measured = "clipped, it was tried up to 4.8"
            else:
                remedy += f", or clip: optim_wrapper.clip_grad=dict(max_norm={5 * t_pos:g}) (5 times t_pos)"
                remedy += ", or bound it by max_delta"
            remedy += "; and start the output bias at init_bias='prior' where the head has it."
            strength = f"{kind} is {t_pos:g} times as strong, so the step is {formula}"
            text = f"{name}: a rate that is meant for a softmax? {strength}; {measured}."
        elif r < LOWEST:
            guess = ": a rate as it is given for exp-GB, whose loss is t_pos times as strong?"
            if boosted is not None:
                guess = ". Perhaps the rate was divided by t_pos and the loss was weighted by 1 / t_pos as well."
            text = f"{step}; the smallest that is known to learn is 0.005{guess}"
            remedy = f"raise optim_wrapper.optimizer.lr: {max(0.005, LOWEST) / r * rate:.2g} would be at that limit."
        else:
            yield Finding(OK, "rate", f"{step}, {'clipped' if clipped else 'not clipped'}.")
            continue
        yield Finding(WARNING, "rate", text, remedy)


def _check_auxiliary_losses(main: Mapping[str, Any], auxiliary: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether auxiliary heads have losses of the same family as the main head; all of them train the same backbone."""
    main_losses = [loss for name, head in main.items() for loss in _losses(name, head).values()]
    boosted = next((loss for loss in main_losses if isinstance(loss, BoostedLoss)), None)
    for name, head in auxiliary.items():
        differing = [loss for loss in _losses(name, head).values() if isinstance(loss, BoostedLoss) != (boosted is not None)]
        if not differing:
            continue
        kind = type(differing[0]).__name__
        if boosted is None:
            kinds = ", ".join(type(loss).__name__ for loss in main_losses) or "no known loss"
            text = f"{name} has {kind} while decode_head has {kinds}."
            yield Finding(WARNING, "auxiliary", text, "give both heads losses of one family.")
            continue
        configs = [config for head in main.values() for config in sub_configs(head, "loss_decode").values()]
        config = next(config for config in configs if _is_boosted(config))
        settings = {key: value for key, value in config.items() if key not in ("type", "loss_weight", "_delete_")}
        args = "".join(f", {key}={value!r}" for key, value in settings.items())
        weight = float(getattr(differing[0], "loss_weight", 1.0)) * boosted.loss_weight
        loss_decode = f"dict(_delete_=True, type='{config['type']}'{args}, loss_weight={weight:g})"
        text = f"{name} is left on {kind} while decode_head has {type(boosted).__name__}: both train the same backbone."
        yield Finding(WARNING, "auxiliary", text, f"convert it: {name}=dict(loss_decode={loss_decode}).")


def _is_boosted(config: Mapping[str, Any]) -> bool:
    kind = MODELS.get(config["type"]) if isinstance(config.get("type"), str) else config.get("type")
    return isinstance(kind, type) and issubclass(kind, BoostedLoss)


def _check_heads(model: Mapping[str, Any], heads: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Whether padding is ignored, and all heads have the same classes."""
    padding = (model.get("data_preprocessor") or {}).get("seg_pad_val", 255)
    for name, head in heads.items():
        ignore_index = head.get("ignore_index", 255)
        if padding != ignore_index:
            text = f"what a batch is padded with gets the label {padding} (data_preprocessor.seg_pad_val)"
            text += f", which {name} does not ignore (ignore_index={ignore_index})."
            yield Finding(ERROR, "labels", text, f"set model.data_preprocessor.seg_pad_val={ignore_index}.")
        if head.get("out_channels") == 1 and any(_is_boosted(loss) for loss in sub_configs(head, "loss_decode").values()):
            text = f"{name}.out_channels=1 is a sigmoid head, and a boosted loss takes an output for each class."
            yield Finding(ERROR, "loss", text, f"set {name}.out_channels={head.get('num_classes')} and threshold=None.")
    counts = {name: head.get("num_classes") for name, head in heads.items()}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield Finding(ERROR, "model", f"the heads have different num_classes: {text}.", "set the same in all of them.")


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
            remedy = "set sampler=dict(type='LinkOHEMPixelSampler', ...), with 'gbseg.mm' in custom_imports."
            yield Finding(WARNING, "softmax", text, remedy)
        if losses and head_name.startswith("decode_head") and tta in ("SegTTAModel", "mmseg.SegTTAModel"):
            text = f"tta_model is {tta}, which averages softmaxes, not the probabilities of {_kinds(losses)}"
            remedy = "gbseg replaces it; for other tools set tta_model=dict(type='LinkTTAModel')."
            yield Finding(NOTE, "softmax", f"{text}.", remedy)
        queries = _losses(head_name, head, "loss_cls")
        differing = {name: loss for name, loss in queries.items() if _link_differs(loss)}
        if str(head.get("type")).endswith("SideAdapterCLIPHead"):
            differing.update(losses)
        if differing:
            text = (
                f"{head_name}: {head.get('type')} predicts by a softmax over the classes of a query, which {_kinds(differing)}"
            )
            remedy = "take ExpGBLoss with targets=(0, t_pos) there, whose link is the softmax."
            yield Finding(WARNING, "softmax", f"{text} does not train.", remedy)
        for name, loss in queries.items():
            if isinstance(loss, BoostedLoss) and loss.class_weight is not None and loss.class_weight_mode == "outputs":
                text = (
                    f"{name}: {head.get('type')} divides by the weights of its labels, while class_weight multiplies outputs."
                )
                yield Finding(WARNING, "softmax", text, f"set class_weight_mode='labels' in {name}.")


def _kinds(losses: Mapping[str, nn.Module]) -> str:
    return ", ".join(dict.fromkeys(type(loss).__name__ for loss in losses.values()))


def _check_nonfinite_guard(config: Config, boosted: bool) -> Iterator[Finding]:
    hooks = [*(config.get("default_hooks") or {}).values(), *(config.get("custom_hooks") or [])]
    if any(hook and hook.get("type") == "NonFiniteGuardHook" for hook in hooks):
        yield Finding(OK, "guard", "NonFiniteGuardHook stops before a loss that is not finite reaches weights or checkpoint.")
    elif boosted:
        text = "boosted gradients are unbounded, and a run that diverges would write NaN into its checkpoints."
        remedy = "add custom_hooks = [dict(type='NonFiniteGuardHook')] and 'gbseg.mm' to custom_imports."
        yield Finding(WARNING, "guard", f"there is no NonFiniteGuardHook: {text}", remedy)


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
        remedy = f"custom_imports = dict(imports={sorted({*imports, *required})!r})"
        yield Finding(ERROR, "imports", f"{text}: custom_imports does not name {', '.join(required)}.", remedy)
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
