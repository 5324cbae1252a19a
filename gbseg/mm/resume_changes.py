"""Resume a training whose config has changed: what is kept of the checkpoint, and what is rebuilt from the config.

The rule: weights, iteration, random states, position in the data and the optimizer's state (momentum, moments, step counts) are
the checkpoint's. The optimizer's settings and the schedules are those of a run that had this config from its beginning. Where
nothing of them differs, they are the checkpoint's too, bit for bit.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor

from gbseg.mm.config_difference import Change, plain_value
from gbseg.mm.gradient_accumulation import optim_wrappers

__all__ = ["Rebuilt", "rebuild_schedule", "schedulers_of"]

# what of a scheduler's state changes as it goes
_PROGRESS = ("last_step", "_global_step", "_last_value", "verbose", "cooldown_counter", "best", "num_bad_epochs")
# options with which an optimizer keeps other tensors
_OTHER_STATE = ("amsgrad", "centered")


class Rebuilt(NamedTuple):
    """What of optimizer and schedules was taken from the config.

    Attributes:
        schedule: whether settings and schedules were.
        anew: why the optimizer's state was not kept; None if it was.
        extended: schedules whose end follows that of the training, in a sentence.
        rates: the first group's rate in the checkpoint and now.
    """

    schedule: bool
    anew: str | None
    extended: list[str]
    rates: tuple[float | None, float | None]


def rebuild_schedule(
    runner: Runner, checkpoint: dict[str, Any], old: Mapping[str, Any] | None, changes: list[Change]
) -> Rebuilt:
    """Prepare a checkpoint, in place, and the runner's optimizer and schedules, before ``Runner.resume`` loads the one.

    Args:
        runner: with optimizer and schedules as they are when a training begins.
        checkpoint: the content; of what is rebuilt, it loses its own.
        old: the checkpoint's config, None if it is not known.
        changes: what of the config has changed.
    """
    wrappers, states = optim_wrappers(runner.optim_wrapper), _by_name(checkpoint.get("optimizer"), runner.optim_wrapper)
    extended = [] if old is None else _extend_schedules(runner, checkpoint, old)
    config_changed = old is None or any(
        change.key.startswith(("optim_wrapper", "auto_scale_lr", "train_dataloader.batch_size")) for change in changes
    )
    schedule_changed = _schedules_differ(runner.param_schedulers, checkpoint.get("param_schedulers"), runner.optim_wrapper)
    schedule_changed |= any(change.key.startswith("param_scheduler") for change in changes)
    reasons = {name: _why_anew(name, wrapper, states.get(name), changes) for name, wrapper in wrappers.items()}
    rate = next((group.get("lr") for state in states.values() for group in _groups(state)), None)
    settings_changed = any(
        _settings_differ(wrapper, states[name], config_changed) for name, wrapper in wrappers.items() if reasons[name] is None
    )
    anew = next((reason for reason in reasons.values() if reason is not None), None)
    if not (schedule_changed or settings_changed or anew):
        return Rebuilt(False, None, [], (rate, rate))
    meta = checkpoint["meta"]
    _fast_forward(runner, meta["iter"], meta["epoch"])
    for name, wrapper in wrappers.items():
        if reasons[name] is None:
            _take_settings(wrapper, states[name])
        elif isinstance(runner.optim_wrapper, OptimWrapperDict):
            checkpoint.get("optimizer", {}).pop(name, None)
        else:
            checkpoint.pop("optimizer", None)
    checkpoint.pop("param_schedulers", None)
    new_rate = next((group["lr"] for wrapper in wrappers.values() for group in wrapper.optimizer.param_groups), None)
    return Rebuilt(True, anew, extended, (rate, new_rate))


def _by_name(value: Any, wrapper: OptimWrapper) -> dict[str, Any]:
    """Something of a checkpoint for each optimizer; a plain one has no name."""
    if isinstance(wrapper, OptimWrapperDict):
        return dict(value) if isinstance(value, Mapping) else {}
    return {} if value is None else {"": value}


def _groups(state: Any) -> list[dict]:
    return state["param_groups"] if isinstance(state, Mapping) and "param_groups" in state else []


def schedulers_of(built: Any) -> list[Any]:
    """All schedulers of a run, or their states: they are a list, or one for each optimizer."""
    lists = built.values() if isinstance(built, Mapping) else [built or []]
    return [scheduler for schedulers in lists for scheduler in schedulers]


def _schedules_differ(built: Any, stored: Any, wrapper: OptimWrapper) -> bool:
    """Whether schedulers have other settings than those in a checkpoint. Their states have no type, but all settings."""
    new, old = schedulers_of(built), schedulers_of(stored)
    if len(new) != len(old):
        return True
    return any(_settings(scheduler.state_dict(), state) for scheduler, state in zip(new, old, strict=True))


def _settings(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """The settings in which two states of a scheduler differ; of another type, one has some that the other has not."""
    known = {key for state in (new, old) for key, value in state.items() if key not in _PROGRESS and not callable(value)}
    return [key for key in known if key not in old or key not in new or plain_value(new[key]) != plain_value(old[key])]


def _why_anew(name: str, wrapper: Any, state: Any, changes: Iterable[Change]) -> str | None:
    """Why an optimizer cannot take the state of that in the checkpoint."""
    new, old = wrapper.optimizer.param_groups, _groups(state)
    if state is None:
        return "the checkpoint has none"
    if not isinstance(state, Mapping) or not old:
        # mmengine says what is wrong with it
        return None
    place = ".".join(["optim_wrapper", name] if name else ["optim_wrapper"])
    for change in changes:
        if change.key in (f"{place}.optimizer.type", f"{place}.constructor"):
            return f"it is of {change.old}, and {change.key} is {change.new}"
    mine, theirs = ({key for key in groups[0] if not key.startswith("initial_")} for groups in (new, old))
    schedules = {"momentum", "max_lr", "min_lr", "params"}
    if (mine - theirs - schedules) and (theirs - mine - schedules) and not mine & theirs >= {"betas"}:
        return f"it is of an optimizer of another type, with {', '.join(sorted(map(str, theirs - mine - schedules)))}"
    if [len(group["params"]) for group in new] != [len(group["params"]) for group in old]:
        return f"its parameters were grouped in another way, in {len(old)} groups, and now in {len(new)}"
    for key in _OTHER_STATE:
        if any(bool(a.get(key)) and not b.get(key) for a, b in zip(new, old, strict=True)):
            return f"{key} needs a state that it did not keep"
    if "centered" in mine and any(a.get("momentum") and not b.get("momentum") for a, b in zip(new, old, strict=True)):
        return "momentum needs a state that it did not keep"
    parameters = [parameter for group in new for parameter in group["params"]]
    places = [place for group in old for place in group["params"]]
    for place, parameter in zip(places, parameters, strict=True):
        tensors = [value for value in state["state"].get(place, {}).values() if isinstance(value, Tensor) and value.ndim]
        # those of factored optimizers have other shapes, with the same numbers of dimensions or fewer
        if any(value.ndim == parameter.ndim and value.shape != parameter.shape for value in tensors):
            return "its parameters were of other shapes, or in another order"
    return None


def _settings_differ(wrapper: Any, state: Mapping[str, Any], config_changed: bool) -> bool:
    """Whether an optimizer has other settings than that in the checkpoint.

    Values at which schedulers start are the config's alone. Others count where the config has changed: a hook may set them.
    """
    for new, old in zip(wrapper.optimizer.param_groups, _groups(state), strict=True):
        for key in new.keys() & old.keys() - {"params"}:
            is_start = key.startswith("initial_")
            is_scheduled = f"initial_{key}" in new or f"initial_{key}" in old
            if is_scheduled or not (is_start or config_changed):
                continue
            values = [plain_value(group[key]) for group in (new, old)]
            if key == "betas" and "initial_momentum" in new:
                values = [value[1:] for value in values]
            if values[0] != values[1]:
                return True
    return False


def _take_settings(wrapper: Any, state: dict[str, Any]) -> None:
    """Give a stored state the settings of an optimizer, and of mmengine's additional group, by which it logs a rate."""
    groups = zip(wrapper.optimizer.param_groups, state["param_groups"], strict=True)
    state["param_groups"] = [{**new, "params": old["params"]} for new, old in groups]
    state.pop("base_param_settings", None)
    if (base := getattr(wrapper, "base_param_settings", None)) is not None:
        state["base_param_settings"] = dict(base)


