"""A run's training and validation, read from the scalars that MMEngine's LocalVisBackend wrote."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# fields of a validation line that are not metrics
BOOKKEEPING = ("step", "epoch", "iter", "time", "data_time", "memory")


@dataclass(frozen=True)
class RunHistory:
    """One run's training and validation, the parts of a resumed run joined. n training and m validation points.

    Attributes:
        train_steps: (n,) int64, rising: the iteration of each training line.
        loss: (n,) float64, the ``loss`` of those lines (by MMEngine's default a mean over the last 10 iterations); NaN or
            infinite where the run diverged.
        lr: (n,) float64, the learning rate; NaN where a line has none.
        val_steps: (m,) int64, rising: the steps of the validation lines, in iterations or epochs.
        val_in_epochs: whether `val_steps` counts epochs, as MMEngine does by default, or iterations, as with
            ``LoggerHook(log_metric_by_epoch=False)`` in MMSegmentation's configs.
        metrics: (m,) float64 for every metric that was ever logged; NaN at the steps without it.
        sources: the folders that were read, oldest first.
        superseded: number of lines left out because a later start repeated their iterations.
    """

    train_steps: np.ndarray
    loss: np.ndarray
    lr: np.ndarray
    val_steps: np.ndarray
    val_in_epochs: bool
    metrics: dict[str, np.ndarray]
    sources: tuple[str, ...]
    superseded: int

    @property
    def last_step(self) -> int:
        """The iteration of the last training line; 0 without any."""
        return int(self.train_steps[-1]) if len(self.train_steps) else 0

    @property
    def diverged_at(self) -> int | None:
        """The first iteration with a logged loss of infinity or NaN; None if all are finite."""
        bad = self.train_steps[~np.isfinite(self.loss)]
        return int(bad[0]) if len(bad) else None


def find_logs(work_dir: str | Path, *patterns: str, hint: str) -> list[Path]:
    """The files of a run that match glob patterns, sorted.

    Raises:
        FileNotFoundError: there is no such folder, or no such file in it; ``hint`` ends the latter's message.
    """
    work_dir = Path(work_dir)
    if not work_dir.is_dir():
        raise FileNotFoundError(f"no folder {work_dir}: give the work_dir of a run")
    if paths := sorted(path for pattern in patterns for path in work_dir.glob(pattern)):
        return paths
    raise FileNotFoundError(f"{work_dir} holds no {patterns[-1]}: {hint}")


def read_lines(path: Path) -> list[dict]:
    """Parse a file of one JSON object a line, such as scalars.json. A last line that a killed run left incomplete is dropped.

    Raises:
        ValueError: a line before the last is not a JSON object.
    """
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} of {len(lines)} is not a JSON object: {error}") from error
        # a LogProcessor with log_with_hierarchy=True writes train/loss for loss
        records.append({key.removeprefix("train/").removeprefix("val/"): value for key, value in record.items()})
    return records


def _is_training(record: dict) -> bool:
    # MMEngine's LogProcessor writes the iteration into training lines only; a validation line may have a loss, too
    return "loss" in record and ("iter" in record or "lr" in record)


def _step(record: dict, path: Path) -> int:
    step = record.get("iter", record.get("step"))
    if isinstance(step, bool) or not isinstance(step, int):
        raise ValueError(f"{path}: a line has no whole number as its step: {record}")
    return step


def float_column(values: Iterable[object]) -> np.ndarray:
    """(n,) float64: the numbers among the values, NaN for anything else (None, a list, a text)."""
    numbers = [value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan for value in values]
    return np.array(numbers, dtype=np.float64)


def _counts_epochs(train: list[tuple[int, dict]], val_steps: list[int]) -> bool:
    """Whether validation lines are numbered by epochs: there are epochs, and no step is beyond the last one."""
    epochs = [int(record["epoch"]) for _, record in train if "epoch" in record]
    return bool(epochs and val_steps) and max(val_steps) <= max(epochs) < train[-1][0]


def read_history(work_dir: str | Path) -> RunHistory:
    """Read ``work_dir/*/vis_data/scalars.json``, one folder for every start of the run.

    The folders are joined in the order of their names, MMEngine's time stamps. A later start supersedes an earlier one from
    its first training line on: what the earlier one logged there no longer belongs to the weights in the folder. Folders
    without a training line (a checkpoint that was only evaluated) are skipped unless there are no others.

    Args:
        work_dir: the run's ``work_dir``.

    Returns:
        The history.

    Raises:
        FileNotFoundError: there is no such folder, or no scalars.json in it.
        ValueError: a line other than the last of its file is not a JSON object, a line has no step, or there is no complete
            line.
    """
    paths = find_logs(work_dir, "*/vis_data/scalars.json", hint="no run has logged anything there")
    files = {path: read_lines(path) for path in paths}
    trained = {path: records for path, records in files.items() if any(map(_is_training, records))}
    files = trained or files

    kept: list[tuple[int, dict]] = []
    superseded, last = 0, -1
    for path, records in files.items():
        for record in records:
            step = _step(record, path)
            if _is_training(record):
                if step <= last:
                    # lines are in the order of time: all after the first overlap are of the earlier start
                    cut = next(i for i, (old, line) in enumerate(kept) if _is_training(line) and old >= step)
                    superseded += len(kept) - cut
                    del kept[cut:]
                last = step
            kept.append((step, record))
    if not kept:
        raise ValueError(f"no complete line in {', '.join(map(str, paths))}")

    train = [(step, record) for step, record in kept if _is_training(record)]
    by_step: dict[int, dict] = {}
    for step, record in kept:
        if not _is_training(record):
            by_step[step] = by_step.get(step, {}) | record
    val = sorted(by_step.items())
    names = dict.fromkeys(
        key for _, record in val for key, value in record.items() if isinstance(value, int | float) and key not in BOOKKEEPING
    )
    return RunHistory(
        train_steps=np.array([step for step, _ in train], dtype=np.int64),
        loss=float_column(record.get("loss") for _, record in train),
        lr=float_column(record.get("lr") for _, record in train),
        val_steps=np.array([step for step, _ in val], dtype=np.int64),
        val_in_epochs=_counts_epochs(train, [step for step, _ in val]),
        metrics={name: float_column(record.get(name) for _, record in val) for name in names},
        sources=tuple(path.parent.parent.name for path in files),
        superseded=superseded,
    )
