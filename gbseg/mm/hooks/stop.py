"""Stop a training at a signal or after a time: after the step, with a checkpoint from which ``--resume`` goes on."""

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import distributed
from torch.utils.data import DataLoader

from gbseg.mm.hooks.checkpoint import DurableCheckpointHook

__all__ = ["SIGNALS", "TIME_LIMIT_STATUS", "StopHook", "TrainingStopped"]

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
"""The signals after which a training stops. Schedulers send the first and the last, a closed terminal SIGHUP."""

TIME_LIMIT_STATUS = 124
"""The exit status after ``--stop-after``; it is that of the command ``timeout``."""

# launchers pass on what the terminal has sent to them and to their processes
_SAME_SIGNAL_S = 1.0


class TrainingStopped(RuntimeError):
    """A training was stopped from outside; ``exit_status`` is 128 + the signal's number, or `TIME_LIMIT_STATUS`."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def _outlive_signals(worker_init_fn: Callable[[int], None] | None, worker_id: int) -> None:
    """Let a worker of a data loader go on when its whole process group is signalled: the step needs it to end."""
    for number in _numbers():
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # its loader ends it by this one, so it matters who has sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_parent, daemon=True).start()
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


def _end_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _numbers() -> list[signal.Signals]:
    # Windows has fewer
    return [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]


@HOOKS.register_module()
class StopHook(Hook):
    """Stop after the step in which a signal of `SIGNALS` arrives, or after a time, and write a checkpoint.

    A signal that arrives during a validation stops it; the validation is done again when the run is resumed. A second signal,
    a second after the first or later, ends the process at once. A signal that was ignored when the process began, as SIGHUP
    is under ``nohup``, stays ignored. Workers of the data loader go on until the step is done.

    Several processes agree by an all-reduce of one number a step, on a gloo group of its own, of which each step reads the
    result of the step before: so it neither waits for a device nor for a slower process, and all stop after the same step.

    Args:
        stop_after: seconds from the making of this hook, after which training stops. None: no limit.
        peer_timeout: seconds for which a process that is to stop waits for the others. If one of them does not answer, it is
            dead, and the process ends without a checkpoint; torchrun kills after 30 seconds.

    Raises:
        TrainingStopped: in training, after the checkpoint was written.
    """

    # after the checkpoint hook
    priority = "LOWEST"

    def __init__(self, stop_after: float | None = None, peer_timeout: float = 20) -> None:
        self._deadline = float("inf") if stop_after is None else time.monotonic() + stop_after
        self._timeout = timedelta(seconds=peer_timeout)
        self._status = 0
        self._first_signal = 0.0
        self._former: dict[int, Any] = {}
        self._pid = os.getpid()
        self._group: Any = None
        self._answer: tuple[Any, torch.Tensor] | None = None

    def before_train(self, runner: Runner) -> None:
        """Begin to listen; the workers of the data loader are made afterwards."""
        self._pid = os.getpid()
        if get_world_size() > 1:
            self._group = distributed.new_group(backend="gloo")
        for loader in (runner.train_dataloader, runner.val_dataloader if runner.val_loop is not None else None):
            if isinstance(loader, DataLoader):
                loader.worker_init_fn = partial(_outlive_signals, loader.worker_init_fn)
        for number in _numbers():
            former = signal.getsignal(number)
            if former is signal.SIG_IGN:
                continue
            try:
                signal.signal(number, self._on_signal)
            except ValueError:
                # a thread that is not the main one gets no signals
                return
            self._former[number] = former

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Stop, if the processes have agreed to."""
        status = self._agreed_before() or self._ask()
        if status:
            self._stop(runner, status, runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Stop within a validation, if any process wants to; the result would be computed by all of them together."""
        if not self._former and self._deadline == float("inf"):
            # a validation alone
            return
        status = self._agreed_before()
        if not status and (self._wanted() or (self._group is not None and batch_idx == len(runner.val_dataloader) - 1)):
            status = self._ask(at_once=True)
        if status:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    # it has put its weights in place of the model's
                    hook.after_val_epoch(runner)
            self._stop(runner, status, runner.iter, validates=True)

    def after_train(self, runner: Runner) -> None:
        """Listen no more."""
        self.close()

    def close(self) -> None:
        """Give the signals back to whom they were before."""
        while self._former:
            signal.signal(*self._former.popitem())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # a fork of this process
            return
        now = time.monotonic()
        if not self._status:
            self._status, self._first_signal = 128 + number, now
            if is_main_process():
                # print and the logger must not be entered twice, and one of them may be at work
                name = signal.Signals(number).name
                os.write(2, f"\n{name}: training stops after this step, with a checkpoint; once more ends it now.\n".encode())
        elif now - self._first_signal > _SAME_SIGNAL_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self._pid, number)

    def _wanted(self) -> int:
        """The exit status with which this process wants to stop, 0 if it does not."""
        return self._status or (TIME_LIMIT_STATUS if time.monotonic() > self._deadline else 0)

    def _ask(self, at_once: bool = False) -> int:
        """Tell the other processes what this one wants; the answer is there at once, or at the next step."""
        wanted = self._wanted()
        if self._group is None:
            return wanted
        number = torch.tensor([wanted])
        self._answer = distributed.all_reduce(number, distributed.ReduceOp.MAX, self._group, async_op=True), number
        return self._agreed_before() if at_once else 0

    def _agreed_before(self) -> int:
        """What the processes have agreed upon when they were last asked."""
        if self._answer is None:
            return 0
        (work, number), self._answer = self._answer, None
        wanted = self._wanted()
        try:
            work.wait(*([self._timeout] if wanted else []))
        except RuntimeError as error:
            if not wanted:
                raise
            text = f"stopped without a checkpoint, since another process did not answer ({str(error).splitlines()[0][:150]})."
            raise TrainingStopped(text, wanted) from error
        return int(number)

    def _stop(self, runner: Runner, status: int, iteration: int, validates: bool = False) -> None:
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        reason = "the time limit" if status == TIME_LIMIT_STATUS else signal.Signals(status - 128).name
        if isinstance(hook, DurableCheckpointHook):
            path = hook.save_interrupted(runner, iteration, validates)
        elif hook is not None:
            path = f"{hook.out_dir}/{DurableCheckpointHook.INTERRUPTED}"
            meta = {"epoch": runner.epoch, "iter": iteration}
            runner.save_checkpoint(hook.out_dir, DurableCheckpointHook.INTERRUPTED, by_epoch=False, meta=meta)
            if is_main_process():
                with open(f"{runner.work_dir}/last_checkpoint", "w") as file:  # noqa: PTH123
                    file.write(path)
        else:
            raise TrainingStopped(f"stopped by {reason} after iteration {iteration}; the config writes no checkpoints.", status)
        raise TrainingStopped(f"stopped by {reason} after iteration {iteration}; --resume goes on from {path}.", status)
