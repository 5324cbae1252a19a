"""Stop training at the first loss that is not finite, before it reaches the parameters or a checkpoint."""

import math
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from gbseg.losses.labels import BadLabelError
from gbseg.mm.compat import logged_value, observe_losses, stop_observing_losses, unwrap_model
from gbseg.mm.finite_state import except_from_checks, nonfinite_state

__all__ = [
    "NonFiniteGuardHook",
    "NonFiniteLossError",
    "parameters_are_finite",
    "require_finite_parameters",
    "require_finite_state",
]

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


def _refuse_bad_labels(runner: Runner) -> None:
    """Raise if a loss recorded labels that are no class; on a device this waits for the record."""
    for name, module in unwrap_model(runner.model).named_modules():
        report = getattr(module, "bad_label_report", None)
        text = report() if callable(report) else None
        if text:
            raise BadLabelError(f"iteration {runner.iter + 1}, {name or type(module).__name__}: {text}")


def _learning_rates(runner: Runner) -> str:
    rates = runner.optim_wrapper.get_lr()
    return ", ".join(
        f"{name} {' '.join(f'{rate:.6g}' for rate in sorted(set(values)))}"
        for name, values in rates.items()
        if not name.endswith("base_lr")
    )


def parameters_are_finite(model: nn.Module) -> bool:
    """Whether no parameter holds NaN or infinity: one reduction, and on a device one synchronisation."""
    values = [value.detach() for value in unwrap_model(model).parameters() if value.is_floating_point()]
    # the maximum norm: unlike the Euclidean norm, it cannot overflow where all values are finite
    return math.isfinite(float(get_total_norm(values, norm_type=math.inf)))


def require_finite_parameters(runner: Runner) -> None:
    """Check all parameters, see `parameters_are_finite`.

    Raises:
        BadLabelError: a loss of the model reports labels that are no class.
        NonFiniteLossError: parameters hold NaN or infinity; names the first ones.
    """
    if parameters_are_finite(runner.model):
        return
    _refuse_bad_labels(runner)
    named = unwrap_model(runner.model).named_parameters()
    bad = (name for name, value in named if value.is_floating_point() and not bool(torch.isfinite(value).all()))
    raise NonFiniteLossError(
        f"the parameters are not finite at iteration {runner.iter + 1}, the first being {', '.join(islice(bad, 5))}; "
        f"learning rate: {_learning_rates(runner)}. This checkpoint was not written. {_ADVICE}",
        runner.iter + 1,
    )


def require_finite_state(runner: Runner, iteration: int, together: bool = False) -> None:
    """Check everything that a checkpoint holds, see `gbseg.mm.finite_state.training_state`.

    Args:
        runner: of the training.
        iteration: of the checkpoint.
        together: called by all processes, which then all raise if the state of one is not finite.

    Raises:
        BadLabelError: a loss of the model reports labels that are no class.
        NonFiniteLossError: something holds NaN or infinity that was finite when training began; names it.
    """
    fault = nonfinite_state(runner, iteration)
    faults = all_gather_object(fault) if together else [fault]
    rank = next((rank for rank, text in enumerate(faults) if text is not None), None)
    if rank is None:
        return
    _refuse_bad_labels(runner)
    raise NonFiniteLossError(
        f"{faults[rank]}{f' (process {rank} of {len(faults)})' if len(faults) > 1 else ''}; "
        f"learning rate: {_learning_rates(runner)}. This checkpoint was not written. {_ADVICE}",
        iteration,
    )


@HOOKS.register_module()
class NonFiniteGuardHook(Hook):
    """Raise as soon as a loss term is not finite, and before any checkpoint with a state that is not.

    On a CPU every iteration's loss is checked before the backward pass, so that no step is taken with it. Reading it from a
    CUDA device makes the host wait, so there it is checked every ``interval`` iterations and before each checkpoint; in
    between, the values that mmengine's ``RuntimeInfoHook`` has already fetched are checked, after the step. In either case no
    checkpoint is written at or after the bad iteration. If a loss has recorded labels that are no class (any module with a
    method ``bad_label_report() -> str | None``), that is reported instead.

    In distributed training every process checks its own loss; the one that raises ends the others through the launcher.

    Args:
        interval: iterations between checks before the backward pass on a device.

    Raises:
        BadLabelError: in training, the labels are the cause.
        NonFiniteLossError: in training; gives the iteration, every loss term, the learning rate, and what helps.
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
        """Check the losses where the model sums them up, which is the last moment before the backward pass."""
        except_from_checks(runner)

        def check(log_vars: dict[str, Tensor]) -> None:
            self._latest = {name: torch.as_tensor(value).detach() for name, value in log_vars.items() if "loss" in name}
            on_host = all(value.device.type == "cpu" for value in self._latest.values())
            if on_host or runner.iter % self.interval == 0:
                self._check(runner, self._latest, "the parameters were not stepped with it")

        observe_losses(runner.model, check)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Check the losses that are on the host: all of them on a CPU, those that mmengine has fetched on a device."""
        losses: dict[str, Any] = {}
        for name, value in (outputs or {}).items():
            if "loss" in name and isinstance(value, Tensor):
                losses[name] = value.detach() if value.device.type == "cpu" else logged_value(runner, name)
            elif "loss" in name:
                losses[name] = value
        on_host = {name: value for name, value in losses.items() if value is not None}
        self._check(runner, on_host, "the step with it was taken, in memory only")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Refuse to write after a bad loss, or a state that is not finite."""
        self._check(runner, self._latest, "no checkpoint is written with it")
        require_finite_state(runner, checkpoint.get("meta", {}).get("iter", runner.iter + 1))

    def after_train(self, runner: Runner) -> None:
        """Restore the model's own ``parse_losses``."""
        stop_observing_losses(runner.model)

    def _check(self, runner: Runner, losses: Mapping[str, Any], consequence: str) -> None:
        # the sum alone where there is one: on a device, it is the only value that is waited for as long as it is finite
        checked = [losses["loss"]] if "loss" in losses else losses.values()
        if all(math.isfinite(float(value)) for value in checked):
            return
        _refuse_bad_labels(runner)
        values = {name: float(value) for name, value in losses.items()}
        visualizer = getattr(runner, "visualizer", None)
        if visualizer is not None:
            # so that `gbseg.report.history` can tell that and when the run diverged; mmengine writes on rank 0 only
            total = values.get("loss", sum(values.values()))
            visualizer.add_scalars({"loss": total, "iter": runner.iter + 1}, step=runner.iter + 1)
        # the sum is not a term, but it may be infinite where all terms are finite
        loss_terms = {name: value for name, value in values.items() if name != "loss"} or values
        bad = [f"{name} = {value}" for name, value in loss_terms.items() if not math.isfinite(value)]
        fine = [f"{name} = {value:.6g}" for name, value in loss_terms.items() if math.isfinite(value)]
        raise NonFiniteLossError(
            f"the loss is not finite at iteration {runner.iter + 1}: {', '.join(bad) or 'the sum of the terms'}"
            f"{' (finite: ' + ', '.join(fine) + ')' if fine else ''}; learning rate: {_learning_rates(runner)}. "
            f"No checkpoint was written, and {consequence}. {_ADVICE}",
            runner.iter + 1,
        )
