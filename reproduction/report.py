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
from gbseg.report.provenance import provenance
from reproduction.figures import FIGURES
from reproduction.runs import RunResult
from reproduction.summary import ArmSummary, Estimate, Summary
from reproduction.verdicts import VERDICTS, Verdict, convergence

__all__ = ["machines", "missing_runs", "table", "write_report"]


def _cell(value: Estimate | None, digits: int = 2) -> str:
    return "-" if value is None else value.text(digits)


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    return [*lines, ""]


def _results(summary: Summary) -> list[str]:
    paper = summary.grid.settings.get("paper", {})
    header = ["arm", "rate", "trials", "lowest error %", "in epoch", "last error %", "mean over epochs %"]
    rows = []
    for name, arm in summary.arms.items():
        trials = f"{len(arm.sound)}" + (f" + {arm.diverged} diverged" if arm.diverged else "")
        rate = "-" if arm.swept.best is None else f"{arm.swept.best:.4g}"
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
            score = arm.swept.scores.get(rate)
            text = "not run" if rate not in arm.swept.scores else "diverged" if score is None else f"{score:.2f}"
            text = f"{rate:.4g}: {text}"
            cells.append(f"**{text}**{'*' if arm.swept.at_edge else ''}" if rate == arm.swept.best else text)
        rows.append([name, *cells])
    return lines + table(["arm", *[f"try {i + 1}" for i in range(len(rows[0]) - 1)]], rows)


def machines(results: Iterable[RunResult]) -> str:
    """The hardware, the versions and the commits that some runs ran with."""
    hardware, versions, commits = set(), set(), set()
    for result in results:
        facts = result.provenance["hardware"]
        hardware.add(f"{facts['gpu'] or facts['cpu']}, {facts['cores']} cores")
        versions.add(f"torch {result.provenance['versions']['torch']}, python {result.provenance['versions']['python']}")
        code = result.provenance["git"]
        commits.add(f"{(code['commit'] or 'unknown')[:7]}{' with changes' if code['dirty'] else ''}")
    return f"{'; '.join(sorted(hardware))}; {'; '.join(sorted(versions))}; commits {', '.join(sorted(commits))}"


def _conditions(summary: Summary, facts: dict[str, Any]) -> list[str]:
    used = machines(result for arm in summary.arms.values() for _, result in arm.runs)
    missing = f" **{summary.missing} runs are missing: this is a partial result.**" if summary.missing else ""
    seeds = sorted({run.seed for arm in summary.arms.values() for run, _ in arm.runs})
    return [
        f"Command: `{facts['command']}`. {used}. Seeds {seeds[0]} to {seeds[-1]}. "
        if seeds
        else f"Command: `{facts['command']}`. ",
        f"{summary.hours:.2f} hours, all runs' added up.{missing}",
        "",
    ]


def _markdown(summary: Summary, verdict: Verdict, speed: Verdict | None, facts: dict[str, Any], drawn: bool) -> str:
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
        *_conditions(summary, facts),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _arm(arm: ArmSummary) -> dict[str, Any]:
    numbers = {name: getattr(arm, name) for name in ("best", "best_epoch", "early", "last", "area")}
    return {
        "rate": arm.swept.best,
        "sweep": {f"{rate:g}": score for rate, score in arm.swept.scores.items()},
        "trials": len(arm.sound),
        "diverged": arm.diverged,
        "epochs": arm.epochs,
        "curve": [asdict(point) for point in arm.curve],
        **{name: None if value is None else asdict(value) for name, value in numbers.items()},
        "gradients": _gradients(arm.gradients()),
    }


def _gradients(histories: Sequence[GradientHistory]) -> dict[str, Any] | None:
    """What the figures of gradients are drawn from, of the first trial."""
    if not histories:
        return None
    history = histories[0]
    return {
        "iterations": history.iterations.tolist(),
        "rms": {layer: [float(f"{value:.5g}") for value in values] for layer, values in history.rms.items()},
        "ln_normaliser": {name: [float(f"{value:.5g}") for value in values] for name, values in history.ln_normaliser.items()},
        "histograms": {
            iteration: {"low": found.edges[0], "high": found.edges[-1], "counts": found.counts.tolist()}
            for iteration, found in history.histograms.items()
        },
    }


def _runs(summary: Summary) -> bytes:
    """One row a run: what it was and its error after each epoch."""
    grid = summary.grid
    found = [(run, result) for run in [*grid.sweep(), *grid.final(grid.swept())] if (result := run.result()) is not None]
    width = max((len(grid.errors(result)) for _, result in found), default=0)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "stage", "rate", "seed", "key", "diverged_at", "seconds", *range(1, width + 1)])
    for run, result in found:
        errors = [f"{error:.6g}" for error in grid.errors(result)]
        diverged = "" if result.diverged is None else result.diverged
        writer.writerow([run.arm, run.stage, f"{run.rate:.6g}", run.seed, run.key, diverged, f"{result.seconds:.0f}", *errors])
    return text.getvalue().encode()


def missing_runs(folder: Path) -> int | None:
    """How many runs are missing of the result in a folder; None if there is none."""
    try:
        return int(json.loads((folder / "summary.json").read_text())["missing_runs"])
    except FileNotFoundError:
        return None


def write_report(summary: Summary, folder: Path, command: str | None = None) -> Verdict:
    """Write the result of a claim.

    Args:
        summary: of its runs.
        folder: where the files go.
        command: the command line, for the provenance.

    Returns:
        The verdict.
    """
    settings = summary.grid.settings
    verdict = VERDICTS[settings.verdict](summary)
    # the paper's other claim about the same curves
    speed = convergence(summary) if settings.verdict == "gain" else None
    facts = provenance(command)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = FIGURES[settings.figure](summary)
    if drawn is None:
        # one that is there is of other runs
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
        "provenance": facts,
    }
    write_atomically((json.dumps(content, indent=1) + "\n").encode(), folder / "summary.json")
    write_atomically(_runs(summary), folder / "runs.csv")
    write_atomically(_markdown(summary, verdict, speed, facts, drawn is not None).encode(), folder / "README.md")
    return verdict
