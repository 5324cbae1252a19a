"""The result of a search as files: README.md, summary.json, trials.csv and figure.png."""

from __future__ import annotations

import csv
import io
import json
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
from gbseg.report.curve import BASELINE, DPI, STYLE, WIDTH
from gbseg.report.provenance import provenance
from reproduction.figures import colours
from reproduction.report import machines, table
from reproduction.search import KEEP, Confirmed, Found, Trial, best_of, rungs
from reproduction.search_space import RANGES, RATE, SIDES, SOFTMAX, SPAN, Candidate

__all__ = ["write_search"]

FAMILIES = [*RANGES, SOFTMAX]
PARAMS = ["rate", "clip", "small_init", "alpha", "beta", "t_neg", "t_pos", "bounded", "prior"]


def _setting(candidate: Candidate) -> str:
    p = candidate.params
    parts = [candidate.boost, *(f"{name} {p[name]:g}" for name in ("alpha", "beta") if name in p)]
    if "t_pos" in p:
        parts.append(f"targets ({p['t_neg']:g}, {p['t_pos']:g})")
    words = dict(bounded="deltas bounded", prior="bias at the prior", clip="gradients clipped", small_init="small last layer")
    return ", ".join([*parts, *(word for name, word in words.items() if p.get(name))])


def _at_edge(found: Found, trial: Trial) -> bool:
    """Whether a rate lies in the outermost tenth of the logarithmic range, so that a better one may lie beyond."""
    low, high = (math.log(found.base.rate * end) for end in RATE)
    share = (math.log(trial.candidate.params["rate"]) - low) / (high - low)
    return not 0.1 <= share <= 0.9


def _confirmed(found: Found) -> list[str]:
    rows = []
    for side, one in found.confirmed.items():
        if one is None:
            rows.append([side, "every trial diverged", *["-"] * 4])
            continue
        edge = "*" if _at_edge(found, one.trial) else ""
        seeds = f"{len(one.errors)}" + (f" + {one.diverged} diverged" if one.diverged else "")
        error = "-" if one.error is None else one.error.text()
        candidate = one.trial.candidate
        rows.append([side, _setting(candidate), f"{candidate.rate:.4g}{edge}", f"{one.trial.errors[-1]:.2f}", seeds, error])
    return table(["side", "best setting", "rate", "held-out error %", "fresh seeds", "test error %"], rows)


def _families(found: Found) -> list[str]:
    steps = rungs(found.settings.epochs)
    rows = []
    for family in FAMILIES:
        trials = [trial for side in SIDES for trial in found.trials[side] if trial.candidate.boost == family]
        best = best_of(trials)
        reached = "-" if best is None else f"{best.errors[-1]:.2f} (epoch {steps[len(best.errors) - 1]})"
        first = [trial.errors[0] for trial in trials if trial.errors[0] is not None]
        rows.append(
            [
                family,
                str(len(trials)),
                str(sum(trial.diverged for trial in trials)),
                *(str(sum(len(trial.errors) > rung for trial in trials)) for rung in range(1, len(steps))),
                f"{min(first):.2f}" if first else "-",
                reached,
            ]
        )
    went_on = [f"trained {epochs} epochs" for epochs in steps[1:]]
    return table(
        [
            "output",
            "trials",
            "diverged",
            *went_on,
            f"lowest held-out error % after epoch {steps[0]}",
            "of those that got furthest",
        ],
        rows,
    )


def _snippet(one: Confirmed) -> list[str]:
    """The keys of a setting as a config has them."""
    candidate = one.trial.candidate
    head: dict[str, Any] = {"loss": candidate.options["model.head.loss"]}
    head |= {key.rpartition(".")[2]: value for key, value in candidate.options.items() if key.startswith("model.head.init")}
    wrapper: dict[str, Any] = {"optimizer": {"lr": candidate.rate}}
    if "optim_wrapper.optimizer.weight_decay" in candidate.options:
        wrapper["optimizer"]["weight_decay"] = candidate.options["optim_wrapper.optimizer.weight_decay"]
    if "optim_wrapper.clip_grad" in candidate.options:
        wrapper["clip_grad"] = {"max_norm": candidate.options["optim_wrapper.clip_grad"]["max_norm"]}
    lines = []
    for name, value in (("model", {"head": head}), ("optim_wrapper", wrapper)):
        lines += f"{name} = {pformat(value, sort_dicts=False, width=110)}".splitlines()
    return ["```python", *lines, "```", ""]


