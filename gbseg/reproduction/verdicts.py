"""Whether a claim of the paper holds in what was measured here: one function a claim, from the numbers alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gbseg.reproduction.summary import ArmSummary, Summary

__all__ = ["VERDICTS", "Verdict"]

REPRODUCED, PARTLY, NOT, NOT_RUN = "reproduced", "partly reproduced", "not reproduced", "not run"


@dataclass(frozen=True)
class Verdict:
    """An outcome and the sentences that say why, with the numbers.

    Attributes:
        outcome: reproduced, partly reproduced, not reproduced, or not run.
        because: sentences.
    """

    outcome: str
    because: list[str] = field(default_factory=list)


def _outcome(*claims: bool) -> str:
    return REPRODUCED if all(claims) else PARTLY if any(claims) else NOT


def _below(one: ArmSummary, other: ArmSummary) -> bool:
    """Whether one arm's last error is lower by more than both intervals leave open; a single trial shows nothing."""
    if one.last is None or other.last is None or one.last.high is None or other.last.low is None:
        return False
    return one.last.high < other.last.low


def _of_all_arms(judge: Callable[[Summary], Verdict]) -> Callable[[Summary], Verdict]:
    """Says nothing of a comparison of which an arm was not run; one whose rates or trials diverged was."""

    @functools.wraps(judge)
    def judged(summary: Summary) -> Verdict:
        idle = [name for name, arm in summary.arms.items() if not arm.runs and not arm.swept.diverged]
        return Verdict(NOT_RUN, [f"There is no trial yet of {', '.join(idle)}."]) if idle else judge(summary)

    return judged


def _text(name: str, arm: ArmSummary) -> str:
    if arm.last is None:
        return f"{name} has no trial that ended"
    return f"{name} {arm.last.text()}"


@_of_all_arms
def table1(summary: Summary) -> Verdict:
    """Linear outputs converge in about 25% fewer epochs than squashed ones, at an error that is no higher."""
    arms = summary.arms
    if any(arms[name].best is None for name in ("sigmoid", "tanh", "linear")):
        return Verdict(NOT_RUN, ["an output has no trial that ended"])
    best = {name: arm.best.median for name, arm in arms.items() if arm.best is not None}
    epochs = {name: arm.best_epoch.median for name, arm in arms.items() if arm.best_epoch is not None}
    squashed = ("sigmoid", "tanh")
    faster = all(epochs["linear"] <= 0.85 * epochs[name] for name in squashed)
    no_worse = all(best["linear"] <= best[name] + 0.05 for name in squashed)
    because = [
        f"Epochs to the lowest error: linear {epochs['linear']:g}, sigmoid {epochs['sigmoid']:g}, tanh {epochs['tanh']:g} "
        f"(counted as faster below 85% of both: {'yes' if faster else 'no'}).",
        f"Lowest error: linear {best['linear']:.2f}%, sigmoid {best['sigmoid']:.2f}%, tanh {best['tanh']:.2f}% "
        f"(linear no more than 0.05 above both: {'yes' if no_worse else 'no'}).",
    ]
    if "softmax" in best:
        because.append(
            f"The softmax, left out of the paper's table for 'miserable results', has {best['softmax']:.2f}% after "
            f"{epochs['softmax']:g} epochs here."
        )
    return Verdict(_outcome(faster, no_worse), because)


@_of_all_arms
def gain(summary: Summary) -> Verdict:
    """Boosted outputs lead early (epochs 2 to 5) and end lower, beyond the intervals."""
    softmax = summary.arms["softmax"]
    claims, because = [], [f"Error after the last epoch: {'; '.join(_text(n, a) for n, a in summary.arms.items())}."]
    for name, arm in summary.arms.items():
        if name == "softmax":
            continue
        if not arm.curve or not softmax.curve or softmax.last is None:
            claims.append(False)
            because.append(f"{name}: no trial to compare.")
            continue
        early = [
            (mine.median, theirs.median)
            for epoch, mine, theirs in zip(arm.epochs, arm.curve, softmax.curve, strict=False)
            if 2 <= epoch <= 5
        ]
        leads = bool(early) and all(mine < theirs for mine, theirs in early)
        lower = _below(arm, softmax)
        reached = summary.reaches(name, softmax.last.median)
        claims += [leads, lower]
        when = f"is reached after {reached:.1f} of {softmax.epochs[-1]:g} epochs" if reached else "is never reached"
        because.append(
            f"{name}: ahead in {sum(mine < theirs for mine, theirs in early)} of {len(early)} of the epochs 2 to 5; "
            f"last error {'lower' if lower else 'not lower'} beyond the intervals; the softmax's last error {when}."
        )
    return Verdict(_outcome(*claims), because)


