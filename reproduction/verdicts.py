"""Whether a claim of the paper holds in these measurements: one function per kind of claim, computed from the numbers alone.

*Lower* and *higher* mean that the intervals of the medians do not overlap, with at least four trials on each side, none of
which diverged on the lower side. For four and four trials without a difference, the chance of that is 2.9%; fewer are no
evidence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gbseg.evaluation.bootstrap import bootstrap_distribution, percentile_interval
from reproduction.summary import ArmSummary, Summary, reaches

__all__ = ["VERDICTS", "Verdict", "convergence"]

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


def _lower(a: ArmSummary, b: ArmSummary, attribute: str = "last") -> bool:
    """Whether an estimate (``last``, ``best``, ``early``, ``area``) of ``a`` is lower than that of ``b``; see the module."""
    if a.diverged or min(len(a.sound), len(b.sound)) < LEAST_TRIALS:
        return False
    return getattr(a, attribute).high < getattr(b, attribute).low


def _fails(arm: ArmSummary, reference: ArmSummary) -> bool:
    """Whether an arm diverged at all rates, or in a trial while the reference never did, or is higher than the reference."""
    return arm.last is None or (arm.diverged > 0 and not reference.diverged) or _lower(reference, arm)


def _requires_all_arms(judge: Callable[[Summary], Verdict]) -> Callable[[Summary], Verdict]:
    """Return 'not run' if an arm has too few trials. Diverged trials count, and so do arms that diverged at all rates."""

    @functools.wraps(judge)
    def judged(summary: Summary) -> Verdict:
        arms = [name for name, arm in summary.arms.items() if len(arm.runs) < LEAST_TRIALS and not arm.sweep.diverged]
        if arms:
            return Verdict(NOT_RUN, [f"No difference can be shown with fewer than {LEAST_TRIALS} trials of {', '.join(arms)}."])
        return judge(summary)

    return judged


def _text(name: str, arm: ArmSummary, attribute: str = "last") -> str:
    estimate = getattr(arm, attribute)
    return f"{name} has no trial that ended" if estimate is None else f"{name} {estimate.text()}"


def _ratio_of_epochs(a: ArmSummary, b: ArmSummary) -> tuple[float, float]:
    """The 95% bootstrap interval of the ratio of two arms' median epochs to their lowest error."""
    a_epochs, b_epochs = np.array(a.best_epochs), np.array(b.best_epochs)
    ratios = bootstrap_distribution(
        lambda i, j: np.median(a_epochs[i], axis=1) / np.median(b_epochs[j], axis=1),
        [len(a_epochs), len(b_epochs)],
        resamples=9_999,
    )
    return percentile_interval(ratios)


@_requires_all_arms
def table1(summary: Summary) -> Verdict:
    """Linear outputs converge in about 25% fewer epochs than squashed ones, at no higher error; the softmax is miserable."""
    arms = summary.arms
    if any(len(arms[name].sound) < LEAST_TRIALS for name in ("sigmoid", "tanh", "linear", "softmax")):
        return Verdict(NOT_RUN, [f"an output has fewer than {LEAST_TRIALS} trials that ended"])
    epochs = {name: float(np.median(arm.best_epochs)) for name, arm in arms.items()}
    linear = arms["linear"]
    because, faster = [], []
    for name in ("sigmoid", "tanh"):
        low, high = _ratio_of_epochs(linear, arms[name])
        faster.append(high < 1)
        because.append(
            f"Median epochs to the lowest error, linear against {name}: {epochs['linear']:g} and "
            f"{epochs[name]:g}, ratio [{low:.2f}, {high:.2f}] (the paper's: "
            f"{73.5 / dict(sigmoid=98.5, tanh=95.0)[name]:.2f}; any interval below 1 counts as fewer)."
        )
    worse = [name for name in ("sigmoid", "tanh") if _lower(arms[name], linear, "best")]
    miserable = all(_lower(arms[name], arms["softmax"], "best") for name in ("sigmoid", "tanh", "linear"))
    because.append(f"Lowest error: {'; '.join(_text(name, arm, 'best') for name, arm in arms.items())}.")
    because.append(f"Linear's is higher than that of {' and '.join(worse)}." if worse else "Linear's is not higher.")
    because.append(f"The softmax's is {'higher than all others' if miserable else 'not higher than all others'}.")
    if not all(faster):
        return Verdict(NOT, because)
    return Verdict(_outcome(True, not worse, miserable), because)