def _fast_forward(runner: Runner, iterations: int, epochs: int) -> None:
    """Step new schedulers as far as ``ParamSchedulerHook`` would have by now, in its order.

    Their formulas are recursive, and act on each other's values: only the same steps give the same rates, bit for bit.
    """
    schedulers = schedulers_of(runner.param_schedulers)
    by_iter = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    is_verbose = [scheduler.verbose for scheduler in schedulers]
    length = len(runner.train_dataloader) if isinstance(runner.train_loop, EpochBasedTrainLoop) else iterations + 1
    done = 0
    with warnings.catch_warnings():
        # that the optimizer has made no step yet
        warnings.simplefilter("ignore")
        for scheduler in schedulers:
            scheduler.verbose = False
        for iteration in range(1, iterations + 1):
            for scheduler in by_iter:
                scheduler.step()
            if iteration % length == 0 and done < epochs:
                done += 1
                for scheduler in by_epoch:
                    scheduler.step()
        for _ in range(done, epochs):
            for scheduler in by_epoch:
                scheduler.step()
    for scheduler, verbose in zip(schedulers, is_verbose, strict=True):
        scheduler.verbose = verbose


def _extend_schedules(runner: Runner, checkpoint: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Let schedules end with the training that ended with it before, where the training is longer now.

    ``end`` is often a number in a file, computed from the former length. A rate that falls to 0 there would stay 0.

    Returns:
        What was changed.
    """
    config = runner.cfg.get("param_scheduler")
    config = [config] if isinstance(config, Mapping) and "type" in config else config
    built: Any = runner.param_schedulers
    stored: Any = checkpoint.get("param_schedulers")
    former: Any = old.get("param_scheduler")
    former = [former] if isinstance(former, dict) and "type" in former else former
    training = old.get("train_cfg")
    lists = [value for value in (config, built, stored, former) if isinstance(value, list | tuple)]
    if len(lists) < 4 or not isinstance(training, dict) or len(set(map(len, lists))) > 1:
        return []
    config, built, stored, former = lists
    extended, new = [], [dict(entry) for entry in config]
    for index, (entry, scheduler, state) in enumerate(zip(new, built, stored, strict=True)):
        falls = 0 in (getattr(scheduler, "eta_min", None), getattr(scheduler, "end_factor", None))
        if not falls or scheduler.param_name != "lr" or plain_value(entry) != former[index] or "end" not in entry:
            continue
        unit = "max_epochs" if entry.get("by_epoch", True) else "max_iters"
        length = getattr(runner, unit)
        steps = len(runner.train_dataloader) if unit == "max_epochs" and not scheduler.by_epoch else 1
        if not isinstance(training.get(unit), int) or training[unit] * steps != state.get("end") or entry["end"] >= length:
            continue
        begin = entry.get("begin", 0)
        if entry.get("T_max") == entry["end"] - begin:
            del entry["T_max"]
        extended.append(f"param_scheduler[{index}].end: {entry['end']} -> {length}, with train_cfg.{unit}")
        entry["end"] = length
    if extended:
        for wrapper in optim_wrappers(runner.optim_wrapper).values():
            for group in wrapper.param_groups:
                _to_start(group)
        runner.param_schedulers = runner.build_param_scheduler(new)
    return extended


def _to_start(group: dict[str, Any]) -> None:
    """Take back what schedulers have done to a new optimizer."""
    for key in [key for key in group if key.startswith("initial_")]:
        name = key.removeprefix("initial_")
        group[name] = group.pop(key)
        if name == "momentum" and "betas" in group:
            group["betas"] = (group.pop(name), *group["betas"][1:])
