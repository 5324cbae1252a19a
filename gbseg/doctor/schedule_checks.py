"""Does the rate's schedule fit the length of the training?"""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.config import Config

from gbseg.doctor.finding import OK, WARNING, Finding

__all__ = ["check_schedule"]


def check_schedule(config: Config) -> Iterator[Finding]:
    """A schedule that is longer than the training is cut off, and the rate never falls as far as it was meant to."""
    schedulers, training = config.get("param_scheduler"), config.get("train_cfg")
    if not schedulers or not training:
        return
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    ends = [
        (one.end, "epoch" if one.get("by_epoch", True) and not one.get("convert_to_iter_based") else "iteration")
        for one in schedulers
        if isinstance(one.get("end"), int)
    ]
    if not ends:
        return
    end, unit = ends[-1]
    length = training.get("max_epochs" if unit == "epoch" else "max_iters")
    if length is None:
        return
    if end > length:
        yield Finding(
            WARNING,
            "schedule",
            f"the last scheduler ends at {unit} {end:,}, training at {length:,}: the rate does not fall as it is meant to.",
            f"set param_scheduler[-1].end={length} (a variable that a base config computed it from is not read again).",
        )
    else:
        yield Finding(OK, "schedule", f"the rate's schedule ends at {unit} {end:,} of {length:,}.")
