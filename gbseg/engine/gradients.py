"""What is back-propagated: deltas at the outputs, their size in the hidden layers, and the softmax's normaliser.

Shapes: N rows (or pixels) of a batch, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

__all__ = ["GradientStatsHook"]


@HOOKS.register_module()
class GradientStatsHook(Hook):
    """Record the error gradients of a training run (paper, Fig. 2, 3 and 5).

    An *error gradient* is the derivative of one row's loss in a layer's output, so that of a mean over N rows times N; at the
    outputs that is the delta ``g(x) - t``. Recorded are, every ``interval`` iterations and at those of ``histograms``:

    * ``rms/<layer>``: the root mean square of the layer's error gradients over rows and units;
    * ``normaliser``: median, least and greatest ``s = sum_j exp(x_j)`` over the rows, as natural logarithms;
    * at ``histograms``: the distribution of the output's deltas.

    They go to TensorBoard, if the run has it, and to ``gradients.jsonl`` in the run's log folder, one line an iteration. What a
    recorded iteration takes longer is some reductions over the layers' gradients; others take nothing.

    Args:
        output: the name of the module that gives the logits, (N, C) or (N, C, *).
        layers: names of modules whose outputs are watched too.
        interval: iterations between records.
        histograms: iterations (from 0) whose output deltas are kept as a histogram.
        bins: of a histogram.

    Raises:
        ValueError: a module is not in the model (the message lists those that are), or ``interval < 1``.
    """

    priority = "LOW"

    def __init__(
        self,
        output: str = "head.fc",
        layers: Sequence[str] = (),
        interval: int = 50,
        histograms: Sequence[int] = (0,),
        bins: int = 200,
    ) -> None:
        if interval < 1:
            raise ValueError(f"GradientStatsHook: interval is a number of iterations and must be >= 1, got {interval}.")
        self.names = (output, *layers)
        self.interval = interval
        self.histograms = frozenset(histograms)
        self.bins = bins
        self._modules: dict[str, nn.Module] = {}
        self._seen: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Find the modules."""
        model = getattr(runner.model, "module", runner.model)
        known = dict(model.named_modules())
        if missing := [name for name in self.names if name not in known]:
            raise ValueError(
                f"GradientStatsHook: the model has no {', '.join(missing)}; it has {', '.join(filter(None, known))}."
            )
        self._modules = {name: known[name] for name in self.names}
        self.path = Path(runner.log_dir) / "gradients.jsonl"

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Watch the modules during an iteration that is to be recorded."""
        if runner.iter % self.interval and runner.iter not in self.histograms:
            return
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keeper(name)))

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda gradient: self._seen.__setitem__(name, gradient.detach()))
            if name == self.names[0]:
                self._seen["logits"] = output.detach()

        return keep

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Reduce what was seen, and write it."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        seen, self._seen = self._seen, {}
        if not is_main_process() or self.names[0] not in seen:
            return
        record = self._record(seen, self._loss_scale(runner), runner.iter in self.histograms)
        record = {"iter": runner.iter, "epoch": runner.iter / max(len(runner.train_dataloader), 1), **record}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._to_tensorboard(runner, record)

    @staticmethod
    def _loss_scale(runner: Runner) -> float:
        scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
        return scaler.get_scale() if scaler is not None else 1.0

    def _record(self, seen: dict[str, Tensor], loss_scale: float, histogram: bool) -> dict[str, Any]:
        logits = seen.pop("logits").float()
        # a mean over rows gives each of them an N-th
        rows = logits.numel() // logits.shape[1] / loss_scale
        values = torch.stack([gradient.float().square().mean().sqrt() * rows for gradient in seen.values()])
        normaliser = torch.logsumexp(logits, 1).flatten()
        extremes = torch.stack([normaliser.median(), normaliser.min(), normaliser.max()])
        # one transfer for all
        numbers = torch.cat([values, extremes]).tolist()
        record: dict[str, Any] = {f"rms/{name}": value for name, value in zip(seen, numbers, strict=False)}
        record["normaliser"] = dict(zip(("median", "min", "max"), numbers[-3:], strict=True))
        if histogram:
            delta = (seen[self.names[0]].float() * rows).flatten()
            low, high = (float(value) for value in delta.aminmax())
            if math.isfinite(low) and math.isfinite(high):
                counts = torch.histc(delta.cpu(), self.bins, low, high)
                record["histogram"] = {"low": low, "high": high, "counts": [int(count) for count in counts.tolist()]}
        return record

    def _to_tensorboard(self, runner: Runner, record: dict[str, Any]) -> None:
        backends = getattr(runner.visualizer, "_vis_backends", {})
        if "TensorboardVisBackend" not in backends:
            return
        writer = runner.visualizer.get_backend("TensorboardVisBackend").experiment
        for key, value in record.items():
            if key.startswith("rms/"):
                writer.add_scalar(f"gradients/{key}", value, runner.iter)
        writer.add_scalars("gradients/ln_normaliser", record["normaliser"], runner.iter)
