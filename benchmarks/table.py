"""Settings and result tables of the benchmarks of ``python -m benchmarks``: one format for all."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Measured
from gbseg.report.run_provenance import provenance

__all__ = ["Row", "Settings", "by_contender", "facts", "read_table", "write_table"]

MIB = 2**20
PEERS = ("liger-kernel", "onedl-mmcv", "triton")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: 'cpu' or 'cuda'.
        rounds: how often each contender is timed.
        quick: small shapes, to test that everything runs; the numbers mean nothing.
    """

    device: str = "cpu"
    rounds: int = 15
    quick: bool = False


@dataclass(frozen=True)
class Row:
    """One contender on one problem. None (an empty field of the table) was not measured.

    Attributes:
        what: the problem.
        shape: of its input, '4x21x321x321', and the dtype where it is not float32.
        contender: what was measured.
        median_ms: of the rounds.
        quartile_1: in ms.
        quartile_3: in ms.
        ratio: the median over the rounds of its time over that of ``ratio_to``.
        ratio_to: the contender that it is compared with.
        peak_mib: the most memory that it held at a time beyond its inputs.
        held_mib: the memory that it holds when it returns.
        roofline_percent: its speed as a share of that of an ideal implementation, which the memory's bandwidth bounds.
        size: what grows, where something does.
        note: 'not run: why', or empty.
    """

    what: str
    shape: str
    contender: str
    median_ms: float | None = None
    quartile_1: float | None = None
    quartile_3: float | None = None
    ratio: float | None = None
    ratio_to: str = ""
    peak_mib: float | None = None
    held_mib: float | None = None
    roofline_percent: float | None = None
    size: int | None = None
    note: str = ""

    def __str__(self) -> str:
        """A line for people."""
        if self.note:
            return f"{self.what}, {self.shape}: {self.contender}: {self.note}"
        parts = []
        if self.median_ms is not None:
            parts.append(f"{self.median_ms:9.2f} ms (quartiles {self.quartile_1:.2f}, {self.quartile_3:.2f})")
        if self.ratio is not None:
            parts.append(f"{self.ratio:6.2f} x {self.ratio_to}")
        if self.peak_mib is not None:
            parts.append(f"{self.peak_mib:8.1f} MiB at most")
        if self.held_mib is not None:
            parts.append(f"{self.held_mib:8.1f} MiB held")
        if self.roofline_percent is not None:
            parts.append(f"{self.roofline_percent:5.1f} % of the roofline")
        return f"{self.what}, {self.shape}: {'  '.join(parts)}  {self.contender}"


def facts(command: str, settings: Settings, note: str) -> dict[str, Any]:
    """The provenance that is stored with a table."""
    about = provenance(command)
    about["versions"] |= {package.name: package.version for package in distributions() if package.name in PEERS}
    device = torch.cuda.get_device_name() if settings.device == "cuda" else about["hardware"]["cpu"]
    return about | {
        "seed": 0,
        "device": device,
        "threads": torch.get_num_threads(),
        "rounds": settings.rounds,
        "quick": settings.quick,
        "note": note,
    }


def by_contender(what: str, shape: str, results: dict[str, Measured], ratio_to: str, size: int | None = None) -> list[Row]:
    """One row a contender from the results of `benchmarks.timing.measure`; the other arguments are columns of `Row`."""
    rows = []
    for name, result in results.items():
        if result.failed:
            rows.append(Row(what, shape, name, size=size, note=f"not run: {result.failed}"))
            continue
        low, high = result.quartiles
        compared = not results[ratio_to].failed
        rows.append(
            Row(
                what,
                shape,
                name,
                median_ms=1e3 * result.median,
                quartile_1=1e3 * low,
                quartile_3=1e3 * high,
                ratio=result.ratio_to(results[ratio_to]) if compared else None,
                ratio_to=ratio_to if compared else "",
                peak_mib=result.peak / MIB,
                size=size,
            )
        )
    return rows


def write_table(path: Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """Write rows as CSV, after a line ``# {json}`` that says where they come from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.write(f"# {json.dumps(facts)}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        for row in rows:
            writer.writerow([f"{value:.4f}" if isinstance(value, float) else value for value in asdict(row).values()])


def read_table(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The provenance and the rows that `write_table` wrote."""
    with path.open(newline="") as file:
        facts = json.loads(file.readline().removeprefix("# "))
        rows = []
        for line in csv.DictReader(file):
            texts = {name: line.pop(name) for name in ("what", "shape", "contender", "ratio_to", "note")}
            size = line.pop("size")
            numbers = {name: float(value) if value else None for name, value in line.items()}
            rows.append(Row(**texts, **numbers, size=int(size) if size else None))
    return facts, rows