def _space(found: Found) -> str:
    def limits(values: tuple[float, float] | list[float]) -> str:
        return (" to " if isinstance(values, tuple) else " or ").join(f"{value:g}" for value in values)

    boosts = "; ".join(
        f"{boost} ({', '.join(f'{name} {limits(values)}' for name, values in ranges.items())})"
        for boost, ranges in RANGES.items()
    )
    rates = limits((found.base.rate * RATE[0], found.base.rate * RATE[1]))
    unit = "divided by t_pos - t_neg for boosted outputs" if found.base.sgd else "the same for all"
    head = ", last layer small or not" if found.base.own_head else ""
    prior = ", output bias at the prior or 0" if found.base.own_head else ""
    return (
        f"Drawn for both sides: rate {rates} ({unit}), gradients clipped or not{head}. For boosted outputs also: {boosts}; "
        f"t_pos - t_neg {limits(SPAN)}; deltas bounded by it or not{prior}. Two controls are in the space: cross-entropy times "
        "t_pos is the softmax at a larger rate, cross-entropy with exp-GB's penalty is the exponential boost with t_neg = 0."
    )


def _results(found: Found) -> list[Any]:
    return [result for one in found.confirmed.values() if one is not None for result in one.results]


def _hours(found: Found) -> float:
    seconds = sum(trial.seconds for side in SIDES for trial in found.trials[side])
    return (seconds + sum(result.seconds for result in _results(found))) / 3600


def _markdown(found: Found, facts: dict[str, Any]) -> str:
    settings = found.settings
    images = settings.images or found.base.images - settings.held_out
    trained = settings.images or found.base.images
    outcome = found.answer.outcome
    steps = " and ".join(f"{step}" for step in rungs(settings.epochs)[:-1])
    halving = f"; after epoch {steps} only the best of every {KEEP} go on" if steps else ""
    best = found.confirmed["boosted"]
    lines = [
        f"# Is there a better output than the softmax? {found.base.path.name}",
        "",
        f"**{outcome[0].upper()}{outcome[1:]}.** {found.answer.because}",
        "",
        f"Each side: {settings.trials} trials ({settings.sampler}) of up to {settings.epochs} epochs on {images:,} training "
        f"images{', mixed precision (bfloat16 on a CPU)' if settings.amp else ''}, measured on {settings.held_out:,} held "
        f"out{halving}. The best of each, by held-out error, was then trained with {settings.confirm} fresh seeds, "
        f"{settings.epochs} epochs on {trained:,} training images, and measured on the test set: medians with 95% bootstrap "
        "intervals, 'better' or 'worse' "
        "where these do not touch. A short training: which output is best after a long one, this does not say.",
        "",
        *_confirmed(found),
        "A rate with * lies in the outermost tenth of its range: a better one may lie beyond."
        if any(one is not None and _at_edge(found, one.trial) for one in found.confirmed.values())
        else "",
        "",
        *(["The best boosted output as a config has it:", "", *_snippet(best)] if best is not None else []),
        "![figure](figure.png)",
        "",
        *_families(found),
        _space(found),
        "",
        f"Command: `{facts['command']}`. {machines(_results(found))}. {_hours(found):.2f} hours, all trials' added up.",
    ]
    text = "\n".join(lines).rstrip() + "\n"
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text


