"""Medians, intervals and verdicts of results that were written by hand, read by the real grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from grids import put, tiny

from reproduction.grid import Grid, load_claim
from reproduction.report import write_report
from reproduction.summary import Summary, estimate, reaches, summarise
from reproduction.verdicts import VERDICTS, Verdict, convergence


def test_median_and_interval() -> None:
    """Against a bootstrap of loops."""
    values = np.random.default_rng(3).gamma(2, size=11)
    random = np.random.default_rng(4)
    medians = [np.median(values[random.integers(0, 11, 11)]) for _ in range(20_000)]
    interval = estimate(values)
    assert interval.median == sorted(values)[5]
    # the medians of resamples are some of the values: the quantile is one of them, or between two
    assert (interval.low, interval.high) == pytest.approx(np.percentile(medians, [2.5, 97.5]), rel=0.03)
    assert interval.low < interval.median < interval.high


def test_few_trials() -> None:
    assert estimate([]) is None
    assert estimate([2.5]).text() == "2.50" and estimate([2.5]).low is None
    assert estimate([2.0, 2.0, 2.0]).text(1) == "2.0 [2.0, 2.0]"
    interval = estimate([1.0, 2.0])
    assert (interval.median, interval.low, interval.high) == (1.5, 1.0, 2.0)


Trials = Mapping[str, Sequence[Sequence[float] | None]]


class Home:
    """Builds grids whose arms have given errors by epoch in their trials; None: a trial that diverged."""

    def __init__(self, claims: Path, mnist: Path, home: Path) -> None:
        self.claims, self.mnist, self.home = claims, mnist, home

    def summary(
        self,
        trials: Trials,
        swept: Sequence[str] | None = None,
        gradients: Mapping[str, list[dict]] | None = None,
        scores: Mapping[str, float] | None = None,
        **keys: object,
    ) -> Summary:
        # the arms' networks do not matter here; the batch size tells them apart
        arms = {
            name: dict(
                config="classification/mnist_softmax.py",
                rates=[0.1, 0.2],
                options={"val_dataloader.batch_size": 100 + number},
            )
            for number, name in enumerate(trials)
        }
        epochs = max((len(one) for arm_trials in trials.values() for one in arm_trials if one is not None), default=3)
        tiny(
            self.claims, self.mnist, **{"arms": dict(_delete_=True, **arms), "final.epochs": epochs, **keys},
        )  # fmt: skip
        grid = Grid(load_claim("tiny"), self.home)
        for run in grid.sweep():
            if swept is None or run.arm in swept:
                put(run, [(scores or {}).get(run.arm, 50.0)] if run.rate == 0.1 else [60.0])
        for run in grid.final(grid.sweep_results()):
            if run.seed < len(trials[run.arm]):
                errors = trials[run.arm][run.seed]
                put(
                    run,
                    [] if errors is None else list(errors),
                    1 if errors is None else None,
                    (gradients or {}).get(run.arm, ()),
                )
        return summarise(grid)


@pytest.fixture
def home(claims: Path, mnist: Path, tmp_path: Path) -> Home:
    return Home(claims, mnist, tmp_path / "home")


def test_a_summary_is_what_numpy_says(home: Home) -> None:
    """Medians by epoch and of each trial's lowest, its epoch, last and mean; a diverged trial is in none of them."""
    errors = np.array([[40, 20, 30.0], [50, 30, 10.0], [60, 25, 25.0], [45, 35, 20.0]])
    summary = home.summary({"softmax": [*errors[:2], None, *errors[2:]], "linear": [errors[0]]}, **{"final.trials": 6})
    arm = summary.arms["softmax"]
    assert (len(arm.runs), len(arm.sound), arm.diverged, arm.epochs) == (5, 4, 1, [1, 2, 3])
    assert [point.median for point in arm.curve] == np.median(errors, 0).tolist()
    assert arm.best.median == np.median([20, 10, 25, 20]) and arm.best_epoch.median == np.median([2, 3, 2, 3])
    assert arm.last.median == np.median(errors[:, 2]) and arm.area.median == pytest.approx(np.median(errors.mean(1)))
    assert (arm.last.low, arm.last.high) == (10, 30)
    # six trials each were asked for
    assert summary.missing == 1 + 5
    # 36 seconds each: four of the sweep, six trials
    assert summary.hours == pytest.approx(10 * 36 / 3600)


@pytest.mark.parametrize(("target", "epoch"), [(41, 1), (40, 1), (30, 1.5), (20, 2), (19, 3.25), (16, 4), (15, None)])
def test_when_an_error_is_reached(target: float, epoch: float | None) -> None:
    """Between validations on a straight line, for the first time."""
    assert reaches([1, 2, 3, 4], [40, 20, 20, 16], target) == epoch


