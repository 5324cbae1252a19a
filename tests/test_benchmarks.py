"""The benchmarks' own instruments: turns, bytes, tables and figures. Speed itself is measured, never tested."""

import csv
import json
from pathlib import Path

import pytest
import torch

from benchmarks import plots
from benchmarks.__main__ import BENCHMARKS, facts, main
from benchmarks.memory import held, peak
from benchmarks.table import Row, Settings, by_contender, read_table, write_table
from benchmarks.timing import Measured, measure


def test_contenders_take_turns() -> None:
    """Each is warmed up and timed once a round, in another order; the memory comes last, each on its own."""
    called: list[str] = []
    result = measure({name: lambda name=name: called.append(name) for name in "abc"}, rounds=20)
    rounds = ["".join(called[at : at + 3]) for at in range(0, len(called), 3)]
    assert len(rounds) == 22 and all(sorted(one) == list("abc") for one in rounds)
    assert rounds[0] == rounds[-1] == "abc" and len(set(rounds)) == 6
    assert [len(one.seconds) for one in result.values()] == [20, 20, 20] and list(result) == ["a", "b", "c"]


def test_a_contender_that_cannot_run() -> None:
    """It says why in its place, and the others are measured."""

    def absent() -> None:
        raise ImportError("no such package\nat all")

    rows = by_contender("loss", "2", measure({"here": lambda: None, "absent": absent}, rounds=2), "here")
    assert rows[0].ratio == 1 and rows[0].median_ms is not None
    assert rows[1] == Row("loss", "2", "absent", note="not run: ImportError: no such package")


def test_numbers_of_a_row() -> None:
    """The ratio is that of each round, not of the medians."""
    result = {"a": Measured((1.0, 2.0, 4.0), peak=2**20), "b": Measured((1.0, 8.0, 2.0))}
    row = by_contender("loss", "2", result, "b")[0]
    assert (row.median_ms, row.quartile_1, row.quartile_3, row.ratio) == (2000, 1500, 3000, 1.0)
    assert (row.peak_mib, row.ratio_to) == (1, "b")


def test_bytes() -> None:
    """A temporary counts to the peak and not to what is held; what was there before counts to neither."""
    before = torch.empty(50, 50)
    assert peak(lambda: torch.empty(1000, 1000)) == 4_000_000
    assert held(lambda: torch.empty(1000, 1000)) == 4_000_000

    def with_temporaries() -> torch.Tensor:
        for _ in range(2):
            torch.empty(500, 1000, dtype=torch.float64)
        return before.clone()

    assert peak(with_temporaries) == 4_000_000
    assert held(with_temporaries) == 10_000
    assert held(lambda: before) == peak(lambda: before) == 0


def test_a_table(tmp_path: Path) -> None:
    """As csv and json read it, and as `read_table` does."""
    rows = [
        Row("loss, 'a'", "1x2", 'the "one"', 1.5, 1.25, 2.0, 1.0, "b", 3.0, 4.0, 5.0, 6),
        Row("loss", "1", "b", note="not run"),
    ]
    about = facts("python -m benchmarks loss", Settings(rounds=7), 'a "note", that\'s all')
    write_table(tmp_path / "made" / "loss.csv", rows, about)
    first, *rest = (tmp_path / "made" / "loss.csv").read_text().splitlines()
    read = json.loads(first[2:])
    assert first[:2] == "# " and read == about and read["rounds"] == 7 and read["threads"] == torch.get_num_threads()
    assert {"date", "git", "hardware", "versions", "device", "note"} <= set(read)
    lines = list(csv.DictReader(rest))
    assert lines[0]["contender"] == 'the "one"' and float(lines[0]["median_ms"]) == 1.5 and lines[0]["size"] == "6"
    assert lines[1]["median_ms"] == lines[1]["size"] == "" and lines[1]["note"] == "not run"
    assert read_table(tmp_path / "made" / "loss.csv") == (about, rows)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Lists, refuses unknown names, and never writes over the results of real runs when it is quick."""
    main(["--list"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*BENCHMARKS, "arrays", "gradient_stats"))
    with pytest.raises(SystemExit):
        main(["los"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmarks.__main__.BENCHMARKS", {"none": ("", lambda settings: [])})
    main(["--quick"])
    assert not list(tmp_path.iterdir())
    main(["--quick", "--out", "here"])
    assert [path.name for path in tmp_path.rglob("*.csv")] == ["none.csv"]


def test_figures(tmp_path: Path) -> None:
    """Drawn from tables alone, also where something was not run."""
    rows = [Row("batch", "1x2", name, i, i, i, i, "a", i, size=i) for name in "ab" for i in (1.0, 2.0)]
    rows = [Row(**{**vars(row), "size": int(row.size or 0)}) for row in rows] + [Row("batch", "1x2", "c", note="not run")]
    plots.draw_loss(rows, tmp_path / "loss.png")
    plots.draw_growth(rows, tmp_path / "growth.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("loss.png", "growth.png"))
