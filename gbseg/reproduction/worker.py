"""What a process of a grid does: train one run, or several together.

A folder holds the config of a `gbseg.reproduction.runs.Run` and gets a ``result.json``.
"""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
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

from gbseg.engine.config import load_config
from gbseg.engine.guard import NonFiniteLossError
from gbseg.engine.train import train
from gbseg.files import write_atomically
from gbseg.report.history import read_history
from gbseg.report.provenance import provenance
from gbseg.reproduction.runs import RunResult
from gbseg.reproduction.trials import Split, train_trials

__all__ = ["LOG", "config_of", "prepare", "train_alone", "train_folders", "train_together"]

LOG = "process_{}.log"


def config_of(folder: Path) -> Path:
    """The file of a run's config: named by its key, as mmengine names loggers and visualisers by it."""
    return folder / f"run_{folder.name}.py"


def _write(folder: Path, result: RunResult) -> None:
    write_atomically((json.dumps(asdict(result)) + "\n").encode(), folder / "result.json")


def train_alone(folder: Path) -> RunResult:
    """Train the run of a folder, or go on with it, as `gbseg train --resume` does.

    A run whose loss is not finite any more is a result, recorded as diverged.
    """
    start = time.perf_counter()
    # what earlier, interrupted starts took
    clock = folder / "seconds"
    before = float(clock.read_text()) if clock.exists() else 0.0
    diverged: NonFiniteLossError | None = None
    try:
        train(load_config(config_of(folder)), folder, resume=True)
    except NonFiniteLossError as error:
        diverged = error
    finally:
        seconds = before + time.perf_counter() - start
        clock.write_text(str(seconds))
    if diverged is not None and not any(folder.glob("*/vis_data/scalars.json")):
        # before the first line of a log
        result = RunResult([], {}, [], diverged.iteration, seconds, [], provenance())
        _write(folder, result)
        return result
    history = read_history(folder)
    edges = np.concatenate([[0], history.val_steps])
    losses = [
        history.loss[(history.train_steps > low) & (history.train_steps <= high)] for low, high in itertools.pairwise(edges)
    ]
    gradients = [
        json.loads(line) for path in sorted(folder.glob("*/gradients.jsonl")) for line in path.read_text().splitlines()
    ]
    result = RunResult(
        steps=history.val_steps.tolist(),
        metrics={name: values.tolist() for name, values in history.metrics.items()},
        loss=[float(values.mean()) if len(values) else float("nan") for values in losses],
        diverged=history.last_step + 1 if diverged is not None else None,
        seconds=seconds,
        gradients=gradients,
        provenance=provenance(),
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
    preprocess = MODELS.build(model).data_preprocessor
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
    if found[0]["optim_wrapper"] != {"type": "OptimWrapper", "optimizer": {"type": "SGD"}} or found[0]["param_scheduler"]:
        raise ValueError(f"runs trained together use plain SGD at a fixed rate, got {found[0]['optim_wrapper']}.")
    return found[0]


def train_together(folders: Sequence[Path]) -> None:
    """Train the runs of several folders at once, vectorised; they differ in rate and seed alone."""
    start = time.perf_counter()
    configs = [load_config(config_of(folder)) for folder in folders]
    facts = _common(configs)
    loader, schedule = facts["train_dataloader"], facts["train_cfg"]
    epochs = schedule["max_iters"] // schedule["val_interval"]
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        state = folders[0] / "together.pt"
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
    seconds = (time.perf_counter() - start) / len(folders)
    origin = provenance()
    for trial, folder in enumerate(folders):
        diverged = curves.diverged[trial]
        last = epochs if diverged is None else diverged - 1
        result = RunResult(
            steps=[schedule["val_interval"] * (epoch + 1) for epoch in range(last)],
            metrics={"accuracy/top1": [100 * (1 - row[trial]) for row in curves.error[:last]]},
            loss=[row[trial] for row in curves.loss[:last]],
            diverged=None if diverged is None else schedule["val_interval"] * diverged,
            seconds=seconds,
            gradients=[],
            provenance=origin,
        )
        _write(folder, result)
    state.unlink(missing_ok=True)


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
    """Train the runs of some folders."""
    if together:
        train_together(folders)
    else:
        for folder in folders:
            train_alone(folder)
