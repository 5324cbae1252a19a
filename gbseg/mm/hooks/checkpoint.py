"""The checkpoint hook: a run that is interrupted at any moment resumes as if it never had been.

What happens on ``--resume``, step by step, is in the docstring of `gbseg.mm.training`.
"""

import hashlib
import pickle
from collections import deque
from pathlib import Path
from typing import Any

from mmengine.dist import get_rank, get_world_size, is_main_process, master_only
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner, save_checkpoint
from torch import distributed

from gbseg.files import checkpoint_steps, is_checkpoint_folder, remove_temporary_files, require_folder
from gbseg.mm.checkpoint_contents import shorten_curves
from gbseg.mm.checkpoint_files import (
    INTERRUPTED,
    CheckpointWriteError,
    NoReadableCheckpointError,
    newest_readable_checkpoint,
    write_checkpoint,
)
from gbseg.mm.checkpoint_loading import CheckpointError, UnsafeCheckpointError, read_checkpoint
from gbseg.mm.compat import CheckpointSteps, checkpoint_to_load, resume_from, resumes
from gbseg.mm.finite_state import except_from_checks, nonfinite_at_start, nonfinite_entries
from gbseg.mm.fully_shard import FullyShard, remove_checkpoint_folder
from gbseg.mm.gradient_accumulation import pending_gradients, restore_gradients
from gbseg.mm.hooks.nonfinite_guard import NonFiniteGuardHook, NonFiniteLossError, require_finite_state
from gbseg.mm.resumable_sampler import ResumableSampler
from gbseg.mm.rng import rng_state, set_rng_state
from gbseg.mm.run_folder import decided_by_rank_0
from gbseg.mm.sharded_checkpoint import read_rest

__all__ = ["CheckpointWriteError", "DurableCheckpointHook", "NoReadableCheckpointError", "newest_readable_checkpoint"]


