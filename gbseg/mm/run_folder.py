"""One folder, one run: the lock of a training, and what becomes of an earlier run's files.

What `gbseg.mm.train` does with a folder that holds checkpoints is decided by `lock_run_folders`, before anything is written.
"""

import errno
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from gbseg.errors import is_refusal
from gbseg.files import (
    FileWriteError,
    checkpoint_steps,
    free_space,
    is_alive,
    is_checkpoint_folder,
    locked_file,
    readable_os_errors,
    require_folder,
)
from gbseg.mm.checkpoint_files import INTERRUPTED, REMEDIES, NoReadableCheckpointError, newest_readable_checkpoint
from gbseg.mm.checkpoint_loading import read_checkpoint

__all__ = ["LockedRuns", "RunFolder", "decided_by_rank_0", "lock_run_folders", "readable_write_errors"]

LOCK = "training.lock"
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


def decided_by_rank_0(decide: Callable[[], Any]) -> Any:
    """What a function returns or raises on rank 0, so that all processes use the same file or all stop."""
    answer: list[Any] = [None]
    if is_main_process():
        try:
            answer = [decide()]
        except Exception as error:  # any: the others wait for the answer
            answer = [error]
    broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


@contextmanager
def readable_write_errors(folder: Path) -> Iterator[None]:
    """Say in a sentence that a log or another file of a run could not be written, as it is said of checkpoints.

    Args:
        folder: of the run.

    Raises:
        FileWriteError: the disk is full or cannot be written to any more.
    """
    try:
        yield
    except OSError as error:
        # a write to an open file names none
        file = folder if error.filename is None else Path(os.fsdecode(error.filename))
        if is_refusal(error) or error.errno not in REMEDIES or not file.resolve().is_relative_to(folder.resolve()):
            raise
        raise FileWriteError(
            error.errno,
            f"{file} cannot be written to any more: {error.strerror} ({free_space(folder)}). The checkpoints are untouched: "
            f"{REMEDIES[error.errno]}, then resume",
        ) from error


class RunFolder:
    """The folder of one run, its lock, and what lies in it.

    Args:
        config: of the run.
        folder: where its logs and its ``last_checkpoint`` are.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.config = config
        self.folder = Path(folder)
        # anything may stand there, and what is wrong is said when the config is built
        hooks = config.get("default_hooks")
        hook = hooks.get("checkpoint") if isinstance(hooks, Mapping) else None
        out_dir, template = (hook.get(key) if isinstance(hook, Mapping) else None for key in ("out_dir", "filename_tmpl"))
        self.checkpoints = Path(out_dir, self.folder.name) if isinstance(out_dir, str | Path) else self.folder
        self._example = template.replace("{}", "1") if isinstance(template, str) else ""

    def steps(self) -> dict[Path, int]:
        """The regular checkpoints and their iteration or epoch; other folders of such a name do not count."""
        steps = checkpoint_steps(self.checkpoints, self._example)
        return {path: step for path, step in steps.items() if path.is_file() or is_checkpoint_folder(path)}

    def checkpoint_files(self) -> list[Path]:
        """All checkpoints of a run: regular, best and published ones."""
        files = [path for path in self.checkpoints.glob("best_*.pth") if re.search(r"_\d+(-[0-9a-f]{8})?$", path.stem)]
        files += [path for path in self.checkpoints.glob("*_*-*.pth") if re.search(r"_\d+-[0-9a-f]{8}$", path.stem)]
        others = [path for path in [self.checkpoints / INTERRUPTED, *files] if path.is_file()]
        return list(dict.fromkeys([*self.steps(), *others]))

    def former_files(self) -> list[Path]:
        """What a former run has written: its checkpoints, ``last_checkpoint``, and the folders of its logs."""
        logs = [path for path in self.folder.glob("*_*") if re.fullmatch(r"\d{8}_\d{6}", path.name)]
        logs = [path for path in logs if (path / f"{path.name}.log").exists() or (path / "vis_data").exists()]
        last = [path for path in (self.folder / "last_checkpoint",) if path.is_file()]
        return [*self.checkpoint_files(), *last, *sorted(logs)]

    @property
    def end(self) -> dict[str, int]:
        """Where the training of the config ends: iterations, epochs, or both."""
        loop = self.config.get("train_cfg")
        ends = {name: loop.get(f"max_{name}s") for name in ("iter", "epoch")} if isinstance(loop, Mapping) else {}
        return {name: end for name, end in ends.items() if isinstance(end, int)}

    def is_finished(self, record: Mapping[str, Any]) -> bool:
        """Whether the training in it has reached the end that the config has now.

        Args:
            record: of the lock. A run of before there were locks counts as finished from its last checkpoint on; of later ones
                it is known whether the last validation is over too.
        """
        if not self.end or "finished" in record:
            return bool(self.end) and record["finished"] == self.end
        with suppress(NoReadableCheckpointError):
            newest = newest_readable_checkpoint(self.folder, self.checkpoints)
            meta = {} if newest is None else read_checkpoint(newest, mmap=True)["meta"]
            return all(meta.get(name, -1) >= limit for name, limit in self.end.items())
        return False

    def require_kept(self) -> None:
        """Refuse to remove a file that the config itself names.

        Raises:
            ValueError: a weight file of the config is one of `former_files`.
        """
        former = {path.resolve() for path in self.former_files()}
        for name in _texts(self.config.to_dict()):
            if name.endswith((".pth", "last_checkpoint")) and Path(name).resolve() in former:
                raise ValueError(
                    f"--overwrite would remove {name}, which the config names: move it, or use another --work-dir."
                )


def _texts(value: Any) -> Iterator[str]:
    """The texts in nested containers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _jobs() -> dict[str, bool]:
    """The jobs of torchrun and SLURM that this process belongs to, and whether they have been started again."""
    environment, jobs = os.environ, {}
    if job := environment.get("SLURM_JOB_ID"):
        jobs[f"SLURM {job}"] = environment.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
    if "TORCHELASTIC_RESTART_COUNT" in environment:
        name = environment.get("TORCHELASTIC_RUN_ID", "none")
        # without a name of its own: the process of torchrun, which starts all others
        name = f"{socket.gethostname()} {os.getppid()}" if name == "none" else name
        jobs[f"torchrun {name}"] = environment["TORCHELASTIC_RESTART_COUNT"] not in ("", "0")
    return jobs


