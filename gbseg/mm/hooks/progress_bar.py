"""A progress bar on a terminal; elsewhere only mmengine's plain log lines."""

import atexit
import logging
import sys
import time
from datetime import timedelta
from typing import Any

from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from gbseg.mm.compat import OutputAboveBar, logged_value

__all__ = ["ProgressHook"]


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show how far training is: epoch or iteration, loss, learning rate, images per second and time left.

    Only on rank 0, and only if standard output is a terminal. Log lines and all other output appear above the bar. Loss and
    learning rate are read from the message hub every ``interval`` iterations, so the bar does not wait for a device.

    Args:
        interval: iterations between updates of loss and learning rate; use the logger's.
        refresh: minimum time between two refreshes of the bar, in seconds.
    """

    # after LoggerHook
    priority = "LOW"

    def __init__(self, interval: int = 10, refresh: float = 0.2) -> None:
        self.interval = interval
        self.refresh = refresh
        self._progress = Progress(disable=True)
        self._training = self._validation = TaskID(0)
        self._last_refresh = 0.0

    def before_train(self, runner: Runner) -> None:
        """Start the bar."""
        console = Console(file=sys.stdout)
        # rich takes any file for a terminal if FORCE_COLOR is set
        if not (is_main_process() and sys.stdout.isatty() and console.is_terminal) or console.is_dumb_terminal:
            return
        # no refresh thread: if it held the console's lock while the data loader forks, a worker would deadlock
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
        self._output = OutputAboveBar(console, [runner.logger, logging.getLogger()])
        # an exception ends training without calling any hook, and would leave the cursor hidden
        atexit.register(self._stop)
        self._progress.start()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Advance by one iteration."""
        if self._progress.disable:
            return
        done = runner.iter + 1
        self._progress.update(self._training, completed=done, description=self._stage(runner))
        if done % self.interval == 0 or done == runner.max_iters:
            self._progress.update(self._training, values=self._values(runner))
        self._refresh()

    def before_val_epoch(self, runner: Runner) -> None:
        """Add a bar for the validation."""
        # without a terminal nothing asks for the length, which an iterable data set does not have
        total = None if self._progress.disable else len(runner.val_dataloader)
        self._validation = self._progress.add_task("validation", total=total, values="")
        self._progress.refresh()

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance the validation's bar."""
        self._progress.update(self._validation, completed=batch_idx + 1)
        self._refresh()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Remove the validation's bar."""
        self._progress.remove_task(self._validation)
        self._progress.refresh()

    def after_train(self, runner: Runner) -> None:
        """Remove the bar and restore the streams."""
        self._stop()

    def _refresh(self) -> None:
        if time.monotonic() - self._last_refresh >= self.refresh:
            self._last_refresh = time.monotonic()
            self._progress.refresh()

    @staticmethod
    def _stage(runner: Runner) -> str:
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            return f"epoch {min(runner.epoch + 1, runner.max_epochs)}/{runner.max_epochs}"
        # an iteration-based loop has no epochs of its own; the bar itself counts iterations
        return f"epoch {runner.iter / max(len(runner.train_dataloader), 1):.2f}"

    def _values(self, runner: Runner) -> str:
        """Loss and learning rate of the last iteration, images per second over the last ``interval`` ones, time left."""
        logged = (("loss", logged_value(runner, "loss")), ("lr", logged_value(runner, "lr")))
        values = [f"{label} {value:.4g}" for label, value in logged if value is not None]
        batches, seconds = runner.train_dataloader.batch_sampler, logged_value(runner, "time", self.interval)
        if seconds is not None and batches is not None:
            values.append(f"{batches.batch_size * get_world_size() / max(seconds, 1e-9):.1f} img/s")
        if (left := runner.message_hub.get_info("eta")) is not None:
            values.append(f"{timedelta(seconds=int(left))} left")
        return "  ".join(values)

    def _stop(self) -> None:
        if self._progress.disable:
            return
        atexit.unregister(self._stop)
        self._output.restore()
        self._progress.stop()
        self._progress.disable = True
