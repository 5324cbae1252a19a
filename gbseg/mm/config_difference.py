"""What has changed in a config since a checkpoint was written, which holds it as text. The text is parsed, and never run."""

import ast
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmengine.config import Config

from gbseg.losses import BoostedLoss, ExpGBLoss, LinearLoss, Pow3GBLoss
from gbseg.losses.links import SOFTMAX_LOSSES

__all__ = [
    "Change",
    "boost_changes",
    "config_changes",
    "inner_model",
    "parse_config",
    "plain_config",
    "plain_value",
    "stored_config",
]

ABSENT = "absent"
_TRAINING = ("model", "data_preprocessor", "optim_wrapper", "auto_scale_lr", "param_scheduler", "train_cfg", "train_dataloader")
# what of them changes no weight: validation, speed, and where the first weights came from
_INDIFFERENT = frozenset(
    {
        *("init_cfg", "pretrained", "test_cfg", "val_begin", "val_interval", "dynamic_intervals", "loss_name"),
        *("num_workers", "persistent_workers", "prefetch_factor", "pin_memory", "multiprocessing_context", "impl"),
    }
)
_BOOSTS = {kind.__name__: kind for kind in (BoostedLoss, ExpGBLoss, LinearLoss, Pow3GBLoss)}
# not max_delta: to bound the error of a run that diverges, and resume, is what the FAQ advises
_OF_A_BOOST = ("boost", "alpha", "beta", "targets")
_short = reprlib.Repr()
_short.maxdict, _short.maxlist, _short.maxstring, _short.maxlevel = 8, 12, 60, 4


class Change(NamedTuple):
    """A key with dots, and its value in the checkpoint's config and in that of the run."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        old, new = (value if value is ABSENT else _short.repr(value) for value in (self.old, self.new))
        return f"{self.key}: {old} -> {new}"


def stored_config(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config that a checkpoint holds as text, as `plain_config` gives it; None if there is none that can be parsed."""
    meta = checkpoint.get("meta")
    text = meta.get("cfg") if isinstance(meta, Mapping) and "state_dict" in checkpoint else None
    return parse_config(text) if isinstance(text, str) else None


