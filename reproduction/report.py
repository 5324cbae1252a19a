"""A claim's result as files: README.md, summary.json, runs.csv and figure.png."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gbseg.files import write_atomically
from gbseg.report.gradient_log import GradientHistory
from gbseg.report.run_provenance import provenance
from reproduction.figures import FIGURES
from reproduction.runs import RunResult
from reproduction.summary import ArmSummary, Estimate, Summary
from reproduction.verdicts import VERDICTS, Verdict, convergence

__all__ = ["csv_bytes", "json_bytes", "machines", "missing_runs", "table", "write_report"]


def _cell(value: Estimate | None, digits: int = 2) -> str:
    return "-" if value is None else value.text(digits)


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    return [*lines, ""]


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """The content of a CSV file; the first row is its header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def json_bytes(content: object) -> bytes:
    """The content of an indented JSON file."""
    return (json.dumps(content, indent=1) + "\n").encode()


def _results(summary: Summary) -> list[str]:
    paper = summary.grid.settings.get("paper", {})
    header = ["arm", "rate", "trials", "lowest error %", "in epoch", "last error %", "mean over epochs %"]
    rows = []
    for name, arm in summary.arms.items():
        trials = f"{len(arm.sound)}" + (f" + {arm.diverged} diverged" if arm.diverged else "")
        rate = "-" if arm.sweep.best is None else f"{arm.sweep.best:.4g}"
        row = [name, rate, trials, _cell(arm.best), _cell(arm.best_epoch, 1), _cell(arm.last), _cell(arm.area)]
        rows.append([*row, str(paper.get(name, "-"))] if paper else row)
    return table([*header, "the paper's"] if paper else header, rows)


def _sweep(summary: Summary) -> list[str]:
    settings = summary.grid.settings
    phase = settings.sweep
    held = f"{phase.held_out:,} training images held out" if phase.get("held_out") else "the set that the claim names"
    lines = [
        f"Rates: {phase.get('seeds', 1)} seed(s), {phase.epochs:g} epochs, '{phase.choose}' error in % on {held}. "
        "The best is in bold; * marks one at the edge of what was tried.",
        "",
    ]
    rows = []
    for name, arm in summary.arms.items():
        cells = []
        for rate in settings.arms[name].rates:
            score = arm.sweep.scores.get(rate)
            text = "not run" if rate not in arm.sweep.scores else "diverged" if score is None else f"{score:.2f}"
            text = f"{rate:.4g}: {text}"
            cells.append(f"**{text}**{'*' if arm.sweep.at_edge else ''}" if rate == arm.sweep.best else text)
        rows.append([name, *cells])
    return lines + table(["arm", *[f"try {i + 1}" for i in range(len(rows[0]) - 1)]], rows)


