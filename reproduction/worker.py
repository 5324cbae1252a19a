"""The work of one process of a pool: train one run, or several together.

The folder of a run holds its config and gets a ``result.json``.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import Tensor, nn

from gbseg.files import lock_folder, write_atomically
from gbseg.mm.config import load_config
from gbseg.mm.hooks.nonfinite_guard import NonFiniteLossError
from gbseg.mm.training import train
from gbseg.report.history import read_history
from gbseg.report.run_provenance import provenance
from reproduction.runs import RunResult, config_path, describe_data
from reproduction.trials import Split, train_trials

__all__ = ["LOG", "init_worker", "train_alone", "train_folders", "train_together"]

LOG = "process_{}.log"


def _write(folder: Path, result: RunResult) -> None:
    write_atomically((json.dumps(asdict(result)) + "\n").encode(), folder / "result.json")


def _read_measurements(folder: Path) -> tuple[list[int], dict[str, list[float]], list[float | None], int]:
    """Iterations of the validations, metrics, mean losses between validations, and the last iteration logged."""
    try:
        history = read_history(folder)
    except FileNotFoundError:
        # diverged before anything was logged
        return [], {}, [], 0
    edges = np.concatenate([[0], history.val_steps])
    parts = [
        history.loss[(history.train_steps > low) & (history.train_steps <= high)] for low, high in itertools.pairwise(edges)
    ]
    losses = [float(part.mean()) if len(part) else None for part in parts]
    metrics = {name: values.tolist() for name, values in history.metrics.items()}
    return history.val_steps.tolist(), metrics, losses, history.last_step


class _Stopwatch:
    """Seconds of a run, including earlier starts that were interrupted, but not those that were killed."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "seconds"
        self.before = float(self.file.read_text()) if self.file.exists() else 0.0
        self.start = time.perf_counter()

    def stop(self) -> float:
        """Save and return the seconds until now."""
        seconds = self.before + time.perf_counter() - self.start
        self.file.write_text(str(seconds))
        return seconds


def train_alone(folder: Path) -> RunResult:
    """Train the run of a folder, or continue it, as ``gbseg train --resume`` does.

    If its loss becomes non-finite, that is its result: it is recorded as diverged.
    """
    clock = _Stopwatch(folder)
    # now: the working tree may change during the training
    origin = provenance()
    config = load_config(config_path(folder))
    data = describe_data(config)
    error: NonFiniteLossError | None = None
    try:
        train(config, folder, resume=True)
    except NonFiniteLossError as nonfinite:
        error = nonfinite
    finally:
        seconds = clock.stop()
    steps, metrics, losses, last = _read_measurements(folder)
    result = RunResult(
        steps=steps,
        metrics=metrics,
        loss=losses,
        # only some iterations are logged; the guard knows the exact one
        diverged=None if error is None else error.iteration or last + 1,
        seconds=seconds,
        provenance=origin,
        data=data,
    )
    _write(folder, result)
    for checkpoint in folder.glob("*.pth"):
        checkpoint.unlink()
    return result


class _Logits(nn.Module):
    """A classifier's backbone and head, built as the runner builds them, without its data preprocessor."""

    def __init__(self, model: dict) -> None:
        super().__init__()
        classifier = MODELS.build(model)
        self.backbone, self.fc = classifier.backbone, classifier.head.fc
        # hidden in a tuple, so that it is no submodule: its loss has buffers
        self._head = (classifier.head,)

    def init_weights(self) -> None:
        self.backbone.init_weights()
        self._head[0].init_weights()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.backbone(inputs)[-1])


def _load_split(model: dict[str, Any], dataset: dict[str, Any]) -> Split:
    """The preprocessed images of a data set's config."""
    images = DATASETS.build(dataset)
    classes, num_classes = len(images.metainfo["classes"]), model["head"]["num_classes"]
    if classes != num_classes:
        raise ValueError(f"the data have {classes} classes and the head has num_classes={num_classes}.")
    preprocess = MODELS.build(model).data_preprocessor.to(images.pixels.device)
    batches = [preprocess({"inputs": pixels})["inputs"] for pixels in images.pixels.split(5000)]
    return Split(torch.cat(batches), images.labels)