@HOOKS.register_module()
class DurableCheckpointHook(CheckpointSteps):
    """mmengine's ``CheckpointHook`` with the same keys, atomic files, and all the state that resuming needs.

    * Every file (regular, best, published, ``last_checkpoint``) is written beside its place, flushed and renamed; what it
      replaces is removed afterwards. So the disk must hold one checkpoint more than ``max_keep_ckpts``.
    * ``training_state`` in a regular checkpoint holds, for every process, the random states, the gradients
      gathered since the optimizer's last step (``accumulative_counts``) and, with one of `gbseg.mm.loops`, the position in
      the training data.
    * ``resume=True`` takes the newest checkpoint that can be read, ``resume=True`` with ``load_from`` that file or the
      newest readable one before it in its folder. Damaged ones are reported.
    * A state that is not finite is never written: parameters, buffers, optimizer, schedules, averaged weights, except what was
      so when training began (a mask of -inf). Logged values are not looked at.
    * What could not be read back as data is not written either: an object that a hook or the message hub put there is left
      out, with a warning that names it. The first file of a run is read back.
    * Of the logged values, a checkpoint holds as many of the newest ones as the windows of the log processor need
      (`gbseg.mm.checkpoint_contents.shorten_curves`); all of them are in ``vis_data/scalars.json``.
    * A folder that was copied or moved is resumed from its own files.

    Args:
        max_keep_ckpts: regular checkpoints to keep, at least 2 (with 1 there would be none to fall back to); -1 keeps all.
        **kwargs: as in ``mmengine.hooks.CheckpointHook``, but without ``backend_args`` and ``file_client_args``.

    Raises:
        TypeError: there is no such argument.
        ValueError: ``max_keep_ckpts`` is 0 or 1, or another file backend is given: only a local file system has an atomic
            rename. At the start of a training: the folder cannot be written to, or holds a folder of a checkpoint's name.
        CheckpointWriteError: in training, the disk is full or cannot be written.
        NoReadableCheckpointError: when resuming, all checkpoints are damaged.
        NonFiniteLossError: in training, instead of writing a state that is not finite.
    """

    keep_ckpt_ids: deque[int]

    INTERRUPTED = INTERRUPTED  # the checkpoint of a run that was stopped between two regular ones

    def __init__(self, max_keep_ckpts: int = 2, **kwargs: Any) -> None:
        if max_keep_ckpts in (0, 1):
            raise ValueError(
                f"DurableCheckpointHook keeps at least two checkpoints, max_keep_ckpts={max_keep_ckpts} leaves none to "
                "fall back to when the newest is damaged; use 2 or more, or -1 to keep all"
            )
        for name in ("backend_args", "file_client_args"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"DurableCheckpointHook writes to a local file system only: take {name} out")
        super().__init__(max_keep_ckpts=max_keep_ckpts, backend_args={"backend": "gbseg_durable"}, **kwargs)
        # mmengine's hook takes any, and fails when it writes the first checkpoint
        for name in self.args:
            raise TypeError(f"DurableCheckpointHook.__init__() got an unexpected keyword argument {name!r}")
        self._state_to_save: dict[str, Any] | None = None
        self._loaded_state: dict[str, Any] | None = None
        self._resumed_from: Path | None = None
        self._read_back = False
        self._written_iter: int | None = None
        self._is_sharded = False

    def before_run(self, runner: Runner) -> None:
        """When resuming, choose the file that the runner loads next."""
        load_from = checkpoint_to_load(runner)
        folder = self._folder(runner)
        decided_by_rank_0(lambda: require_folder(folder))
        if not resumes(runner) or "://" in str(load_from):
            return
        example = self.filename_tmpl.format(1) if self.filename_tmpl else ""
        path = decided_by_rank_0(lambda: newest_readable_checkpoint(runner.work_dir, folder, load_from, example))
        if path is None:
            runner.logger.info(f"There is no checkpoint in {runner.work_dir} yet: training starts at the beginning.")
        else:
            runner.logger.info(f"Training continues from {path}.")
        self._resumed_from = path
        resume_from(runner, None if path is None else str(path))

    def _folder(self, runner: Runner) -> Path:
        """Where the checkpoints are, before mmengine's ``before_train`` has found it out."""
        return Path(runner.work_dir if self.out_dir is None else Path(self.out_dir, Path(runner.work_dir).name))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep the training state for `before_train`."""
        self._loaded_state = checkpoint.get("training_state")

    def before_train(self, runner: Runner) -> None:
        """Remove what a killed run left behind, and hand the loaded state to the loop."""
        loaded = self._resumed_from
        is_own = loaded is not None and Path(loaded).resolve().parent == self._folder(runner).resolve()
        if is_own:
            self.move_recorded_paths(runner, self._folder(runner))
        super().before_train(runner)
        decided_by_rank_0(lambda: self._require_free_names(runner))
        self._is_sharded = isinstance(runner.model, FullyShard)
        if is_main_process():
            remove_temporary_files(self.out_dir)
            remove_temporary_files(runner.work_dir)
        sampler = getattr(runner.train_dataloader, "sampler", None)
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and isinstance(sampler, ResumableSampler):
            # the first epoch of mmengine's own loop would never end
            sampler.endless = False
        state, self._loaded_state = self._loaded_state, None
        # weights that were loaded without resuming leave the iteration at 0: a new run, with its own random numbers. Only what
        # is resumed was looked at (`require_resumable`)
        if not isinstance(state, dict) or state.get("iter") != runner.iter:
            state = None
        self._except_from_checks(runner, state)
        if state is None:
            return
        if is_own:
            for name in state["outdated"]:
                # names were written; a path would lead to files of somebody else
                self._remove(self.file_backend.join_path(self.out_dir, Path(name).name))
        # so that a validation that is made up for now can add its result to the checkpoint
        self.restore_last_checkpoint(runner)
        states = state["processes"]
        same_processes = len(states) == get_world_size()
        process_state = dict(states[get_rank() if same_processes else 0])
        if not same_processes:
            del process_state["rng"]
            process_state.pop("gradients", None)
            runner.logger.warning(
                f"The checkpoint was written by {len(states)} processes, now there are {get_world_size()}: their "
                "random states are not restored, so the run differs from the one without interruption."
            )
        if gradients := process_state.pop("gradients", None):
            restore_gradients(runner, gradients)
        if hasattr(runner.train_loop, "load_state_dict") and "draws" in process_state:
            runner.train_loop.load_state_dict(process_state)
        elif "rng" in process_state:
            set_rng_state(process_state["rng"])

    def _except_from_checks(self, runner: Runner, resumed: dict[str, Any] | None) -> None:
        """Pass over what was not finite when this training began, which may have been before an interruption."""
        recorded = None if resumed is None else resumed.get("not_finite")
        places = except_from_checks(runner, recorded if isinstance(recorded, dict) else None)
        if resumed is not None and recorded is None and places:
            runner.logger.warning(
                f"The checkpoint holds values that are not finite, which no later check will look at: {', '.join(places)}."
            )

    def _require_free_names(self, runner: Runner) -> None:
        """Refuse a folder in the place of a checkpoint now: when that is to be written, there would be something to lose."""
        now = runner.epoch if self.by_epoch else runner.iter
        for path, step in checkpoint_steps(Path(self.out_dir), self.filename_tmpl.format(1)).items():
            if path.is_dir() and step > now and path.name == self.filename_tmpl.format(step):
                raise ValueError(f"{path} is a folder, and a checkpoint of that name is to be written: rename or remove it.")

    def _require_finite(self, runner: Runner, iteration: int) -> None:
        """All processes stop if the state of one is not finite; of a single process, the guard looks at it when it is saved."""
        if get_world_size() > 1 or not any(isinstance(hook, NonFiniteGuardHook) for hook in runner.hooks):
            require_finite_state(runner, iteration, together=True)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the training state to a regular checkpoint; best ones are for inference. Shorten the logged curves of both."""
        shorten_curves(checkpoint, runner)
        if self._state_to_save is not None:
            checkpoint["training_state"] = self._state_to_save

    def write_regular(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """mmengine's step, but the outdated file is removed last, and ``last_checkpoint`` is replaced atomically."""
        self._require_finite(runner, meta["iter"])
        outdated = self._former_best()
        if self.max_keep_ckpts > 0:
            steps = [*(kept for kept in self.keep_ckpt_ids if kept != step), step]
            outdated += [self._path(old) for old in steps[: -self.max_keep_ckpts]]
            self.keep_ckpt_ids = deque(steps[-self.max_keep_ckpts :], self.max_keep_ckpts)
        self.last_ckpt = self._path(step)
        self.record_checkpoints(runner)
        # which a run was resumed from, and has passed
        outdated.append(self.file_backend.join_path(self.out_dir, INTERRUPTED))
        # the names, so that a run that is killed before it could remove them does so when it is resumed
        names = [Path(path).name for path in outdated]
        self._state_to_save = {
            "iter": meta["iter"],
            "processes": _gather(self._process_state(runner)),
            "outdated": names,
            "not_finite": nonfinite_at_start(runner),
        }
        try:
            runner.save_checkpoint(
                self.out_dir,
                Path(self.last_ckpt).name,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        finally:
            self._state_to_save = None
        self._written_iter = meta["iter"]
        if not is_main_process():
            return
        if not self._read_back:
            self._require_readable(self.last_ckpt)
            self._read_back = True
        write_checkpoint(self.last_ckpt.encode(), Path(runner.work_dir, "last_checkpoint"))
        for path in outdated:
            self._remove(path)

    def _process_state(self, runner: Runner) -> dict[str, Any]:
        """What a checkpoint holds of this process alone."""
        loop = runner.train_loop
        state: dict[str, Any] = loop.state_dict() if hasattr(loop, "state_dict") else {"rng": rng_state()}
        if gradients := pending_gradients(runner):
            state["gradients"] = gradients
        return state

    def save_interrupted(self, runner: Runner, iteration: int, validates: bool = False) -> str:
        """Write a checkpoint of a run that ends here, if the regular one of this iteration is not written yet.

        It is called ``interrupted.pth``, and removed when the resumed run writes its first regular one.

        Args:
            runner: the runner.
            iteration: iterations that are done.
            validates: whether their validation is under way, and to be done again.

        Returns:
            The path of the checkpoint to resume from.
        """
        if self._written_iter == iteration and self.last_ckpt is not None:
            return str(self.last_ckpt)
        state = self._process_state(runner)
        if validates and "validated" in state:
            state["validated"] = False
        self._require_finite(runner, iteration)
        self._state_to_save = {
            "iter": iteration,
            "processes": _gather(state),
            "outdated": [],
            "not_finite": nonfinite_at_start(runner),
        }
        path = self.file_backend.join_path(self.out_dir, INTERRUPTED)
        try:
            runner.save_checkpoint(
                self.out_dir,
                INTERRUPTED,
                meta={"epoch": runner.epoch, "iter": iteration},
                by_epoch=False,
                backend_args=self.backend_args,
            )
        finally:
            self._state_to_save = None
        if is_main_process():
            write_checkpoint(path.encode(), Path(runner.work_dir, "last_checkpoint"))
        return str(path)

    def write_best(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """mmengine's step, but the former best file is removed last."""
        if not self.save_best:
            # a validation without a training (``Runner.val``) has prepared no folder
            return
        self._require_finite(runner, runner.iter)
        self.file_backend.deferred = []
        try:
            super().write_best(runner, metrics)
            outdated = self._former_best()
        finally:
            self.file_backend.deferred = None
        for path in outdated:
            self._remove(path)

    @master_only
    def write_published(self, runner: Runner, ckpt_path: str) -> None:
        """mmengine's step, but the file is written atomically, and into this run's folder.

        Raises:
            NonFiniteLossError: the weights in it are not finite.
        """
        if not self.file_backend.isfile(ckpt_path):
            runner.logger.warning(f"The checkpoint {ckpt_path} is not published: there is no such file.")
            return
        checkpoint = read_checkpoint(ckpt_path)
        published = {key: value for key, value in checkpoint.items() if key in self.published_keys}
        # without 'parameters' and 'buffers' before the names
        excepted = {place.partition(".")[2]: kind for place, kind in nonfinite_at_start(runner).items()}
        if bad := nonfinite_entries(published.get("state_dict"), excepted):
            raise NonFiniteLossError(f"{ckpt_path} is not published, it is not finite: {', '.join(list(bad)[:5])}")
        digest = hashlib.sha256(pickle.dumps(published)).hexdigest()[:8]
        path = Path(self.out_dir, f"{Path(ckpt_path).stem}-{digest}.pth")
        save_checkpoint(published, str(path), backend_args=self.backend_args)
        runner.logger.info(f"The checkpoint ({ckpt_path}) is published to {path}.")

    def _require_readable(self, path: str) -> None:
        """Read a file back that was just written: a disk that loses data is known after one interval, and not after the run.

        Raises:
            CheckpointWriteError: it is not what was written.
        """
        try:
            _ = read_rest(Path(path)) if self._is_sharded else read_checkpoint(path, mmap=True)
        except UnsafeCheckpointError:
            # weights that are more than data: a warning has said so
            return
        except (CheckpointError, OSError) as error:
            raise CheckpointWriteError(f"the first checkpoint of this run was written, but {error}") from error

    def _former_best(self) -> list[str]:
        """The files whose removal was deferred, except one that has been replaced by a file of the same name.

        Only files of this run's folder: a checkpoint that was resumed may name any file as the best one before.
        """
        # by name, because one folder may be written in several ways
        best, folder = {Path(path).name for path in self.best_paths() if path}, Path(self.out_dir).resolve()
        deferred = self.file_backend.deferred or []
        return [path for path in deferred if Path(path).name not in best and Path(path).resolve().parent == folder]

    def _path(self, step: int) -> str:
        name = self.filename_tmpl.format(step)
        return self.file_backend.join_path(self.out_dir, name.removesuffix(".pth") if self._is_sharded else name)

    def _remove(self, path: str) -> None:
        if is_main_process() and is_checkpoint_folder(path):
            remove_checkpoint_folder(path)
        elif is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)


def _gather(state: dict[str, Any]) -> list[Any]:
    """The states of all processes, on the first one, which writes them; gradients may be as large as the model."""
    if get_world_size() == 1:
        return [state]
    states: list[Any] = [None] * get_world_size()
    distributed.gather_object(state, states if is_main_process() else None)
    return states
