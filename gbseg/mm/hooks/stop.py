"""Stop a training at a signal or after a time: after the step, with a checkpoint from which ``--resume`` goes on."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import distributed
from torch.utils.data import DataLoader

from gbseg.mm.checkpoint_files import INTERRUPTED
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

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.exit_status)


def _outlive_signals(worker_init_fn: Callable[[int], None] | None, worker_id: int) -> None:
    """Let a worker of a data loader go on when its whole process group is signalled: the step needs it to end."""
    # a fork has that of the training
    signal.set_wakeup_fd(-1)
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
    result of the step before: so it neither waits for a device nor for a slower process, and all stop after the same step. It
    is so in a validation as well, if all processes have as many batches; else the validation is ended first.

    Args:
        stop_after: seconds from the making of this hook, after which training stops. None: no limit.
        peer_timeout: seconds, beside three times the longest step so far, in which a process that is to stop must have ended
            its step and heard of the others. If one of them is dead or hangs, it ends without a checkpoint. A validation has
            no such limit: there only a second signal ends a process that waits for one that hangs. torchrun kills after 30
            seconds.

    Raises:
        TrainingStopped: in training, after the checkpoint was written.
    """

    # after the checkpoint hook
    priority = "LOWEST"

    def __init__(self, stop_after: float | None = None, peer_timeout: float = 20) -> None:
        self._deadline = float("inf") if stop_after is None else time.monotonic() + stop_after
        self._peer_timeout = peer_timeout
        self._status = 0
        self._former: dict[int, Any] = {}
        self._pid = os.getpid()
        self._group: Any = None
        self._answer: tuple[Any, torch.Tensor] | None = None
        self._asks_in_validation = True
        self._wakeup: tuple[socket.socket, socket.socket] | None = None
        self._former_wakeup = -1
        self._longest_step, self._last_step = 0.0, time.monotonic()
        # whether a step must end soon, once there was a signal: not while a checkpoint is written
        self._is_in_step = self._has_stepped = False

    def before_train(self, runner: Runner) -> None:
        """Begin to listen; the workers of the data loader are made afterwards."""
        self._pid, self._answer = os.getpid(), None
        val_loader = runner.val_dataloader if runner.val_loop is not None else None
        if get_world_size() > 1:
            self._group = distributed.new_group(backend="gloo")
            self._asks_in_validation = len(set(all_gather_object(None if val_loader is None else len(val_loader)))) == 1
        for loader in (runner.train_dataloader, val_loader):
            if isinstance(loader, DataLoader):
                loader.worker_init_fn = partial(_outlive_signals, loader.worker_init_fn)
        if threading.current_thread() is not threading.main_thread():
            # which alone gets signals
            return
        for number in _numbers():
            former = signal.getsignal(number)
            if former is not signal.SIG_IGN:
                # None: it was set by a library in C
                self._former[number] = signal.SIG_DFL if former is None else former
                signal.signal(number, self._on_signal)
        if self._former:
            self._wakeup = socket.socketpair()
            self._wakeup[1].setblocking(False)
            self._former_wakeup = signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self._wakeup[0], set(self._former)), daemon=True).start()

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Note that a step begins."""
        self._is_in_step = True

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Stop, if the processes have agreed to."""
        self._has_stepped = True
        if status := self._agreed_before() or self._ask():
            self._stop(runner, status, runner.iter + 1)
        now = time.monotonic()
        self._longest_step, self._last_step = max(self._longest_step, now - self._last_step), now

    def before_val_epoch(self, runner: Runner) -> None:
        """Note that no step is under way."""
        self._is_in_step = False

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Stop within a validation, if the processes have agreed to."""
        is_training = self._former or self._deadline < float("inf")
        if not is_training or not self._asks_in_validation:
            return
        if status := self._agreed_before() or self._ask():
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    # it has put its weights in place of the model's
                    hook.after_val_epoch(runner)
            self._stop(runner, status, runner.iter, validates=True)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """A validation is no step, however long it takes."""
        self._last_step = time.monotonic()

    def after_train(self, runner: Runner) -> None:
        """Listen no more."""
        self.close()

    def close(self) -> None:
        """Give the signals back to whom they were before."""
        self._is_in_step = False
        while self._former:
            signal.signal(*self._former.popitem())
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._former_wakeup)
            ends, self._wakeup = self._wakeup, None
            # `_watch` ends
            ends[1].send(b"\0")
            ends[1].close()

    def _on_signal(self, number: int, frame: FrameType | None = None) -> None:
        # called by `_watch` as well, since the main thread may hang in a library and never come here
        if not self._status and os.getpid() == self._pid:
            self._status = 128 + number
            if is_main_process():
                name = signal.Signals(number).name
                _say(f"{name}: training stops after this step, with a checkpoint; once more ends it now.")

    def _watch(self, arrivals: socket.socket, numbers: set[int]) -> None:
        """Take the signals as they arrive, in a thread of its own: a collective operation keeps the main one from it."""
        first = limit = float("inf")
        while True:
            try:
                arrivals.settimeout(1.0 if self._status else None)
                number = (arrivals.recv(1) or b"\0")[0]
            except TimeoutError:
                number = 0
            now = time.monotonic()
            if self._wakeup is None:
                arrivals.close()
                return
            if number in numbers and first == float("inf"):
                first, limit = now, now + self._peer_timeout + 3 * self._longest_step
                self._on_signal(number)
            elif number in numbers and now - first > _SAME_SIGNAL_S:
                os._exit(128 + number)
            elif self._group is not None and self._is_in_step and now > limit:
                _say("stopped without a checkpoint, since a step with the other processes does not end.")
                os._exit(self._status)

    def _wanted(self) -> int:
        """The exit status with which this process wants to stop, 0 if it does not."""
        # a run that is resumed again and again makes a step each time, also where it begins with a validation
        is_over = self._has_stepped and time.monotonic() > self._deadline
        return self._status or (TIME_LIMIT_STATUS if is_over else 0)

    def _ask(self) -> int:
        """Tell the other processes what this one wants; the answer is there at once if there are none, or at the next step."""
        wanted = self._wanted()
        if self._group is None:
            return wanted
        number = torch.tensor([wanted])
        self._answer = distributed.all_reduce(number, distributed.ReduceOp.MAX, self._group, async_op=True), number
        return 0

    def _agreed_before(self) -> int:
        """What the processes have agreed upon when they were last asked."""
        if self._answer is None:
            return 0
        (work, number), self._answer = self._answer, None
        try:
            work.wait()
        except RuntimeError as error:
            if not (wanted := self._wanted()):
                raise
            text = f"stopped without a checkpoint, since another process has ended ({str(error).splitlines()[0][:150]})."
            raise TrainingStopped(text, wanted) from error
        return int(number)

    def _stop(self, runner: Runner, status: int, iteration: int, validates: bool = False) -> None:
        self._is_in_step = False
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        reason = "the time limit" if status == TIME_LIMIT_STATUS else signal.Signals(status - 128).name
        if isinstance(hook, DurableCheckpointHook):
            path = hook.save_interrupted(runner, iteration, validates)
        elif hook is not None:
            path = str(Path(hook.out_dir, INTERRUPTED))
            meta = {"epoch": runner.epoch, "iter": iteration}
            runner.save_checkpoint(hook.out_dir, INTERRUPTED, by_epoch=False, meta=meta)
            if is_main_process():
                Path(runner.work_dir, "last_checkpoint").write_text(path)
        else:
            raise TrainingStopped(f"stopped by {reason} after iteration {iteration}; the config writes no checkpoints.", status)
        raise TrainingStopped(f"stopped by {reason} after iteration {iteration}; --resume goes on from {path}.", status)


def _say(text: str) -> None:
    # print and the logger must not be entered twice, and one of them may be at work
    os.write(2, f"\ngbseg: {text}\n".encode())
