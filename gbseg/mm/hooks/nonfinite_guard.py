"""Stops training at the first loss that is not finite, before it ruins the parameters or a checkpoint."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, NoReturn

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.nn.utils import get_total_norm

__all__ = ["NonFiniteGuardHook", "NonFiniteLossError", "parameters_are_finite", "require_finite_parameters"]

_ADVICE = (
    "Boosted gradients are unbounded (the loss grows like exp(x) or x^4): lower the learning rate, clip the gradient "
    "(optim_wrapper = dict(clip_grad=dict(max_norm=5))), bound the error with max_delta in the loss, or start the output "
    "bias at the class frequencies (init_bias='prior' in the head). Then resume: a checkpoint, if there is one, is sound."
)


class NonFiniteLossError(RuntimeError):
    """A loss or a parameter is not finite. No checkpoint was written at or after that iteration, ``iteration``."""

    def __init__(self, message: str, iteration: int | None = None) -> None:
        super().__init__(message)
        self.iteration = iteration


def _bare(model: Any) -> Any:
    return model.module if is_model_wrapper(model) else model


def _refuse_bad_labels(runner: Runner) -> None:
    """Raise if a loss knows that its labels were the cause; on a device this reads what it recorded."""
    for name, module in _bare(runner.model).named_modules():
        report = getattr(module, "bad_label_report", None)
        text = report() if callable(report) else None
        if text:
            # late, since only this needs the losses
            from gbseg.losses.labels import BadLabelError

            raise BadLabelError(f"iteration {runner.iter + 1}, {name or type(module).__name__}: {text}")


def _rates(runner: Runner) -> str:
    rates = runner.optim_wrapper.get_lr()
    return ", ".join(
        f"{name} {' '.join(f'{rate:.6g}' for rate in sorted(set(values)))}"
        for name, values in rates.items()
        if not name.endswith("base_lr")
    )


def parameters_are_finite(model: Any) -> bool:
    """Whether no parameter holds NaN or infinity: one reduction, which on a device is waited for."""
    values = [value.detach() for value in _bare(model).parameters() if value.is_floating_point()]
    # the largest magnitude: unlike the Euclidean norm, it cannot overflow where all values are finite
    return math.isfinite(float(get_total_norm(values, norm_type=math.inf)))


def require_finite_parameters(runner: Runner) -> None:
    """Check all parameters with one reduction; on a device, it waits for it.

    Raises:
        BadLabelError: a loss of the model reports labels that are no class.
        NonFiniteLossError: names the first parameters that hold NaN or infinity.
    """
    if parameters_are_finite(runner.model):
        return
    _refuse_bad_labels(runner)
    named = ((name, value.detach()) for name, value in _bare(runner.model).named_parameters() if value.is_floating_point())
    bad = (name for name, value in named if not bool(torch.isfinite(value).all()))
    raise NonFiniteLossError(
        f"the parameters are not finite at iteration {runner.iter + 1}, the first being {', '.join(islice(bad, 5))}; "
        f"learning rate: {_rates(runner)}. This checkpoint was not written. {_ADVICE}",
        runner.iter + 1,
    )


@HOOKS.register_module()
class NonFiniteGuardHook(Hook):
    """Raise as soon as a loss term is not finite, and before any checkpoint with parameters that are not.

    On a CPU every iteration's loss is looked at before the backward pass, so that not even a step is taken. To read it on
    a CUDA device makes the host wait, so there that happens every ``interval`` iterations and before each checkpoint; in
    between, the values that mmengine's RuntimeInfoHook has already fetched are looked at, after the step. Either way no
    checkpoint is written at or after the bad iteration. A loss that knows of labels that are no class (a method
    ``bad_label_report() -> str | None`` of any module) is heard first.

    In distributed training every process watches its own loss; the one that raises ends the others through the launcher.

    Args:
        interval: Iterations between looks before the backward pass on a device.

    Raises:
        BadLabelError: while training, the labels are the cause.
        NonFiniteLossError: while training; says the iteration, every term, the learning rate, and what helps.
        ValueError: ``interval`` is not positive.
    """

    # after RuntimeInfoHook, which fetches the losses; before the log and the checkpoint
    priority = "HIGH"

    def __init__(self, interval: int = 50) -> None:
        if interval < 1:
            raise ValueError(f"NonFiniteGuardHook: interval must be at least 1, got {interval}")
        self.interval = interval
        self._latest: dict[str, Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        """Look at the losses where the model sums them up, which is the last moment before the backward pass."""
        model = _bare(runner.model)
        if not hasattr(model, "parse_losses"):
            return
        plain: Callable = getattr(model.parse_losses, "__wrapped__", model.parse_losses)

        @functools.wraps(plain)
        def parse_losses(losses: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
            total, log_vars = plain(losses)
            self._latest = {name: torch.as_tensor(value).detach() for name, value in log_vars.items() if "loss" in name}
            on_host = all(value.device.type == "cpu" for value in self._latest.values())
            if on_host or runner.iter % self.interval == 0:
                self._check(runner, self._latest, "the parameters were not stepped with it")
            return total, log_vars

        model.parse_losses = parse_losses

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Look at what the host already knows: everything on a CPU, what mmengine has fetched on a device."""
        history = runner.message_hub.log_scalars
        known = {}
        for name, value in (outputs or {}).items():
            if "loss" not in name:
                continue
            if not isinstance(value, Tensor):
                known[name] = value
            elif value.device.type == "cpu":
                known[name] = value.detach()
            elif f"train/{name}" in history:
                known[name] = history[f"train/{name}"].current()
        self._check(runner, known, "the step with it was taken, in memory only")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Refuse to write after a bad loss, or with parameters that are not finite."""
        self._check(runner, self._latest, "no checkpoint is written with it")
        require_finite_parameters(runner)

    def after_train(self, runner: Runner) -> None:
        """Give the model its own `parse_losses` back."""
        vars(_bare(runner.model)).pop("parse_losses", None)

    def _check(self, runner: Runner, losses: Mapping[str, Any], consequence: str) -> None:
        # the sum alone where there is one: on a device, a single value is waited for while all is well
        watched = [losses["loss"]] if "loss" in losses else losses.values()
        if all(math.isfinite(float(value)) for value in watched):
            return
        self._stop(runner, {name: float(value) for name, value in losses.items()}, consequence)

    def _stop(self, runner: Runner, losses: dict[str, float], consequence: str) -> NoReturn:
        _refuse_bad_labels(runner)
        # the sum is not a term; alone it counts, finite terms may overflow in it
        terms = {name: value for name, value in losses.items() if name != "loss"} or losses
        self._log(runner, losses)
        bad = [f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)]
        fine = [f"{name} = {value:.6g}" for name, value in terms.items() if math.isfinite(value)]
        raise NonFiniteLossError(
            f"the loss is not finite at iteration {runner.iter + 1}: {', '.join(bad) or 'the sum of the terms'}"
            f"{f' (finite: {chr(44).join(fine)})' if fine else ''}; learning rate: {_rates(runner)}. "
            f"No checkpoint was written, and {consequence}. {_ADVICE}",
            runner.iter + 1,
        )

    @staticmethod
    def _log(runner: Runner, losses: dict[str, float]) -> None:
        """Leave the loss in the logs, where `gbseg.report.history` finds that and when the run diverged."""
        visualizer = getattr(runner, "visualizer", None)
        if visualizer is not None:
            total = losses.get("loss", sum(losses.values()))
            # of several processes, mmengine's main one alone writes
            visualizer.add_scalars({"loss": total, "iter": runner.iter + 1}, step=runner.iter + 1)
