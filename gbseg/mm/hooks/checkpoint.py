"""Checkpoints that survive being interrupted at any moment, and from which a run goes on as if it never had been."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
from collections import deque
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, get_world_size, is_main_process, master_only
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, Runner

from gbseg.files import remove_temporary_files
from gbseg.mm.checkpoint_files import (
    CheckpointWriteError,
    NoReadableCheckpointError,
    newest_readable_checkpoint,
    write_checkpoint,
)
from gbseg.mm.hooks.nonfinite_guard import NonFiniteGuardHook, require_finite_parameters
from gbseg.mm.rng import rng_state, set_rng_state

__all__ = ["CheckpointWriteError", "DurableCheckpointHook", "NoReadableCheckpointError", "newest_readable_checkpoint"]


@HOOKS.register_module()
class DurableCheckpointHook(CheckpointHook):
    """mmengine's `CheckpointHook` with the same keys, whose files are whole or absent and hold all that resuming needs.

    * Every file (regular, best, published, ``last_checkpoint``) is written beside its place, flushed and renamed; what it
      replaces is removed afterwards. So the disk must hold one checkpoint more than ``max_keep_ckpts``.
    * ``training_state`` in a regular checkpoint holds, for every process, the random states and, with a
      `ResumableIterLoop`, the position in the training data.
    * ``resume=True`` takes the newest checkpoint that can be read, ``resume=True`` with ``load_from`` that file or the
      newest readable one before it in its folder; damaged ones are reported.
    * Parameters that are not finite are never written.

    With gradient accumulation, let ``interval`` be a multiple of ``accumulative_counts``: gradients are not saved.

    Args:
        max_keep_ckpts: Regular checkpoints to keep, at least 2 (else there is none to fall back to); -1 keeps all.
        **kwargs: As in `mmengine.hooks.CheckpointHook`, but for ``backend_args`` and ``file_client_args``.

    Raises:
        ValueError: ``max_keep_ckpts`` is 0 or 1, or another file backend is asked for: only a local file system has the
            atomic rename that this rests on.
        CheckpointWriteError: while training, the disk is full or cannot be written.
        NoReadableCheckpointError: when resuming, all checkpoints are damaged.
        NonFiniteLossError: while training, instead of writing parameters that are not finite.
    """

    keep_ckpt_ids: deque[int]

    def __init__(self, max_keep_ckpts: int = 2, **kwargs: Any) -> None:
        if max_keep_ckpts in (0, 1):
            raise ValueError(
                f"DurableCheckpointHook keeps at least two checkpoints, max_keep_ckpts={max_keep_ckpts} leaves none to "
                "fall back to when the newest is damaged; use 2 or more, or -1 to keep all"
            )
        for name in ("backend_args", "file_client_args"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"DurableCheckpointHook writes to a local file system only: take {name} out")
        kwargs["backend_args"] = {"backend": "gbseg_durable"}
        super().__init__(max_keep_ckpts=max_keep_ckpts, **kwargs)
        self._saving: dict[str, Any] | None = None
        self._loaded: dict[str, Any] | None = None

    def before_run(self, runner: Runner) -> None:
        """When resuming, choose the file that the runner is about to load."""
        if not runner._resume or runner._has_loaded or "://" in str(runner._load_from):
            return
        answer: list[Any] = [None]
        if is_main_process():
            elsewhere = None if self.out_dir is None else Path(self.out_dir, Path(runner.work_dir).name)
            try:
                answer = [newest_readable_checkpoint(runner.work_dir, elsewhere, runner._load_from)]
            except (NoReadableCheckpointError, FileNotFoundError) as error:
                answer = [error]
        # one process reads and decides, so that all resume from the same file or all stop
        broadcast_object_list(answer)
        if isinstance(answer[0], Exception):
            raise answer[0]
        if answer[0] is None:
            runner.logger.info(f"There is no checkpoint in {runner.work_dir} yet: training starts at the beginning.")
            runner._resume = False
        else:
            runner._load_from = str(answer[0])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep what `before_train` must hand on."""
        self._loaded = checkpoint.get("training_state")

    def before_train(self, runner: Runner) -> None:
        """Tidy up after a killed run, and give the loop the state that was resumed."""
        super().before_train(runner)
        if is_main_process():
            remove_temporary_files(self.out_dir)
            remove_temporary_files(runner.work_dir)
        every = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
        if not self.by_epoch and self.interval > 0 and self.interval % every:
            runner.logger.warning(
                f"Checkpoints every {self.interval} iterations fall between the optimizer's steps, every {every}: a run "
                "resumed there has lost the gradients gathered so far. Use a multiple."
            )
        state, self._loaded = self._loaded, None
        # weights that were merely loaded leave the iteration at 0: a new run, with its own random numbers
        if state is None or state["iter"] != runner.iter:
            return
        if Path(runner._load_from or "").parent == Path(self.out_dir):
            for name in state["outdated"]:
                self._remove(self.file_backend.join_path(self.out_dir, name))
        # so that a validation that is now made up for can add its result to the checkpoint
        self.last_ckpt = runner.message_hub.get_info("last_ckpt")
        processes = state["processes"]
        own = dict(processes[get_rank() if len(processes) == get_world_size() else 0])
        if len(processes) != get_world_size():
            del own["rng"]
            runner.logger.warning(
                f"The checkpoint was written by {len(processes)} processes, now there are {get_world_size()}: their "
                "random states are not restored, so the run differs from the one without interruption."
            )
        if hasattr(runner.train_loop, "load_state_dict"):
            runner.train_loop.load_state_dict(own)
        elif "rng" in own:
            set_rng_state(own["rng"])

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the training state to a regular checkpoint; best ones are for inference."""
        if self._saving is not None:
            checkpoint["training_state"] = self._saving

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        # the parent removes the outdated file first, and writes last_checkpoint in place
        if not any(isinstance(hook, NonFiniteGuardHook) for hook in runner.hooks):
            require_finite_parameters(runner)
        outdated = self._former_best()
        if self.max_keep_ckpts > 0:
            steps = [*(other for other in self.keep_ckpt_ids if other != step), step]
            outdated += [self._path(other) for other in steps[: -self.max_keep_ckpts]]
            self.keep_ckpt_ids = deque(steps[-self.max_keep_ckpts :], self.max_keep_ckpts)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        loop = runner.train_loop
        own = loop.state_dict() if hasattr(loop, "state_dict") else {"rng": rng_state()}
        # the names, so that a run that is killed before it could remove them does so when it is resumed
        names = [Path(path).name for path in outdated]
        self._saving = {"iter": meta["iter"], "processes": all_gather_object(own), "outdated": names}
        try:
            runner.save_checkpoint(
                self.out_dir,
                self.filename_tmpl.format(step),
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        finally:
            self._saving = None
        if not is_main_process():
            return
        write_checkpoint(self.last_ckpt.encode(), Path(runner.work_dir, "last_checkpoint"))
        for path in outdated:
            self._remove(path)

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    def _remove(self, path: str) -> None:
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        # the parent removes the old best before it writes the new one
        self.file_backend.put_off = []
        try:
            super()._save_best_checkpoint(runner, metrics)
            removals = self._former_best()
        finally:
            self.file_backend.put_off = None
        for path in removals:
            self._remove(path)

    def _former_best(self) -> list[str]:
        """What the parent wanted removed, except a file that has been replaced by one of the same name."""
        best = {getattr(self, "best_ckpt_path", None), *getattr(self, "best_ckpt_path_dict", {}).values()}
        return [path for path in self.file_backend.put_off or [] if path not in best]

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        checkpoint = CheckpointLoader.load_checkpoint(ckpt_path, map_location="cpu")
        published = {key: value for key, value in checkpoint.items() if key in self.published_keys}
        digest = hashlib.sha256(pickle.dumps(published)).hexdigest()[:8]
        path = Path(ckpt_path).with_name(f"{Path(ckpt_path).stem}-{digest}.pth")
        data = io.BytesIO()
        torch.save(published, data)
        write_checkpoint(data.getbuffer(), path)
        runner.logger.log(logging.INFO, f"The checkpoint ({ckpt_path}) is published to {path}.")
