"""The gradient statistics that ``GradientStatsHook`` recorded, as arrays: the data of Fig. 2, 3 and 5 of the paper."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gbseg.report.history import find_logs, float_column, read_lines

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
    """The records of a run, the parts of a resumed run joined; n records.

    Attributes:
        iterations: (n,) int64, rising: number of updates before the recorded batch, 0 for the first batch.
        epochs: (n,) float64, the same in epochs.
        rms: (n,) float64 by layer, the output's first: root mean square of the error gradients; NaN where a record has none.
        ln_normaliser: (n,) float64 by statistic: ``ln s`` with ``s = sum_j exp(x_j)``. ``median``, ``min`` and ``max`` are over
            the rows of the batch, ``mean`` is ``ln mean(s)``, which few rows may dominate; NaN where a record has none.
        histograms: of the output's deltas, by iteration.
        sources: the folders that were read, oldest first.
        superseded: number of records left out because a later start repeated their iterations.
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
            layer: a key of ``rms``.

        Returns:
            (k,) int64, the epochs with a record, from 1; (k,) float64, the root of the mean of the records' squares, NaN or
            infinite if a record is (the run diverged).

        Raises:
            ValueError: the layer was not recorded.
        """
        if layer not in self.rms:
            raise ValueError(f"no gradients of {layer!r} were recorded; there are {', '.join(self.rms) or 'none'}")
        epoch = np.floor(self.epochs).astype(np.int64) + 1
        epochs = np.unique(epoch)
        return epochs, np.array([np.sqrt(np.square(self.rms[layer][epoch == number]).mean()) for number in epochs])

    def normaliser(self, statistic: str = "median") -> np.ndarray:
        """(n,) float64, ``s = sum_j exp(x_j)`` itself (Fig. 5); infinite where it is beyond float64.

        Args:
            statistic: over the rows of a batch: ``median``, ``mean``, ``min`` or ``max``. The paper does not name its own.

        Raises:
            ValueError: ``statistic`` is none of these.
        """
        if statistic not in self.ln_normaliser:
            raise ValueError(f"the normaliser's {statistic!r} was not recorded; there are {', '.join(self.ln_normaliser)}")
        with np.errstate(over="ignore"):
            return np.exp(self.ln_normaliser[statistic])


def read_gradients(work_dir: str | Path) -> GradientHistory:
    """Read ``work_dir/*/gradients.jsonl``, one folder for every start of the run.

    The folders are joined in the order of their names, MMEngine's time stamps. A later start supersedes the earlier records
    from the iteration at which it began. A last line that a killed run left incomplete is skipped.

    Args:
        work_dir: the run's ``work_dir``, or one of its log folders.

    Returns:
        The records of the weights that the folder ends with.

    Raises:
        FileNotFoundError: there is no such folder, or no gradients.jsonl in it.
        ValueError: a line other than the last of its file is not a record of ``GradientStatsHook``, or nothing was
            recorded.
    """
    hint = "give the run custom_hooks = [dict(type='GradientStatsHook')]"
    paths = find_logs(work_dir, "gradients.jsonl", "*/gradients.jsonl", hint=hint)
    kept: dict[int, dict] = {}
    superseded = 0
    for path in paths:
        for record in read_lines(path):
            begins = record.get("start", record.get("iter"))
            if isinstance(begins, bool) or not isinstance(begins, int):
                raise ValueError(f"{path}: a line is none of GradientStatsHook's: {record}")
            superseded += sum(iteration >= begins for iteration in kept)
            kept = {iteration: earlier for iteration, earlier in kept.items() if iteration < begins}
            if "start" not in record:
                kept[begins] = record
    if not kept:
        raise ValueError(f"nothing was recorded yet in {', '.join(map(str, paths))}")
    records = [kept[iteration] for iteration in sorted(kept)]
    normalisers = [record.get("normaliser", {}) for record in records]
    layers = dict.fromkeys(key for record in records for key in record if key.startswith("rms/"))
    return GradientHistory(
        iterations=np.array(sorted(kept), dtype=np.int64),
        epochs=float_column(record.get("epoch") for record in records),
        rms={key.removeprefix("rms/"): float_column(record.get(key) for record in records) for key in layers},
        ln_normaliser={key: float_column(statistics.get(key) for statistics in normalisers) for key in NORMALISER},
        histograms={
            record["iter"]: Histogram(
                np.linspace(histogram["low"], histogram["high"], len(histogram["counts"]) + 1),
                np.array(histogram["counts"], dtype=np.int64),
            )
            for record in records
            if (histogram := record.get("histogram")) is not None
        },
        sources=tuple(path.parent.name for path in paths),
        superseded=superseded,
    )
