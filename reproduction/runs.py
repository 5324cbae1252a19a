"""One run of a grid: what determines it, the key that it is cached by, and its result."""

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

__all__ = ["Run", "RunResult", "data_of", "images_of"]

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
def _looked_at(dataset: str, scope: str) -> tuple[int, str]:
    with DefaultScope.overwrite_default_scope(scope):
        found = DATASETS.build(json.loads(dataset))
    content = f"{len(found)} images"
    if isinstance(found, ArrayImages):
        checksum = zlib.crc32(found.labels.cpu().numpy(), zlib.crc32(found.pixels.cpu().numpy()))
        content += f", checksum {checksum:08x}"
    return len(found), content


def images_of(dataset: dict, scope: str) -> int:
    """The number of images of a data set's config, looked up in a registry's scope; it is built once for all runs."""
    return _looked_at(json.dumps(dataset, sort_keys=True), scope)[0]


def data_of(config: Config) -> str:
    """What a run learns from and is measured on: numbers of images, of sets in memory with a checksum of pixels and labels."""
    sets = [loader.dataset.to_dict() for loader in (config.train_dataloader, config.val_dataloader)]
    return "; ".join(_looked_at(json.dumps(one, sort_keys=True), config.default_scope)[1] for one in sets)


@dataclass(frozen=True)
class RunResult:
    """What a run measured. V validations.

    Attributes:
        steps: V iterations done.
        metrics: name -> V values, as the evaluator gives them (accuracies in per cent); a diverged run's stop there.
        loss: V mean training losses since the validation before; None where none was logged in between.
        diverged: the iteration at which the loss was not finite any more, None where it always was.
        seconds: the run took; for runs trained together, the share of each.
        provenance: of the process that ran it.
        data: see `data_of`; None of results from before it was recorded.
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
    """A config with options, a seed and a rate.

    Attributes:
        arm: the name of what is compared.
        stage: 'sweep' or 'final'.
        rate: learning rate.
        seed: of everything random in it.
        epochs: passes over the training images.
        config: its file.
        options: keys with dots and their values, laid over the file's.
        amp: mixed precision.
        every: epochs between validations.
        together: whether it is trained vectorised with its like (`reproduction.trials`).
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
    def _plain(self) -> Config:
        # a copy, because merging takes _delete_ out of what it is given
        config = load_config(self.config, copy.deepcopy(self.options))
        config.pop("cfg_options", None)
        dataset = config.train_dataloader.dataset
        epoch = -(-images_of(dataset.to_dict(), config.default_scope) // config.train_dataloader.batch_size)
        iterations = round(epoch * self.epochs)
        # a schedule keeps its shape: what stands at a tenth of the config's run stands at a tenth of this one
        share = iterations / config.train_cfg.max_iters
        for scheduler in config.get("param_scheduler") or []:
            for name in ("begin", "end", "T_max"):
                if name in scheduler:
                    scheduler[name] = round(scheduler[name] * share)
            if "milestones" in scheduler:
                scheduler["milestones"] = [round(step * share) for step in scheduler["milestones"]]
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
        """The config of this run alone; a schedule of rates by iterations is stretched to the run's length."""
        config = copy.deepcopy(self._plain)
        if self.amp:
            enable_amp(config)
        return config

    @cached_property
    def epoch(self) -> int:
        """Iterations of an epoch."""
        return self._plain.train_cfg.val_interval // self.every

    @cached_property
    def key(self) -> str:
        """A hash of all that determines the run's numbers but the code, the libraries and the hardware."""
        # what mixed precision makes of the config depends on the machine
        config = self._plain.to_dict()
        facts = {name: config.get(name) for name in DETERMINING} | {"amp": self.amp, "together": self.together}
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return self.home / self.key

    def write(self) -> Path:
        """Write the run's config into its folder, for `reproduction.worker`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"run_{self.key}.py"
        write_atomically(self.resolved.pretty_text.encode(), path)
        return path

    def result(self) -> RunResult | None:
        """What was measured, None if it was not run yet.

        Raises:
            ValueError: it was measured on other data than those that the config names now.
        """
        try:
            found = RunResult(**json.loads((self.folder / "result.json").read_text()))
        except FileNotFoundError:
            return None
        if found.data is not None and found.data != (here := data_of(self.resolved)):
            raise ValueError(
                f"{self.folder} holds a run on other data ({found.data}) than there are now ({here}): put those back, or "
                "remove the folder to run it again."
            )
        return found
