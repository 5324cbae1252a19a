"""What a process of a grid does: train one run, or several together.

A folder holds the config of a `reproduction.runs.Run` and gets a ``result.json``.
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
from gbseg.report.provenance import provenance
from reproduction.runs import RunResult, data_of
from reproduction.trials import Split, train_trials

__all__ = ["LOG", "config_of", "prepare", "train_alone", "train_folders", "train_together"]

LOG = "process_{}.log"


def config_of(folder: Path) -> Path:
    """The file of a run's config: named by its key, as mmengine names loggers and visualisers by it."""
    return folder / f"run_{folder.name}.py"


def _write(folder: Path, result: RunResult) -> None:
    write_atomically((json.dumps(asdict(result)) + "\n").encode(), folder / "result.json")


def _measured(folder: Path) -> tuple[list[int], dict[str, list[float]], list[float | None], int]:
    """Validations, metrics, mean losses between them, and the last iteration logged."""
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


class _Clock:
    """Seconds of a run, with those of earlier starts that were interrupted; one that was killed has left none."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "seconds"
        self.before = float(self.file.read_text()) if self.file.exists() else 0.0
        self.start = time.perf_counter()

    def stop(self) -> float:
        """The seconds until now, which are kept."""
        seconds = self.before + time.perf_counter() - self.start
        self.file.write_text(str(seconds))
        return seconds


def train_alone(folder: Path) -> RunResult:
    """Train the run of a folder, or go on with it, as `gbseg train --resume` does.

    A run whose loss is not finite any more is a result, recorded as diverged.
    """
    clock = _Clock(folder)
    # of the code that runs, whatever is committed meanwhile
    origin = provenance()
    config = load_config(config_of(folder))
    data = data_of(config)
    error: NonFiniteLossError | None = None
    try:
        train(config, folder, resume=True)
    except NonFiniteLossError as found:
        error = found
    finally:
        seconds = clock.stop()
    steps, metrics, losses, last = _measured(folder)
    result = RunResult(
        steps=steps,
        metrics=metrics,
        loss=losses,
        # only every so many iterations are logged; the guard says which one it was
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
        # not a module of this one: its loss has buffers
        self._head = (classifier.head,)

    def init_weights(self) -> None:
        self.backbone.init_weights()
        self._head[0].init_weights()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.backbone(inputs)[-1])


def _split(model: dict, dataset: dict) -> Split:
    images = DATASETS.build(dataset)
    classes, wanted = len(images.metainfo["classes"]), model["head"]["num_classes"]
    if classes != wanted:
        raise ValueError(f"the data have {classes} classes and the head has num_classes={wanted}.")
    preprocess = MODELS.build(model).data_preprocessor.to(images.pixels.device)
    batches = [preprocess({"inputs": part})["inputs"] for part in images.pixels.split(5000)]
    return Split(torch.cat(batches), images.labels)


def _common(configs: Sequence[Config]) -> dict[str, Any]:
    """What the runs share; raises ValueError where they differ in more than rate and seed, or need more than plain SGD."""
    found = []
    for config in configs:
        facts = copy.deepcopy(config.to_dict())
        facts["optim_wrapper"]["optimizer"].pop("lr")
        facts["randomness"].pop("seed")
        found.append(facts)
    if any(facts != found[0] for facts in found):
        raise ValueError("runs trained together differ in nothing but the learning rate and the seed.")
    if found[0]["model"]["head"].get("batch_norm"):
        raise ValueError("runs trained together have no batch normalisation; model.head.batch_norm is set.")
    if found[0]["optim_wrapper"] != {"type": "OptimWrapper", "optimizer": {"type": "SGD"}} or found[0]["param_scheduler"]:
        raise ValueError(f"runs trained together use plain SGD at a fixed rate, got {found[0]['optim_wrapper']}.")
    facts = found[0]
    dataset, sampler = facts["train_dataloader"]["dataset"], facts["train_dataloader"]["sampler"]
    # what vectorised trials do not know would be left out without a word
    for name, value, plain in (
        ("custom_hooks", facts.get("custom_hooks"), (None, [])),
        ("load_from", facts.get("load_from"), (None,)),
        ("model.neck", facts["model"].get("neck"), (None,)),
        ("model.train_cfg", facts["model"].get("train_cfg"), (None,)),
        ("model.head.loss.reduction", facts["model"]["head"]["loss"].get("reduction", "mean"), ("mean",)),
        ("train_dataloader.dataset.pad", dataset.get("pad", 0), (0,)),
        ("train_dataloader.dataset.flip", dataset.get("flip", False), (False,)),
        ("train_dataloader.sampler", sampler, ({"type": "ResumableSampler", "shuffle": True},)),
    ):
        if value not in plain:
            raise ValueError(f"runs trained together have no {name}, got {value!r}; train them alone (together = 0).")
    return facts


def train_together(folders: Sequence[Path]) -> None:
    """Train the runs of several folders at once, vectorised; they differ in rate and seed alone."""
    clock = _Clock(folders[0])
    origin = provenance()
    configs = [load_config(config_of(folder)) for folder in folders]
    facts, data = _common(configs), data_of(configs[0])
    loader, schedule = facts["train_dataloader"], facts["train_cfg"]
    epochs = schedule["max_iters"] // schedule["val_interval"]
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        # of these runs: those that are left when some are done, or when fewer are asked for, start anew
        names = hashlib.sha256(" ".join(folder.name for folder in folders).encode()).hexdigest()[:16]
        state = folders[0] / f"together_{names}.pt"
        try:
            curves = train_trials(
                lambda: _Logits(facts["model"]),
                MODELS.build(facts["model"]).head.loss_module,
                _split(facts["model"], loader["dataset"]),
                _split(facts["model"], facts["val_dataloader"]["dataset"]),
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
    for done in folders[0].glob("together*.pt"):
        done.unlink()


def prepare(slots: Queue, threads: int, home: Path) -> None:
    """Make a new process ready: its share of the cores, its GPU, its log; it ends with the process that started it."""
    slot = slots.get()
    torch.set_num_threads(threads)
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(slot % torch.cuda.device_count())
    # the descriptors, not sys.stdout: mmengine's loggers keep the streams of the first run
    log = os.open(home / LOG.format(slot), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # an interruption is said once, by the process that started this one
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def train_folders(folders: Sequence[Path], together: bool) -> None:
    """Train the runs of some folders.

    Raises:
        RuntimeError: whatever went wrong, its type and message; the traceback is printed.
    """
    try:
        with ExitStack() as locks:
            # fig1b and fig2 share their runs, and may be started side by side
            for folder in folders:
                locks.enter_context(lock_folder(folder, timeout=math.inf))
            # another one may have finished them in the meantime
            left = [folder for folder in folders if not (folder / "result.json").exists()]
            if together and left:
                train_together(left)
            elif not together:
                for folder in left:
                    train_alone(folder)
    except Exception as error:
        traceback.print_exc()
        # anything can be written down, not everything can be sent to another process
        raise RuntimeError(f"{type(error).__name__}: {error}") from None
