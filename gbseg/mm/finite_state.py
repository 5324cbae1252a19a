"""What of a training's state is not finite: parameters, buffers, averaged weights, numbers of the optimizer and schedules."""

import math
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from gbseg.mm.compat import unwrap_model

__all__ = ["except_from_checks", "nonfinite_at_start", "nonfinite_entries", "nonfinite_state", "training_state"]

_at_start: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()
"""For each model in training, what was not finite when its training began: see `except_from_checks`."""


def training_state(runner: Runner) -> dict[str, Any]:
    """Everything of a runner whose numbers a checkpoint holds, by what it is: logged values are left out."""
    model = unwrap_model(runner.model)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    weights = model.state_dict()
    state: dict[str, Any] = {
        "parameters": {name: value for name, value in weights.items() if name in parameters},
        "buffers": {name: value for name, value in weights.items() if name not in parameters},
        "optimizer": _optimizer_state(getattr(runner, "optim_wrapper", None), model),
    }
    averaged = [hook.ema_model.state_dict() for hook in getattr(runner, "hooks", ()) if isinstance(hook, EMAHook)]
    state["averaged weights"] = averaged[0] if len(averaged) == 1 else averaged
    schedules = getattr(runner, "param_schedulers", None) or []
    by_optimizer = schedules if isinstance(schedules, dict) else {"": schedules}
    state["schedules"] = {
        f"{name}{'.' if name else ''}{type(schedule).__name__}{number}": schedule.state_dict()
        for name, of_one in by_optimizer.items()
        for number, schedule in enumerate(of_one)
    }
    return state


def _optimizer_state(wrapper: Any, model: nn.Module) -> dict[str, Any]:
    """The state of an optimizer by the names of the parameters, and what its wrapper has beside it, such as the loss scale."""
    if isinstance(wrapper, OptimWrapperDict):
        return {name: _optimizer_state(one, model) for name, one in wrapper.items()}
    if not isinstance(wrapper, OptimWrapper):
        return {}
    state = dict(wrapper.state_dict())
    names = {id(value): name for name, value in model.named_parameters()}
    order = enumerate(value for group in wrapper.param_groups for value in group["params"])
    by_index = {index: names[id(value)] for index, value in order if id(value) in names}
    state["state"] = {by_index.get(key, key): entry for key, entry in (state.get("state") or {}).items()}
    return state


def _numbers(value: Any, place: str) -> Iterator[tuple[str, Tensor | float]]:
    """The tensors of floating point and the numbers in nested containers, and their places."""
    if isinstance(value, Tensor):
        local = value.to_local() if hasattr(value, "to_local") else value
        if (local.is_floating_point() or local.is_complex()) and not local.is_meta:
            yield place, local.detach()
    elif isinstance(value, float):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _numbers(item, f"{place}.{number}" if place else str(number))


def _kind(value: Tensor | float) -> str | None:
    """'nan' or 'inf', None for what is finite."""
    if isinstance(value, float):
        # as it is: in float32 it might overflow
        value = torch.tensor(value, dtype=torch.float64)
    # tensors of 8 bits have no operations of their own
    value = value.float() if value.element_size() == 1 else value.coalesce().values() if value.is_sparse else value
    if bool(torch.isnan(value).any()):
        return "nan"
    return "inf" if bool(torch.isinf(value).any()) else None


def nonfinite_entries(state: Any, excepted: Mapping[str, str] | None = None) -> dict[str, str]:
    """The places in nested containers whose numbers are not finite, and 'nan' or 'inf' for each.

    Where all is finite, this is one reduction over all tensors of a device, which the host waits for once.

    Args:
        state: dicts, lists, tensors and numbers; other objects are passed over.
        excepted: what `nonfinite_entries` gave before: there, what was NaN may be anything, and infinities may be elsewhere.
    """
    excepted = excepted or {}
    found = {place: value for place, value in _numbers(state, "") if excepted.get(place) != "nan"}
    plain = {place: value for place, value in found.items() if isinstance(value, Tensor) and _is_plain(value)}
    together = {place: value for place, value in plain.items() if place not in excepted}
    # the maximum norm: unlike the Euclidean norm, it cannot overflow where all values are finite
    if math.isfinite(float(get_total_norm(list(together.values()), norm_type=math.inf))):
        found = {place: value for place, value in found.items() if place not in together}
    kinds = {place: _kind(value) for place, value in found.items()}
    return {place: kind for place, kind in kinds.items() if kind and kind != excepted.get(place)}


def _is_plain(value: Tensor) -> bool:
    """Whether a norm can be taken of it: not of nothing, sparse tensors and 8 bits."""
    return value.layout == torch.strided and value.element_size() > 1 and value.numel() > 0


def except_from_checks(runner: Runner, places: Mapping[str, str] | None = None) -> dict[str, str]:
    """Let `nonfinite_state` pass over what is not finite as training begins, such as a mask of -inf in a buffer.

    Args:
        runner: of the training; called when everything is built and loaded.
        places: what it was when the training began that is now resumed; by default it begins now.

    Returns:
        The places.
    """
    if places is None:
        # of all processes: each has its own buffers, and one file is written
        everywhere = all_gather_object(nonfinite_entries(training_state(runner)))
        places = {place: kind for of_one in everywhere for place, kind in of_one.items()}
    _at_start[unwrap_model(runner.model)] = dict(places)
    return dict(places)


def nonfinite_at_start(runner: Runner) -> dict[str, str]:
    """What `except_from_checks` found or was given; empty before."""
    return _at_start.get(unwrap_model(runner.model), {})


def nonfinite_state(runner: Runner, iteration: int) -> str | None:
    """What of the state is not finite now and was so when training began, as a clause that names it; None if nothing.

    Only this process is looked at, and of a sharded tensor its own part.

    Args:
        runner: of the training.
        iteration: the number to be named.
    """
    named: dict[str, list[str]] = {}
    for place in nonfinite_entries(training_state(runner), nonfinite_at_start(runner)):
        part, _, name = place.partition(".")
        named.setdefault(part, []).append(name.removeprefix("state."))
    clauses = [(part, "is" if part == "optimizer" else "are", ", ".join(names[:5])) for part, names in named.items()]
    if not clauses:
        return None
    part, verb, names = clauses[0]
    also = "".join(f", nor {verb} the {part} ({names})" for part, verb, names in clauses[1:])
    return f"the {part} {verb} not finite at iteration {iteration}, the first being {names}{also}"
