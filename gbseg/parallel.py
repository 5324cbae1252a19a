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
    console = Console(stderr=True)
    with Progress(*columns, auto_refresh=False, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=len(items))
        drawn = 0.0

        def done(index: int, outcome: tuple[ValueError | None, Result | None]) -> None:
            nonlocal drawn
            error, result = outcome
            if error is not None:
                failed[index] = error
            elif collect is not None:
                collect(items[index], result)  # type: ignore[arg-type]
            progress.advance(bar)
            if time.monotonic() - drawn > 0.2:
                drawn = time.monotonic()
                progress.refresh()

        if processes == 1:
            for index, item in enumerate(items):
                done(index, _do_some(work, [item])[0])
        else:
            _in_processes(work, items, processes, done)
    return [(items[index], failed[index]) for index in sorted(failed)]


def _do_some(work: Callable[[Item], Result], items: Sequence[Item]) -> list[tuple[ValueError | None, Result | None]]:
    """Call ``work`` on each; the item's fault or the result, in their order."""
    outcomes: list[tuple[ValueError | None, Result | None]] = []
    for item in items:
        try:
            outcomes.append((None, work(item)))
        except ValueError as error:
            outcomes.append((error, None))
    return outcomes


def _in_processes(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    processes: int,
    done: Callable[[int, tuple[ValueError | None, Result | None]], None],
) -> None:
    # forked workers share what is imported here: torch in each of them would take most of their memory
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    # sending an item costs about as much as a tenth of a small one's work: several at a time
    size = max(1, min(8, len(items) // (16 * processes)))
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_leave_with_the_parent) as pool:
        running: dict[Future[list[tuple[ValueError | None, Result | None]]], range] = {}
        rest = iter(range(0, len(items), size))
        try:
            while True:
                # a short queue, so that little is left to wait for when something fails
                while len(running) < 2 * processes and (start := next(rest, None)) is not None:
                    part = range(start, min(start + size, len(items)))
                    running[pool.submit(_do_some, work, [items[index] for index in part])] = part
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    for index, outcome in zip(running.pop(future), future.result(), strict=True):
                        done(index, outcome)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process was killed, as a rule because the memory ran out: start again with fewer processes; "
                "what is done stays done"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
