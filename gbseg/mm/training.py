"""Train a config: one run, or the preparation and the runs that it lists, and their comparison.

What happens on ``--resume``
----------------------------

1. `train` gives ``resume=True`` to the runner of each run (`build_runner`). A finished run ends as soon as it is loaded. So
   it does where torchrun or SLURM starts the processes again that began the run (`gbseg.mm.run_folder`).
2. `gbseg.mm.hooks.checkpoint.DurableCheckpointHook.before_run` chooses the newest checkpoint that is not damaged
   (`gbseg.mm.checkpoint_files.newest_readable_checkpoint`). Without any checkpoint the run starts at the beginning.
3. mmengine's runner loads it: weights, optimizer, schedules, iteration, logged values. Before that
   `gbseg.mm.hooks.resume_check.ResumeCheckHook` compares it with the config, and rebuilds what has changed. The checkpoint
   hook keeps its ``training_state``: for each process the random states and the position in the training data.
4. The checkpoint hook's ``before_train`` removes what the killed process left behind, restores gradients that wait for the
   optimizer's next step, and hands the state of this process to the loop.
5. The loop's ``run`` (`gbseg.mm.loops`) sets the sampler to the next draw (`gbseg.mm.resumable_sampler`), restores the
   random generators (`gbseg.mm.rng`), makes up for a validation that was due, and goes on.

On a CPU the weights are those of the run without interruption, bit for bit. In a config of MMSegmentation or MMPretrain,
`train` puts these parts in place of MMEngine's (`gbseg.mm.resumable_parts`).
"""

import copy
import json
import logging
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.registry import FUNCTIONS, RUNNERS
from mmengine.runner import Runner

from gbseg.config_files import ConfigError
from gbseg.data.scenes import write_scenes
from gbseg.files import require_folder, write_atomically
from gbseg.mm.amp import enable_amp
from gbseg.mm.checkpoint_files import newest_readable_checkpoint
from gbseg.mm.checkpoint_loading import read_checkpoint
from gbseg.mm.component_errors import config_errors, missing_packages, wrong_arguments, wrong_type, wrong_values
from gbseg.mm.config import config_warnings, default_work_dir, max_pixels, run_configs
from gbseg.mm.hooks.broadcast_buffers import BroadcastBuffersHook
from gbseg.mm.hooks.class_count import ClassCountHook
from gbseg.mm.hooks.list_check import ListCheckHook
from gbseg.mm.hooks.nonfinite_guard import NonFiniteLossError
from gbseg.mm.hooks.resume_check import ResumeCheckHook
from gbseg.mm.hooks.sample_check import LabelledPixelsHook, SampleCheckHook
from gbseg.mm.hooks.stop import StopHook
from gbseg.mm.hooks.sync_divisor import SyncDivisorHook
from gbseg.mm.hooks.train_test_overlap import OverlapHook
from gbseg.mm.hooks.validation_loss import ValidationLossHook
from gbseg.mm.process_group import lost_process_errors
from gbseg.mm.resumable_parts import not_resumable, use_resumable_parts
from gbseg.mm.run_comparison import compare_runs
from gbseg.mm.run_folder import LockedRuns, RunFolder, decided_by_rank_0, lock_run_folders, readable_write_errors
from gbseg.mm.runner import QuietRunner, init_processes
from gbseg.report.run_provenance import provenance

__all__ = ["build_runner", "prepare", "train"]

FUNCTIONS.register_module(name="write_scenes", module=write_scenes)


def build_runner(config: Config, work_dir: Path, name: str = "", **changes: object) -> Runner:
    """Build mmengine's runner of a config for training or testing.

    Args:
        config: config of one run; it is not changed.
        work_dir: folder of logs and checkpoints.
        name: name of the run, where a config has several.
        changes: top-level keys that replace the config's.

    Raises:
        ConfigError: it cannot be built.
        ValueError: the place of ``work_dir`` is taken by a file.
    """
    require_folder(Path(work_dir))
    if not config.get("model"):
        raise ConfigError(f"{config.filename} has no model: inherit one, e.g. _base_ = ['gbseg::_base_/pixelnet.py'].")
    for text, remedy in (*wrong_values(config), *missing_packages(config)):
        raise ConfigError(f"{config.filename}: {text} {remedy}")
    config = copy.deepcopy(config)
    config.work_dir = str(work_dir)
    # mmengine keeps loggers and visualizers by this name: two runs of one process must not share them
    config.experiment_name = "_".join(part for part in (Path(config.filename or "run").stem, name) if part)
    if (config.get("randomness") or {}).get("deterministic"):
        # cuBLAS reads it when it starts, and deterministic algorithms refuse to run without it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with config_errors(config):
        if "visualizer" in config:
            config.visualizer.pop("name", None)
        for key, value in changes.items():
            config[key] = value
        for split in ("train", "val", "test"):
            _without_workers(config.get(f"{split}_dataloader"))
        runner = RUNNERS.build(config) if "runner_type" in config else QuietRunner.from_cfg(config)
    runner.register_hook(ResumeCheckHook())
    runner.register_hook(ClassCountHook())
    runner.register_hook(ListCheckHook())
    runner.register_hook(SampleCheckHook(max_pixels(config)))
    runner.register_hook(LabelledPixelsHook())
    return runner


