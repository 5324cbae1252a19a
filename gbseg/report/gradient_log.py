"""The gradients that `GradientStatsHook` recorded, read back as arrays: what Fig. 2, 3 and 5 of the paper are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gbseg.report.history import read_lines

__all__ = ["GradientHistory", "Histogram", "read_gradients"]

NORMALISER = ("median", "mean", "min", "max")


@dataclass(frozen=True)
class Histogram:
    """The distribution of the output's deltas ``g(x) - t`` over the rows and classes of one batch.

    Attributes:
        edges: (B + 1,) float64, rising, of equal bins.
        counts: (B,) int64.
    """

    edges: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class GradientHistory:
    """What was recorded of a run, the parts of a resumed run joined; n records.

    Attributes:
        iterations: (n,) int64, rising: updates done before the batch that the record is of, so 0 is the first batch.
        epochs: (n,) float64, the same in epochs.
        rms: (n,) float64 by layer, the output's first: root mean square of the error gradients; NaN where a record has none.
        ln_normaliser: (n,) float64 by statistic: ``ln s`` with ``s = sum_j exp(x_j)``. `median`, `min` and `max` are over the
            rows of the batch, `mean` is ``ln mean(s)``, which a few rows may rule; NaN where a record has none.
        histograms: of the output's deltas, by iteration.
        sources: the folders that were read, oldest first.
        superseded: records left out because a later start went over their iterations again.
    """

    iterations: np.ndarray
    epochs: np.ndarray
    rms: dict[str, np.ndarray]
    ln_normaliser: dict[str, np.ndarray]
    histograms: dict[int, Histogram]
    sources: tuple[str, ...]
    superseded: int

    def rms_by_epoch(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """The root mean square of a layer's error gradients over all records of each epoch (Fig. 3).

        Args:
            layer: a key of `rms`.

        Returns:
            (k,) int64, the epochs with a record, from 1; (k,) float64, the root of the mean of the records' squares, NaN or
            infinite where one of them is: an epoch in which the run diverged has no size.

        Raises:
            ValueError: no such layer was recorded.
        """
        if layer not in self.rms:
            raise ValueError(f"no gradients of {layer!r} were recorded; there are {', '.join(self.rms) or 'none'}")
        epoch = np.floor(self.epochs).astype(np.int64) + 1
        found = np.unique(epoch)
        return found, np.array([np.sqrt(np.square(self.rms[layer][epoch == number]).mean()) for number in found])

    def normaliser(self, statistic: str = "median") -> np.ndarray:
        """(n,) float64, ``s = sum_j exp(x_j)`` itself (Fig. 5); infinite where it is beyond float64.

        Args:
            statistic: over the rows of a batch: `median`, `mean`, `min` or `max`. The paper does not say which it shows.

        Raises:
            ValueError: another statistic.
        """
        if statistic not in self.ln_normaliser:
            raise ValueError(f"the normaliser's {statistic!r} was not recorded; there are {', '.join(self.ln_normaliser)}")
        with np.errstate(over="ignore"):
            return np.exp(self.ln_normaliser[statistic])


def read_gradients(work_dir: str | Path) -> GradientHistory:
    """Read `work_dir/*/gradients.jsonl`, one folder for every time that the run was started.

    The folders are joined in the order of their names, MMEngine's time stamps. What a later start went over again is left out:
    all earlier records from the iteration on at which it began. A last line that a killed run left unfinished is passed over.

    Args:
        work_dir: the run's `work_dir`, or one log folder of it.

    Returns:
        The records of the weights that the folder ends with.

    Raises:
        FileNotFoundError: there is no such folder, or no gradients.jsonl in it.
        ValueError: a line other than the last of its file is not a JSON object or not one of `GradientStatsHook`'s, or nothing
            was recorded.
    """
    work_dir = Path(work_dir)
    if not work_dir.is_dir():
        raise FileNotFoundError(f"no folder {work_dir}: give the work_dir of a run")
    paths = sorted([*work_dir.glob("gradients.jsonl"), *work_dir.glob("*/gradients.jsonl")])
    if not paths:
        raise FileNotFoundError(
            f"{work_dir} holds no */gradients.jsonl: give the run custom_hooks = [dict(type='GradientStatsHook')]"
        )
    kept: dict[int, dict] = {}
    superseded = 0
    for path in paths:
        for record in read_lines(path):
            begins = record.get("start", record.get("iter"))
            if isinstance(begins, bool) or not isinstance(begins, int):
                raise ValueError(f"{path}: a line is none of GradientStatsHook's: {record}")
            again = [iteration for iteration in kept if iteration >= begins]
            superseded += len(again)
            for iteration in again:
                del kept[iteration]
            if "start" not in record:
                kept[begins] = record
    if not kept:
        raise ValueError(f"nothing was recorded yet in {', '.join(map(str, paths))}")
    records = [kept[iteration] for iteration in sorted(kept)]

    def column(*keys: str) -> np.ndarray:
        values = []
        for record in records:
            value = record
            for key in keys:
                value = value.get(key, {})
            values.append(value if isinstance(value, int | float) else np.nan)
        return np.array(values, dtype=np.float64)

    layers = dict.fromkeys(key for record in records for key in record if key.startswith("rms/"))
    return GradientHistory(
        iterations=np.array(sorted(kept), dtype=np.int64),
        epochs=column("epoch"),
        rms={key.removeprefix("rms/"): column(key) for key in layers},
        ln_normaliser={statistic: column("normaliser", statistic) for statistic in NORMALISER},
        histograms={
            record["iter"]: Histogram(
                np.linspace(record["histogram"]["low"], record["histogram"]["high"], len(record["histogram"]["counts"]) + 1),
                np.array(record["histogram"]["counts"], dtype=np.int64),
            )
            for record in records
            if "histogram" in record
        },
        sources=tuple(path.parent.name for path in paths),
        superseded=superseded,
    )
