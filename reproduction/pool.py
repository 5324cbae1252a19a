"""Worker processes that train the runs of a grid or a search."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType

from gbseg.parallel import available_cores
from reproduction import worker
from reproduction.runs import Run

__all__ = ["RunFailedError", "WorkerPool", "describe_failure", "train_runs"]


class RunFailedError(RuntimeError):
    """Runs raised an error. A diverged run is a result and raises none."""


class WorkerPool:
    """Processes that train runs. They stay alive between runs: importing the MM packages takes as long as a short run.

    Args:
        jobs: number of processes; the cores, or the GPUs, are shared out among them.
        home: the folder of the runs, which also gets the processes' logs.
    """

    def __init__(self, jobs: int, home: Path) -> None:
        self.jobs, self.home = jobs, home
        self._executor = self._start()

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        slots = context.Queue()
        for slot in range(self.jobs):
            slots.put(slot)
        threads = max(1, available_cores() // self.jobs)
        return ProcessPoolExecutor(self.jobs, context, worker.init_worker, (slots, threads, self.home))

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def submit(self, batch: Sequence[Run], together: bool = False) -> Future[None]:
        """Train a batch of runs in one of the processes; vectorised if ``together``."""
        folders = [run.write().parent for run in batch]
        try:
            return self._executor.submit(worker.train_folders, folders, together)
        except BrokenProcessPool as error:
            # a process was killed while others were being submitted
            future: Future[None] = Future()
            future.set_exception(error)
            return future

    def train(self, runs: Sequence[Run], together: int = 0, log: Callable[[str], None] = print) -> None:
        """Train the runs that have no result yet, and wait for them.

        Args:
            runs: runs with equal keys are trained once.
            together: number of runs that one process trains vectorised; 0: each run alone.
            log: called with a line of progress after every batch.

        Raises:
            RunFailedError: a run failed; the others are trained first, and the next call tries it again. Or a process was
                killed, which ends all of them.
        """
        todo = list({run.key: run for run in runs if run.result() is None}.values())
        if len(todo) < len(runs):
            log(f"{len(runs) - len(todo)} of {len(runs)} runs are there already.")
        batches = {self.submit(batch, bool(together)): batch for batch in _batches(todo, together)}
        failures: list[str] = []
        done, start = 0, time.monotonic()
        for future in as_completed(batches):
            batch, error = batches[future], future.exception()
            if error is not None:
                failures.append(describe_failure(batch, error))
            if isinstance(error, BrokenProcessPool):
                self._executor.shutdown(cancel_futures=True)
                self._executor = self._start()
                break
            done += len(batch)
            minutes = (time.monotonic() - start) / done * (len(todo) - done) / 60
            log(f"[{done}/{len(todo)}] {_name(batch)}: {_outcome(batch, error)}; about {minutes:.0f} min left")
        if failures:
            raise RunFailedError("\n".join(failures))


def train_runs(runs: Sequence[Run], jobs: int, together: int = 0, log: Callable[[str], None] = print) -> None:
    """Train runs in processes that end with them, see `WorkerPool.train`."""
    if runs:
        with WorkerPool(jobs, runs[0].home) as pool:
            pool.train(runs, together, log)


def _batches(runs: Sequence[Run], together: int) -> Iterator[list[Run]]:
    """The runs that one process trains at a time: one, or up to ``together`` runs of one arm."""
    if not together:
        yield from ([run] for run in runs)
        return
    batches_by_arm = []
    for arm in dict.fromkeys(run.arm for run in runs):
        arm_runs = [run for run in runs if run.arm == arm]
        count = -(-len(arm_runs) // together)
        # of equal size: twelve runs at ten together are six and six, not ten and two
        batches_by_arm.append([arm_runs[i * len(arm_runs) // count : (i + 1) * len(arm_runs) // count] for i in range(count)])
    # round-robin, so that an interrupted grid has as many trials of every arm
    for batches in itertools.zip_longest(*batches_by_arm):
        yield from (batch for batch in batches if batch)


def describe_failure(batch: Sequence[Run], error: BaseException) -> str:
    """A sentence for the error that a future of `WorkerPool.submit` ended with."""
    if isinstance(error, BrokenProcessPool):
        # the executor ends all futures with it, whichever run was the cause
        return (
            "a process of the grid was killed, as a rule because the memory ran out: start again, with fewer --jobs; "
            "what is done stays done."
        )
    return f"{_name(batch)}: {error} (its traceback: {batch[0].home / worker.LOG.format('*')})"


def _name(batch: Sequence[Run]) -> str:
    first = batch[0]
    runs = f"rate {first.rate:g}, seed {first.seed}" if len(batch) == 1 else f"{len(batch)} runs"
    return f"{first.stage} {first.arm}, {runs}"


def _outcome(batch: Sequence[Run], error: BaseException | None) -> str:
    if error is not None:
        return "failed"
    results = [result for run in batch if (result := run.result()) is not None]
    diverged = sum(result.diverged is not None for result in results)
    return f"{sum(result.seconds for result in results):.0f} s{f', {diverged} diverged' if diverged else ''}"
