"""What is back-propagated: deltas at the outputs, their size in the hidden layers, and the softmax's normaliser.

Shapes: N rows (images, or pixels) of a batch, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
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

# they multiply the loss by factors of their own, or step several times an iteration
_UNKNOWN_SCALE = {"ApexOptimWrapper", "DeepSpeedOptimWrapper", "OptimWrapperDict"}


@HOOKS.register_module()
class GradientStatsHook(Hook):
    """Record the error gradients of a training run (paper, Fig. 2, 3 and 5).

    An *error gradient* is the derivative of one row's loss in a layer's output, so that of a mean over N rows times N; at the
    outputs that is the delta ``g(x) - t``, times the loss's ``loss_weight``. Gradient accumulation's divisor and a GradScaler's
    factor are taken out. Recorded are, every ``interval`` iterations and at those of a histogram:

    * ``rms/<layer>``: the root mean square of the layer's error gradients over rows and units;
    * ``normaliser``: median, mean, least and greatest ``s = sum_j exp(x_j)`` over the rows, as natural logarithms (so ``mean``
      is ``ln mean(s)``, not the mean of ``ln s``);
    * at ``histogram_epochs`` and ``histograms``: the distribution of the output's deltas, in equal bins from least to greatest.

    They go to TensorBoard, if the run has it, and to ``gradients.jsonl`` in the run's log folder, one line an iteration, which
    `gbseg.report.gradient_log.read_gradients` reads. Of several processes the rows of all are taken together. What a recorded
    iteration takes longer is a norm of each layer's gradient and one transfer to the host; others take nothing.

    N counts all rows of the logits. Where a loss leaves ignored pixels out of its mean, everything but the normaliser is too
    great by the ratio of all rows to those that count: name a module whose rows all count, as PixelNet's sampled ones do.

    Args:
        output: the name of the module that gives the logits, (N, C) or (N, C, *), once an iteration.
        layers: names of modules whose outputs are watched too. One that is called several times counts as one with the units
            of all calls.
        interval: iterations between records.
        histogram_epochs: epochs (from 1, as in the paper) of whose first batch the output deltas are kept as a histogram. An
            epoch is as many iterations as it takes to draw each training image once, rounded up.
        histograms: iterations (from 0) with a histogram beside those.
        bins: of a histogram.

    Raises:
        ValueError: a module is not in the model (the message lists those that are), or does not return one tensor;
            ``interval``, ``bins`` or an epoch is below 1; the optimizer's wrapper is one whose loss scale is not known (Apex,
            DeepSpeed, several optimizers); the training data has no length; the output is back-propagated through more than
            once an iteration, so that N is not known.
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
        self._forget()

    def _forget(self) -> None:
        self._norms: list[tuple[str, int, Tensor]] = []
        self._normaliser: Tensor | None = None
        self._delta: Tensor | None = None

    def before_train(self, runner: Runner) -> None:
        """Find the modules, and note in the file where this start begins, so that what it goes over again is known."""
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
        """Watch the modules during an iteration that is to be recorded."""
        if runner.iter % self.interval and runner.iter not in self._histograms:
            return
        self._forget()
        self._with_histogram = runner.iter in self._histograms
        # now: the step of this iteration may change a GradScaler's
        self._scale = _loss_scale(runner)
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._watch(name)))

    def _watch(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def watch(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"GradientStatsHook: {name} returns a {type(output).__name__}, not one tensor; name a layer within it."
                )
            if not output.requires_grad:
                return
            normaliser = None
            if name == self.names[0]:
                # at once: a later operation may work in place
                normaliser = torch.logsumexp(output.detach().float(), 1).flatten()
            output.register_hook(lambda gradient: self._take(name, gradient.detach(), normaliser))

        return watch

    def _take(self, name: str, gradient: Tensor, normaliser: Tensor | None) -> None:
        # reduced at once, so that no layer's gradient lives longer than without the hook
        self._norms.append((name, gradient.numel(), torch.linalg.vector_norm(gradient, dtype=torch.float32)))
        if normaliser is None:
            return
        if self._normaliser is not None:
            raise ValueError(
                f"GradientStatsHook: {name} is back-propagated through more than once an iteration, so it is not known "
                "over how many rows the loss is a mean; name a module that gives all logits at once."
            )
        self._normaliser = normaliser
        self._delta = gradient.clone() if self._with_histogram else None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Put together what all processes saw, and write it."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        # every process takes part, whatever it saw
        parts = all_gather_object(self._part())
        self._forget()
        if not is_main_process():
            return
        parts = [part for part in parts if part]
        seen = {name for part in parts for name in part["squares"]}
        for name in self.names:
            if name not in seen and name not in self._warned:
                self._warned.add(name)
                runner.logger.warning(
                    f"GradientStatsHook: no gradient came to the output of {name} in iteration {runner.iter}, so nothing is "
                    f"recorded {'at all' if name == self.names[0] else 'of it'}: is it frozen, unused or compiled?"
                )
        if not parts:
            return
        record = {"iter": runner.iter, "epoch": runner.iter / self._epoch_length, **self._record(parts)}
        self._write(record)
        self._to_tensorboard(runner, record)

    def _part(self) -> dict[str, Any] | None:
        """What this process saw, on the host: sums of squares and numbers by layer, normalisers, deltas."""
        if self._normaliser is None:
            return None
        # one transfer for all
        numbers = torch.cat([torch.stack([norm for *_, norm in self._norms]), self._normaliser]).cpu().double().numpy()
        # a mean over rows gives each of them an N-th
        factor = len(self._normaliser) / self._scale
        squares: dict[str, tuple[float, int]] = {}
        for (name, count, _), norm in zip(self._norms, numbers, strict=False):
            total, units = squares.get(name, (0.0, 0))
            squares[name] = (total + float(norm * factor) ** 2, units + count)
        delta = None if self._delta is None else self._delta.flatten().cpu().double().numpy() * factor
        return {"squares": squares, "normaliser": numbers[len(self._norms) :], "delta": delta}

    def _record(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        record: dict[str, Any] = {}
        for name in self.names:
            found = [part["squares"][name] for part in parts if name in part["squares"]]
            if found:
                record[f"rms/{name}"] = math.sqrt(sum(total for total, _ in found) / sum(count for _, count in found))
        normaliser = np.concatenate([part["normaliser"] for part in parts])
        record["normaliser"] = {
            "median": float(np.median(normaliser)),
            "mean": float(np.logaddexp.reduce(normaliser)) - math.log(len(normaliser)),
            "min": float(normaliser.min()),
            "max": float(normaliser.max()),
        }
        if parts[0]["delta"] is not None:
            delta = np.concatenate([part["delta"] for part in parts])
            # of a run that diverges; its root mean square says so
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
        for key, value in record.items():
            if key.startswith("rms/"):
                writer.add_scalar(f"gradients/{key}", value, runner.iter)
        for key, value in record["normaliser"].items():
            writer.add_scalar(f"gradients/ln_normaliser/{key}", value, runner.iter)
        if "histogram" in record:
            found = record["histogram"]
            edges = np.linspace(found["low"], found["high"], self.bins + 1)
            writer.add_histogram_raw(
                "gradients/delta",
                min=found["low"],
                max=found["high"],
                num=sum(found["counts"]),
                sum=found["sum"],
                sum_squares=found["sum_squares"],
                bucket_limits=edges[1:].tolist(),
                bucket_counts=found["counts"],
                global_step=runner.iter,
            )


def _loss_scale(runner: Runner) -> float:
    """What the loss is multiplied by before it is back-propagated."""
    wrapper = runner.optim_wrapper
    scaler = getattr(wrapper, "loss_scaler", None)
    return float(wrapper.scale_loss(torch.ones(()))) * (1.0 if scaler is None else scaler.get_scale())