def parse_config(text: str) -> dict[str, Any] | None:
    """The values of ``Config.pretty_text``: numbers, texts, lists (tuples too), dictionaries; anything else as its own text.

    Returns:
        None if it is no Python.
    """
    try:
        tree = ast.parse(text)
        assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
        return {target.id: _value(node.value) for node in assigned for target in node.targets if isinstance(target, ast.Name)}
    # the text is of anybody's file
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {str(_value(key)): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key is not None}
    is_dict = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("dict", "ConfigDict")
    if isinstance(node, ast.Call) and is_dict and not node.args:
        return {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    try:
        return ast.literal_eval(node)
    except ValueError:
        text = ast.unparse(node)
    # infinity and NaN have no literal
    return float(text) if text.lstrip("-") in ("inf", "nan") else text


def plain_config(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config in the same form as those of `parse_config`."""
    return {str(key): plain_value(value) for key, value in config.items()}


def plain_value(value: Any) -> Any:
    """A value in that form."""
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_value(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, type):
        return value.__name__ if value.__module__ == "builtins" else f"{value.__module__}.{value.__name__}"
    try:
        # as `Config.pretty_text` writes what it does not know, e.g. a number of numpy
        return _value(ast.parse(str(value), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return str(value)


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """What differs between two configs and matters in training: not folders, hooks, validation, or the number of workers.

    Args:
        old: from `stored_config`.
        new: from `plain_config`.
    """
    changes = [change for key in _TRAINING for change in _changes(key, old.get(key) or ABSENT, new.get(key) or ABSENT)]
    seeds = ((config.get("randomness") or {}).get("seed", ABSENT) for config in (old, new))
    deterministic = ((config.get("randomness") or {}).get("deterministic", False) for config in (old, new))
    averages = ([hook for hook in config.get("custom_hooks") or [] if "EMA" in str(hook)] for config in (old, new))
    return [
        *changes,
        *_changes("randomness.seed", *seeds),
        *_changes("randomness.deterministic", *deterministic),
        *_changes("custom_hooks (EMA)", *averages),
    ]


def _changes(key: str, old: Any, new: Any) -> Iterator[Change]:
    if key.rpartition(".")[2] in _INDIFFERENT:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for part in dict.fromkeys([*old, *new]):
            yield from _changes(f"{key}.{part}", old.get(part, ABSENT), new.get(part, ABSENT))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _changes(f"{key}[{index}]", *pair)
    elif key.endswith(".type") and str(old).rpartition(".")[2] == str(new).rpartition(".")[2]:
        # with the scope of its registry or module, or without
        return
    # NaN is what it was
    elif old != new and not (old != old and new != new):
        yield Change(key, old, new)


def boost_changes(old: Mapping[str, Any], new: Mapping[str, Any], auxiliary: bool) -> list[str]:
    """Where the outputs of a network mean something else than in the checkpoint: another boost, targets, or link.

    Args:
        old: from `stored_config`.
        new: from `plain_config`.
        auxiliary: look at auxiliary heads, which matter in training alone.

    Returns:
        A clause for each head; none where a loss is of other authors, since what its outputs mean is not known.
    """
    before, after = (_losses(inner_model(config), auxiliary) for config in (old, new))
    return [
        f"{key} was {before[key]} and is {after[key]} in the config"
        for key in before.keys() & after.keys()
        if before[key] != after[key] and before[key] and after[key]
    ]


def inner_model(config: Mapping[str, Any]) -> Any:
    """The model of a config, inside of one for test-time augmentation."""
    model = config.get("model")
    while isinstance(model, dict) and isinstance(model.get("module"), dict):
        model = model["module"]
    return model


def _losses(model: Any, auxiliary: bool) -> dict[str, str | None]:
    """What the outputs of each head mean, by the key of its loss."""
    losses: dict[str, str | None] = {}
    for name in ("decode_head", "head", *(["auxiliary_head"] if auxiliary else [])):
        found = model.get(name) if isinstance(model, dict) else None
        heads = {f"[{index}]": head for index, head in enumerate(found)} if isinstance(found, list) else {"": found}
        # of a cascade the last head predicts
        for index, head in (heads if auxiliary else dict([*heads.items()][-1:])).items():
            if isinstance(head, dict):
                key = "loss_decode" if "loss_decode" in head else "loss"
                default = {"type": "ExpGBLoss" if _name(head) == "PixelNetHead" else "CrossEntropyLoss"}
                losses[f"model.{name}{index}.{key}"] = _meaning(head.get(key) or default)
    return losses


def _name(settings: Any) -> str:
    return str(settings.get("type")).rpartition(".")[2] if isinstance(settings, dict) else ""


def _meaning(losses: Any) -> str | None:
    """What `gbseg.losses.links.probabilities_of_losses` would say; None for losses that are not known here."""
    losses = losses if isinstance(losses, list) else [losses]
    for loss in losses:
        if (kind := _BOOSTS.get(_name(loss))) is not None:
            settings = {key: value for key, value in loss.items() if key in _OF_A_BOOST}
            try:
                built = kind(**settings)
            # a checkpoint is of anybody; a boost of other authors may not be registered
            except Exception:
                return f"{_name(loss)}({', '.join(f'{key}={value!r}' for key, value in sorted(settings.items()))})"
            return f"{kind.__name__}({built.boost}, targets={built.targets})"
    names = [_name(loss) for loss in losses]
    if any(isinstance(loss, dict) and loss.get("use_sigmoid") for loss in losses) or "SigmoidBCELoss" in names:
        return "a sigmoid of each output"
    return "a softmax of the outputs" if {*names} & {*SOFTMAX_LOSSES, "SoftmaxLoss"} else None