@_requires_all_arms
def gain(summary: Summary) -> Verdict:
    """Boosted outputs have lower errors in epochs 2 to 5, and end lower; in epochs 2 to 5 the claim's ``best`` is below all."""
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
        because.append(
            f"{name}: mean error of the epochs 2 to 5 {arm.early.text()} against the softmax's {softmax.early.text()}, "
            f"{'lower' if early else 'not lower'}; last error {'lower' if last else 'not lower'}. "
            f"Deciding nothing: lowest error {_compared(arm, softmax, 'best')}, mean over all "
            f"epochs {_compared(arm, softmax, 'area')}."
        )
    best = summary.grid.settings.get("best")
    if best:
        others = [name for name in summary.arms if name not in (best, "softmax")]
        claims.append(all(_lower(summary.arms[best], summary.arms[name], "early") for name in others))
        because.append(f"{best} is {'' if claims[-1] else 'not '}lower than {' and '.join(others)} in epochs 2 to 5.")
    return Verdict(_outcome(*claims), because)


@_requires_all_arms
def convergence(summary: Summary) -> Verdict:
    """The median curve of a boosted output reaches the lowest median of the softmax's in fewer epochs.

    Fewer means that the 95% bootstrap interval of the share of epochs that is saved, over the trials of both, is above 0, with
    at least four trials each. If the error is never reached, the share counts as -100%.
    """
    softmax = summary.arms["softmax"]
    claims, because = [], []
    for name, arm in summary.arms.items():
        if name == "softmax":
            continue
        trials = [len(arm.sound), len(softmax.sound)]
        if min(trials) < LEAST_TRIALS:
            claims.append(False)
            because.append(f"{name}: fewer than {LEAST_TRIALS} trials of it or of the softmax ended.")
            continue

        def saved(i: np.ndarray, j: np.ndarray, arm: ArmSummary = arm) -> float:
            curve = np.median(softmax.errors[j], axis=0)
            after = reaches(arm.epochs, np.median(arm.errors[i], axis=0), curve.min())
            return -1.0 if after is None else 1 - after / softmax.epochs[int(curve.argmin())]

        low, high = percentile_interval(bootstrap_distribution(np.vectorize(saved, signature="(n),(m)->()"), trials, 2000))
        claims.append(low > 0)
        medians = np.median(softmax.errors, axis=0)
        after = reaches(arm.epochs, np.median(arm.errors, axis=0), medians.min())
        before, share = softmax.epochs[int(medians.argmin())], saved(np.arange(trials[0]), np.arange(trials[1]))
        because.append(
            f"{name}: the softmax's lowest median by epoch, {medians.min():.2f} after {before:g} epochs, is "
            + ("never reached" if after is None else f"reached after {after:.1f}, {abs(share):.0%} ")
            + ("" if after is None else "fewer" if share > 0 else "more")
            + f"; epochs saved [{low:.0%}, {high:.0%}]."
        )
    return Verdict(_outcome(*claims), because)


def _compared(a: ArmSummary, b: ArmSummary, attribute: str) -> str:
    return "lower" if _lower(a, b, attribute) else "higher" if _lower(b, a, attribute) else "not told apart"


def deltas(summary: Summary) -> Verdict:
    """Boosted deltas lie in about [-6, 10] for exp-GB and beyond the softmax's [-1, 1]."""
    ranges = {}
    for name, arm in summary.arms.items():
        edges = [
            [histogram.edges for histogram in history.histograms.values()] for history in arm.gradients() if history.histograms
        ]
        if edges:
            low = np.median([min(edge[0] for edge in trial) for trial in edges])
            high = np.median([max(edge[-1] for edge in trial) for trial in edges])
            ranges[name] = (float(low), float(high), len(edges))
    if set(ranges) != set(summary.arms):
        return Verdict(NOT_RUN, ["not every arm has recorded deltas"])
    because = [
        f"{name}: output deltas in [{low:.2f}, {high:.2f}] (medians of {count} trials)."
        for name, (low, high, count) in ranges.items()
    ]
    because.append("Accepted of exp-GB: a least of -8 to -4 and a greatest of 7 to 13; of all boosted ones: beyond 2 in size.")
    low, high, _ = ranges["expgb"]
    within = ranges["softmax"][0] >= -1 and ranges["softmax"][1] <= 1
    about = -8 <= low <= -4 and 7 <= high <= 13
    larger = all(max(-least, greatest) > 2 for name, (least, greatest, _) in ranges.items() if name != "softmax")
    return Verdict(_outcome(about and within, larger), because)


