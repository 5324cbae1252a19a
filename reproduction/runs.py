"""One training run: its config, the key that it is cached by, and its result."""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from gbseg.files import write_atomically
from gbseg.mm.amp import enable_amp
from gbseg.mm.config import load_config
from gbseg.mm.datasets.array_dataset import ArrayImages

__all__ = ["Run", "RunResult", "config_path", "count_images", "describe_data"]

# the keys of a config on which a run's numbers depend; the others say where and how much is logged
DETERMINING = (
    "model",
    "train_dataloader",
    "val_dataloader",
    "val_evaluator",
    "train_cfg",
    "optim_wrapper",
    "param_scheduler",
    "randomness",
    "custom_hooks",
    "load_from",
)


@lru_cache
def _inspect_dataset(dataset: str, scope: str) -> tuple[int, str]:
    """The number of images of a data set's config as JSON, and a description of its content."""
    with DefaultScope.overwrite_default_scope(scope):
        images = DATASETS.build(json.loads(dataset))
    content = f"{len(images)} images"
    if isinstance(images, ArrayImages):
        checksum = zlib.crc32(images.labels.cpu().numpy().data, zlib.crc32(images.pixels.cpu().numpy().data))
        content += f", checksum {checksum:08x}"
    return len(images), content


def count_images(dataset: dict[str, Any], scope: str) -> int:
    """The number of images of a data set's config, built in a registry's scope once for all runs."""
    return _inspect_dataset(json.dumps(dataset, sort_keys=True), scope)[0]


def describe_data(config: Config) -> str:
    """The training and validation data of a run: numbers of images; for sets in memory a checksum of pixels and labels."""
    datasets = [loader.dataset.to_dict() for loader in (config.train_dataloader, config.val_dataloader)]
    return "; ".join(_inspect_dataset(json.dumps(dataset, sort_keys=True), config.default_scope)[1] for dataset in datasets)


def config_path(folder: Path) -> Path:
    """The config of a run in its folder. Its name has the run's key, as mmengine names loggers and visualizers by it."""
    return folder / f"run_{folder.name}.py"


@dataclass(frozen=True)
class RunResult:
    """What a run measured in its V validations.

    Attributes:
        steps: V numbers of iterations.
        metrics: name -> V values, as the evaluator gives them (accuracies in per cent); a diverged run has fewer.
        loss: V mean training losses since the previous validation; None where none was logged in between.
        diverged: the first iteration at which the loss was not finite; None if it always was.
        seconds: duration; for runs trained together, the share of each.
        provenance: provenance of the process that ran it.
        data: the result of `describe_data`; None in results from before it was recorded.
    """

    steps: list[int]
    metrics: dict[str, list[float]]
    loss: list[float | None]
    diverged: int | None
    seconds: float
    provenance: dict[str, Any]
    data: str | None = None


@dataclass(frozen=True)
class Run:
    """A training run: a config with options, a seed and a learning rate.

    Attributes:
        arm: name of the setting that is compared.
        stage: 'sweep', 'final', or the stage of a search.
        rate: learning rate.
        seed: seed of initial weights and of the order of the images.
        epochs: passes over the training images.
        config: the config file.
        options: dotted keys and values that override the file's.
        amp: mixed precision.
        every: epochs between validations.
        together: whether it is trained vectorised with others (`reproduction.trials`).
        home: the folder of all runs.
    """

    arm: str
    stage: str
    rate: float
    seed: int
    epochs: float
    config: Path
    options: dict[str, Any]
    amp: bool
    every: int
    together: bool
    home: Path

    @cached_property
    def _config(self) -> Config:
        # a copy, because merging takes _delete_ out of what it is given
        config = load_config(self.config, copy.deepcopy(self.options))
        config.pop("cfg_options", None)
        dataset = config.train_dataloader.dataset
        epoch = -(-count_images(dataset.to_dict(), config.default_scope) // config.train_dataloader.batch_size)
        iterations = round(epoch * self.epochs)
        # a schedule keeps its shape: it is stretched to the length of this run
        stretch = iterations / config.train_cfg.max_iters
        for scheduler in config.get("param_scheduler") or []:
            for name in ("begin", "end", "T_max"):
                if name in scheduler:
                    scheduler[name] = round(scheduler[name] * stretch)
            if "milestones" in scheduler:
                scheduler["milestones"] = [round(step * stretch) for step in scheduler["milestones"]]
        config.merge_from_dict(
            {
                "optim_wrapper.optimizer.lr": self.rate,
                "randomness.seed": self.seed,
                "train_cfg.max_iters": iterations,
                "train_cfg.val_interval": epoch * self.every,
                "default_hooks.checkpoint.interval": epoch,
                "default_hooks.checkpoint.max_keep_ckpts": 2,
                "visualizer.vis_backends": [dict(type="LocalVisBackend")],
            }
        )
        return config

    @cached_property
    def resolved(self) -> Config:
        """The config of this run; schedules by iterations are stretched to its length."""
        config = copy.deepcopy(self._config)
        if self.amp:
            enable_amp(config)
        return config

    @cached_property
    def epoch(self) -> int:
        """Iterations of an epoch."""
        return self._config.train_cfg.val_interval // self.every

    @cached_property
    def key(self) -> str:
        """A hash of everything that determines the run's numbers, except code, libraries and hardware."""
        # what mixed precision makes of the config depends on the machine
        config = self._config.to_dict()
        determining = {name: config.get(name) for name in DETERMINING} | {"amp": self.amp, "together": self.together}
        return hashlib.sha256(json.dumps(determining, sort_keys=True, default=repr).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.home / self.key

    def write(self) -> Path:
        """Write the run's config into its folder, for `reproduction.worker`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = config_path(self.folder)
        write_atomically(self.resolved.pretty_text.encode(), path)
        return path

    def result(self) -> RunResult | None:
        """The result, or None if the run was not run yet.

        Raises:
            ValueError: it was measured on other data than the config names now.
        """
        try:
            result = RunResult(**json.loads((self.folder / "result.json").read_text()))
        except FileNotFoundError:
            return None
        if result.data is not None and result.data != (data := describe_data(self.resolved)):
            raise ValueError(
                f"{self.folder} holds a run on other data ({result.data}) than there are now ({data}): put those back, or "
                "remove the folder to run it again."
            )
        return result