def _without_workers(loader: Any) -> None:
    """Leave out of a data loader's settings what PyTorch refuses without workers, and what then means nothing."""
    if isinstance(loader, dict) and not loader.get("num_workers"):
        for key in ("persistent_workers", "prefetch_factor", "multiprocessing_context"):
            loader.pop(key, None)


def prepare(config: Config) -> None:
    """Call the function that a config's ``prepare`` names, which writes the data if they do not exist yet.

    Raises:
        ConfigError: there is no such function, or it does not take these arguments.
    """
    if config.get("prepare"):
        with config_errors(config, key="prepare"):
            settings = dict(config.prepare)
            if problem := wrong_type(FUNCTIONS, settings) or wrong_arguments(FUNCTIONS, settings):
                raise ConfigError(f"{config.filename}: prepare: {problem}")
            FUNCTIONS.get(settings.pop("type"))(**settings)


def _make_resumable(config: Config, folder: Path, resume: bool) -> list[tuple[int, str]]:
    """Put the parts that resume exactly in place of MMEngine's; returns what to log, with its level."""
    others = list(not_resumable(config))
    has_position = True
    start = config.get("load_from")
    if resume and not others and "://" not in str(start):
        path = newest_readable_checkpoint(folder, RunFolder(config, folder).checkpoints, start)
        state = {} if path is None else read_checkpoint(path, mmap=True).get("training_state", {})
        has_position = path is None or any("draws" in process for process in state.get("processes", ()))
    replaced = use_resumable_parts(config, has_position)
    notes = []
    if replaced:
        text = f"{', '.join(replaced)}: so the run can be killed at any moment and resumed exactly; --stock-loop leaves them."
        notes.append((logging.INFO, text))
    if others:
        notes.append((logging.WARNING, f"{', '.join(others)}: a run with it is resumed, but not exactly."))
    if not has_position:
        text = (
            f"{path} was not written by a loop of gbseg: the stock loop goes on with it, not exactly as without interruption."
        )
        notes.append((logging.WARNING, text))
    return notes


def _start(config: Config, folder: Path, resume: bool) -> tuple[bool, list[str]]:
    """Whether a run is resumed, where it has weights to begin with, ``load_from``; and what to log.

    With ``--resume`` its own checkpoints come first, and ``load_from`` is where it begins as long as there are none. With
    ``resume = True`` in the config, ``load_from`` is the checkpoint to resume, as it is for MMEngine.
    """
    load_from = config.get("load_from")
    if not resume or load_from is None or config.get("resume"):
        return resume, []
    own = decided_by_rank_0(lambda: newest_readable_checkpoint(folder, RunFolder(config, folder).checkpoints))
    if own is None:
        return False, [f"There is no checkpoint in {folder} yet: training starts with the weights of {load_from}."]
    config.load_from = None
    return True, []


def _set_options(config: Config, amp: bool, seed: int | None, deterministic: bool, auto_scale_lr: bool) -> None:
    """What the command line says beside the config."""
    if amp:
        enable_amp(config)
        config.val_cfg.fp16 = True
    randomness = {} if seed is None else {"seed": seed}
    if deterministic:
        randomness["deterministic"] = True
    if randomness:
        config.randomness = {**(config.get("randomness") or {}), **randomness}
    if auto_scale_lr:
        if not (config.get("auto_scale_lr") or {}).get("base_batch_size"):
            raise ConfigError(
                f"{config.filename} does not say for which batch its learning rate is: --auto-scale-lr needs "
                "auto_scale_lr = dict(base_batch_size=N), N samples of all processes together."
            )
        config.auto_scale_lr.enable = True