def around(*middles: float) -> list[list[float]]:
    """Five trials close to a curve."""
    return [[middle + offset for middle in middles] for offset in (-0.02, -0.01, 0, 0.01, 0.02)]


SLOW, FAST = around(50, 40, 30, 25, 22, 20), around(50, 30, 20, 15, 12, 10)
# behind early, ahead at the end
LATE = around(60, 50, 40, 30, 25, 10)
DIVERGED: list[None] = [None] * 5


def verdict(home: Home, name: str, trials: Trials, **settings: object) -> Verdict:
    summary = home.summary(trials, **{"final.trials": 5, **settings})
    judged = VERDICTS[name](summary)
    assert judged.because
    return judged


@pytest.mark.parametrize(
    ("linear", "outcome"),
    [
        (FAST, "reproduced"),
        (LATE, "partly reproduced"),
        (SLOW, "not reproduced"),
        (DIVERGED, "not reproduced"),
        ([], "not run"),
    ],
    ids=["fast", "late", "slow", "diverged", "none"],
)
def test_gain(home: Home, linear: list, outcome: str) -> None:
    judged = verdict(home, "gain", {"softmax": SLOW, "linear": linear})
    assert judged.outcome == outcome
    if linear is FAST:
        # of 30, 20, 15 and 12; the softmax's lowest, 20, is linear's in epoch 3
        assert "mean error of the epochs 2 to 5 19.25 [19.23, 19.27]" in judged.because[1]


@pytest.mark.parametrize(
    ("linear", "outcome", "sentence"),
    [
        (FAST, "reproduced", "20.00 after 6 epochs, is reached after 3.0, 50% fewer; epochs saved [50%, 50%]"),
        (around(60, 50, 40, 35, 30, 25), "not reproduced", "is never reached; epochs saved [-100%, -100%]"),
        # half of the trials as fast, half never there: the interval holds both
        ([*FAST[:3], *around(60, 50, 40, 35, 30, 25)[:2]], "not reproduced", "50% fewer; epochs saved [-100%, 50%]"),
        (FAST[:3], "not run", "fewer than 4 trials of linear."),
        ([*FAST[:3], None, None], "not reproduced", "linear: fewer than 4 trials of it or of the softmax ended."),
    ],
    ids=["faster", "slower", "mixed", "few", "diverged"],
)
def test_faster_convergence(home: Home, linear: list, outcome: str, sentence: str) -> None:
    """The softmax's lowest median is its 20 in epoch 6."""
    judged = convergence(home.summary({"softmax": SLOW, "linear": linear}, **{"final.trials": 5}))
    assert judged.outcome == outcome and sentence in judged.because[-1]


def test_the_best_of_all(home: Home) -> None:
    """What a claim calls the best has to be below the other boosted outputs, in epochs 2 to 5, as well."""
    arms = {"softmax": SLOW, "linear": FAST, "cubic": around(50, 25, 15, 10, 9, 9)}
    for best, outcome in (("cubic", "reproduced"), ("linear", "partly reproduced")):
        judged = verdict(home, "gain", arms, best=best)
        assert judged.outcome == outcome and ("not lower" in judged.because[-1]) == (best == "linear")


def test_three_trials_show_no_difference(home: Home) -> None:
    judged = verdict(home, "gain", {"softmax": SLOW[:3], "linear": FAST[:3]}, **{"final.trials": 3})
    assert judged.outcome == "not run" and "with fewer than 4 trials of linear, softmax." in judged.because[0]
    # one more of each would
    assert verdict(home, "gain", {"softmax": SLOW[:4], "linear": FAST[:4]}).outcome == "reproduced"


def test_what_diverged_at_times_is_not_lower(home: Home) -> None:
    assert verdict(home, "gain", {"softmax": SLOW, "linear": FAST[:4]}).outcome == "reproduced"
    assert verdict(home, "gain", {"softmax": SLOW, "linear": [*FAST[:4], None]}).outcome == "not reproduced"


BAD = around(9, 9, 9, 9)


def outputs(linear: list, sigmoid: list, softmax: list = BAD) -> Trials:
    return {"sigmoid": sigmoid, "tanh": sigmoid, "linear": linear, "softmax": softmax}


@pytest.mark.parametrize(
    ("trials", "outcome"),
    [
        (outputs(around(5, 2, 3, 3), around(5, 4, 3, 2)), "reproduced"),
        (outputs(around(5, 2, 3, 3), around(5, 4, 3, 2), around(5, 4, 3, 2)), "partly reproduced"),
        (outputs(around(5, 4, 5, 5), around(5, 4, 3, 2)), "partly reproduced"),
        (outputs(around(5, 4, 3, 2.5), around(5, 2, 3, 3)), "not reproduced"),
        # as fast as the others, and better
        (outputs(around(5, 4, 3, 1), around(5, 4, 3, 2)), "not reproduced"),
        (outputs(around(5, 2, 3, 3)[:3], around(5, 4, 3, 2)), "not run"),
        (outputs(DIVERGED, around(5, 2, 3, 3)), "not run"),
        (outputs([], around(5, 2, 3, 3)), "not run"),
    ],
)
def test_table1(home: Home, trials: Trials, outcome: str) -> None:
    assert verdict(home, "table1", trials).outcome == outcome


