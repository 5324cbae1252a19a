"""The command: from a claim's file to its table, with an arm that diverges and one that is broken."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from grids import tiny

from gbseg.cli import main

# the command as it is, with claims of another folder
START = """
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import reproduction
reproduction.CONFIGS = Path(sys.argv.pop(1))
from gbseg.cli import main
if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
"""

WILD = dict(config="classification/mnist_linear.py", rates=[1e20, 1e30])
ODD = dict(config="classification/mnist_linear.py", rates=[0.1, 1e30])
BROKEN = dict(config="classification/mnist_linear.py", rates=[0.1, 0.2], options={"model.backbone.hidden": "ab"})


@pytest.mark.slow
def test_from_the_claim_to_the_table(
    claims: Path, mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken arm is reported and stops no other; the rest of the table is what its runs say; a second call runs nothing."""
    arms = {"arms.wild": WILD, "arms.odd": ODD, "together": 4}
    tiny(claims, mnist, **arms, **{"arms.broken": BROKEN})
    tiny(claims, mnist, "whole", **arms)
    start = tmp_path / "start.py"
    start.write_text(START)
    done = subprocess.run(
        [sys.executable, start, claims.parent, "tiny", "--jobs", "1", "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"gbseg: sweep broken, 2 runs: TypeError: .* \(its traceback: .*process_\*\.log\)", done.stderr)
    assert "Traceback" not in done.stderr
    assert "Traceback" in (tmp_path / "work_dirs/reproduce/process_0.log").read_text()
    assert "wild: every rate diverged" in done.stdout and "broken: 2 rates are missing, no trials" in done.stdout

    rows = list(csv.DictReader((tmp_path / "out/runs.csv").open()))
    assert {(row["arm"], row["stage"]) for row in rows if row["diverged_at"]} == {("wild", "sweep"), ("odd", "sweep")}
    table = {
        cells[0]: cells[1:]
        for line in (tmp_path / "out/README.md").read_text().splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 7
    }
    for arm in ("softmax", "linear", "odd"):
        final = [row for row in rows if (row["arm"], row["stage"]) == (arm, "final")]
        errors = np.array([[float(row[str(epoch)]) for epoch in (1, 2, 3)] for row in final])
        assert errors.shape == (3, 3)
        sweep = {
            float(row["rate"]): float(row["2"])
            for row in rows
            if (row["arm"], row["stage"]) == (arm, "sweep") and not row["diverged_at"]
        }
        best = min(sweep, key=sweep.__getitem__)
        assert {float(row["rate"]) for row in final} == {best}
        numbers = [
            np.median(errors.min(1)),
            np.median(errors.argmin(1) + 1),
            np.median(errors[:, -1]),
            np.median(errors.mean(1)),
        ]
        said = [float(cell.split()[0]) for cell in table[arm][2:]]
        assert said == pytest.approx(numbers, abs=0.00501) and table[arm][:2] == [f"{best:.4g}", "3"]
        # it learnt: chance is 90
        assert numbers[0] < 70
    assert table["wild"] == table["broken"] == ["-", "0", "-", "-", "-", "-"]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    # two of the sweep, and the three trials that wait for it
    assert summary["missing_runs"] == 5 and summary["verdict"]["outcome"] == "not run"
    assert summary["arms"]["odd"]["sweep"]["1e+30"] is None

    # the same without the broken arm, from the same runs
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ProcessPoolExecutor, "submit", None)
    monkeypatch.setattr("reproduction.CONFIGS", claims.parent)
    assert main(["reproduce", "whole", "--out", "second"]) == 0
    assert "8 of 8 runs are there already." in capsys.readouterr().out
    again = list(csv.DictReader((tmp_path / "second/runs.csv").open()))
    assert again == rows
    assert (tmp_path / "second/figure.png").exists()


def test_a_missing_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, before anything is run."""
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "table1", "--budget", "small", "--trials", "2"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("gbseg: there is no data/mnist/") and "data/README.md" in said and "\n" not in said
    assert not list(tmp_path.iterdir())


# the package without the checkout around it, as a wheel installs it
INSTALLED = """
import sys
from pathlib import Path
sys.path = [sys.argv.pop(1)] + [folder for folder in sys.path if not (Path(folder) / "reproduction").is_dir()]
from gbseg.cli import main
status = main()
assert not {"torch", "mmengine", "mmseg", "matplotlib", "optuna"} & set(sys.modules)
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("arguments", "script"),
    [
        (["reproduce", "table1"], "tools/reproduce.py"),
        (["reproduce"], "tools/reproduce.py"),
        (["search-boost", "some_config.py"], "tools/search_boost.py"),
    ],
)
def test_an_installed_package_needs_a_checkout(tmp_path: Path, arguments: list[str], script: str) -> None:
    """One sentence that says how to get it, before anything heavy is imported."""
    (tmp_path / "gbseg").symlink_to(ROOT / "gbseg")
    (tmp_path / "some_config.py").touch()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED, tmp_path, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(
        rf"\s*gbseg: the experiments .* need a checkout: git clone .* gbseg, then python {script} in it\.\s*", done.stderr
    )


@pytest.mark.parametrize("script", ["reproduce", "search_boost"])
def test_a_script_takes_its_own_checkout(tmp_path: Path, script: str) -> None:
    """From any folder, whatever else is installed or on the path."""
    (tmp_path / "gbseg").mkdir()
    (tmp_path / "gbseg/__init__.py").write_text("raise ImportError('another gbseg')")
    done = subprocess.run(
        [sys.executable, ROOT / f"tools/{script}.py", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--trials" in done.stdout