class _Record:
    """What the file of a lock says: process, host and jobs of the training, and whether it is finished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, Any] = {}
        # it may be anything
        with suppress(OSError, ValueError):
            values = json.loads(path.read_text(encoding="utf-8"))
            self.values = values if isinstance(values, dict) else {}

    def write(self, **values: Any) -> None:
        self.values |= values
        self._path.write_text(json.dumps(self.values) + "\n", encoding="utf-8")

    @property
    def process(self) -> int | None:
        """The process that wrote it, if it is of this machine and still lives."""
        process = self.values.get("process")
        if not isinstance(process, int) or process <= 0 or self.values.get("host") != socket.gethostname():
            return None
        return process if process != os.getpid() and is_alive(process) else None


@contextmanager
def _locked(folder: Path) -> Iterator[_Record]:
    """Hold the lock of a folder.

    Raises:
        RuntimeError: another process trains there.
    """
    require_folder(folder)
    is_new = not folder.exists()
    with readable_os_errors():
        folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    with ExitStack() as held:
        process = _Record(file).process
        try:
            # what a killed process has started ends a moment after it
            held.enter_context(locked_file(file, timeout=0 if process else 10))
        except BlockingIOError:
            holder = [_Record(file).values.get(key, "unknown") for key in ("process", "host")]
            text = f"{folder} is being trained in, by process {holder[0]} on {holder[1]}: wait for it, end it, or"
            raise RuntimeError(f"{text} train in another folder with --work-dir.") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            if process and not _Record(file).values.get("ended"):
                text = f"{folder} was last trained in by process {process} of this machine, which still runs: end it, or"
                raise RuntimeError(f"{text} train in another folder with --work-dir.") from error
            text = f"{folder} cannot be locked ({error.strerror}): see to it that no other training uses it."
            print_log(text, "current", logging.WARNING)
        record = _Record(file)
        try:
            yield record
        finally:
            with suppress(OSError):
                record.write(ended=True)
                if is_new and [path.name for path in folder.iterdir()] == [LOCK]:
                    # nothing came of it
                    file.unlink()
                    folder.rmdir()


class LockedRuns:
    """The folders of a training, held as long as it lasts.

    Attributes:
        resume: for each run, whether it is resumed; None for one that is finished and stays as it is.
        notes: what is to be logged about it.
    """

    def __init__(self) -> None:
        self.resume: dict[str, bool | None] = {}
        self.notes: list[str] = []
        self._records: dict[str, tuple[RunFolder, _Record]] = {}
        self._around: list[_Record] = []

    def hold(self, runs: Mapping[str, tuple[Config, Path]], work_dir: Path, locks: ExitStack) -> None:
        """Take the locks: of the work dir, of each run in it, which could be trained alone, and of an ``out_dir``."""
        folders = {name: RunFolder(config, path) for name, (config, path) in runs.items()}
        paths = [work_dir, *(run.folder for run in folders.values()), *(run.checkpoints for run in folders.values())]
        # the same folder may be written in two ways
        taken = {path: locks.enter_context(_locked(path)) for path in {path.resolve(): path for path in paths}.values()}
        by_place = {path.resolve(): record for path, record in taken.items()}
        self._records = {name: (run, by_place.pop(run.folder.resolve())) for name, run in folders.items()}
        self._around = [*by_place.values()]

    def decide(self, resume: bool, overwrite: bool) -> None:
        """Find out what is to become of each run, and remove what is to be overwritten.

        Raises:
            ValueError: a folder holds checkpoints, and nobody said what is to become of them.
        """
        jobs = _jobs()
        several, refused = "" not in self._records, []
        for name, (run, record) in self._records.items():
            again = [job for job, is_again in jobs.items() if is_again and job in record.values.get("jobs", ())]
            if again:
                self.notes.append(f"{again[0]} has started this training again: it continues, as with --resume.")
            if again or resume or (run.config.get("resume", False) and not overwrite):
                self.resume[name] = True
            elif overwrite or not run.checkpoint_files():
                self.resume[name] = False
            elif several and run.is_finished(record.values):
                self.resume[name] = None
            else:
                refused.append(run)
        if refused:
            for _, record in self._records.values():
                # so that a restart of what is refused now does not count as --resume
                if set(jobs) & set(record.values.get("jobs", ())):
                    record.write(jobs=[])
            raise ValueError(_refusal(refused, self._records))
        overwritten = [run for name, (run, _) in self._records.items() if overwrite and self.resume[name] is False]
        for run in overwritten:
            run.require_kept()
        for run in overwritten:
            if former := run.former_files():
                for path in former:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                self.notes.append(f"Removed from {run.folder}: {', '.join(path.name for path in former)}.")
        holder = dict(process=os.getpid(), host=socket.gethostname(), ended=False)
        for record in self._around:
            record.write(**holder)
        for name, (_, record) in self._records.items():
            record.write(**holder, **({} if self.resume[name] is None else dict(jobs=list(jobs), finished=None)))

    def finish(self, name: str) -> None:
        """Write down that a run has come to its end."""
        if name in self._records:
            run, record = self._records[name]
            record.write(finished=run.end)


def _refusal(refused: list[RunFolder], records: Mapping[str, tuple[RunFolder, _Record]]) -> str:
    """What is said about folders that hold checkpoints."""
    of_run = {run.folder: record.values for run, record in records.values()}
    held = []
    for run in refused:
        newest = max(run.steps().items(), key=lambda item: item[1], default=None)
        finished = ", which is finished" if run.is_finished(of_run[run.folder]) else ""
        name = run.checkpoint_files()[0].name if newest is None else f"up to {newest[0].name}"
        held.append(f"{run.folder} ({name}{finished})")
    return (
        f"there are checkpoints of an earlier run in {' and '.join(held)}: --resume continues it, --work-dir DIR trains in "
        "another folder, --overwrite first removes its checkpoints and logs."
    )


@contextmanager
def lock_run_folders(
    runs: Mapping[str, tuple[Config, Path]], work_dir: Path, resume: bool = False, overwrite: bool = False
) -> Iterator[LockedRuns]:
    """Hold the folders of a training for this one alone, and decide what becomes of the checkpoints in them.

    Called by all processes; the first one decides, and holds the locks, which end with it. Of several processes that their
    launcher starts again, those of a training that was begun here continue it. Of several runs, those that are finished stay.

    Args:
        runs: from `gbseg.mm.config.run_configs`.
        work_dir: the folder around them.
        resume: continue what there is.
        overwrite: remove what a former run has written.

    Raises:
        RuntimeError: another process trains in one of the folders.
        ValueError: a folder holds checkpoints, and neither ``resume`` nor ``overwrite`` is given, or both are.
    """
    if resume and overwrite:
        raise ValueError("--resume continues the run that --overwrite would remove: give one of them.")
    locked = LockedRuns()
    with ExitStack() as locks:

        def decide() -> tuple[dict[str, bool | None], list[str]]:
            locked.hold(runs, work_dir, locks)
            locked.decide(resume, overwrite)
            return locked.resume, locked.notes

        locked.resume, locked.notes = decided_by_rank_0(decide)
        yield locked
