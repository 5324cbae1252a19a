"""Load a checkpoint's weights strictly: a tensor that is missing or of another shape would stay random, and be scored.

Fine-tuning (``load_from``) loads what fits, and says in a table what does not.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from os import PathLike
from typing import NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor, nn

from gbseg.data.lists import abbreviate
from gbseg.mm.compat import unwrap_model
from gbseg.mm.config_difference import boost_changes, config_changes, inner_model, plain_config, stored_config

__all__ = [
    "MismatchError",
    "keep_fitting",
    "load_weights",
    "mismatches",
    "require_some_weights",
    "require_weights",
    "warn_of_mismatches",
    "weights_table",
]


class MismatchError(ValueError):
    """A checkpoint is of another network or of another boost than the config."""


class _Fit(NamedTuple):
    """How a checkpoint's tensors fit a network, by name."""

    loaded: list[str]
    reshaped: dict[str, str]
    missing: list[str]
    unused: list[str]


def _weights(stored: Mapping) -> dict[str, Tensor]:
    return {str(name).removeprefix("module."): value for name, value in stored.get("state_dict", stored).items()}


def _fit(network: nn.Module, stored: Mapping) -> _Fit:
    weights = {name: value for name, value in _weights(stored).items() if isinstance(value, Tensor)}
    state = {name: value for name, value in unwrap_model(network).state_dict().items() if isinstance(value, Tensor)}
    loaded = [name for name in state if name in weights and weights[name].shape == state[name].shape]
    reshaped = {
        name: f"{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in state.items()
        if name in weights and weights[name].shape != value.shape
    }
    # a batch norm of PyTorch's first versions has no counter, and does not need it
    missing = [name for name in state if name not in weights and not name.endswith("num_batches_tracked")]
    return _Fit(loaded, reshaped, missing, [name for name in weights if name not in state])


def mismatches(
    network: nn.Module, stored: Mapping, config: Config | None = None, training: bool = False
) -> tuple[str | None, list[str]]:
    """What a checkpoint and a network, or their configs, have not in common.

    Args:
        network: may be wrapped for several processes or test-time augmentation.
        stored: the checkpoint's content.
        config: of the network; with it, also what its outputs mean is compared, if the checkpoint holds its config.
        training: additional tensors count anywhere, and so do auxiliary heads. Otherwise they count inside of parts that the
            network has: of a ResNet-101, a ResNet-50 would take the half.

    Returns:
        A clause on the tensors, None if they fit; and one for each head that has another boost.
    """
    fit, parts = _fit(network, stored), dict(unwrap_model(network).named_children())
    old, new = stored_config(stored), None if config is None else plain_config(config)
    boosts, changes = [], None
    if old is not None and new is not None:
        boosts = boost_changes(old, new, training)
        changes = config_changes(*({"model": inner_model(values)} for values in (old, new)))
        # the number of classes first: it is what most often differs
        changes.sort(key=lambda change: "num_classes" not in change.key)
    # where the config is the same, other tensors are those of another version of the libraries
    unused = [] if changes == [] else [name for name in fit.unused if training or name.partition(".")[0] in parts]
    clauses = []
    if problems := [*fit.reshaped.values(), *(f"{name} is missing" for name in fit.missing)]:
        total = len(fit.loaded) + len(problems)
        text = f"{len(problems)} of the network's {total} tensors are missing or of another shape"
        clauses.append(f"{text}: {abbreviate(problems, 3)}")
    if unused:
        clauses.append(f"{len(unused)} of the checkpoint's tensors are not in the network: {abbreviate(unused, 3)}")
    if clauses and changes:
        clauses.append(f"its own config differs in {abbreviate([str(change) for change in changes], 3)}")
    return "; ".join(clauses) or None, boosts


def require_weights(
    network: nn.Module, stored: Mapping, checkpoint: object, config: Config | None = None, training: bool = False
) -> None:
    """Refuse a checkpoint of another architecture, number of classes, or boost; the arguments are those of `mismatches`.

    Raises:
        MismatchError: it is one; the message names the first tensors, or the losses.
    """
    tensors, boosts = mismatches(network, stored, config, training)
    allow = "allow_mismatch=True (a key of the config, or --cfg-options allow_mismatch=True)"
    if tensors is not None:
        raise MismatchError(f"{checkpoint} does not belong to this config: {tensors}. {allow} takes what fits.")
    if boosts:
        raise MismatchError(
            f"{checkpoint} was trained with another boost: {'; '.join(boosts)}, so its outputs mean something else. Take the "
            f"loss that it was trained with; load_from=... fine-tunes it; {allow} goes on regardless."
        )


