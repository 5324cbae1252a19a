"""A progress bar on a terminal; anywhere else, nothing but mmengine's plain lines."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from datetime import timedelta
from typing import Any, TextIO

from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

__all__ = ["ProgressHook"]


class _AboveBar:
    """A stand-in for a stream of the terminal: whole lines appear above the bar, as they are."""

    def __init__(self, console: Console, stream: TextIO) -> None:
        self._console = console
        self._stream = stream
        self._pid = os.getpid()
        self._line = ""

    def write(self, text: str) -> int:
        # a forked worker of the data loader inherits this object, but the bar is not its own
        if os.getpid() != self._pid:
            return self._stream.write(text)
        lines, newline, rest = (self._line + text).rpartition("\n")
        self._line = rest
        if newline:
            # soft_wrap: a long line stays one line, so that it can be copied, and grep finds it in a recording
            self._console.print(Text.from_ansi(lines), soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def close_line(self) -> None:
        if self._line:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show how far training is: epoch or iteration, loss, learning rate, images per second and time left.

    Only where standard output is a terminal and this is the main process. The loggers' lines and whatever is printed appear
    above the bar. Loss and rate are read from the message hub every ``interval`` iterations: nothing is fetched from a
    device for it.

    Args:
        interval: Iterations between looks at loss and rate; that of the logger is a good choice.
        refresh: Least time between two drawings of the bar, in seconds.
    """

    # after LoggerHook
    priority = "LOW"

    def __init__(self, interval: int = 10, refresh: float = 0.2) -> None:
        self.interval = interval
        self.refresh = refresh
        self._progress: Progress | None = None
        self._training = TaskID(0)
        self._validation: TaskID | None = None
        self._handlers: list[tuple[logging.StreamHandler, TextIO]] = []
        self._streams: tuple[TextIO, TextIO] = (sys.stdout, sys.stderr)
        self._drawn = 0.0

    def before_train(self, runner: Runner) -> None:
        """Start the bar."""
        if not (is_main_process() and sys.stdout.isatty()):
            return
        console = Console(file=sys.stdout)
        if not console.is_terminal or console.is_dumb_terminal:
            return
        # no thread of its own: one that holds the console's lock while the data loader forks would lock up a worker
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
        )
        self._training = self._progress.add_task(self._stage(runner), total=runner.max_iters, completed=runner.iter, values="")
        self._redirect(runner, console)
        # an exception ends training without any hook being called, and a hidden cursor would stay hidden
        atexit.register(self._stop)
        self._progress.start()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Move on by one iteration."""
        if self._progress is None:
            return
        done = runner.iter + 1
        self._progress.update(self._training, completed=done, description=self._stage(runner))
        if done % self.interval == 0 or done == runner.max_iters:
            self._progress.update(self._training, values=self._values(runner))
        self._draw()

    def before_val_epoch(self, runner: Runner) -> None:
        """Show a second bar."""
        if self._progress is not None:
            self._validation = self._progress.add_task("validation", total=len(runner.val_dataloader), values="")
            self._draw(now=True)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Move the second bar on."""
        if self._progress is not None and self._validation is not None:
            self._progress.update(self._validation, completed=batch_idx + 1)
            self._draw()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Take the second bar away."""
        if self._progress is not None and self._validation is not None:
            self._progress.remove_task(self._validation)
            self._validation = None
            self._draw(now=True)

    def after_train(self, runner: Runner) -> None:
        """Take the bar away, and give the streams back."""
        self._stop()

    def _draw(self, now: bool = False) -> None:
        if self._progress is not None and (now or time.monotonic() - self._drawn >= self.refresh):
            self._drawn = time.monotonic()
            self._progress.refresh()

    @staticmethod
    def _stage(runner: Runner) -> str:
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            return f"epoch {min(runner.epoch + 1, runner.max_epochs)}/{runner.max_epochs}"
        # an iteration loop goes round the data without saying so; the bar itself counts its iterations
        return f"epoch {runner.iter / max(len(runner.train_dataloader), 1):.2f}"

    def _values(self, runner: Runner) -> str:
        """Loss and rate of the last iteration, images a second over the last ``interval`` ones, time left."""
        history = runner.message_hub.log_scalars
        values = [
            f"{label} {history[name].current():.4g}"
            for label, name in (("loss", "train/loss"), ("lr", "train/lr"))
            if name in history
        ]
        batches = runner.train_dataloader.batch_sampler
        if "train/time" in history and batches is not None:
            seconds = history["train/time"].mean(min(self.interval, len(history["train/time"].data[0])))
            values.append(f"{batches.batch_size * get_world_size() / max(seconds, 1e-9):.1f} img/s")
        if (left := runner.message_hub.get_info("eta")) is not None:
            values.append(f"{timedelta(seconds=int(left))} left")
        return "  ".join(values)

    def _redirect(self, runner: Runner, console: Console) -> None:
        """Send what goes to the terminal through the console: the streams, and the handlers that hold them already."""
        self._streams = sys.stdout, sys.stderr
        stand_ins = {id(stream): _AboveBar(console, stream) for stream in {sys.stdout, sys.stderr} if stream.isatty()}
        for handler in (*runner.logger.handlers, *logging.getLogger().handlers):
            if isinstance(handler, logging.StreamHandler) and id(handler.stream) in stand_ins:
                self._handlers.append((handler, handler.stream))
                handler.setStream(stand_ins[id(handler.stream)])
        sys.stdout = stand_ins.get(id(sys.stdout), sys.stdout)
        sys.stderr = stand_ins.get(id(sys.stderr), sys.stderr)

    def _stop(self) -> None:
        if self._progress is None:
            return
        atexit.unregister(self._stop)
        for name, stream in zip(("stdout", "stderr"), self._streams, strict=True):
            current = getattr(sys, name)
            # somebody else may have put a stream of his own in its place since
            if isinstance(current, _AboveBar):
                current.close_line()
                setattr(sys, name, stream)
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers.clear()
        self._progress.stop()
        self._progress = None