def machines(results: Iterable[RunResult]) -> str:
    """The hardware, versions and commits of some runs."""
    hardware, versions, commits = set(), set(), set()
    for result in results:
        machine, packages, git = (result.provenance[key] for key in ("hardware", "versions", "git"))
        hardware.add(f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores")
        versions.add(f"torch {packages['torch']}, python {packages['python']}")
        commits.add(f"{(git['commit'] or 'unknown')[:7]}{' with changes' if git['dirty'] else ''}")
    return f"{'; '.join(sorted(hardware))}; {'; '.join(sorted(versions))}; commits {', '.join(sorted(commits))}"


def _conditions(summary: Summary, command: str) -> list[str]:
    used = machines(result for arm in summary.arms.values() for _, result in arm.runs)
    missing = f" **{summary.missing} runs are missing: this is a partial result.**" if summary.missing else ""
    seeds = sorted({run.seed for arm in summary.arms.values() for run, _ in arm.runs})
    text = f"Command: `{command}`. " + (f"{used}. Seeds {seeds[0]} to {seeds[-1]}. " if seeds else "")
    return [text, f"{summary.hours:.2f} hours, all runs' added up.{missing}", ""]


def _markdown(summary: Summary, verdict: Verdict, speed: Verdict | None, command: str, drawn: bool) -> str:
    claim = summary.grid.claim
    settings = claim.settings
    label = "" if claim.budget == "full" else f" ({claim.budget})"
    final = settings.final
    lines = [
        f"# {settings.title}{label}",
        "",
        f"The claim: {settings.claim}",
        "",
        f"**{verdict.outcome}{label}.** " + " ".join(verdict.because),
        "",
        *([] if speed is None else [f"Faster convergence: **{speed.outcome}{label}.** " + " ".join(speed.because), ""]),
        *([] if settings.figure == "curves" else ["The figure is of the first trial of each arm.", ""]),
        "'Lower' and 'higher': the intervals of four trials or more are apart. "
        f"Medians over trials with 95% bootstrap intervals; {final.epochs:g} epochs, {final.trials} trials an arm"
        f"{', mixed precision (bfloat16 on a CPU)' if settings.get('amp') else ''}.",
        "",
        *_results(summary),
        *(["![figure](figure.png)", ""] if drawn else []),
        *_sweep(summary),
        *_conditions(summary, command),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _arm(arm: ArmSummary) -> dict[str, Any]:
    numbers = {name: getattr(arm, name) for name in ("best", "best_epoch", "early", "last", "area")}
    return {
        "rate": arm.sweep.best,
        "sweep": {f"{rate:g}": score for rate, score in arm.sweep.scores.items()},
        "trials": len(arm.sound),
        "diverged": arm.diverged,
        "epochs": arm.epochs,
        "curve": [asdict(point) for point in arm.curve],
        **{name: None if value is None else asdict(value) for name, value in numbers.items()},
        "gradients": _gradients(arm.gradients()),
    }


def _gradients(histories: Sequence[GradientHistory]) -> dict[str, Any] | None:
    """The data of the figures of gradients, of the first trial."""
    if not histories:
        return None
    history = histories[0]
    return {
        "iterations": history.iterations.tolist(),
        "rms": {layer: [float(f"{value:.5g}") for value in values] for layer, values in history.rms.items()},
        "ln_normaliser": {name: [float(f"{value:.5g}") for value in values] for name, values in history.ln_normaliser.items()},
        "histograms": {
            iteration: {"low": histogram.edges[0], "high": histogram.edges[-1], "counts": histogram.counts.tolist()}
            for iteration, histogram in history.histograms.items()
        },
    }


def _runs_csv(summary: Summary) -> bytes:
    """One row per run: what it was and its error after each validation."""
    grid = summary.grid
    rows = []
    for run in [*grid.sweep(), *grid.final(grid.sweep_results())]:
        if (result := run.result()) is not None:
            diverged = "" if result.diverged is None else result.diverged
            errors = [f"{error:.6g}" for error in grid.errors(result)]
            rows.append([run.arm, run.stage, f"{run.rate:.6g}", run.seed, run.key, diverged, f"{result.seconds:.0f}", *errors])
    header = ["arm", "stage", "rate", "seed", "key", "diverged_at", "seconds"]
    validations = max((len(row) - len(header) for row in rows), default=0)
    return csv_bytes([[*header, *range(1, validations + 1)], *rows])


def missing_runs(folder: Path) -> int | None:
    """The number of missing runs of the result in a folder; None if there is no result."""
    try:
        return int(json.loads((folder / "summary.json").read_text())["missing_runs"])
    except FileNotFoundError:
        return None


def write_report(summary: Summary, folder: Path, command: str | None = None) -> Verdict:
    """Write the result of a claim.

    Args:
        summary: the summary of its runs.
        folder: the folder of the files.
        command: the command line, for the provenance.

    Returns:
        The verdict.
    """
    settings = summary.grid.settings
    verdict = VERDICTS[settings.verdict](summary)
    # the paper's other claim about the same curves
    speed = convergence(summary) if settings.verdict == "gain" else None
    origin = provenance(command)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = FIGURES[settings.figure](summary)
    if drawn is None:
        # an existing figure is of other runs
        (folder / "figure.png").unlink(missing_ok=True)
    else:
        write_atomically(drawn, folder / "figure.png")
    content = {
        "claim": settings.claim,
        "budget": summary.grid.claim.budget,
        "verdict": asdict(verdict),
        "convergence": None if speed is None else asdict(speed),
        "missing_runs": summary.missing,
        "hours": summary.hours,
        "arms": {name: _arm(arm) for name, arm in summary.arms.items()},
        "provenance": origin,
    }
    write_atomically(json_bytes(content), folder / "summary.json")
    write_atomically(_runs_csv(summary), folder / "runs.csv")
    write_atomically(_markdown(summary, verdict, speed, origin["command"], drawn is not None).encode(), folder / "README.md")
    return verdict