def _shared_config(configs: Sequence[Config]) -> dict[str, Any]:
    """The config that the runs share.

    Raises:
        ValueError: they differ in more than rate and seed, or need more than plain SGD and what `train_trials` can do.
    """
    stripped = []
    for config in configs:
        settings = copy.deepcopy(config.to_dict())
        settings["optim_wrapper"]["optimizer"].pop("lr")
        settings["randomness"].pop("seed")
        stripped.append(settings)
    shared = stripped[0]
    if any(settings != shared for settings in stripped):
        raise ValueError("runs trained together differ in nothing but the learning rate and the seed.")
    if shared["model"]["head"].get("batch_norm"):
        raise ValueError("runs trained together have no batch normalisation; model.head.batch_norm is set.")
    if shared["optim_wrapper"] != {"type": "OptimWrapper", "optimizer": {"type": "SGD"}} or shared["param_scheduler"]:
        raise ValueError(f"runs trained together use plain SGD at a fixed rate, got {shared['optim_wrapper']}.")
    dataset, sampler = shared["train_dataloader"]["dataset"], shared["train_dataloader"]["sampler"]
    # vectorised training would ignore these silently
    for name, value, supported in (
        ("custom_hooks", shared.get("custom_hooks"), (None, [])),
        ("load_from", shared.get("load_from"), (None,)),
        ("model.neck", shared["model"].get("neck"), (None,)),
        ("model.train_cfg", shared["model"].get("train_cfg"), (None,)),
        (
            "model.data_preprocessor.batch_augments",
            (shared["model"].get("data_preprocessor") or {}).get("batch_augments"),
            (None,),
        ),
        ("model.head.loss.reduction", shared["model"]["head"]["loss"].get("reduction", "mean"), ("mean",)),
        ("train_dataloader.dataset.pad", dataset.get("pad", 0), (0,)),
        ("train_dataloader.dataset.flip", dataset.get("flip", False), (False,)),
        ("train_dataloader.sampler", sampler, ({"type": "ResumableSampler", "shuffle": True},)),
    ):
        if value not in supported:
            raise ValueError(f"runs trained together have no {name}, got {value!r}; train them alone (together = 0).")
    return shared


def train_together(folders: Sequence[Path]) -> None:
    """Train the runs of several folders at once, vectorised. They differ only in rate and seed."""
    clock = _Stopwatch(folders[0])
    origin = provenance()
    configs = [load_config(config_path(folder)) for folder in folders]
    shared, data = _shared_config(configs), describe_data(configs[0])
    loader, schedule = shared["train_dataloader"], shared["train_cfg"]
    epochs = schedule["max_iters"] // schedule["val_interval"]
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        # named by all of its runs: another set of runs starts anew
        names = hashlib.sha256(" ".join(folder.name for folder in folders).encode()).hexdigest()[:16]
        state = folders[0] / f"together_{names}.pt"
        try:
            curves = train_trials(
                lambda: _Logits(shared["model"]),
                MODELS.build(shared["model"]).head.loss_module,
                _load_split(shared["model"], loader["dataset"]),
                _load_split(shared["model"], shared["val_dataloader"]["dataset"]),
                rates=[config.optim_wrapper.optimizer.lr for config in configs],
                seeds=[config.randomness.seed for config in configs],
                epochs=epochs,
                batch=loader["batch_size"],
                state=state,
            )
        finally:
            seconds = clock.stop() / len(folders)
    for trial, folder in enumerate(folders):
        diverged = curves.diverged[trial]
        errors = [error for row in curves.error if (error := row[trial]) is not None]
        result = RunResult(
            steps=[schedule["val_interval"] * (epoch + 1) for epoch in range(len(errors))],
            metrics={"accuracy/top1": [100 * (1 - error) for error in errors]},
            loss=[loss for row in curves.loss if (loss := row[trial]) is not None],
            diverged=None if diverged is None else schedule["val_interval"] * diverged,
            seconds=seconds,
            provenance=origin,
            data=data,
        )
        _write(folder, result)
    for path in folders[0].glob("together*.pt"):
        path.unlink()


def init_worker(slots: Queue[int], threads: int, home: Path) -> None:
    """Set up a new process of a pool: its share of the cores, its GPU, its log, and its end with the parent process."""
    slot = slots.get()
    torch.set_num_threads(threads)
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(slot % torch.cuda.device_count())
    # the descriptors, not sys.stdout: mmengine's loggers keep the streams of the first run
    log = os.open(home / LOG.format(slot), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # the parent process reports an interruption
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def train_folders(folders: Sequence[Path], together: bool) -> None:
    """Train the runs of some folders, except those that have a result.

    Raises:
        RuntimeError: the training failed; with the error's type and message, as not every error can be pickled. Its traceback
            goes to the log.
    """
    try:
        with ExitStack() as locks:
            # fig1b and fig2 share their runs, and may be started side by side
            for folder in folders:
                locks.enter_context(lock_folder(folder, timeout=math.inf))
            # another process may have finished them in the meantime
            pending = [folder for folder in folders if not (folder / "result.json").exists()]
            if together and pending:
                train_together(pending)
            elif not together:
                for folder in pending:
                    train_alone(folder)
    except Exception as error:
        traceback.print_exc()
        raise RuntimeError(f"{type(error).__name__}: {error}") from None
