"""The same function on many files, in several processes, with a progress bar.

Built on ``concurrent.futures``, because the libraries above it lose something: the workers of joblib's loky backend outlive a
killed parent and import everything anew; joblib's multiprocessing backend waits forever for a killed worker; tqdm's
``process_map`` takes no initializer, by which workers end with their parent.
"""

import contextlib
import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gbseg._moved import add_moved_names

__all__ = ["available_cores", "run_in_processes"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """The CPU cores that this process may use; in a container or under a scheduler these are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    title: str,
    processes: int | None = None,
    collect: Callable[[Item, Result], None] | None = None,
) -> list[tuple[Item, ValueError]]:
    """Call ``function`` on every item in a process pool.

    A ValueError is a fault of that item: it is returned, and the other items go on. Any other exception (a full disk) ends
    the run: items that no worker has begun are left out.

    Args:
        function: a function at the top level of a module.
        items: the arguments, each of which can be pickled.
        title: of the progress bar, which is shown if the standard error is a terminal.
        processes: number of processes, by default one per core; with 1, everything runs in this process.
        collect: called in this process with every item and its result, in the order of the items.

    Returns:
        The items that failed and their errors, in the order of the items.

    Raises:
        ValueError: ``processes`` is less than 1.
        RuntimeError: a worker process was killed, usually because the memory ran out.
        OSError: raised by ``function``.
    """
    processes = min(available_cores() if processes is None else processes, max(len(items), 1))
    if processes < 1:
        raise ValueError(f"the number of processes must be at least 1, not {processes}")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    failed: list[tuple[Item, ValueError]] = []
    console = Console(stderr=True)
    # no refresh thread: one that holds a lock while the pool forks would deadlock a worker
    progress = Progress(*columns, auto_refresh=False, console=console, transient=True, disable=not console.is_terminal)
    with progress, contextlib.closing(_outcomes(function, items, processes)) as outcomes:
        bar = progress.add_task(title, total=len(items))
        refreshed = 0.0
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, ValueError):
                failed.append((item, outcome))
            elif collect is not None:
                collect(item, outcome)
            progress.advance(bar)
            if time.monotonic() - refreshed > 0.2:
                refreshed = time.monotonic()
                progress.refresh()
    return failed


def _outcomes(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Generator[Result | ValueError, None, None]:
    """The result or the ValueError of every item, in order."""
    attempt = functools.partial(_attempt, function)
    if processes == 1:
        yield from map(attempt, items)
        return
    # forked workers share the modules that are imported already; torch in each of them would take most of their memory
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    # several small items at a time: sending one takes about a tenth of the time of its work
    size = max(1, min(8, len(items) // (16 * processes)))
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_exit_with_parent)
    try:
        yield from pool.map(attempt, items, chunksize=size)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed, as a rule because the memory ran out: start again with fewer processes; "
            "what is done stays done"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _attempt(function: Callable[[Item], Result], item: Item) -> Result | ValueError:
    try:
        return function(item)
    except ValueError as error:
        return error


def _exit_with_parent() -> None:
    """End this worker soon after its parent was killed: its siblings keep the queue open, so it would wait for work forever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


add_moved_names(__name__)
