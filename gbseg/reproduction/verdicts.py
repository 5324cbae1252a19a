"""Whether a claim of the paper holds in what was measured here: one function a claim, from the numbers alone.

*Lower* and *higher* mean: with four trials or more of each, none of which diverged on the lower side, the intervals of the
medians are apart. Of four and four trials without a difference, that happens in 2.9% of cases; of fewer it is no evidence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import bootstrap

from gbseg.reproduction.summary import ArmSummary, Summary

__all__ = ["VERDICTS", "Verdict"]

LEAST_TRIALS = 4
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


def _lower(one: ArmSummary, other: ArmSummary, what: str = "last") -> bool:
    """Whether an arm's estimate (``last``, ``best``, ``early``) is lower than another's, as the module says."""
    mine, theirs = getattr(one, what), getattr(other, what)
    if one.diverged or min(len(one.sound), len(other.sound)) < LEAST_TRIALS:
        return False
    return mine.high < theirs.low


def _fails(one: ArmSummary, other: ArmSummary) -> bool:
    """Whether an arm diverged at all of its rates or trials, or is higher than another."""
    return one.last is None or _lower(other, one)


def _of_all_arms(judge: Callable[[Summary], Verdict]) -> Callable[[Summary], Verdict]:
    """Says nothing of a comparison of which an arm was not run; one whose rates or trials diverged was."""

    @functools.wraps(judge)
    def judged(summary: Summary) -> Verdict:
        idle = [name for name, arm in summary.arms.items() if not arm.runs and not arm.swept.diverged]
        return Verdict(NOT_RUN, [f"There is no trial yet of {', '.join(idle)}."]) if idle else judge(summary)

    return judged


def _text(name: str, arm: ArmSummary, what: str = "last") -> str:
    found = getattr(arm, what)
    return f"{name} has no trial that ended" if found is None else f"{name} {found.text()}"


def _too_few(summary: Summary) -> list[str]:
    if summary.grid.settings.final.trials >= LEAST_TRIALS:
        return []
    return [f"Fewer than {LEAST_TRIALS} trials an arm: no difference could have been shown."]


def _ratio(one: ArmSummary, other: ArmSummary) -> tuple[float, float]:
    """The 95% bootstrap interval of the ratio of two arms' median epochs to their lowest error."""
    found = bootstrap(
        (one.best_epochs, other.best_epochs),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


@_of_all_arms
def table1(summary: Summary) -> Verdict:
    """Linear outputs converge in about 25% fewer epochs than squashed ones, at no higher error; the softmax is miserable."""
    arms = summary.arms
    if any(len(arms[name].sound) < LEAST_TRIALS for name in ("sigmoid", "tanh", "linear", "softmax")):
        return Verdict(NOT_RUN, [f"an output has fewer than {LEAST_TRIALS} trials that ended"])
    epochs = {name: float(np.median(arm.best_epochs)) for name, arm in arms.items()}
    linear = arms["linear"]
    because, faster = [], []
    for name in ("sigmoid", "tanh"):
        low, high = _ratio(linear, arms[name])
        faster.append(high < 1)
        because.append(
            f"Median epochs to the lowest error, linear against {name}: {epochs['linear']:g} and "
            f"{epochs[name]:g}, ratio [{low:.2f}, {high:.2f}] (the paper's: "
            f"{73.5 / dict(sigmoid=98.5, tanh=95.0)[name]:.2f})."
        )
    worse = [name for name in ("sigmoid", "tanh") if _lower(arms[name], linear, "best")]
    miserable = all(_lower(arms[name], arms["softmax"], "best") for name in ("sigmoid", "tanh", "linear"))
    because.append(f"Lowest error: {'; '.join(_text(name, arm, 'best') for name, arm in arms.items())}.")
    because.append(f"Linear's is higher than that of {' and '.join(worse)}." if worse else "Linear's is not higher.")
    because.append(f"The softmax's is {'higher than all others' if miserable else 'not higher than all others'}.")
    if not all(faster):
        return Verdict(NOT, because)
    return Verdict(_outcome(True, not worse, miserable), because)


@_of_all_arms
def gain(summary: Summary) -> Verdict:
    """Boosted outputs have lower errors in epochs 2 to 5, and end lower."""
    softmax = summary.arms["softmax"]
    claims: list[bool] = []
    because = [f"Error after the last epoch: {'; '.join(_text(n, a) for n, a in summary.arms.items())}."]
    for name, arm in summary.arms.items():
        if name == "softmax":
            continue
        early, last = _lower(arm, softmax, "early"), _lower(arm, softmax)
        claims += [early, last]
        if arm.early is None or softmax.early is None or softmax.last is None:
            because.append(f"{name}: no trial to compare.")
            continue
        reached = summary.reaches(name, softmax.last.median)
        when = f"is reached after {reached:.1f} of {softmax.epochs[-1]:g} epochs" if reached else "is never reached"
        because.append(
            f"{name}: mean error of the epochs 2 to 5 {arm.early.text()} against the softmax's {softmax.early.text()}, "
            f"{'lower' if early else 'not lower'}; last error {'lower' if last else 'not lower'}; the softmax's last {when}."
        )
    because += _too_few(summary)
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


@_of_all_arms
def normaliser(summary: Summary) -> Verdict:
    """The softmax's normaliser starts at 2,342 (here: within a factor of two) and increases monotonically."""
    history = summary.arms["softmax"].gradients()
    if history is None:
        return Verdict(NOT_RUN, ["no gradients recorded"])
    series, mean = history.normaliser("median"), history.normaliser("mean")
    rises = np.diff(series) > 0
    return Verdict(
        _outcome(2342 / 2 <= series[0] <= 2342 * 2, bool(rises.all())),
        [
            f"The median over the first batch is s = {series[0]:,.1f} (mean {mean[0]:,.1f}; ten zero logits would give 10), "
            f"over the last one recorded {series[-1]:,.1f} (mean {mean[-1]:,.1f}); it rose in {rises.mean():.0%} of the steps "
            "between records.",
            "The first value is set by the output layer's initial weights, which the paper does not give.",
        ],
    )


@_of_all_arms
def many_classes(summary: Summary) -> Verdict:
    """With many classes pow3-GB does not work, exp-GB beats the softmax, and exp-GB needs batch normalisation."""
    arms = summary.arms
    fails = _fails(arms["pow3gb"], arms["softmax"])
    gains = _lower(arms["expgb"], arms["softmax"])
    # worse without, and not worse with it
    needs = _fails(arms["expgb_without_bn"], arms["softmax_without_bn"]) and not _fails(arms["expgb"], arms["softmax"])
    return Verdict(
        _outcome(fails, gains, needs),
        [
            f"Error after the last epoch: {'; '.join(_text(n, a) for n, a in arms.items())}.",
            f"pow3-GB fails or is higher than the softmax: {'yes' if fails else 'no'}.",
            f"exp-GB is lower than the softmax: {'yes' if gains else 'no'}.",
            f"exp-GB fails or is higher without normalisation, and not with it: {'yes' if needs else 'no'}.",
        ],
    )


@_of_all_arms
def contest(summary: Summary) -> Verdict:
    """In each of the claim's ``contests``, the boosted arm that was best on held-out data is lower than the softmax that was.

    One comparison a contest, between arms that were chosen without the test set, however many arms there are. Those in
    neither list are controls: they are reported and decide nothing.
    """
    claims, because = [], []
    for name, sides in summary.grid.settings.contests.items():
        best = {side: _favourite(summary, arms) for side, arms in sides.items()}
        if None in best.values():
            claims.append(False)
            because.append(f"{name}: every rate of one side diverged.")
            continue
        boosted, softmax = (summary.arms[str(best[side])] for side in ("boosted", "softmax"))
        what = summary.grid.settings.get("judged", "last")
        lower, higher = _lower(boosted, softmax, what), _lower(softmax, boosted, what)
        claims.append(lower)
        word = "lower" if lower else "higher" if higher else "not told apart"
        because.append(
            f"{name}, best on held-out images: {_text(str(best['boosted']), boosted, what)} against "
            f"{_text(str(best['softmax']), softmax, what)}: {word}."
        )
    because += _too_few(summary)
    return Verdict(_outcome(*claims), because)


def _favourite(summary: Summary, arms: Sequence[str]) -> str | None:
    """The arm with the lowest score in its sweep; None where all diverged."""
    scores = {
        arm: min(found) for arm in arms if (found := [s for s in summary.arms[arm].swept.scores.values() if s is not None])
    }
    return min(scores, key=scores.__getitem__) if scores else None


VERDICTS: dict[str, Callable[[Summary], Verdict]] = {
    "table1": table1,
    "gain": gain,
    "deltas": deltas,
    "hidden_gradients": hidden_gradients,
    "normaliser": normaliser,
    "many_classes": many_classes,
    "contest": contest,
}