def deltas(summary: Summary) -> Verdict:
    """Boosted deltas lie in about [-6, 10] for exp-GB and beyond the softmax's [-1, 1]."""
    ranges = {}
    for name, arm in summary.arms.items():
        history = arm.gradients()
        if history is not None and history.histograms:
            edges = [found.edges for found in history.histograms.values()]
            ranges[name] = (min(edge[0] for edge in edges), max(edge[-1] for edge in edges))
    if set(ranges) != set(summary.arms):
        return Verdict(NOT_RUN, ["not every arm has recorded deltas"])
    because = [f"{name}: output deltas in [{low:.2f}, {high:.2f}]." for name, (low, high) in ranges.items()]
    low, high = ranges["expgb"]
    about = -8 <= low <= -4 and 7 <= high <= 13
    larger = all(max(-least, greatest) > 2 for name, (least, greatest) in ranges.items() if name != "softmax")
    return Verdict(_outcome(about, larger), because)


def hidden_gradients(summary: Summary) -> Verdict:
    """RMS of hidden error gradients: exp-GB ten times, pow3-GB more than a hundred times the softmax's."""
    found = {name: history for name, arm in summary.arms.items() if (history := arm.gradients()) is not None}
    if set(found) != set(summary.arms):
        return Verdict(NOT_RUN, ["not every arm has recorded gradients"])
    claims, because = [], []
    for name, factor in (("expgb", 10.0), ("pow3gb", 100.0)):
        hidden = list(found[name].rms)[1:]  # the output is the first
        ratios = np.array([found[name].rms_by_epoch(layer)[1] / found["softmax"].rms_by_epoch(layer)[1] for layer in hidden])
        middle = float(np.median(ratios))
        claims.append(middle > factor if factor == 100 else factor / 3 <= middle <= factor * 3)
        because.append(
            f"{name}: {middle:.1f} times the softmax's (median over hidden layers and epochs; {ratios.min():.1f} to "
            f"{ratios.max():.1f}); the paper says {'more than two orders' if factor == 100 else 'one order'} of magnitude."
        )
    return Verdict(_outcome(*claims), because)


def normaliser(summary: Summary) -> Verdict:
    """The softmax's normaliser starts at 2,342 and grows."""
    history = summary.arms["softmax"].gradients()
    if history is None:
        return Verdict(NOT_RUN, ["no gradients recorded"])
    series = history.normaliser("median")
    return Verdict(
        _outcome(1000 <= series[0] <= 5000, bool(series[-1] > 2 * series[0])),
        [
            f"The median over the first batch is s = {series[0]:,.1f} (10 classes of zero logits would give 10), over the "
            f"last recorded {series[-1]:,.1f}; it rose in {np.mean(np.diff(series) > 0):.0%} of the recorded steps.",
            "The first value is set by the output layer's initial weights, which the paper does not give.",
        ],
    )


@_of_all_arms
def many_classes(summary: Summary) -> Verdict:
    """With many classes pow3-GB does not work, exp-GB beats the softmax and needs batch normalisation."""
    arms = summary.arms
    softmax, expgb = arms["softmax"], arms["expgb"]
    fails = arms["pow3gb"].last is None or _below(softmax, arms["pow3gb"])
    gains = _below(expgb, softmax)
    plain = arms["expgb_without_bn"]
    needs = plain.last is None or _below(arms["softmax_without_bn"], plain)
    return Verdict(
        _outcome(fails, gains, needs),
        [
            f"Error after the last epoch: {'; '.join(_text(n, a) for n, a in arms.items())}.",
            f"pow3-GB worse than the softmax beyond the intervals: {'yes' if fails else 'no'}.",
            f"exp-GB better than the softmax beyond the intervals: {'yes' if gains else 'no'}.",
            f"Without normalisation exp-GB worse than the softmax beyond the intervals: {'yes' if needs else 'no'}.",
        ],
    )


@_of_all_arms
def against(summary: Summary) -> Verdict:
    """Every arm against the softmax of its group (the arm's name before and after the loss): is any better?"""
    because, better = [], []
    for name, arm in summary.arms.items():
        group = name.rsplit("_", 1)[-1] if "_" in name else ""
        base = next((b for b in (f"softmax_{group}", "softmax_sgd", "softmax") if b in summary.arms), "softmax")
        if name == base:
            continue
        below, above = _below(arm, summary.arms[base]), _below(summary.arms[base], arm)
        if below:
            better.append(name)
        verb = "below" if below else "above" if above else "not told apart from"
        because.append(f"{_text(name, arm)}: {verb} {_text(base, summary.arms[base])}.")
    return Verdict(REPRODUCED if better else NOT, because)


VERDICTS: dict[str, Callable[[Summary], Verdict]] = {
    "table1": table1,
    "gain": gain,
    "deltas": deltas,
    "hidden_gradients": hidden_gradients,
    "normaliser": normaliser,
    "many_classes": many_classes,
    "against": against,
}
