"""The result of a search as files: README.md, summary.json, trials.csv and figure.png."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from pprint import pformat
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from gbseg.files import write_atomically
from gbseg.report.curve import BASELINE, DPI, STYLE, WIDTH, Dashes, line_styles
from gbseg.report.run_provenance import provenance
from reproduction.report import csv_bytes, json_bytes, machines, table
from reproduction.search import KEEP, Confirmation, SearchResult, Trial, best_of, rungs
from reproduction.search_space import RANGES, RATE, SIDES, SOFTMAX, SPAN, Candidate

__all__ = ["write_search"]

FAMILIES = [*RANGES, SOFTMAX]
PARAMETERS = ["rate", "clip", "small_init", "alpha", "beta", "t_neg", "t_pos", "bounded", "prior"]


def _describe(candidate: Candidate) -> str:
    """The setting without its rate; switches that are off are left out."""
    params = {name: value for name, value in candidate.params.items() if name not in ("rate", "boost") and value is not False}
    return ", ".join([candidate.boost, *(name if value is True else f"{name} {value:g}" for name, value in params.items())])


def _at_edge(result: SearchResult, candidate: Candidate) -> bool:
    """Whether the rate is in the outermost tenth of its logarithmic range, so that a better one may lie beyond."""
    low, high = (math.log(result.base.rate * limit) for limit in RATE)
    return not 0.1 <= (math.log(candidate.params["rate"]) - low) / (high - low) <= 0.9


def _confirmation_table(result: SearchResult) -> list[str]:
    rows = []
    for side, confirmation in result.confirmed.items():
        if confirmation is None:
            rows.append([side, "every trial diverged", *["-"] * 4])
            continue
        candidate, error = confirmation.trial.candidate, confirmation.error
        rate = f"{candidate.rate:.4g}{'*' if _at_edge(result, candidate) else ''}"
        seeds = f"{len(confirmation.errors)}" + (f" + {confirmation.diverged} diverged" if confirmation.diverged else "")
        held_out = f"{confirmation.trial.errors[-1]:.2f}"
        rows.append([side, _describe(candidate), rate, held_out, seeds, "-" if error is None else error.text()])
    return table(["side", "best setting", "rate", "held-out error %", "fresh seeds", "test error %"], rows)


def _family_table(result: SearchResult) -> list[str]:
    steps = rungs(result.settings.epochs)
    rows = []
    for family in FAMILIES:
        trials = [trial for side in SIDES for trial in result.trials[side] if trial.candidate.boost == family]
        best = best_of(trials)
        first = [trial.errors[0] for trial in trials if trial.errors[0] is not None]
        rows.append(
            [
                family,
                str(len(trials)),
                str(sum(trial.diverged for trial in trials)),
                *(str(sum(len(trial.errors) > rung for trial in trials)) for rung in range(1, len(steps))),
                f"{min(first):.2f}" if first else "-",
                "-" if best is None else f"{best.errors[-1]:.2f} (epoch {steps[len(best.errors) - 1]})",
            ]
        )
    trained = [f"trained {epochs} epochs" for epochs in steps[1:]]
    lowest = f"lowest held-out error % after epoch {steps[0]}"
    return table(["output", "trials", "diverged", *trained, lowest, "of those that got furthest"], rows)


def _snippet(candidate: Candidate) -> list[str]:
    """The keys of a setting as they stand in a config."""
    options = candidate.options
    head = {key.rpartition(".")[2]: value for key, value in options.items() if key.startswith("model.head.")}
    wrapper: dict[str, Any] = {"optimizer": {"lr": candidate.rate}}
    for key, value in options.items():
        if key == "optim_wrapper.optimizer.weight_decay":
            wrapper["optimizer"]["weight_decay"] = value
        elif key == "optim_wrapper.clip_grad":
            wrapper["clip_grad"] = {"max_norm": value["max_norm"]}
    settings = {"model": {"head": head}, "optim_wrapper": wrapper}
    lines = [f"{name} = {pformat(value, sort_dicts=False, width=110)}" for name, value in settings.items()]
    return ["```python", *lines, "```", ""]


def _describe_space(result: SearchResult) -> str:
    base = result.base
    unit = "divided by t_pos - t_neg for boosted outputs" if base.sgd else "the same for all"
    return (
        f"Drawn for both sides: rate {base.rate * RATE[0]:g} to {base.rate * RATE[1]:g} ({unit}), gradients clipped or not"
        f"{', last layer small or not' if base.own_head else ''}. For boosted outputs also: the boost and its parameters, in "
        f"limits (..) or one of [..]: {RANGES}; t_pos - t_neg {SPAN[0]:g} to {SPAN[1]:g}; deltas bounded by it or not"
        f"{', output bias at the prior or 0' if base.own_head else ''}. Two controls are in the space: cross-entropy times "
        "t_pos is the softmax at a larger rate, cross-entropy with exp-GB's penalty is the exponential boost with t_neg = 0."
    )


def _hours(result: SearchResult) -> float:
    runs = [run for side in SIDES for trial in result.trials[side] for run in trial.results]
    return sum(run.seconds for run in runs + result.confirmation_runs) / 3600


def _markdown(result: SearchResult, command: str | None) -> str:
    settings, outcome = result.settings, result.answer.outcome
    images = settings.images or result.base.images - settings.held_out
    steps = " and ".join(f"{step}" for step in rungs(settings.epochs)[:-1])
    halving = f"; after epoch {steps} a trial goes on only if it is in the best 1/{KEEP} of those so far" if steps else ""
    best = result.confirmed["boosted"]
    confirmed = [confirmation.trial.candidate for confirmation in result.confirmed.values() if confirmation is not None]
    parts = [
        f"# Is there a better output than the softmax? {result.base.path.name}",
        f"**{outcome[0].upper()}{outcome[1:]}.** {result.answer.because}",
        f"Each side: {settings.trials} trials ({settings.sampler}) of up to {settings.epochs} epochs on {images:,} training "
        f"images{', mixed precision (bfloat16 on a CPU)' if settings.amp else ''}, measured on {settings.held_out:,} held "
        f"out{halving}. The best of each, by held-out error, was then trained with {settings.confirm} fresh seeds, "
        f"{settings.epochs} epochs on {settings.images or result.base.images:,} training images, and measured on the test "
        "set: medians with 95% bootstrap intervals, 'better' or 'worse' where these do not touch. A short training: which "
        "output is best after a long one, this does not say.",
        "\n".join(_confirmation_table(result)),
        "A rate with * lies in the outermost tenth of its range: a better one may lie beyond."
        if any(_at_edge(result, candidate) for candidate in confirmed)
        else "",
        "" if best is None else "The best boosted output as a config has it:\n\n" + "\n".join(_snippet(best.trial.candidate)),
        "![figure](figure.png)",
        "\n".join(_family_table(result)),
        _describe_space(result),
        f"Command: `{command}`. {machines(result.confirmation_runs)}. {_hours(result):.2f} hours, all trials' added up.",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _trials_csv(result: SearchResult) -> bytes:
    """One row per trial: what was drawn, its error after each rung, and the keys of its runs."""
    steps = rungs(result.settings.epochs)
    rows = []
    for side in SIDES:
        for trial in result.trials[side]:
            candidate = trial.candidate
            errors = ["diverged" if error is None else f"{error:.4g}" for error in trial.errors]
            errors += [""] * (len(steps) - len(errors))
            params = [candidate.params.get(name, "") for name in PARAMETERS]
            first = [side, candidate.number, candidate.boost, *params, candidate.rate]
            seconds = sum(run.seconds for run in trial.results)
            rows.append([*first, *errors, f"{seconds:.0f}", " ".join(trial.keys)])
    header = ["side", "trial", "output", *PARAMETERS, "lr", *(f"error_after_{step}" for step in steps), "seconds", "keys"]
    return csv_bytes([header, *rows])


def _scatter(axes: Axes, trials: list[Trial], x: str, styles: dict[str, tuple[str, Dashes]]) -> None:
    for trial in trials:
        candidate, error = trial.candidate, trial.errors[0]
        colour = styles[candidate.boost][0]
        value = candidate.span if x == "span" else candidate.params["rate"]
        if error is None:
            # at the upper edge: a diverged trial has no error
            axes.plot(value, 1.0, "x", color=colour, markersize=5, transform=axes.get_xaxis_transform(), clip_on=False)
        else:
            face = colour if len(trial.errors) > 1 else "none"
            axes.plot(value, error, "o", color=colour, markersize=5, markerfacecolor=face)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def draw_search(result: SearchResult, path: Path) -> None:
    """Held-out error after the first rung against rate and span; filled: went on, open: pruned, cross: diverged."""
    styles = line_styles(FAMILIES, SOFTMAX)
    softmax_errors = [trial.errors[0] for trial in result.trials[SOFTMAX] if trial.errors[0] is not None]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), dpi=DPI, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _scatter(left, [trial for side in SIDES for trial in result.trials[side]], "rate", styles)
        _scatter(right, result.trials["boosted"], "span", styles)
        left.set_xlim(result.base.rate * RATE[0] * 0.9, result.base.rate * RATE[1] * 1.1)
        right.set_xlim(SPAN[0] * 0.9, SPAN[1] * 1.1)
        step = rungs(result.settings.epochs)[0]
        left.set_ylabel(f"held-out error (%) after {step} epoch{'s' if step > 1 else ''}")
        left.set_xlabel("learning rate" + (" times (t_pos - t_neg)" if result.base.sgd else ""))
        right.set_xlabel("t_pos - t_neg")
        if softmax_errors:
            right.axhline(min(softmax_errors), color=BASELINE, linestyle=(0, (2, 2)), linewidth=0.8)
        for family, (colour, _) in styles.items():
            label = "softmax (dashed: its best)" if family == SOFTMAX else family
            right.plot([], [], "o", color=colour, markersize=5, label=label)
        right.plot([], [], "o", color=BASELINE, markerfacecolor="none", markersize=5, label="open: pruned")
        right.plot([], [], "x", color=BASELINE, markersize=5, label="diverged")
        figure.legend(*right.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=4)
        figure.savefig(path)


def _best(confirmation: Confirmation | None) -> dict[str, Any] | None:
    if confirmation is None:
        return None
    candidate = confirmation.trial.candidate
    return {
        "trial": candidate.number,
        "setting": candidate.params,
        "options": candidate.options,
        "rate": candidate.rate,
        "held_out_error": confirmation.trial.errors[-1],
        "test_errors": confirmation.errors,
        "diverged": confirmation.diverged,
        "test_error": None if confirmation.error is None else asdict(confirmation.error),
    }


def write_search(result: SearchResult, folder: Path, command: str | None = None) -> None:
    """Write the result of a search.

    Args:
        result: the search.
        folder: the folder of the files.
        command: the command line, for the provenance.
    """
    origin = provenance(command, result.settings.seed)
    content = {
        "config": result.base.path.name,
        "answer": asdict(result.answer),
        "settings": asdict(result.settings),
        "rungs": rungs(result.settings.epochs),
        "best": {side: _best(confirmation) for side, confirmation in result.confirmed.items()},
        "hours": _hours(result),
        "provenance": origin,
    }
    folder.mkdir(parents=True, exist_ok=True)
    draw_search(result, folder / "figure.png")
    write_atomically(json_bytes(content), folder / "summary.json")
    write_atomically(_trials_csv(result), folder / "trials.csv")
    write_atomically(_markdown(result, origin["command"]).encode(), folder / "README.md")
