"""Work over processes: everything once, faults kept apart from refusals, no orphan after a kill."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gbseg.parallel import run_in_processes


def _work(path: Path) -> None:
    number = int(path.name)
    if number % 10 == 3:
        raise ValueError(f"{number} is bad")
    if number == 1000:
        raise OSError(errno.ENOSPC, "No space left on device")
    if number == 2000:
        os.kill(os.getpid(), signal.SIGKILL)
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")


@pytest.mark.parametrize("processes", [1, 3])
def test_every_item_once(tmp_path: Path, processes: int) -> None:
    """Every item that can be done is done exactly once, by as many processes; the others come back in their order."""
    items = [tmp_path / str(number) for number in range(100)]
    failed = run_in_processes(_work, items, "work", processes)
    assert [(path.name, str(error)) for path, error in failed] == [(f"{n}", f"{n} is bad") for n in range(3, 100, 10)]
    lines = [path.read_text().split() for path in items if path.exists()]
    assert len(lines) == 90 and all(len(pids) == 1 for pids in lines)
    workers = {int(pids[0]) for pids in lines}
    assert workers == {os.getpid()} if processes == 1 else os.getpid() not in workers and 1 < len(workers) <= 3


def _square(number: int) -> int:
    if number == 7:
        raise ValueError("7 is bad")
    return number * number


@pytest.mark.parametrize("processes", [1, 3])
def test_results(processes: int) -> None:
    """What the work returns comes back with its item, once; an item that failed brings nothing."""
    results: list[tuple[int, int]] = []
    failed = run_in_processes(_square, range(50), "work", processes, lambda item, result: results.append((item, result)))
    assert sorted(results) == [(number, number**2) for number in range(50) if number != 7]
    assert [item for item, _ in failed] == [7]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_refusal_ends_it(tmp_path: Path, processes: int) -> None:
    """A full disk is raised as it is, and the items far behind it are left."""
    items = [tmp_path / "1000", *(tmp_path / str(10 * number) for number in range(300))]
    with pytest.raises(OSError, match="No space left"):
        run_in_processes(_work, items, "work", processes)
    assert len(list(tmp_path.iterdir())) < 100


def test_a_killed_worker(tmp_path: Path) -> None:
    """It is said, and what to do."""
    with pytest.raises(RuntimeError, match=r"worker process was killed.*fewer processes"):
        run_in_processes(_work, [tmp_path / "2000", tmp_path / "1"], "work", 2)


def test_no_processes() -> None:
    """Zero processes would do nothing, quietly."""
    with pytest.raises(ValueError, match="at least 1, not 0"):
        run_in_processes(_work, [Path("1")], "work", 0)


ENDLESS = """
import os, sys, time
from pathlib import Path
from gbseg.parallel import run_in_processes
def work(number):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(0.05)
run_in_processes(work, range(10**6), "work", 2)
"""


def test_no_orphans(tmp_path: Path) -> None:
    """Workers of a killed process end soon after it."""
    with subprocess.Popen([sys.executable, "-c", ENDLESS, tmp_path], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2

    def alive(pid: int) -> bool:
        try:
            # a zombie that init has not collected is dead
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))
