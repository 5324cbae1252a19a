"""Fault injection: trainings that are killed, signalled, or run out of disk, and then resumed and compared bit for bit.

    python tests/faults/run.py                # 30 kills and all other parts, some five minutes on two cores
    python tests/faults/run.py --kills 200    # more of them
    python tests/faults/run.py --only kills --case 17

All parts use the run of ``tests/helpers/engine_tiny.py``, which is small, but whole: MMEngine's runner, Adam, a schedule,
clipping, batch norm, dropout, an average of the weights, augmentation by three generators. Processes are forked from a server
that has imported everything. A case is wrong where the resumed run does not end with the weights, optimizer, curves and files
of a run that nobody disturbed, where more than one interval is lost, where a file is left that is not whole, where an exit
status is not the promised one, and where something hangs. ``--write`` puts the table of counts into docs/reliability.md.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/helpers")]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
os.environ["OMP_NUM_THREADS"] = "1"

import engine_tiny as tiny  # noqa: E402  (found by the path above)

from gbseg.mm.checkpoint_files import checkpoint_damage  # noqa: E402
from gbseg.mm.hooks.stop import SIGNALS  # noqa: E402

PAGE = ROOT / "docs/reliability.md"
SECONDS = 120
"""A process that takes longer hangs."""

# 10 images in batches of 4: 3 iterations an epoch; 12 iterations, validated every 4 or 6
LOOPS: dict[str, dict[str, Any]] = {
    "iterations": {},
    "epochs": {
        "train_cfg": {"type": "ResumableEpochLoop", "max_epochs": 4, "val_interval": 2, "_delete_": True},
        "param_scheduler": [{"type": "LinearLR", "start_factor": 0.1, "begin": 0, "end": 3, "by_epoch": True}],
        "log_processor.by_epoch": True,
        "ckpt": 2,
    },
}
# as many iterations an epoch of each of two processes as of one
TWICE = {"_delete_": True, "type": "RepeatDataset", "times": 2, "dataset": tiny.DATASET}
LOOPS["whole epochs"] = {**LOOPS["epochs"], "default_hooks.checkpoint.by_epoch": True, "ckpt": 1}
INTERVAL = {"iterations": 3, "epochs": 2, "whole epochs": 3}
"""Iterations between two checkpoints."""
VALIDATED = {"iterations": (4, 8, 12), "epochs": (6, 12), "whole epochs": (6, 12)}
STEP = ("before_train_iter", "forward", "backward", "after_train_iter")
VALIDATION = ("before_val_epoch", "after_val_iter", "after_val")
WRITE = ("half", "before rename", "after rename")


class WrongError(Exception):
    """What is promised did not happen."""


class NotPossibleHereError(Exception):
    """The system does not let a case be tried, for instance without the right to mount a file system."""


class Case(NamedTuple):
    """One case: what it is called in the table, and a function that raises `WrongError`, of an empty folder."""

    kind: str
    run: Callable[[Path], None]


def _check(condition: object, text: object) -> None:
    if not condition:
        raise WrongError(str(text))


def _processes(folder: Path, count: int, each: tuple[dict, ...] = ({}, {}), **options: Any) -> list[int]:
    """The exit codes of one run: of one process, or of several that average their gradients."""
    if count > 1 and "train_cfg" in options:
        options["train_dataloader.dataset"] = TWICE
    if count == 1:
        started = [tiny.start(folder, **{**options, **each[0]})]
    else:
        store = str(folder / f"store{time.monotonic_ns()}")
        started = [
            tiny.start(folder, tiny.train_together, rank=rank, store=store, **{**options, **each[rank]})
            for rank in range(count)
        ]
    for process in started:
        process.join(SECONDS)
    hung = [process for process in started if process.exitcode is None]
    for process in hung:
        process.kill()
    _check(not hung, f"{len(hung)} of {count} processes hang:\n{_said(folder)}")
    return [process.exitcode for process in started]


def _said(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("out*.txt")))


def _iterations(text: str) -> list[int]:
    """The iterations that a run has logged; in a loop over epochs they are counted anew in each."""
    lines = re.findall(r"(?:Iter|Epoch)\(train\) +(?:\[(\d+)\])?\[ *(\d+)/", text)
    return [(int(epoch or 1) - 1) * 3 + int(number) for epoch, number in lines]


def _result(folder: Path, loop: str, count: int) -> dict[str, Any]:
    state = tiny.result(folder, name="epoch_4.pth" if loop == "whole epochs" else "iter_12.pth")
    if count > 1:
        # the running statistics of batch norm are each process's own, and mmengine saves those of the first
        state["curves"].pop("val/score", None)
        state.pop("best")
    return state


_undisturbed: dict[tuple[str, int], dict[str, Any]] = {}


def _compare(folder: Path, loop: str, count: int) -> None:
    """Compare a finished run with one that nobody disturbed."""
    differences = tiny.differences(_undisturbed[loop, count], _result(folder, loop, count))
    _check(not differences, f"the resumed run differs: {differences[:5]}\n{_said(folder)[-3000:]}")
    left = [path.name for path in folder.glob(".*")] + [path.name for path in folder.glob("interrupted*")]
    _check(not left, f"left behind: {left}")


def _require_whole(folder: Path) -> None:
    """Every regular checkpoint under its own name can be resumed from."""
    for path in (path for kind in ("iter", "epoch", "interrupted") for path in folder.glob(f"{kind}*.pth")):
        _check(checkpoint_damage(path) is None, f"{path.name}: {checkpoint_damage(path)}")


def _resume(folder: Path, loop: str, count: int, **options: Any) -> None:
    """Resume a run until it ends, look at what was lost, and compare."""
    _require_whole(folder)
    before = _said(folder)
    done = max(_iterations(before), default=0)
    codes = _processes(folder, count, resume=True, **options)
    _check(codes == [0] * count, f"resumed, it ends with {codes}:\n{_said(folder)[-3000:]}")
    match = re.search(r"resumed epoch: \d+, iter: (\d+)", _said(folder).removeprefix(before))
    lost = done - int(match[1] if match else 0)
    _check(lost <= INTERVAL[loop], f"{lost} iterations of {done} are lost, the interval is {INTERVAL[loop]}")
    _compare(folder, loop, count)


def kill(rng: random.Random) -> Case:
    """A SIGKILL: at a stage of a step, at one of the writes, or by the clock; of one of one or two processes."""
    loop, count = rng.choice(list(LOOPS)), rng.choice([1, 1, 2])
    how = rng.choice(["a step", "a validation", "a write", "the clock"] if count == 1 else ["a step", "a validation"])
    options = dict(LOOPS[loop])
    if count == 1 and rng.random() < 0.3:
        options["workers"] = 2
    rank = rng.randrange(count)
    mine: dict[str, Any] = {}
    if how == "a step":
        mine["kill"] = rng.choice(STEP), rng.randint(1, tiny.MAX_ITERS)
    elif how == "a validation":
        mine["kill"] = rng.choice(VALIDATION), rng.choice(VALIDATED[loop])
    elif how == "a write":
        mine["kill_write"] = rng.randint(1, 8), rng.choice(WRITE)
    else:
        options["pause"] = 0.05
    delay = rng.uniform(0.3, 2.0)

    def run(folder: Path) -> None:
        if how == "the clock":
            process = tiny.start(folder, **options)
            process.join(delay)
            process.kill()
            process.join()
        else:
            codes = _processes(folder, count, tuple(mine if number == rank else {} for number in range(count)), **options)
            _check(codes[rank] == -9, f"the process was not killed: {codes}\n{_said(folder)[-2000:]}")
            others = [code for number, code in enumerate(codes) if number != rank]
            # the peer of a killed process ends by itself, with an error, unless there was nothing left to do together
            right = (0, 1) if mine.get("kill", ("", 0))[1] == tiny.MAX_ITERS else (1,)
            _check(all(code in right for code in others), f"the other process ended with {others}")
        _resume(folder, loop, count, **options)

    return Case(f"SIGKILL in {how}, {loop}, {count} process{'es' * (count > 1)}", run)


def signals() -> list[Case]:
    """Every signal at every stage of a step, of a validation, and of a write; of one process and of two."""

    def stopped(name: str, loop: str, count: int, everyone: bool, **where: Any) -> Case:
        number = int(getattr(signal, name))

        def run(folder: Path) -> None:
            options = {**LOOPS[loop], "stop": {}}
            mine = {"kill_signal": number, **where}
            codes = _processes(folder, count, (mine, mine if everyone else {}), **options)
            _check(codes == [128 + number] * count, f"exit status {codes} and not {128 + number}:\n{_said(folder)[-3000:]}")
            said = re.findall(
                r"stopped by (\w+) after iteration (\d+); --resume goes on from (\S+)\.$", _said(folder), re.MULTILINE
            )
            _check(len(said) == count and len(set(said)) == 1 and said[0][0] == name, f"{said}\n{_said(folder)[-3000:]}")
            _check(Path(said[0][2]).is_file(), f"there is no {said[0][2]}")
            before = _said(folder)
            _resume(folder, loop, count, **options)
            resumed = f"iter: {said[0][1]}"
            _check(resumed in _said(folder).removeprefix(before), f"it was not resumed at {resumed}")

        group = " with its workers" if where.get("kill_group") else ""
        stage = where["kill"][0] if "kill" in where else f"a write, {where['kill_write'][1]}"
        who = f"one process{group}" if count == 1 else "both of two processes" if everyone else "one of two processes"
        return Case(f"{name} in {stage}, {who}", run)

    cases = []
    for index, name in enumerate(SIGNALS):
        loop = list(LOOPS)[index % 2]
        for stage in STEP:
            cases.append(stopped(name, loop, 1, True, kill=(stage, 5)))
        cases.append(stopped(name, loop, 1, True, kill=("after_val_iter", VALIDATED[loop][0])))
        cases += [stopped(name, loop, 1, True, kill_write=(1, how)) for how in ("before rename", "after rename")]
    for name in ("SIGTERM", "SIGINT"):
        cases.append(stopped(name, "iterations", 1, True, kill=("forward", 5), kill_group=True, workers=2))
    cases.append(Case("SIGTERM while the other process hangs, one of two processes", _hung_peer))
    for name, everyone in (("SIGTERM", False), ("SIGUSR1", True)):
        for stage, at in (("forward", 5), ("after_val_iter", 4)):
            cases.append(stopped(name, "iterations", 2, everyone, kill=(stage, at)))
    return cases


def _hung_peer(folder: Path) -> None:
    store = str(folder / "store")
    options = {"stop": {"peer_timeout": 2}, "pause": 0.02, "train_cfg.max_iters": 10**6, "val": 10**6, "ckpt": 10**6}
    pair = [tiny.start(folder, tiny.train_together, rank=rank, store=store, **options) for rank in range(2)]
    end = time.monotonic() + SECONDS
    while not _iterations(_said(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    try:
        os.kill(pair[1].pid, signal.SIGSTOP)
        time.sleep(1)
        os.kill(pair[0].pid, signal.SIGTERM)
        pair[0].join(60)
        _check(pair[0].exitcode == 143, f"exit status {pair[0].exitcode}\n{_said(folder)[-2000:]}")
    finally:
        for process in pair:
            process.kill()
            process.join()
    _check("a step with the other processes does not end" in _said(folder), _said(folder)[-2000:])
    _check(not list(folder.glob("*.pth")), "there is a checkpoint")


def disks() -> list[Case]:
    """A disk that is full, a limit on the size of files, a folder that is read-only."""

    def file_limit(folder: Path) -> None:
        codes = _processes(folder, 1, kill=("after_train_iter", 6))
        kept = {path.name: path.read_bytes() for path in folder.glob("iter_*.pth")}
        codes += _processes(folder, 1, resume=True, file_limit=30_000)
        _check(codes == [-9, 1], codes)
        _check("make room, then resume" in _said(folder), _said(folder)[-2000:])
        _check(kept == {path.name: path.read_bytes() for path in folder.glob("iter_*.pth")}, "an earlier checkpoint is gone")
        _resume(folder, "iterations", 1)

    def full(folder: Path) -> None:
        disk = folder / "disk"
        disk.mkdir()
        if os.system(f"mount -t tmpfs -o size=400k tmpfs {disk} 2>/dev/null"):
            raise NotPossibleHereError("a small disk cannot be mounted here")
        try:
            # the logs go elsewhere
            work = folder / "run"
            there = {"default_hooks.checkpoint.out_dir": str(disk), "default_hooks.checkpoint.save_best": None}
            codes = _processes(work, 1, kill=("after_train_iter", 6), **there)
            filling, checkpoints = disk / "filling", disk / "run"
            kept = {path.name: path.read_bytes() for path in checkpoints.glob("iter_*.pth")}
            filling.write_bytes(bytes(max(shutil.disk_usage(disk).free - 8192, 0)))
            codes += _processes(work, 1, resume=True, **there)
            _check(codes == [-9, 1], f"{codes}\n{_said(work)[-2000:]}")
            _check("No space left on device" in _said(work), _said(work)[-2000:])
            _check(kept == {path.name: path.read_bytes() for path in checkpoints.glob("iter_*.pth")}, "an earlier one is gone")
            filling.unlink()
            codes = _processes(work, 1, resume=True, **there)
            _check(codes == [0], f"{codes}\n{_said(work)[-2000:]}")
            weights = tiny.result(checkpoints)["state_dict"]
            _check(not tiny.differences(_undisturbed["iterations", 1]["state_dict"], weights), "the weights differ")
        finally:
            os.system(f"umount -l {disk}")

    def read_only(folder: Path) -> None:
        codes = _processes(folder, 1, kill=("after_train_iter", 6))
        disk = folder / "checkpoints"
        disk.mkdir()
        # the administrator writes into any folder, but not into one that is mounted read-only
        if os.system(f"mount --bind {disk} {disk} 2>/dev/null && mount -o remount,ro,bind {disk} 2>/dev/null"):
            raise NotPossibleHereError("a folder cannot be mounted read-only here")
        try:
            elsewhere = {"default_hooks.checkpoint.out_dir": str(disk), "default_hooks.checkpoint.save_best": None}
            codes += _processes(folder, 1, resume=True, **elsewhere)
        finally:
            os.system(f"umount -l {disk}")
        _check(codes == [-9, 1], codes)
        _check("may not be written to: name another" in _said(folder), _said(folder)[-2000:])
        _resume(folder, "iterations", 1)

    return [Case("a limit on the size of files", file_limit), Case("a full disk", full), Case("a read-only folder", read_only)]


def memory() -> list[Case]:
    """2,000 iterations with 50 evaluations and 50 checkpoints: memory and checkpoints stay as they are."""

    def flat(folder: Path) -> None:
        options = {"train_cfg.max_iters": 2000, "val": 40, "ckpt": 40, "default_hooks.logger.interval": 50, "memory": True}
        codes = _processes(folder, 1, **options)
        _check(codes == [0], f"{codes}\n{_said(folder)[-2000:]}")
        kilobytes = [int(line) for line in (folder / "memory.txt").read_text().split()]
        growth = (kilobytes[-1] - kilobytes[len(kilobytes) // 4]) / 1024
        _check(growth < 10, f"from iteration 500 to 2,000 the memory grows by {growth:.1f} MiB")

    return [Case("2,000 iterations, 50 evaluations: memory flat", flat)]


PARTS: dict[str, Callable[[argparse.Namespace], list[Case]]] = {
    "kills": lambda arguments: [kill(random.Random(f"{arguments.seed} {number}")) for number in range(arguments.kills)],
    "signals": lambda _: signals(),
    "disks": lambda _: disks(),
    "memory": lambda _: memory(),
}


def attempt(case: Case, home: Path) -> str:
    """How a case ends: 'right', 'not possible here: ...', or what is wrong."""
    folder = Path(tempfile.mkdtemp(dir=home))
    try:
        case.run(folder)
    except NotPossibleHereError as error:
        return f"not possible here: {error}"
    except WrongError as error:
        return f"wrong: {error}"
    except Exception:
        return f"wrong: {traceback.format_exc()}"
    shutil.rmtree(folder, ignore_errors=True)
    return "right"


def table(results: dict[str, list[tuple[Case, str]]]) -> str:
    """The counts, as the Markdown table of the page."""
    lines = ["| part | what | cases | right | wrong |", "| --- | --- | ---: | ---: | ---: |"]
    for part, cases in results.items():
        # the loop and the stage of a case are in its name; the table sums them up
        kinds = [
            (re.sub(r", (iterations|epochs|whole epochs)|(?<=SIG\w{3})(\w?) in .*(?=, (one|both))", r"\2", case.kind), end)
            for case, end in cases
        ]
        for kind in dict.fromkeys(kind for kind, _ in kinds):
            counts = Counter(end.partition(":")[0] for name, end in kinds if name == kind)
            wrong = counts.total() - counts["right"]
            lines.append(f"| {part} | {kind} | {counts.total()} | {counts['right']} | {wrong} |")
    return "\n".join(lines)


def main() -> int:
    """Run the parts; the exit status is 1 if a case was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="number of SIGKILLs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--case", type=int, help="one case of --only, with all that it says")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="faults"))
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        keys = [(loop, count) for loop in LOOPS for count in (1, 2)]
        folders = {key: home / f"{key[0]} {key[1]}" for key in keys}
        codes = dict(zip(keys, pool.map(lambda key: _processes(folders[key], key[1], **LOOPS[key[0]]), keys), strict=True))
        for key, code in codes.items():
            _check(code == [0] * key[1], f"undisturbed, {key} ends with {code}:\n{_said(folders[key])[-3000:]}")
            _undisturbed[key] = _result(folders[key], *key)
        results = {}
        for part, make in PARTS.items():
            if arguments.only in (None, part):
                cases = make(arguments)
                chosen = cases if arguments.case is None else [cases[arguments.case]]
                ends = list(pool.map(lambda case: attempt(case, home), chosen))
                results[part] = list(zip(chosen, ends, strict=True))
                for number, (case, end) in enumerate(results[part]):
                    if end != "right":
                        print(f"{part} {number if arguments.case is None else arguments.case}, {case.kind}: {end}\n")
    text = table(results)
    wrong = [end for cases in results.values() for _, end in cases if end.startswith("wrong")]
    print(f"{text}\n\n{len(wrong)} wrong, {time.monotonic() - started:.0f} s")
    if arguments.write:
        page = re.sub(
            r"(?<=<!-- faults -->\n).*?(?=<!-- end faults -->)", lambda _: f"{text}\n", PAGE.read_text(), flags=re.DOTALL
        )
        PAGE.write_text(page)
    if not wrong:
        shutil.rmtree(home, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
