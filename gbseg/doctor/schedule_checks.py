"""Whether the learning rate's schedule fits the length of the training."""

from collections.abc import Iterator

from mmengine.config import Config

from gbseg.doctor.finding import OK, WARNING, Finding

__all__ = ["check_schedule"]


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
        remedy = f"set param_scheduler[-1].end={length} (a variable that a base config computed it from is not read again)."
        yield Finding(WARNING, "schedule", text, remedy)
    else:
        yield Finding(OK, "schedule", f"the rate's schedule ends at {unit} {end:,} of {length:,}.")