def train(
    config: Config,
    work_dir: Path | str | None = None,
    resume: bool = False,
    amp: bool = False,
    launcher: str = "none",
    command: str | None = None,
    stock_loop: bool = False,
    stop_after: float | None = None,
    overwrite: bool = False,
    seed: int | None = None,
    deterministic: bool = False,
    auto_scale_lr: bool = False,
    allow_mismatch: bool = False,
) -> Path:
    """Prepare, train and compare the runs of a config.

    * ``prepare``: a registered function and its arguments, called first, e.g. ``dict(type='write_scenes', root=...)``;
    * ``runs``: several runs, one after the other, each in its own sub-folder (see `gbseg.mm.config.run_configs`);
    * ``val_loss = True``: validations compute the loss as well (`gbseg.mm.hooks.validation_loss.ValidationLossHook`);
    * ``compare``: with ``runs``, the settings of `gbseg.mm.run_comparison.compare_runs`, called last.

    A folder is of one training at a time, and of one run: see `gbseg.mm.run_folder.lock_run_folders`. Without ``resume`` and
    ``overwrite``, a folder that holds checkpoints is refused; of ``runs``, those that are finished stay as they are.

    Every run writes ``provenance.json`` to its folder: command, seed, date, commit, hardware and versions at its start.
    A run that trains on images which it also evaluates on logs a warning (`gbseg.mm.hooks.train_test_overlap`).

    Args:
        config: from `gbseg.mm.config.load_config`.
        work_dir: folder of all output; by default ``work_dirs/<name of the config>``.
        resume: continue each run from its newest readable checkpoint (see the top of this module); finished runs stay as
            they are.
        amp: mixed precision; bfloat16 on a CPU.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi', as ``mmengine.runner.Runner`` takes it.
        command: the command line, for the provenance.
        stock_loop: keep MMEngine's loop, sampler and checkpoint hook where the config has them, instead of those that resume
            exactly (`gbseg.mm.resumable_parts`).
        stop_after: seconds after which training stops, with a checkpoint.
        overwrite: first remove the checkpoints and logs of an earlier run.
        seed: replaces ``randomness.seed`` of every run.
        deterministic: sets ``randomness.deterministic`` in every run: PyTorch's deterministic algorithms alone.
        auto_scale_lr: sets ``auto_scale_lr.enable``: MMEngine multiplies the rate by the batch of all processes over
            ``auto_scale_lr.base_batch_size``, the linear rule.
        allow_mismatch: resume also from a checkpoint of another network or boost, as the config's key of this name.

    Returns:
        The work dir.

    Raises:
        ConfigError: a part of the config cannot be built; the message names it.
        RuntimeError: another process trains in the folder.
        ValueError: the folder holds checkpoints, and neither ``resume`` nor ``overwrite`` is given.
        ProcessLostError: another of several processes has ended.
        gbseg.mm.checkpoint_weights.MismatchError: the checkpoint to resume is of another network, number of classes or boost.
        NonFiniteLossError: a run's loss was not finite. If there are several runs, the others are trained and compared first.
        TrainingStopped: a signal or ``stop_after`` ended the training (`gbseg.mm.hooks.stop`).
    """
    with config_errors(config):
        work_dir = Path(work_dir or default_work_dir(config))
        require_folder(work_dir)
        runs = run_configs(config, work_dir)
    for run_config, _ in runs.values():
        with config_errors(run_config):
            _set_options(run_config, amp, seed, deterministic, auto_scale_lr)
            if allow_mismatch:
                run_config.allow_mismatch = True
    with config_errors(config, key="env_cfg"):
        init_processes(launcher, config.get("env_cfg") or {})
    with lock_run_folders(runs, work_dir, resume, overwrite) as locked:
        return _train(config, work_dir, runs, locked, StopHook(stop_after), launcher, command, stock_loop)


def _train(
    config: Config,
    work_dir: Path,
    runs: dict[str, tuple[Config, Path]],
    locked: LockedRuns,
    stop: StopHook,
    launcher: str,
    command: str | None,
    stock_loop: bool,
) -> Path:
    """`train`, in folders that are held."""
    finished = [name for name, is_resumed in locked.resume.items() if is_resumed is None]
    if finished and is_main_process():
        print(
            f"{'All runs' if len(finished) == len(runs) else 'Runs'} in {work_dir} are finished and stay as they are: "
            f"{', '.join(finished)}. To train them again, use --overwrite, or another folder with --work-dir."
        )
    if len(finished) == len(runs):
        return work_dir
    prepare(config)
    diverged: list[str] = []
    for name, (run_config, folder) in runs.items():
        if name in finished:
            continue
        run_resume, start = _start(run_config, folder, bool(locked.resume[name]))
        with config_errors(run_config):
            notes = [] if stock_loop else _make_resumable(run_config, folder, run_resume)
        runner = build_runner(run_config, folder, name, launcher=launcher, resume=run_resume)
        for level, text in [*notes, *((logging.INFO, note) for note in (*locked.notes, *start))]:
            runner.logger.log(level, text)
        for text, remedy in config_warnings(run_config):
            runner.logger.warning(f"{text} {remedy.capitalize()}")
        runner.register_hook(OverlapHook())
        runner.register_hook(stop)
        runner.register_hook(SyncDivisorHook())
        if run_config.get("val_loss") and not any(isinstance(hook, ValidationLossHook) for hook in runner.hooks):
            runner.register_hook(ValidationLossHook())
        runner.register_hook(BroadcastBuffersHook())
        if is_main_process():
            record = provenance(command, run_config.get("randomness", {}).get("seed"))
            write_atomically((json.dumps(record, indent=2) + "\n").encode(), folder / "provenance.json")
        try:
            with readable_write_errors(folder), lost_process_errors(), config_errors(run_config, only_building=True):
                runner.train()
            locked.finish(name)
        except NonFiniteLossError as error:
            if len(runs) == 1:
                raise
            diverged.append(f"{name}: {error}")
        finally:
            stop.close()
        # as long as its data loaders live, the workers of a finished run hold memory
        del runner
    if config.get("runs") and config.get("compare"):
        if launcher != "none":
            barrier()
        if is_main_process():
            compare_runs(config, work_dir)
    elif is_main_process():
        print(f"Logs and checkpoints are in {work_dir}")
    if diverged:
        raise NonFiniteLossError("\n".join(diverged))
    return work_dir
