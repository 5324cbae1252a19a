"""Stop training at the first loss or gradient that is not finite, before it reaches the parameters or a checkpoint."""

import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import ApexOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from gbseg.files import FileWriteError
from gbseg.losses.labels import BadLabelError
from gbseg.mm.compat import (
    intercept_steps,
    is_scaled,
    largest_entry,
    logged_value,
    observe_losses,
    release_steps,
    stop_observing_losses,
    unwrap_model,
)
from gbseg.mm.finite_state import except_from_checks, nonfinite_state
from gbseg.mm.gradient_accumulation import optim_wrappers
from gbseg.mm.step_dump import DUMP_SUFFIX, IterationRecord, buffers_of, image_names, write_dump

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
    "bias at the class frequencies (init_bias='prior' in the head). Then resume: no checkpoint "
    "holds what is not finite. If the loss is not finite at once again, its weights are too large already: take one before it."
)
_HOW_TO_KEEP = (
    "To look at the step itself, resume with NonFiniteGuardHook's interval=1: it then stops before the step, and keeps it for "
    "`gbseg replay`."
)
_MAX_DUMPS = 3
_MAX_SPIKES = 20
_SPIKE_WINDOW = 50


class NonFiniteLossError(RuntimeError):
    """A loss, gradient or parameter is not finite. No checkpoint was written at or after that iteration, ``iteration``."""

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
    """Stop, or leave a step out, as soon as a loss or gradient is not finite, and before a checkpoint of what is not.

    A loss is checked before the backward pass, and the gradient before the optimizer's step, so that neither reaches the
    parameters:

    * on a CPU in every iteration; the gradient in one pass, or by the norm that clipping computes anyway;
    * on a CUDA device reading a value makes the host wait. With clipping by the norm mmengine waits in any case, and the check
      is free and before the step. Without, loss and gradient are read before the step every ``interval`` iterations; in
      between, the loss when mmengine's ``RuntimeInfoHook`` has fetched it, the gradient an iteration later, and in both cases
      before a checkpoint.

    With gradient accumulation the gradient is checked at the step. A ``GradScaler`` (float16) leaves out infinite gradients by
    itself: that is counted in the log, and no error. Clipping by value makes infinite entries finite, so there only NaN counts.

    The error names the loss terms or the gradient's parameters, the learning rate and the images of the batch. Beside it, the
    step is kept in the work dir as ``nonfinite_iter_<iteration>.dump``, from which ``gbseg replay`` runs it again. If a loss
    has recorded labels that are no class (any module with a method ``bad_label_report() -> str | None``), that is reported
    instead.

    Of several processes all decide the same: a loss that is not finite makes the gradient NaN in all of them. Not with a
    ``GradScaler``, where the process that stops ends the others through the launcher.

    A loss of more than ``spike`` times the median of those before it is a warning with its images.

    Args:
        interval: iterations between checks before the step on a device.
        policy: 'stop', or 'skip': a step with a loss or gradient that is not finite is left out, with a warning. Parameters,
            buffers (of batch norm) and the optimizer's state stay as they were; iterations and schedules go on. On a device
            every step is waited for.
        max_skips: steps that may be left out in the whole run, interruptions included; the next one is the error.
        dump: whether steps are kept; the first three of a process are.
        spike: how many times the median of the last 50 losses is a spike; None for never. At most 20 warnings.

    Raises:
        BadLabelError: in training, the labels are the cause.
        NonFiniteLossError: in training; gives the iteration, every loss term, the learning rate, and what helps.
        ValueError: an argument is out of range.
    """

    # after RuntimeInfoHook, which fetches the losses; before the log and the checkpoint
    priority = "HIGH"

    def __init__(
        self,
        interval: int = 50,
        policy: str = "stop",
        max_skips: int = 10,
        dump: bool = True,
        spike: float | None = 10,
    ) -> None:
        if interval < 1:
            raise ValueError(f"NonFiniteGuardHook: interval must be at least 1, got {interval}")
        if policy not in ("stop", "skip"):
            raise ValueError(f"NonFiniteGuardHook: policy must be 'stop' or 'skip', got {policy!r}")
        if max_skips < 0:
            raise ValueError(f"NonFiniteGuardHook: max_skips must be at least 0, got {max_skips}")
        if spike is not None and spike <= 1:
            raise ValueError(f"NonFiniteGuardHook: spike must be above 1 or None, got {spike}")
        self.interval, self.policy, self.max_skips, self.dump, self.spike = interval, policy, max_skips, dump, spike
        self._latest: dict[str, Tensor] = {}
        # the iterations since the last step of the optimizer, and the buffers before the first of them
        self._records: list[IterationRecord] = []
        self._buffers: dict[str, Tensor] = {}
        # those before this iteration
        self._own_buffers: dict[str, Tensor] = {}
        self._stepped = True
        # whether a bad loss is left to the check of the gradient, where all processes decide the same
        self._waits_for_step = self._together = False
        self._log_vars: dict[str, Any] | None = None
        self._unread: list[tuple[Tensor, Any, IterationRecord, bool]] = []
        self._dumps = self._scaler_skips = self._spikes = 0
        self._recent: deque[float] = deque(maxlen=_SPIKE_WINDOW)

    def before_train(self, runner: Runner) -> None:
        """Check the losses where the model sums them up, and the gradient where the optimizer steps."""
        except_from_checks(runner)
        wrappers = _wrappers(runner)
        # apex scales the loss, and leaves steps out, in functions of its own
        known = [
            wrapper for wrapper in wrappers if isinstance(wrapper, OptimWrapper) and not isinstance(wrapper, ApexOptimWrapper)
        ]
        if unknown := ", ".join(sorted({type(wrapper).__name__ for wrapper in wrappers if wrapper not in known})):
            if self.policy == "skip":
                raise ValueError(
                    f"NonFiniteGuardHook: policy='skip' works with OptimWrapper and AmpOptimWrapper, not {unknown}"
                )
            text = f"NonFiniteGuardHook does not check the gradients of {unknown}, which steps in its own way."
            print_log(text, "current", logging.WARNING)
        scaled = any(is_scaled(wrapper) for wrapper in known)
        together = get_world_size() > 1 and not scaled
        self._together = together and is_model_wrapper(runner.model)
        self._waits_for_step = bool(known) and not unknown and (self.policy == "skip" or self._together)
        for wrapper in known:
            intercept_steps(wrapper, partial(self._may_step, runner, wrapper), partial(self._scaler_skipped, runner))

        def check(log_vars: dict[str, Tensor]) -> Tensor | None:
            self._log_vars = log_vars
            self._latest = {name: torch.as_tensor(value).detach() for name, value in log_vars.items() if "loss" in name}
            if self._records:
                self._records[-1].losses = self._latest
                if len(known) == 1:
                    self._records[-1].divisor = round(1 / float(known[0].scale_loss(torch.ones(()))))
            if self._waits_for_step:
                total = self._latest["loss"] if "loss" in self._latest else sum(self._latest.values(), torch.zeros(()))
                # 1, or NaN where the loss is not finite, without waiting for it: then so is the gradient, in all processes
                return 1 + (total - total)
            on_host = all(value.device.type == "cpu" for value in self._latest.values())
            if on_host or runner.iter % self.interval == 0:
                self._check(runner, self._latest, "the parameters were not stepped with it")
            return None

        observe_losses(runner.model, check)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep what the iteration begins with, so that its step can be run again."""
        if self._stepped:
            self._records.clear()
            self._stepped = False
            if self.dump or self.policy == "skip":
                self._buffers = buffers_of(unwrap_model(runner.model))
            self._own_buffers = self._buffers
        elif self.policy == "skip":
            self._own_buffers = buffers_of(unwrap_model(runner.model))
        self._log_vars = None
        self._records.append(IterationRecord(runner.iter + 1, data_batch))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Check the losses that are on the host: all of them on a CPU, those that mmengine has fetched on a device."""
        while self._unread and self._unread[0][2].iteration <= runner.iter:
            self._read_norm(runner)
        losses: dict[str, Any] = {}
        for name, value in (outputs or {}).items():
            if "loss" in name and isinstance(value, Tensor):
                losses[name] = value.detach() if value.device.type == "cpu" else logged_value(runner, name)
            elif "loss" in name:
                losses[name] = value
        on_host = {name: value for name, value in losses.items() if value is not None}
        if not (self._waits_for_step and self._log_vars is not None):
            self._check(runner, on_host, "the step with it was taken, in memory only")
        if self.policy == "skip" and not self._stepped and not _all_finite(self._latest):
            # the step is to be left out, and until then a validation or checkpoint may come
            _put_back(unwrap_model(runner.model), self._own_buffers)
        if self.spike is not None and "loss" in on_host:
            self._look_for_spike(runner, float(on_host["loss"]))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Refuse to write after a bad loss or step, or a state that is not finite."""
        while self._unread:
            self._read_norm(runner)
        if self.policy == "stop":
            self._check(runner, self._latest, "no checkpoint is written with it")
        require_finite_state(runner, checkpoint.get("meta", {}).get("iter", runner.iter + 1))

    def after_train(self, runner: Runner) -> None:
        """Give model and optimizer their own methods back."""
        stop_observing_losses(runner.model)
        for wrapper in _wrappers(runner):
            release_steps(wrapper)
        self._records.clear()
        self._buffers.clear()

    def _may_step(self, runner: Runner, wrapper: OptimWrapper, norm: Tensor) -> bool:
        """Whether the optimizer may step with a gradient of this norm; raises if the run is to end."""
        self._stepped = True
        clip = wrapper.clip_grad_kwargs or {}
        by_value = "clip_value" in clip
        read_now = "max_norm" in clip or self.policy == "skip" or runner.iter % self.interval == 0
        if norm.device.type != "cpu" and not read_now and self._records:
            # read an iteration later, when mmengine has waited for a loss that was computed after it
            event = torch.cuda.Event() if norm.is_cuda else None
            on_host = norm.to("cpu", non_blocking=True) if event is not None else norm
            if event is not None:
                event.record()
            self._unread.append((on_host, event, self._records[-1], by_value))
            return True
        if not _is_bad(float(norm), by_value):
            return True
        named = list(unwrap_model(runner.model).named_parameters())
        largest = {name: float(largest_entry([value.grad])) for name, value in named if value.grad is not None}
        if not any(_is_bad(value, by_value) for value in largest.values()):
            runner.logger.warning(
                f"Iteration {runner.iter + 1}: the norm of the gradient is not finite, though every entry is (the largest is "
                f"{max(largest.values(), default=0):.3g}): clipping makes this step zero."
            )
            return True
        return self._refuse(runner, largest, by_value)

    def _refuse(self, runner: Runner, largest: dict[str, float], by_value: bool) -> bool:
        """Leave the step out (False), or raise. Of processes that share the gradient, all come here."""
        iteration, network = runner.iter + 1, unwrap_model(runner.model)
        labels, text = None, ""
        try:
            _refuse_bad_labels(runner)
        except BadLabelError as error:
            labels = str(error)
        for record in self._records:
            text = text or _loss_text({name: float(value) for name, value in record.losses.items()})
        own = labels, text, image_names([record.batch for record in self._records])
        reports = all_gather_object(own) if self._together else [own]
        if labels := next((report[0] for report in reports if report[0]), None):
            raise BadLabelError(labels)
        culprits = [rank for rank, report in enumerate(reports) if report[1]]
        if culprits:
            terms = next(report[1] for report in reports if report[1])
            reason = f"the loss is not finite at iteration {iteration}: {terms}"
        else:
            terms = _loss_text({name: float(value) for name, value in self._latest.items()}, all_terms=True)
            layers = _layers(network, largest, by_value)
            reason = f"the gradient is not finite at iteration {iteration}, though the loss is: {layers}; {terms}"
        places = [rank for rank in range(len(reports)) if rank in culprits or not culprits]
        images = "; ".join(
            (f"process {rank}: " if len(reports) > 1 else "") + reports[rank][2] for rank in places[:4] if reports[rank][2]
        )
        compares = not culprits and not by_value and get_world_size() == 1
        kept = self._keep(runner, largest if compares else None) if not self._together or get_rank() in places[:4] else ""
        facts = f"{reason}; learning rate: {_learning_rates(runner)}.{f' Images: {images}.' if images else ''}{kept}"
        if self.policy == "skip" and self._skips(runner) < self.max_skips:
            self._skip(runner, facts)
            return False
        left_out = f"{self._skips(runner)} steps were left out before, and max_skips is {self.max_skips}. "
        self._record(runner, math.nan)
        raise NonFiniteLossError(
            f"{facts} No checkpoint was written, and the parameters were not stepped with it. "
            f"{left_out if self.policy == 'skip' else ''}{_ADVICE}",
            iteration,
        )

    def _skips(self, runner: Runner) -> int:
        """The steps left out so far. The message hub is part of a checkpoint, so the count goes on when a run is resumed."""
        return int(runner.message_hub.get_info("skipped_steps", 0))

    def _skip(self, runner: Runner, facts: str) -> None:
        """Put everything back to where it was before the iterations of this step, but for what was drawn at random."""
        count = self._skips(runner) + 1
        runner.message_hub.update_info("skipped_steps", count)
        _put_back(unwrap_model(runner.model), self._buffers)
        self._latest = {}
        _drop_bad_losses(self._log_vars)
        runner.logger.warning(f"A step is left out, the {count}. of at most {self.max_skips}: {facts}")

    def _scaler_skipped(self, runner: Runner) -> None:
        """Count a step that a ``GradScaler`` did not take."""
        self._stepped = True
        if self.policy == "skip" and not _all_finite(self._latest):
            self._refuse(runner, {}, by_value=False)
            return
        self._scaler_skips += 1
        runner.message_hub.update_info("scaler_skips", self._scaler_skips)
        if self._scaler_skips & (self._scaler_skips - 1) == 0:
            runner.logger.info(
                f"Iteration {runner.iter + 1}: the GradScaler left a step out, the {self._scaler_skips}. of this process: "
                "the gradient was infinite. Some are normal: it looks for the largest scale."
            )

    def _read_norm(self, runner: Runner) -> None:
        """Look at the norm of a step that was taken meanwhile.

        Raises:
            NonFiniteLossError: it was not finite.
        """
        norm, event, record, by_value = self._unread.pop(0)
        if event is not None:
            event.synchronize()
        if not _is_bad(float(norm), by_value):
            return
        _refuse_bad_labels(runner)
        losses = {name: float(value) for name, value in record.losses.items()}
        if terms := _loss_text(losses):
            what = f"the loss is not finite at iteration {record.iteration}: {terms}"
        else:
            terms = _loss_text(losses, all_terms=True)
            what = f"the gradient is not finite at iteration {record.iteration}, though the loss is: {terms}"
        images = image_names(record.batch)
        self._record(runner, math.nan)
        raise NonFiniteLossError(
            f"{what}; learning rate: {_learning_rates(runner)}.{f' Images: {images}.' if images else ''} No checkpoint was "
            f"written, and the step with it was taken, in memory only. {_HOW_TO_KEEP} {_ADVICE}",
            record.iteration,
        )

    def _check(self, runner: Runner, losses: Mapping[str, Any], consequence: str) -> None:
        # the sum alone where there is one: on a device, it is the only value that is waited for as long as it is finite
        checked = [losses["loss"]] if "loss" in losses else losses.values()
        if all(math.isfinite(float(value)) for value in checked):
            return
        _refuse_bad_labels(runner)
        values = {name: float(value) for name, value in losses.items()}
        self._record(runner, values.get("loss", sum(values.values())))
        record = self._records[-1] if self._records else None
        images = image_names(record.batch) if record is not None else ""
        kept = f" {_HOW_TO_KEEP}" if self._stepped and record is not None else self._keep(runner, None)
        raise NonFiniteLossError(
            f"the loss is not finite at iteration {runner.iter + 1}: {_loss_text(values)}; learning rate: "
            f"{_learning_rates(runner)}.{f' Images: {images}.' if images else ''}{kept} No checkpoint was written, and "
            f"{consequence}. {_ADVICE}",
            runner.iter + 1,
        )

    def _record(self, runner: Runner, loss: float) -> None:
        """Log the loss, so that `gbseg.report.history` can tell that and when the run diverged; mmengine writes on rank 0."""
        visualizer = getattr(runner, "visualizer", None)
        if visualizer is not None:
            visualizer.add_scalars({"loss": loss, "iter": runner.iter + 1}, step=runner.iter + 1)

    def _keep(self, runner: Runner, largest: dict[str, float] | None) -> str:
        """Write the step to a file, and say so in a sentence; '' where it is not to be kept or could not be run again."""
        wrapper, network = getattr(runner, "optim_wrapper", None), unwrap_model(runner.model)
        sharded = any(hasattr(parameter, "full_tensor") for parameter in network.parameters())
        if not self.dump or self._dumps >= _MAX_DUMPS or not self._records or sharded or not isinstance(wrapper, OptimWrapper):
            return ""
        self._dumps += 1
        process = f"_process{get_rank()}" if get_world_size() > 1 else ""
        path = Path(runner.work_dir, f"nonfinite_iter_{runner.iter + 1}{process}{DUMP_SUFFIX}")
        device = next((parameter.device.type for parameter in network.parameters()), "cpu")
        facts = dict(device=device, processes=get_world_size())
        try:
            write_dump(path, runner.cfg, network, self._buffers, self._records, largest, **facts)
        except FileWriteError as error:
            return f" The step could not be kept: {error.strerror}."
        return f" The step is kept: `gbseg replay {path}` runs it again."

    def _look_for_spike(self, runner: Runner, loss: float) -> None:
        """Warn of a loss that is far above those before it."""
        if not math.isfinite(loss) or self.spike is None:
            return
        median = statistics.median(self._recent) if len(self._recent) >= _SPIKE_WINDOW // 2 else 0
        self._recent.append(loss)
        if median <= 0 or loss <= self.spike * median or self._spikes >= _MAX_SPIKES:
            return
        self._spikes += 1
        images = image_names(self._records[-1].batch) if self._records else ""
        last = f" This is the {_MAX_SPIKES}. such warning, and the last." if self._spikes == _MAX_SPIKES else ""
        runner.logger.warning(
            f"Iteration {runner.iter + 1}: the loss is {loss:.6g}, {loss / median:.3g} times the median of the last "
            f"{len(self._recent) - 1}.{f' Images: {images}.' if images else ''}{last}"
        )


def _wrappers(runner: Runner) -> list[Any]:
    wrapper = getattr(runner, "optim_wrapper", None)
    return [] if wrapper is None else list(optim_wrappers(wrapper).values())


def _all_finite(values: Mapping[str, Any]) -> bool:
    return all(math.isfinite(float(value)) for value in values.values())


@torch.no_grad()
def _put_back(network: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in network.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])


def _is_bad(value: float, by_value: bool) -> bool:
    """Whether a step must not be taken with this value: clipping by value leaves NaN alone as it is."""
    return math.isnan(value) if by_value else not math.isfinite(value)


def _loss_text(losses: Mapping[str, float], all_terms: bool = False) -> str:
    """The terms that are not finite, and the others in brackets; '' where all are finite, unless all are asked for."""
    # the sum is not a term, but it may be infinite where all terms are finite
    terms = {name: value for name, value in losses.items() if name != "loss"} or dict(losses)
    bad = [f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)]
    fine = [f"{name} = {value:.6g}" for name, value in terms.items() if math.isfinite(value)]
    if all_terms and not bad:
        return ", ".join(fine)
    if all(math.isfinite(value) for value in losses.values()):
        return ""
    return f"{', '.join(bad) or 'the sum of the terms'}{' (finite: ' + ', '.join(fine) + ')' if fine else ''}"


def _layers(network: nn.Module, largest: Mapping[str, float], by_value: bool) -> str:
    """The parameters whose gradient is bad, with their layers; those nearest to the output, so to the cause, first."""
    bad = [name for name, value in reversed(list(largest.items())) if _is_bad(value, by_value)]
    named = [f"{name} ({type(network.get_submodule(name.rpartition('.')[0])).__name__})" for name in bad[:3]]
    return f"{', '.join(named)}{', ...' if len(bad) > 3 else ''}, {len(bad)} of {len(largest)} parameters from the output on"


def _drop_bad_losses(log_vars: dict[str, Any] | None) -> None:
    """Take the terms that are not finite out of what mmengine logs: the mean of a window would be lost with them."""
    for name, value in list((log_vars or {}).items()):
        if "loss" in name and not math.isfinite(float(torch.as_tensor(value).detach())):
            del (log_vars or {})[name]