def recorded(low: float, high: float, rms: float) -> list[dict]:
    """The lines of a run of three epochs of six iterations."""
    return [
        {
            "iter": step,
            "epoch": step / 6,
            "rms/head.fc": 1.0,
            "rms/backbone.1": rms,
            "normaliser": {"median": np.log(2000) + step * rms, "min": 0.0, "max": 9.0},
            "histogram": {"low": low, "high": high, "counts": [1, 2]},
        }
        for step in range(0, 18, 3)
    ]


CURVES = {"softmax": around(3, 2, 1), "expgb": around(3, 2, 1), "pow3gb": around(3, 2, 1)}


@pytest.mark.parametrize(
    ("name", "expgb", "pow3gb", "outcome"),
    [
        ("deltas", (-6, 10, 0), (-3, 9, 0), "reproduced"),
        ("deltas", (-6, 10, 0), (-1, 1, 0), "partly reproduced"),
        ("deltas", (-1, 1, 0), (-1, 1, 0), "not reproduced"),
        ("hidden_gradients", (0, 1, 1.0), (0, 1, 15.0), "reproduced"),
        ("hidden_gradients", (0, 1, 1.0), (0, 1, 5.0), "partly reproduced"),
        ("hidden_gradients", (0, 1, 0.2), (0, 1, 5.0), "not reproduced"),
    ],
)
def test_recorded_gradients(home: Home, name: str, expgb: tuple, pow3gb: tuple, outcome: str) -> None:
    gradients = {"softmax": recorded(-1, 1, 0.1), "expgb": recorded(*expgb), "pow3gb": recorded(*pow3gb)}
    assert verdict(home, name, CURVES, gradients=gradients).outcome == outcome
    # an arm that recorded nothing
    assert VERDICTS[name](home.summary({**CURVES, "more": around(3, 2, 1)}, gradients=gradients)).outcome == "not run"


@pytest.mark.parametrize(("rise", "outcome"), [(0.1, "reproduced"), (0.0, "partly reproduced"), (None, "not run")])
def test_normaliser(home: Home, rise: float | None, outcome: str) -> None:
    gradients = {} if rise is None else {"softmax": recorded(-1, 1, rise)}
    assert verdict(home, "normaliser", CURVES, gradients=gradients).outcome == outcome


LOW, MIDDLE, HIGH = around(3, 2, 10), around(3, 2, 20), around(3, 2, 30)
PLAIN = {"softmax_without_bn": MIDDLE, "expgb_without_bn": HIGH, "pow3gb_without_bn": HIGH}


@pytest.mark.parametrize(
    ("trials", "outcome"),
    [
        ({"softmax": MIDDLE, "expgb": LOW, "pow3gb": HIGH, **PLAIN}, "reproduced"),
        ({"softmax": MIDDLE, "expgb": LOW, "pow3gb": DIVERGED, **PLAIN, "expgb_without_bn": DIVERGED}, "reproduced"),
        ({"softmax": MIDDLE, "expgb": HIGH, "pow3gb": HIGH, **PLAIN}, "partly reproduced"),
        ({"softmax": MIDDLE, "expgb": HIGH, "pow3gb": LOW, **PLAIN, "expgb_without_bn": LOW}, "not reproduced"),
        ({"softmax": MIDDLE, "expgb": LOW, "pow3gb": [], **PLAIN}, "not run"),
        # what diverges at times, where the softmax never does, does not work
        ({"softmax": MIDDLE, "expgb": LOW, "pow3gb": [*LOW[:4], None], **PLAIN}, "reproduced"),
        ({"softmax": MIDDLE, "expgb": LOW, "pow3gb": LOW, **PLAIN}, "partly reproduced"),
        (
            {"softmax": [*MIDDLE[:4], None], "expgb": HIGH, "pow3gb": [*LOW[:4], None], **PLAIN, "expgb_without_bn": LOW},
            "not reproduced",
        ),
    ],
)
def test_many_classes(home: Home, trials: Trials, outcome: str) -> None:
    assert verdict(home, "many_classes", trials).outcome == outcome


def contests(**sides: tuple[list[str], list[str]]) -> dict[str, object]:
    return {"contests": {name: dict(boosted=boosted, softmax=softmax) for name, (boosted, softmax) in sides.items()}}


