"""How the processes of a training find each other, again after a restart by torchrun."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, PrefixStore, Store
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import rendezvous

__all__ = ["ProcessLostError", "lost_process_errors", "process_group_options", "store_of_this_start"]

_POLL_SECONDS = 0.05


class ProcessLostError(RuntimeError):
    """Another of the processes that train together has ended, or does not answer."""


@contextmanager
def lost_process_errors() -> Iterator[None]:
    """Say in one sentence that another process is gone, where a collective operation breaks off.

    Raises:
        ProcessLostError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo's errors are plain ones, and name its source file
        if not isinstance(error, DistError) and "/gloo/" not in str(error):
            raise
        text = " ".join(str(error).split())
        raise ProcessLostError(
            "another of the processes that train together has ended or does not answer, so this one stops: look for the "
            f"message of the first that ended, then continue from the newest checkpoint with --resume. ({text[:300]})"
        ) from error


def store_of_this_start(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """A part of a store that only the processes which are started together now write to and read from.

    torchrun keeps one store for all its restarts. The addresses of processes that were killed still stand there, and a process
    that reads one of them is refused the connection. A prefix of the number of restarts would not do: every node counts its
    own. So rank 0 names this start, every other rank answers with a word that nobody can have written before, and uses the
    name once rank 0 has repeated its word.

    Args:
        store: what all processes share.
        rank: of this process.
        world_size: the number of processes.
        timeout: how long to wait for the others.

    Raises:
        TimeoutError: a process did not come.
    """
    word = uuid.uuid4().hex
    end = time.monotonic() + timeout.total_seconds()
    late = f"not all {world_size} processes have come within {timeout.total_seconds():g} seconds: look for one that ended."
    if rank == 0:
        store.set("start", word)
        answers = [f"{word}/answer of {other}" for other in range(1, world_size)]
        while answers and not store.check(answers):
            if time.monotonic() > end:
                raise TimeoutError(late)
            time.sleep(_POLL_SECONDS)
        store.set(f"{word}/answers", " ".join(store.get(answer).decode() for answer in answers))
        return PrefixStore(word, store)
    while time.monotonic() < end:
        # of an earlier start, as long as rank 0 has not written its own
        start = store.get("start").decode()
        store.set(f"{start}/answer of {rank}", word)
        if store.check([f"{start}/answers"]) and word in store.get(f"{start}/answers").decode().split():
            return PrefixStore(start, store)
        time.sleep(_POLL_SECONDS)
    raise TimeoutError(late)


def process_group_options(timeout: float | None = None) -> dict[str, Any]:
    """Arguments of ``torch.distributed.init_process_group`` for a process that torchrun has started.

    Args:
        timeout: seconds to wait for other processes in any operation; None is PyTorch's default for the backend.
    """
    options: dict[str, Any] = {} if timeout is None else {"timeout": timedelta(seconds=timeout)}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store, rank, world_size = next(rendezvous("env://", **options))
        limit = options.get("timeout", default_pg_timeout)
        options |= {"store": store_of_this_start(store, rank, world_size, limit), "rank": rank, "world_size": world_size}
    return options