def hidden_gradients(summary: Summary) -> Verdict:
    """RMS of hidden error gradients: exp-GB ten times, pow3-GB more than a hundred times the softmax's."""
    gradients = {name: histories for name, arm in summary.arms.items() if (histories := arm.gradients())}
    if set(gradients) != set(summary.arms):
        return Verdict(NOT_RUN, ["not every arm has recorded gradients"])
    claims, because = [], []
    for name, factor in (("expgb", 10.0), ("pow3gb", 100.0)):
        hidden = list(gradients[name][0].rms)[1:]  # the first is the output layer
        # trials with equal seeds see the same images in the same order
        ratios = np.array(
            [
                [boosted.rms_by_epoch(layer)[1] / softmax.rms_by_epoch(layer)[1] for layer in hidden]
                for boosted, softmax in zip(gradients[name], gradients["softmax"], strict=False)
            ]
        )
        median = float(np.median(ratios))
        claims.append(median > factor if factor == 100 else factor / 3 <= median <= factor * 3)
        because.append(
            f"{name}: {median:.1f} times the softmax's (median over {len(ratios)} trials, hidden layers and epochs; "
            f"{ratios.min():.1f} to {ratios.max():.1f}); the paper says "
            + ("more than two orders of magnitude." if factor == 100 else "one order of magnitude (accepted: 3.3 to 30).")
        )
    return Verdict(_outcome(*claims), because)


def normaliser(summary: Summary) -> Verdict:
    """The softmax's normaliser starts at 2,342 (here: within a factor of two) and increases monotonically."""
    histories = summary.arms["softmax"].gradients()
    if not histories:
        return Verdict(NOT_RUN, ["no gradients recorded"])
    series = [history.normaliser("median") for history in histories]
    first, last = [values[0] for values in series], [values[-1] for values in series]
    rises = [np.mean(np.diff(values) > 0) for values in series]
    start = float(np.median(first))
    return Verdict(
        _outcome(2342 / 2 <= start <= 2342 * 2, min(rises) == 1),
        [
            f"The median over the first batch is s = {start:,.1f} ({min(first):,.1f} to {max(first):,.1f} in {len(series)} "
            f"trials; ten zero logits would give 10), over the last one recorded {np.median(last):,.1f} ({min(last):,.1f} to "
            f"{max(last):,.1f}); it rose in {np.median(rises):.0%} of the steps between records. Accepted as a start: 1,171 to "
            "4,684.",
            "The first value is set by the output layer's initial weights, which the paper does not give.",
        ],
    )


@_requires_all_arms
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


@_requires_all_arms
def contest(summary: Summary) -> Verdict:
    """In each of the claim's ``contests``, the best boosted arm on held-out data is lower than the best softmax arm.

    There is one comparison per contest, however many arms it has, between arms that were chosen without the test set. Both
    sides have the same number of tries. Arms in neither list are controls: they are reported and decide nothing.
    """
    claims, because = [], []
    for name, sides in summary.grid.settings.contests.items():
        boosted_arm, softmax_arm = _best_arm(summary, sides.boosted), _best_arm(summary, sides.softmax)
        if boosted_arm is None or softmax_arm is None:
            claims.append(False)
            because.append(f"{name}: every rate of one side diverged.")
            continue
        boosted, softmax = summary.arms[boosted_arm], summary.arms[softmax_arm]
        attribute = summary.grid.settings.get("judged", "last")
        claims.append(_lower(boosted, softmax, attribute))
        tries = sum(len(summary.grid.settings.arms[arm].rates) for arm in sides.softmax)
        because.append(
            f"{name}, best on held-out images of {tries} tries each: {_text(boosted_arm, boosted, attribute)} against "
            f"{_text(softmax_arm, softmax, attribute)}: {_compared(boosted, softmax, attribute)}."
        )
    return Verdict(_outcome(*claims), because)


def _best_arm(summary: Summary, arms: Sequence[str]) -> str | None:
    """The arm with the lowest score in its sweep; None if all diverged."""
    scores = [(score, arm) for arm in arms for score in summary.arms[arm].sweep.scores.values() if score is not None]
    return min(scores, key=lambda pair: pair[0])[1] if scores else None


VERDICTS: dict[str, Callable[[Summary], Verdict]] = {
    "table1": table1,
    "gain": gain,
    "deltas": deltas,
    "hidden_gradients": hidden_gradients,
    "normaliser": normaliser,
    "many_classes": many_classes,
    "contest": contest,
}