def test_the_favourites_of_the_sweep_meet_once(home: Home) -> None:
    """What was best on held-out images is compared, not what turns out best on the test set; controls decide nothing."""
    trials = {"softmax": MIDDLE, "softmax_clip": HIGH, "expgb": LOW, "pow3gb": HIGH, "control": LOW}
    # by the sweep expgb is ahead of pow3gb, or behind it
    for scores, outcome in (
        ({"expgb": 40.0}, "reproduced"),
        ({"pow3gb": 40.0}, "not reproduced"),
        ({"expgb": 40.0, "softmax_clip": 40.0}, "reproduced"),
        ({"pow3gb": 40.0, "softmax_clip": 40.0}, "not reproduced"),
    ):
        sides = contests(one=(["expgb", "pow3gb"], ["softmax", "softmax_clip"]))
        summary = home.summary(trials, None, scores=scores, **{"final.trials": 5}, **sides)
        assert VERDICTS["contest"](summary).outcome == outcome
    both = contests(one=(["expgb"], ["softmax"]), two=(["pow3gb"], ["softmax"]))
    assert verdict(home, "contest", trials, **both).outcome == "partly reproduced"
    assert verdict(home, "contest", {**trials, "expgb": DIVERGED}, **both).outcome == "not reproduced"


def test_a_contest_of_lowest_errors(home: Home) -> None:
    trials = {"softmax": around(3, 3, 2), "expgb": around(3, 1, 4)}
    sides = contests(one=(["expgb"], ["softmax"]))
    assert verdict(home, "contest", trials, **sides).outcome == "not reproduced"
    assert verdict(home, "contest", trials, judged="best", **sides).outcome == "reproduced"


def test_nothing_run_has_no_verdict(home: Home, tmp_path: Path) -> None:
    """Neither before the sweep nor between sweep and trials; the report says what is missing and links no figure."""
    arms = [*PLAIN, "softmax", "expgb", "pow3gb", "sigmoid", "tanh", "linear"]
    out = tmp_path / "out"
    out.mkdir()
    for swept in ([], arms):
        summary = home.summary({arm: [] for arm in arms}, swept)
        for name in VERDICTS:
            figure = {"deltas": "histograms", "hidden_gradients": "rms", "normaliser": "normaliser"}.get(name, "curves")
            summary.grid.settings.verdict, summary.grid.settings.figure = name, figure
            summary.grid.settings.contests = {}
            (out / "figure.png").write_bytes(b"an older one")
            assert write_report(summary, out).outcome == "not run"
            text = (out / "README.md").read_text()
            assert "runs are missing: this is a partial result" in text
            assert ("figure.png" in text) == (out / "figure.png").exists() == (figure == "curves")


@pytest.mark.parametrize("figure", ["curves", "histograms", "rms", "normaliser"])
def test_figures_are_drawn(home: Home, tmp_path: Path, figure: str) -> None:
    gradients = {name: recorded(-3, 3, 1.0) for name in CURVES}
    summary = home.summary(CURVES, gradients=gradients, verdict="gain", figure=figure, **{"final.trials": 5})
    write_report(summary, tmp_path / "out")
    picture = (tmp_path / "out/figure.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 5000
    assert "![figure](figure.png)" in (tmp_path / "out/README.md").read_text()


def _never(*arguments: object) -> None:
    raise AssertionError("nothing is to be run")


def test_drawing_only(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs nothing, in no process."""
    from reproduction import command

    monkeypatch.chdir(tmp_path)
    never: Callable = _never
    monkeypatch.setattr(command, "train_runs", never)
    home.summary({"softmax": SLOW, "linear": FAST}, **{"final.trials": 5})
    monkeypatch.setattr(command, "Grid", lambda claim: Grid(claim, home.home))
    assert command.reproduce("tiny", draw_only=True) == Path("results/tiny")
    assert "**reproduced.**" in Path("results/tiny/README.md").read_text()
    assert "reproduced: results/tiny/README.md" in capsys.readouterr().out
    # other trials than the claim's, or the small budget, do not replace committed results
    assert command.reproduce("tiny", trials=2, draw_only=True) == home.home / "results/tiny"
    assert command.reproduce("tiny", "small", draw_only=True) == home.home / "results/tiny_small"
    # nor does one of which more runs are missing
    lost = Grid(load_claim("tiny"), home.home).sweep()[0]
    (lost.folder / "result.json").unlink()
    before = Path("results/tiny/README.md").read_bytes()
    assert command.reproduce("tiny", draw_only=True) == home.home / "results/tiny"
    assert Path("results/tiny/README.md").read_bytes() == before
    assert "holds a result of which 0 runs are missing, here it is 6: it stays" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--jobs is a number of processes, at least 1, got 0"):
        command.reproduce("tiny", jobs=0)