def _trials(found: Found) -> bytes:
    """One row a trial: what was drawn, its error after each rung, and its runs."""
    steps = rungs(found.settings.epochs)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["side", "trial", "output", *PARAMS, "lr", *(f"error_after_{step}" for step in steps), "seconds", "keys"])
    for side in SIDES:
        for trial in found.trials[side]:
            errors = ["diverged" if error is None else f"{error:.4g}" for error in trial.errors]
            errors += [""] * (len(steps) - len(errors))
            candidate = trial.candidate
            drawn = [candidate.params.get(name, "") for name in PARAMS]
            keys = " ".join(trial.keys)
            writer.writerow(
                [side, candidate.number, candidate.boost, *drawn, candidate.rate, *errors, f"{trial.seconds:.0f}", keys]
            )
    return text.getvalue().encode()


def _draw(axes: Axes, trials: list[Trial], x: str, looks: dict[str, Any]) -> None:
    for family, (colour, _) in looks.items():
        mine = [trial for trial in trials if trial.candidate.boost == family]
        for trial in mine:
            place = trial.candidate.span if x == "span" else trial.candidate.params["rate"]
            error = trial.errors[0]
            if error is None:
                # at the upper edge: a diverged trial has no error
                axes.plot(place, 1.0, "x", color=colour, markersize=5, transform=axes.get_xaxis_transform(), clip_on=False)
                continue
            went_on = len(trial.errors) > 1
            axes.plot(place, error, "o", color=colour, markersize=5, markerfacecolor=colour if went_on else "none")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def draw_search(found: Found, path: Path) -> None:
    """Held-out error after the first rung against rate and span; full: went on, open: pruned, cross: diverged."""
    looks = colours(dict.fromkeys(FAMILIES))
    trials = [trial for side in SIDES for trial in found.trials[side]]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), dpi=DPI, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _draw(left, trials, "rate", looks)
        _draw(right, found.trials["boosted"], "span", looks)
        left.set_xlim(*(found.base.rate * end * slack for end, slack in zip(RATE, (0.9, 1.1), strict=True)))
        right.set_xlim(SPAN[0] * 0.9, SPAN[1] * 1.1)
        step = rungs(found.settings.epochs)[0]
        left.set_ylabel(f"held-out error (%) after {step} epoch{'s' if step > 1 else ''}")
        left.set_xlabel("learning rate" + (" times (t_pos - t_neg)" if found.base.sgd else ""))
        right.set_xlabel("t_pos - t_neg")
        known = [trial.errors[0] for trial in found.trials[SOFTMAX] if trial.errors[0] is not None]
        if known:
            right.axhline(min(known), color=BASELINE, linestyle=(0, (2, 2)), linewidth=0.8)
        for family, (colour, _) in looks.items():
            label = "softmax (dashed: its best)" if family == SOFTMAX else family
            right.plot([], [], "o", color=colour, markersize=5, label=label)
        right.plot([], [], "o", color=BASELINE, markerfacecolor="none", markersize=5, label="open: pruned")
        right.plot([], [], "x", color=BASELINE, markersize=5, label="diverged")
        figure.legend(*right.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=4)
        figure.savefig(path)


def write_search(found: Found, folder: Path, command: str | None = None) -> None:
    """Write the result of a search.

    Args:
        found: it.
        folder: where the files go.
        command: the command line, for the provenance.
    """
    facts = provenance(command, found.settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    draw_search(found, folder / "figure.png")
    best: dict[str, dict[str, Any] | None] = {}
    for side, one in found.confirmed.items():
        if one is None:
            best[side] = None
            continue
        candidate = one.trial.candidate
        best[side] = {
            "trial": candidate.number,
            "setting": candidate.params,
            "options": candidate.options,
            "rate": candidate.rate,
            "held_out_error": one.trial.errors[-1],
            "test_errors": one.errors,
            "diverged": one.diverged,
            "test_error": None if one.error is None else asdict(one.error),
        }
    content = {
        "config": found.base.path.name,
        "answer": asdict(found.answer),
        "settings": asdict(found.settings),
        "rungs": rungs(found.settings.epochs),
        "best": best,
        "hours": _hours(found),
        "provenance": facts,
    }
    write_atomically((json.dumps(content, indent=1) + "\n").encode(), folder / "summary.json")
    write_atomically(_trials(found), folder / "trials.csv")
    write_atomically(_markdown(found, facts).encode(), folder / "README.md")