def warn_of_mismatches(
    network: nn.Module, stored: Mapping, checkpoint: object, config: Config | None = None, training: bool = False
) -> None:
    """Log as warnings what `require_weights` would refuse."""
    tensors, boosts = mismatches(network, stored, config, training)
    for text in [*([] if tensors is None else [tensors]), *boosts]:
        print_log(f"{checkpoint} does not belong to this config (allow_mismatch=True): {text}.", "current", logging.WARNING)


def keep_fitting(network: nn.Module, stored: Mapping) -> None:
    """Take out of a checkpoint, in place, what a network cannot load: tensors of other shapes, and those that it has not.

    Also out of the averaged weights of mmengine's ``EMAHook``, whose names begin with ``module.``.
    """
    fit = _fit(network, stored)
    unfit = {*fit.reshaped, *fit.unused}
    for weights in (stored.get("state_dict", stored), stored.get("ema_state_dict", {})):
        for name in [name for name in weights if str(name).removeprefix("module.") in unfit]:
            del weights[name]


def require_some_weights(network: nn.Module, stored: Mapping, checkpoint: str | PathLike) -> None:
    """Refuse a checkpoint of which nothing fits: with ``load_from``, mmengine would train random weights, with a warning.

    Args:
        network: may be wrapped for several processes or test-time augmentation. Of one with a ``backbone``, that counts.
        stored: the checkpoint's content.
        checkpoint: its path, for the message.

    Raises:
        ValueError: no tensor has the name and the shape of one of the network's, or what has its name is no tensor.
    """
    weights = _weights(stored)
    state = {name: value for name, value in unwrap_model(network).state_dict().items() if isinstance(value, Tensor)}
    for name in weights.keys() & state.keys():
        if not isinstance(weights[name], Tensor):
            raise ValueError(f"{checkpoint}: {name} is a {type(weights[name]).__name__}, and not a tensor.")
    # counters of batches have the same shape in every network
    names = [name for name in state if not name.endswith("num_batches_tracked")] or list(state)
    trunk = [name for name in names if name.startswith("backbone.")]
    if not {*(trunk or names)} & {*_fit(network, stored).loaded}:
        part, names = ("the network's backbone", trunk) if trunk else ("the network", names)
        raise ValueError(
            f"{checkpoint} has no weights of this network: none of its {len(weights)} entries ({abbreviate(list(weights), 3)}) "
            f"has the name and shape of one of the {len(names)} tensors of {part} ({abbreviate(names, 3)})."
        )


def weights_table(network: nn.Module, stored: Mapping) -> str:
    """What of a checkpoint a network has loaded: counts for each of its parts, and the first names of what was not."""
    fit = _fit(network, stored)
    left = [*fit.reshaped, *fit.missing]
    if not left and not fit.unused:
        return f"all {len(fit.loaded)} tensors of the network are loaded."
    kinds = {"loaded": fit.loaded, "left random": left, "unused": [*fit.unused, *fit.reshaped]}
    counts = {kind: Counter(name.partition(".")[0] for name in names) for kind, names in kinds.items()}
    parts = sorted({part for count in counts.values() for part in count})
    width = max(map(len, parts))
    lines = [f"  {'':{width}}  {'  '.join(kinds)}"]
    for part in parts:
        lines.append(f"  {part:{width}}  {'  '.join(f'{count[part]:{len(kind)}d}' for kind, count in counts.items())}")
    for kind, names in (("left random", [*fit.reshaped.values(), *fit.missing]), ("unused", fit.unused)):
        if names:
            lines.append(f"  {kind}: {abbreviate(names, 4)}")
    return "\n".join(["", *lines])


def load_weights(
    network: nn.Module,
    stored: Mapping,
    checkpoint: str | PathLike,
    config: Config | None = None,
    allow_mismatch: bool = False,
) -> None:
    """Load a checkpoint's weights into a network.

    Args:
        network: of the config.
        stored: the checkpoint's content.
        checkpoint: its path, for messages.
        config: with it, also the boost is compared.
        allow_mismatch: load what fits, if there is anything.

    Raises:
        MismatchError: as `require_weights` does; nothing is changed then.
        ValueError: with ``allow_mismatch``, as `require_some_weights` does.
    """
    if allow_mismatch:
        warn_of_mismatches(network, stored, checkpoint, config)
    else:
        require_weights(network, stored, checkpoint, config)
    require_some_weights(network, stored, checkpoint)
    reshaped = _fit(network, stored).reshaped
    fitting = {name: value for name, value in _weights(stored).items() if name not in reshaped}
    network.load_state_dict(fitting, strict=False)
