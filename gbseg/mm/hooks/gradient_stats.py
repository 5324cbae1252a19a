"""Statistics of the error gradients: deltas at the outputs, their size in hidden layers, and the softmax's normaliser.

Shapes: N rows (images, or pixels) of a batch, C classes.
"""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from gbseg.mm.compat import unwrap_model
from gbseg.mm.resumable_sampler import iterations_per_epoch

__all__ = ["GradientStatsHook"]

# they scale the loss in their own ways, or step several times per iteration
_UNKNOWN_SCALE = {"ApexOptimWrapper", "DeepSpeedOptimWrapper", "OptimWrapperDict"}


@HOOKS.register_module()
class GradientStatsHook(Hook):
    """Record the error gradients of a training run (paper, Fig. 2, 3 and 5).

    An *error gradient* is the derivative of one row's loss with respect to a layer's output, which is N times that of a mean
    over N rows; at the outputs it is the delta ``g(x) - t``, times the loss's ``loss_weight``. The factors of gradient
    accumulation and of a GradScaler are divided out. Every ``interval`` iterations, and at those of a histogram, it records:

    * ``rms/<layer>``: the root mean square of the layer's error gradients over rows and units;
    * ``normaliser``: median, mean, minimum and maximum of ``s = sum_j exp(x_j)`` over the rows, as natural logarithms (so
      ``mean`` is ``ln mean(s)``, not the mean of ``ln s``);
    * at ``histogram_epochs`` and ``histograms``: the distribution of the output's deltas, in equal bins from minimum to
      maximum.

    The records go to TensorBoard, if the run has it, and to ``gradients.jsonl`` in the run's log folder, one line per
    iteration, which `gbseg.report.gradient_log.read_gradients` reads. In distributed runs the rows of all processes are
    combined. A recorded iteration costs a norm of each layer's gradient and one transfer to the host; others cost nothing.

    N counts all rows of the logits. If a loss leaves ignored pixels out of its mean, everything but the normaliser is too
    large by the ratio of all rows to valid rows: choose a module whose rows are all valid, such as PixelNet's sampled ones.

    Args:
        output: name of the module that returns the logits, (N, C) or (N, C, *), once per iteration.
        layers: names of further modules. A module that is called several times counts as one with the units of all calls.
        interval: iterations between records.
        histogram_epochs: epochs (from 1, as in the paper) at whose first batch a histogram of the output deltas is recorded.
            An epoch is the number of iterations in which each training image is drawn once, rounded up.
        histograms: further iterations (from 0) with a histogram.
        bins: number of bins of a histogram.

    Raises:
        ValueError: a module is not in the model (the message lists those that are), or does not return one tensor;
            ``interval``, ``bins`` or an epoch is below 1; the loss scale of the optimizer wrapper is not known (Apex,
            DeepSpeed, several optimizers); the training data has no length; the output is back-propagated through more than
            once per iteration, so that N is not known.
    """

    priority = "LOW"

    def __init__(
        self,
        output: str = "head.fc",
        layers: Sequence[str] = (),
        interval: int = 50,
        histogram_epochs: Sequence[int] = (1, 4),
        histograms: Sequence[int] = (),
        bins: int = 200,
    ) -> None:
        for name, value, unit in (("interval", interval, "iterations"), ("bins", bins, "bins")):
            if value < 1:
                raise ValueError(f"GradientStatsHook: {name} is a number of {unit} and must be >= 1, got {value}.")
        if wrong := [epoch for epoch in histogram_epochs if epoch < 1]:
            raise ValueError(f"GradientStatsHook: histogram_epochs count from 1, got {wrong[0]}; histograms takes iterations.")
        self.names = (output, *layers)
        self.interval = interval
        self.histogram_epochs = tuple(histogram_epochs)
        self.histograms = frozenset(histograms)
        self.bins = bins
        self._modules: dict[str, nn.Module] = {}
        self._handles: list[Any] = []
        self._warned: set[str] = set()
        self._reset()

    def _reset(self) -> None:
        self._norms: list[tuple[str, int, Tensor]] = []  # name, number of elements and norm of each gradient
        self._normaliser: Tensor | None = None
        self._delta: Tensor | None = None

    def before_train(self, runner: Runner) -> None:
        """Find the modules, and write the first iteration to the file: a resumed run repeats iterations after a checkpoint."""
        modules = dict(unwrap_model(runner.model).named_modules())
        if missing := [name for name in self.names if name not in modules]:
            raise ValueError(
                f"GradientStatsHook: the model has no {', '.join(missing)}; it has {', '.join(filter(None, modules))}."
            )
        if kinds := _UNKNOWN_SCALE & {kind.__name__ for kind in type(runner.optim_wrapper).__mro__}:
            raise ValueError(
                f"GradientStatsHook: it does not know by what {kinds.pop()} scales the loss; use OptimWrapper or "
                "AmpOptimWrapper, or take the hook out of custom_hooks."
            )
        self._modules = {name: modules[name] for name in self.names}
        self._epoch_length = iterations_per_epoch(runner.train_dataloader)
        self._histograms = self.histograms | {(epoch - 1) * self._epoch_length for epoch in self.histogram_epochs}
        self.path = Path(runner.log_dir) / "gradients.jsonl"
        if is_main_process():
            self._write({"start": runner.iter})

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Register hooks on the modules if this iteration is recorded."""
        if runner.iter % self.interval and runner.iter not in self._histograms:
            return
        self._reset()
        self._with_histogram = runner.iter in self._histograms
        # before the step, which may change a GradScaler's scale
        self._scale = _loss_scale(runner)
        self._handles = [
            module.register_forward_hook(partial(self._after_forward, name)) for name, module in self._modules.items()
        ]

    def _after_forward(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"GradientStatsHook: {name} returns a {type(output).__name__}, not one tensor; name a layer within it."
            )
        if not output.requires_grad:
            return
        # now, because a later operation may overwrite the logits in place
        normaliser = torch.logsumexp(output.detach().float(), 1).flatten() if name == self.names[0] else None
        output.register_hook(partial(self._after_backward, name, normaliser))

    def _after_backward(self, name: str, normaliser: Tensor | None, gradient: Tensor) -> None:
        # reduced now, so that no layer's gradient lives longer than without the hook
        norm = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
        self._norms.append((name, gradient.numel(), norm))
        if normaliser is None:
            return
        if self._normaliser is not None:
            raise ValueError(
                f"GradientStatsHook: {name} is back-propagated through more than once an iteration, so it is not known "
                "over how many rows the loss is a mean; name a module that gives all logits at once."
            )
        self._normaliser = normaliser
        self._delta = gradient.detach().clone() if self._with_histogram else None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Combine the statistics of all processes, and write the record."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        # every process takes part, also one without a gradient
        parts = [part for part in all_gather_object(self._statistics()) if part]
        self._reset()
        if not is_main_process():
            return
        with_gradient = {name for part in parts for name in part["squares"]}
        for name in self.names:
            if name not in with_gradient and name not in self._warned:
                self._warned.add(name)
                runner.logger.warning(
                    f"GradientStatsHook: no gradient came to the output of {name} in iteration {runner.iter}, so nothing is "
                    f"recorded {'at all' if name == self.names[0] else 'of it'}: is it frozen, unused or compiled?"
                )
        if not parts:
            return
        record = {"iter": runner.iter, "epoch": runner.iter / self._epoch_length, **self._combine(parts)}
        self._write(record)
        self._to_tensorboard(runner, record)

    def _statistics(self) -> dict[str, Any] | None:
        """Those of this process, on the host: sum of squares and number of units by layer, normalisers, deltas."""
        if self._normaliser is None:
            return None
        # a single transfer
        numbers = torch.cat([torch.stack([norm for *_, norm in self._norms]), self._normaliser]).cpu().double().numpy()
        # the loss is a mean over N rows
        factor = len(self._normaliser) / self._scale
        squares: dict[str, tuple[float, int]] = {}
        for (name, count, _), norm in zip(self._norms, numbers, strict=False):
            total, units = squares.get(name, (0.0, 0))
            squares[name] = (total + float(norm * factor) ** 2, units + count)
        delta = None if self._delta is None else self._delta.flatten().cpu().double().numpy() * factor
        return {"squares": squares, "normaliser": numbers[len(self._norms) :], "delta": delta}

    def _combine(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        record: dict[str, Any] = {}
        for name in self.names:
            if squares := [part["squares"][name] for part in parts if name in part["squares"]]:
                total, count = np.sum(squares, axis=0).tolist()
                record[f"rms/{name}"] = math.sqrt(total / count)
        normaliser = np.concatenate([part["normaliser"] for part in parts])
        record["normaliser"] = {
            "median": float(np.median(normaliser)),
            "mean": float(np.logaddexp.reduce(normaliser)) - math.log(len(normaliser)),
            "min": float(normaliser.min()),
            "max": float(normaliser.max()),
        }
        if parts[0]["delta"] is not None:
            delta = np.concatenate([part["delta"] for part in parts])
            # infinite where the run diverges, as the root mean square shows
            if np.isfinite(delta).all():
                counts, edges = np.histogram(delta, self.bins)
                record["histogram"] = {
                    "low": edges[0],
                    "high": edges[-1],
                    "counts": counts.tolist(),
                    "sum": delta.sum(),
                    "sum_squares": np.square(delta).sum(),
                }
        return record

    def _write(self, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _to_tensorboard(self, runner: Runner, record: dict[str, Any]) -> None:
        backend = runner.visualizer.get_backend("TensorboardVisBackend")
        if backend is None:
            return
        writer = backend.experiment
        scalars = {key: value for key, value in record.items() if key.startswith("rms/")}
        scalars |= {f"ln_normaliser/{key}": value for key, value in record["normaliser"].items()}
        for key, value in scalars.items():
            writer.add_scalar(f"gradients/{key}", value, runner.iter)
        if histogram := record.get("histogram"):
            low, high, counts = histogram["low"], histogram["high"], histogram["counts"]
            limits = np.linspace(low, high, self.bins + 1)[1:].tolist()
            sums = histogram["sum"], histogram["sum_squares"]
            writer.add_histogram_raw("gradients/delta", low, high, sum(counts), *sums, limits, counts, runner.iter)


def _loss_scale(runner: Runner) -> float:
    """The factor of the loss in the backward pass."""
    wrapper = runner.optim_wrapper
    scaler = getattr(wrapper, "loss_scaler", None)
    return float(wrapper.scale_loss(torch.ones(()))) * (1.0 if scaler is None else scaler.get_scale())
