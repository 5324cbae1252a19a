"""Kill one of two processes that torchrun has started, again and again: `python tests/helpers/restarts.py --tries 10`.

It is torchrun's own agent with its rendezvous, and ``gbseg train`` with its command line; only that the processes are forked
from one that has imported everything, which takes a second and not twenty.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import engine_tiny
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import gbseg.cli

MAX_ITERS = 8


# this file may be the main module as well
@HOOKS.register_module(force=True)
class KillRankHook(Hook):
    """SIGKILL one rank after an iteration, before the first restart only."""

    def __init__(self, rank: int, at: int) -> None:
        self.rank, self.at = rank, at

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Kill here."""
        mine = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" and int(os.environ["RANK"]) == self.rank
        if mine and runner.iter + 1 == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def worker(folder: str) -> None:
    """What a process does: ``gbseg train`` of the config in the folder."""
    with Path(folder, f"out{os.environ['RANK']}.txt").open("a", buffering=1) as sys.stdout:
        os.dup2(sys.stdout.fileno(), 1)
        os.dup2(sys.stdout.fileno(), 2)
        engine_tiny.make_starts_fast()
        arguments = ["train", f"{folder}/tiny.py", "--work-dir", f"{folder}/run", "--launcher", "pytorch", "--resume"]
        status = gbseg.cli.main(arguments)
        if status:
            raise SystemExit(status)


def one_of_two(folder: str, rank: int, port: int) -> None:
    """`worker` without torchrun, which would end it as soon as the other has ended."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    worker(folder)


def launch(folder: Path, rank: int | None = None, restarts: int = 1) -> dict[str, Any]:
    """Train with two processes, of which ``rank`` is killed once; the parts of the last checkpoint.

    Args:
        folder: for everything.
        rank: of the one that is killed.
        restarts: how many torchrun may make.
    """
    write_config(folder, rank)
    launcher = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method="forkserver",
    )
    elastic_launch(launcher, worker)(str(folder))
    return engine_tiny.result(folder / "run", MAX_ITERS)


def write_config(folder: Path, rank: int | None) -> None:
    """The config of the run in a new folder, for two processes of which ``rank`` is killed."""
    folder.mkdir()
    config = engine_tiny.config(folder / "run", val=4, ckpt=2)
    config.train_cfg.max_iters = MAX_ITERS
    config.pop("work_dir")
    config.custom_imports = {"imports": ["engine_tiny", "restarts"]}
    if rank is not None:
        config.custom_hooks.append({"type": "KillRankHook", "rank": rank, "at": 5, "priority": "LOWEST"})
    config.dump(str(folder / "tiny.py"))
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}


def main() -> None:
    """Count how often a restart gives the weights of the run without one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tries", type=int, default=10)
    tries = parser.parse_args().tries
    with tempfile.TemporaryDirectory() as root:
        expected = launch(Path(root, "whole"))
        good = 0
        for number in range(tries):
            start = time.monotonic()
            differences = engine_tiny.differences(expected, launch(Path(root, str(number)), rank=number % 2))
            good += not differences
            seconds = time.monotonic() - start
            print(f"rank {number % 2} killed: {differences or 'the same weights'}, {seconds:.0f} s", flush=True)
        print(f"{good} of {tries}")


if __name__ == "__main__":
    import restarts

    restarts.main()
