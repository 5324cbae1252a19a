"""The same work on many files, over several processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["available_cores", "run_all"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """The cores that this process may use, which under a container or a scheduler are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_with_the_parent() -> None:
    """A worker whose parent was killed would wait for work for ever: its siblings keep the queue open."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_all(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    title: str,
    processes: int | None = None,
    collect: Callable[[Item, Result], None] | None = None,
) -> list[tuple[Item, ValueError]]:
    """Call ``work`` on every item, in any order.

    A ValueError is that item's fault and is kept, the others go on; anything else (a full disk) ends the whole at once.

    Args:
        work: a function at the top level of a module.
        items: what it is called with, each picklable.
        title: of the progress bar (shown where the standard error is a terminal).
        processes: how many; None for as many as there are cores; with 1 all is done in this process.
        collect: called in this process with every item and what ``work`` returned for it, in the order in which they are
            ready, which differs from run to run.

    Returns:
        The items that failed and why, in the order of the items.

    Raises:
        ValueError: ``processes < 1``.
        RuntimeError: a worker was killed (out of memory, as a rule).
        OSError: whatever the work raised of its own.
    """
    processes = min(available_cores() if processes is None else processes, max(len(items), 1))
    if processes < 1:
        raise ValueError(f"the number of processes must be at least 1, not {processes}")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    failed: dict[int, ValueError] = {}
    # no thread of the bar's own: one that holds a lock while the pool forks would lock up a worker
    with Progress(*columns, auto_refresh=False, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title, total=len(items))
        drawn = 0.0

        def done(index: int, error: BaseException | None, result: Result | None = None) -> None:
            nonlocal drawn
            if isinstance(error, ValueError):
                failed[index] = error
            elif error is not None:
                raise error
            elif collect is not None:
                collect(items[index], result)  # type: ignore[arg-type]
            progress.advance(bar)
            if time.monotonic() - drawn > 0.2:
                drawn = time.monotonic()
                progress.refresh()

        if processes == 1:
            for index, item in enumerate(items):
                try:
                    result = work(item)
                except ValueError as error:
                    done(index, error)
                else:
                    done(index, None, result)
        else:
            _in_processes(work, items, processes, done)
    return [(items[index], failed[index]) for index in sorted(failed)]


def _in_processes(work: Callable[[Item], Result], items: Sequence[Item], processes: int, done: Callable[..., None]) -> None:
    # forked workers share what is imported here: torch in each of them would take most of their memory
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_leave_with_the_parent) as pool:
        running: dict[Future[Result], int] = {}
        rest = iter(enumerate(items))
        try:
            while True:
                # a short queue, so that little is left to wait for when something fails
                while len(running) < 4 * processes and (entry := next(rest, None)) is not None:
                    running[pool.submit(work, entry[1])] = entry[0]
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    error = future.exception()
                    done(running.pop(future), error, None if error else future.result())
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process was killed, as a rule because the memory ran out: start again with fewer processes; "
                "what is done stays done"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
