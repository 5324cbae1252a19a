"""One of two processes is killed: what becomes of the other, and of the training that is started again."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import engine_tiny
import pytest
import restarts
from engine_tiny import SERVER
from torch.distributed import HashStore, Store

from gbseg.mm.process_group import store_of_this_start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the training gives that nobody interrupts."""
    return restarts.launch(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_restarts(tmp_path: Path, whole: dict[str, Any], rank: int) -> None:
    """Its agent starts both anew, and they end with the weights of the run without interruption.

    Without `gbseg.mm.process_group.store_of_this_start` (``init_process_group("gloo")`` as it is): "Gloo connectFullMesh failed
    ... Connection refused" in 2 of 2 starts, since torchrun keeps one store in which the dead processes' addresses stand.
    Without `gbseg.mm.hooks.broadcast_buffers`: another validation score, as rank 1 goes on with the buffers of rank 0.
    `python tests/helpers/restarts.py` tries it ten times.
    """
    assert not engine_tiny.differences(whole, restarts.launch(tmp_path / "run", rank=rank))


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return int(server.getsockname()[1])


def _both(folder: Path) -> list[int | None]:
    port = _free_port()
    processes = [SERVER.Process(target=restarts.one_of_two, args=(str(folder), rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_other_process_ends(tmp_path: Path, whole: dict[str, Any], rank: int) -> None:
    """Without a launcher that ends it, within two minutes, in one sentence; resumed, both give what nobody interrupted.

    Without `gbseg.mm.process_group.lost_process_errors`: a traceback that ends in gloo's source file.
    """
    folder = tmp_path / "run"
    restarts.write_config(folder, rank)
    codes = _both(folder)
    assert codes[rank] == -9 and codes[1 - rank] == 1
    said = (folder / f"out{1 - rank}.txt").read_text()
    assert "gbseg: another of the processes that train together has ended" in said and "Traceback" not in said
    text = (folder / "tiny.py").read_text()
    (folder / "tiny.py").write_text(text.replace("at=5", "at=500"))
    assert _both(folder) == [0, 0]
    assert not engine_tiny.differences(whole, engine_tiny.result(folder / "run", restarts.MAX_ITERS))


def _meet(store: Store) -> list[Store]:
    """The stores that two processes get."""
    stores: dict[int, Store] = {}

    def start(rank: int) -> None:
        stores[rank] = store_of_this_start(store, rank, 2, timedelta(seconds=20))

    threads = [Thread(target=start, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [stores[0], stores[1]]


def test_a_start_reads_nothing_of_an_earlier_one() -> None:
    """Whoever comes first: not of one that was complete, and not of one in which rank 0 alone had come.

    With a prefix of ``TORCHELASTIC_RESTART_COUNT``: nodes count their restarts each for itself, so they would not meet.
    """
    shared = HashStore()
    for word in (b"first", b"second"):
        one, other = _meet(shared)
        assert not one.check(["address"])
        one.set("address", word)
        assert other.get("address") == word
        with pytest.raises(TimeoutError, match=r"not all 2 processes have come within 0\.2 seconds"):
            store_of_this_start(shared, 0, 2, timedelta(seconds=0.2))
