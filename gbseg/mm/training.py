"""Training: one run, or the preparation and the runs that a config lists, and their comparison."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.registry import FUNCTIONS, RUNNERS
from mmengine.runner import Runner

from gbseg.data.scenes import write_scenes
from gbseg.files import write_atomically
from gbseg.mm.amp import enable_amp
from gbseg.mm.config import default_work_dir, run_configs
from gbseg.mm.hooks.class_count import ClassCountHook
from gbseg.mm.hooks.nonfinite_guard import NonFiniteLossError
from gbseg.mm.hooks.train_test_overlap import OverlapHook
from gbseg.mm.run_comparison import compare_runs
from gbseg.mm.runner import TerseRunner
from gbseg.report.provenance import provenance

__all__ = ["build_runner", "prepare", "train"]

FUNCTIONS.register_module(name="write_scenes", module=write_scenes)


def build_runner(config: Config, work_dir: Path, name: str = "", **changes: object) -> Runner:
    """mmengine's runner of a config, as training and testing use it.

    Args:
        config: of one run; it is not changed.
        work_dir: where logs and checkpoints go.
        name: of the run, where a config has several.
        changes: top-level keys that replace the config's.
    """
    config = copy.deepcopy(config)
    config.work_dir = str(work_dir)
    # loggers and visualisers are found by this name: two runs of one process must not share them
    config.experiment_name = "_".join(part for part in (Path(config.filename or "run").stem, name) if part)
    if "visualizer" in config:
        config.visualizer.pop("name", None)
    for key, value in changes.items():
        config[key] = value
    runner = RUNNERS.build(config) if "runner_type" in config else TerseRunner.from_cfg(config)
    runner.register_hook(ClassCountHook())
    return runner


def prepare(config: Config) -> None:
    """Call the function that a config's ``prepare`` names, which makes its data where they are not there yet."""
    if config.get("prepare"):
        settings = dict(config.prepare)
        FUNCTIONS.get(settings.pop("type"))(**settings)


def train(
    config: Config,
    work_dir: Path | str | None = None,
    resume: bool = False,
    amp: bool = False,
    launcher: str = "none",
    command: str | None = None,
) -> Path:
    """Prepare, train and compare whatever a config asks for.

    * ``prepare``: a registered function and its arguments, called first, e.g. ``dict(type='write_scenes', root=...)``;
    * ``runs``: several runs, one after the other, each in its own sub-folder (see `gbseg.mm.config.run_configs`);
    * ``compare``: with ``runs``, what `gbseg.mm.run_comparison.compare_runs` draws at the end.

    Every run leaves a ``provenance.json`` in its folder: command, seed, date, commit, hardware and versions at its start.
    One that trains on images which it also evaluates on says so loudly (`gbseg.mm.hooks.train_test_overlap`).

    Args:
        config: from `gbseg.mm.config.load_config`.
        work_dir: where everything goes; by default ``work_dirs/<name of the config>``.
        resume: continue from the newest readable checkpoint of each run; finished runs are left as they are.
        amp: mixed precision; bfloat16 on a CPU.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi', as `mmengine.runner.Runner` takes it.
        command: the command line, for the provenance.

    Returns:
        The work dir.

    Raises:
        NonFiniteLossError: a run's loss was not finite. Of several runs the others are trained and compared first.
    """
    work_dir = Path(work_dir or default_work_dir(config))
    prepare(config)
    runs = run_configs(config, work_dir)
    diverged: list[str] = []
    for name, (one, folder) in runs.items():
        if amp:
            enable_amp(one)
            one.val_cfg.fp16 = True
        runner = build_runner(one, folder, name, launcher=launcher, resume=resume or one.get("resume", False))
        runner.register_hook(OverlapHook())
        if is_main_process():
            facts = provenance(command, one.get("randomness", {}).get("seed"))
            write_atomically((json.dumps(facts, indent=2) + "\n").encode(), folder / "provenance.json")
        try:
            runner.train()
        except NonFiniteLossError as error:
            if len(runs) == 1:
                raise
            diverged.append(f"{name}: {error}")
        # workers of a finished run would hold memory and a core for as long as its loaders live
        del runner
    if "runs" in config and "compare" in config:
        if launcher != "none":
            barrier()
        if is_main_process():
            compare_runs(config, work_dir)
    elif is_main_process():
        print(f"Logs and checkpoints are in {work_dir}")
    if diverged:
        raise NonFiniteLossError("\n".join(diverged))
    return work_dir
