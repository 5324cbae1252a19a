"""Whether optimizer and schedule can be built, and the learning rate's schedule fits the length of the training."""

import copy
import logging
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from gbseg.doctor.finding import ERROR, OK, WARNING, Finding
from gbseg.doctor.remedy import remedied
from gbseg.mm.component_errors import build_error

__all__ = ["check_optimizer", "check_schedule"]

ENDLESS = 10**9  # where a schedule ends that has no end, if the length of the training is unknown


def check_optimizer(config: Config, network: nn.Module) -> Iterator[Finding]:
    """Build the optimizer of a network and the schedules of its rate, as training does.

    Args:
        config: config of one run.
        network: of the config, on any device.
    """
    settings = copy.deepcopy(config.get("optim_wrapper"))
    # several optimizers are built by the model's own code
    if not settings or not ("optimizer" in settings or "constructor" in settings):
        return
    if settings.get("type") == "AmpOptimWrapper" and not torch.cuda.is_available():
        # it is for another machine
        settings["type"] = "OptimWrapper"
        for key in ("dtype", "loss_scale", "use_fsdp"):
            settings.pop(key, None)
    training = config.get("train_cfg") or {}
    schedulers = config.get("param_scheduler") or []
    # mmengine logs a line for every parameter
    logging.disable(logging.INFO)
    try:
        wrapper = build_optim_wrapper(network, settings)
        schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
        for scheduler in schedulers:
            # mmengine's defaults: a loop over iterations is one epoch
            end = training.get("max_iters", ENDLESS)
            if scheduler.get("by_epoch", True):
                end = training.get("max_epochs", 1)
            added = dict(optimizer=wrapper, epoch_length=1000)
            PARAM_SCHEDULERS.build({"end": end, **scheduler}, default_args=added)
    # any exception: optimizers and constructors of any package are built
    except Exception as error:
        yield Finding(ERROR, "optimizer", build_error(error, config, "optim_wrapper"), "correct what the message names.")
    else:
        name = (settings.get("optimizer") or {}).get("type", "the optimizer")
        yield Finding(OK, "optimizer", f"{name} and {len(schedulers)} schedulers of its rate build.")
    finally:
        logging.disable(logging.NOTSET)


def check_schedule(config: Config) -> Iterator[Finding]:
    """Warn of a schedule that is longer than the training: it is cut off, and the rate never falls as far as intended."""
    schedulers, training = config.get("param_scheduler") or [], config.get("train_cfg") or {}
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    ending = [scheduler for scheduler in schedulers if isinstance(scheduler.get("end"), int)]
    if not ending:
        return
    last, end = ending[-1], ending[-1].end
    unit = "epoch" if last.get("by_epoch", True) and not last.get("convert_to_iter_based") else "iteration"
    length = training.get("max_epochs" if unit == "epoch" else "max_iters")
    if length is None:
        return
    if end > length:
        text = f"the last scheduler ends at {unit} {end:,}, training at {length:,}: the rate does not fall as it is meant to."
        changed = [dict(scheduler) for scheduler in schedulers]
        # one that begins after the training's end shrinks with all that are before it
        shrink = length / end if last.get("begin", 0) >= length else 1.0
        for scheduler in changed:
            for key in ("begin", "end"):
                if isinstance(scheduler.get(key), int):
                    scheduler[key] = int(scheduler[key] * shrink)
            if isinstance(scheduler.get("end"), int):
                scheduler["end"] = min(max(scheduler["end"], scheduler.get("begin", 0) + 1), length)
        advice = "let it end with the training (a variable that a base config computed it from is not read again)"
        yield remedied(config, WARNING, "schedule", text, advice, ("param_scheduler", changed))
    else:
        yield Finding(OK, "schedule", f"the rate's schedule ends at {unit} {end:,} of {length:,}.")
