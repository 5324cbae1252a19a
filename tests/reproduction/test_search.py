"""The search for a better output: its space, its fairness, its halving, that it never sees the test set, and its answer."""

from __future__ import annotations

import csv
import json
import math
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")
pytest.importorskip("optuna")
import optuna
from mmengine.registry import MODELS

from gbseg.data.arrays import BadDataFileError
from gbseg.losses import BoostedLoss, ExpGBLoss, SoftmaxLoss
from gbseg.mm.config import config_folder, load_config
from reproduction import command
from reproduction.command import search_boost
from reproduction.pool import RunFailedError
from reproduction.runs import Run, RunResult
from reproduction.search import Confirmation, Settings, Trial, answer, best_of, confirm, run_search, rungs
from reproduction.search_space import RATE, SIDES, SPAN, Base, Candidate, read_base, suggest
from reproduction.worker import train_alone

pytestmark = pytest.mark.usefixtures("parsed_once")

LR = "optim_wrapper.optimizer.lr"
CONFIG = config_folder("gbseg") / "classification" / "mnist_softmax.py"
TRAIN, TEST = 200, 40


def _idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def _write_test_set(root: Path) -> None:
    """Images all of a class that the training set does not have."""
    images = np.random.default_rng(2).integers(0, 256, (TEST, 28, 28), np.uint8)
    (root / "t10k-images-idx3-ubyte").write_bytes(_idx(images))
    (root / "t10k-labels-idx1-ubyte").write_bytes(_idx(np.full(TEST, 9, np.uint8)))


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A training set of five classes, each bright in other rows; no test set."""
    root = tmp_path / "mnist"
    root.mkdir()
    random = np.random.default_rng(1)
    labels = np.arange(TRAIN, dtype=np.uint8) % 5
    images = random.integers(0, 60, (TRAIN, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[5 * label : 5 * label + 5] += 120
    (root / "train-images-idx3-ubyte").write_bytes(_idx(images))
    (root / "train-labels-idx1-ubyte").write_bytes(_idx(labels))
    return root


@pytest.fixture
def options(mnist: Path) -> dict[str, Any]:
    """The config on those images, with a small network."""
    return {
        "train_dataloader.dataset.data_root": str(mnist),
        "val_dataloader.dataset.data_root": str(mnist),
        "train_dataloader.batch_size": 20,
        "model.backbone.hidden": (16, 8),
        "model.head.in_channels": 8,
    }


def base_of(options: dict[str, Any]) -> Base:
    return read_base(load_config(CONFIG, options), options)


class InProcess:
    """As `reproduction.pool.WorkerPool`, in this process; remembers the keys of what it trained."""

    def __init__(self, *arguments: object) -> None:
        self.trained: list[str] = []

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *arguments: object) -> None:
        pass

    def submit(self, batch: Sequence[Run]) -> Future[None]:
        for run in batch:
            self.trained.append(run.key)
            run.write()
            train_alone(run.folder)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def __call__(self, run: Run) -> Future[None]:
        return self.submit([run])

    def train(self, runs: Sequence[Run]) -> None:
        self.submit([run for run in runs if run.result() is None])


class Pretended:
    """In place of training: the error is a function of the rate; a rate beyond a limit diverges."""

    def __init__(self, limit: float = math.inf, stop: int | None = None, fail: int | None = None) -> None:
        self.limit, self.stop, self.fail, self.trained = limit, stop, fail, 0

    def __call__(self, run: Run) -> Future[None]:
        future: Future[None] = Future()
        if self.trained == self.stop:
            raise KeyboardInterrupt
        if self.trained == self.fail:
            future.set_exception(RuntimeError("ValueError: no good"))
            return future
        self.trained += 1
        diverged = 1 if run.rate > self.limit else None
        result = RunResult([1], {"accuracy/top1": [100 - pretended_error(run.rate, run.epochs)]}, [1.0], diverged, 1.0, {})
        run.folder.mkdir(parents=True)
        (run.folder / "result.json").write_text(json.dumps(asdict(result)))
        future.set_result(None)
        return future


def pretended_error(rate: float, epochs: float) -> float:
    return 5 + 10 * abs(math.log(rate / 0.02)) / epochs


BASES = [
    Base(CONFIG, {}, rate=0.3, decay=5e-4, sgd=True, own_head=True, images=100),
    Base(CONFIG, {}, rate=0.01, decay=0.05, sgd=False, own_head=False, images=100),
]


def drawn(side: str, base: Base, count: int) -> list[Candidate]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(3))
    return [suggest(study.ask(), side, base) for _ in range(count)]


def loss_of(candidate: Candidate) -> dict[str, Any]:
    """As a config writes it."""
    return {key: value for key, value in candidate.options["model.head.loss"].items() if key != "_delete_"}


@pytest.mark.parametrize("base", BASES, ids=["SGD", "AdamW"])
def test_what_is_drawn_can_be_trained(base: Base) -> None:
    """Every boost comes up, its loss can be built, its targets and bias are in its reach, its rate is within the limits."""
    candidates = drawn("boosted", base, 300)
    assert {candidate.boost for candidate in candidates} == {"exponential", "cubic", "linear", "mirrored"}
    for candidate in candidates:
        loss = MODELS.build(loss_of(candidate))
        assert isinstance(loss, BoostedLoss)
        t_neg, t_pos = loss.targets
        assert SPAN[0] * 0.999 <= t_pos - t_neg <= SPAN[1] * 1.001 and t_pos - t_neg == candidate.span
        assert t_neg >= 0 or candidate.boost != "exponential"
        assert loss.max_delta in (None, pytest.approx(candidate.span, rel=1e-3))
        assert bool(torch.isfinite(loss.prior_logits(torch.full((10,), 0.1))).all())
        strength = candidate.span if base.sgd else 1.0
        assert RATE[0] * 0.999 <= candidate.rate * strength / base.rate <= RATE[1] * 1.001
        assert candidate.options["optim_wrapper.optimizer.weight_decay"] == pytest.approx(base.decay * strength)
        assert ("model.head.init_bias" in candidate.options) == base.own_head
    for name in ("clip", "bounded", *(("prior", "small_init") if base.own_head else ())):
        assert {candidate.params[name] for candidate in candidates} == {True, False}


def test_the_softmax_draws_what_both_share() -> None:
    """Rates over the same range, clipped or not, small or not; its loss is the softmax alone."""
    candidates = drawn("softmax", BASES[0], 100)
    assert all(loss_of(candidate) == {"type": "SoftmaxLoss"} for candidate in candidates)
    rates = np.log([candidate.rate / 0.3 for candidate in candidates]) / np.log(10)
    assert -1 <= rates.min() < -0.9 and 0.9 < rates.max() <= 1 and abs(rates.mean()) < 0.2
    shared = {"rate", "clip", "small_init"}
    assert all(set(candidate.params) == shared for candidate in candidates)
    assert all(shared <= set(candidate.params) for candidate in drawn("boosted", BASES[0], 10))


def test_a_boosted_step_is_as_long_as_the_softmaxs() -> None:
    """An exponential boost with t_neg = 0 is cross-entropy with a penalty: under SGD it takes the same step."""
    x = torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label = torch.arange(6)
    candidates = [c for c in drawn("boosted", BASES[0], 200) if c.boost == "exponential" and c.params["t_neg"] == 0]
    assert len(candidates) > 5
    for candidate in candidates:
        alpha, t_pos = candidate.params["alpha"], candidate.params["t_pos"]
        steps = []
        for rate, loss in (
            (candidate.rate, ExpGBLoss(alpha, (0, t_pos))),
            (candidate.params["rate"], SoftmaxLoss(penalty=1, alpha=alpha, t_pos=t_pos)),
        ):
            at = x.clone().requires_grad_()
            loss(at, label).backward()
            steps.append(rate * at.grad)
        torch.testing.assert_close(*steps, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("changes", "rate", "decay"),
    [
        ({LR: 0.1}, 0.1, 0),
        ({LR: 0.1, "model.head.loss": dict(_delete_=True, type="ExpGBLoss", targets=(0, 16))}, 1.6, 0),
        (
            {LR: 0.1, "model.head.loss": dict(type="SoftmaxLoss", scale=4.0), "optim_wrapper.optimizer.weight_decay": 0.01},
            0.4,
            0.0025,
        ),
        (
            {
                "model.head.loss": dict(_delete_=True, type="Pow3GBLoss", targets=(-2, 10)),
                "optim_wrapper.optimizer": dict(_delete_=True, type="AdamW", lr=0.002, weight_decay=0.05),
            },
            0.002,
            0.05,
        ),
    ],
    ids=["softmax", "expgb", "scaled", "AdamW"],
)
def test_rates_are_read_in_the_softmaxs_unit(options: dict, changes: dict, rate: float, decay: float) -> None:
    """A config of a boosted loss gives the same range as the softmax's that it corresponds to."""
    base = base_of(options | changes)
    assert (base.rate, base.decay) == pytest.approx((rate, decay)) and base.images == TRAIN and base.own_head


def test_rungs() -> None:
    """A quarter, a half and all of the epochs, once each."""
    assert [rungs(epochs) for epochs in (1, 2, 3, 4, 10)] == [[1], [1, 2], [1, 3], [1, 2, 4], [2, 5, 10]]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_halving(options: dict, tmp_path: Path, sampler: str) -> None:
    """Both sides by one rule: a trial goes on if it is in the best third of those that reached the rung, itself included."""
    settings = Settings(trials=14, epochs=4, held_out=50, sampler=sampler)
    trials = run_search(base_of(options), settings, Pretended(limit=0.25), tmp_path / "runs")
    for side in SIDES:
        assert [trial.candidate.number for trial in trials[side]] == list(range(14))
        reached: list[list[float]] = [[], [], []]
        for trial in trials[side]:
            expected: list[float | None] = []
            for rung, epochs in enumerate((1, 2, 4)):
                error = pretended_error(trial.candidate.rate, epochs)
                expected.append(None if trial.candidate.rate > 0.25 else pytest.approx(error))
                if expected[-1] is None:
                    break
                reached[rung].append(error)
                if error > sorted(reached[rung])[max(1, len(reached[rung]) // 3) - 1]:
                    break
            assert trial.errors == expected and len(trial.keys) == len(set(trial.keys)) == len(expected)
        finished = [trial for trial in trials[side] if len(trial.errors) == 3]
        assert 1 <= len(finished) < 14
        assert best_of(trials[side]) is min(finished, key=lambda trial: trial.errors[-1])
        assert any(trial.diverged for trial in trials["softmax"])
    assert best_of([trial for trial in trials["softmax"] if trial.diverged]) is None


@pytest.mark.slow
def test_tpe_learns(options: dict, tmp_path: Path) -> None:
    """What it draws after twenty trials is nearer to the optimum than what was drawn at random."""
    settings = Settings(trials=30, epochs=1, held_out=50, sampler="tpe")
    trials = run_search(base_of(options), settings, Pretended(), tmp_path / "runs")["softmax"]
    distance = np.abs(np.log([trial.candidate.rate / 0.02 for trial in trials]))
    assert np.median(distance[20:]) < 0.7 * np.median(distance[:10])


@pytest.mark.parametrize("epochs", [1, 4])
def test_interrupted(options: dict, tmp_path: Path, epochs: int) -> None:
    """A search that was stopped goes on to what it would have been, and trains nothing twice."""
    base, settings = base_of(options), Settings(trials=12, epochs=epochs, held_out=50, sampler="tpe")
    whole, first, second = Pretended(), Pretended(stop=21), Pretended()
    expected = run_search(base, settings, whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_search(base, settings, first, tmp_path / "parts")
    assert run_search(base, settings, second, tmp_path / "parts") == expected
    assert first.trained + second.trained == whole.trained and second.trained < whole.trained
    assert len(list((tmp_path / "parts").glob("search_*/trials.journal"))) == 1
    other = run_search(base, Settings(trials=2, epochs=1, held_out=50, seed=1), Pretended(), tmp_path / "other")
    assert {t.candidate.rate for t in other["softmax"]}.isdisjoint(t.candidate.rate for t in expected["softmax"])


def test_a_torn_line_of_the_journal(options: dict, tmp_path: Path) -> None:
    """What was being written when the power failed is written again."""
    base, settings = base_of(options), Settings(trials=4, epochs=1, held_out=50)
    expected = run_search(base, settings, Pretended(), tmp_path)
    (journal,) = tmp_path.glob("search_*/trials.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-3]) + lines[-3][:20])
    assert run_search(base, settings, Pretended(stop=0), tmp_path) == expected


def test_more_trials_extend_a_search(options: dict, tmp_path: Path) -> None:
    """The first of them are those of the shorter search, and are not trained again."""
    base, once, more = base_of(options), Pretended(), Pretended()
    short = run_search(base, Settings(trials=3, epochs=4, held_out=50), once, tmp_path)
    long = run_search(base, Settings(trials=6, epochs=4, held_out=50), more, tmp_path)
    assert all(long[side][:3] == short[side] and len(long[side]) == 6 for side in SIDES)
    assert more.trained == sum(len(trial.errors) for side in SIDES for trial in long[side][3:])
    assert run_search(base, Settings(trials=3, epochs=4, held_out=50), more, tmp_path) == short


def test_several_jobs(options: dict, tmp_path: Path) -> None:
    """As many trials as there are jobs are trained at a time; at random they are those of one job."""
    base, settings = base_of(options), Settings(trials=6, epochs=4, held_out=50)
    waiting: list[tuple[Run, Future[None]]] = []
    most = 0

    class Later(Pretended):
        def __call__(self, run: Run) -> Future[None]:
            nonlocal most
            waiting.append((run, Future()))
            most = max(most, len(waiting))
            answer = waiting[-1][1]
            if len(waiting) == 3 or self.trained >= 6:
                # the last that came is ready first
                super().__call__(waiting[-1][0])
                waiting.pop()[1].set_result(None)
            if len(waiting) == 2 and most == 3:
                for run, future in waiting:
                    super().__call__(run)
                    future.set_result(None)
                waiting.clear()
            return answer

    trials = run_search(base, settings, Later(), tmp_path / "several", jobs=3)
    alone = run_search(base, settings, Pretended(), tmp_path / "alone")
    assert most == 3
    assert [[t.candidate for t in trials[side]] for side in SIDES] == [[t.candidate for t in alone[side]] for side in SIDES]


def test_a_failed_run_is_tried_again(options: dict, tmp_path: Path) -> None:
    """It is no result: the search ends with its error, and goes on with it the next time."""
    base, settings = base_of(options), Settings(trials=4, epochs=1, held_out=50)
    with pytest.raises(RunFailedError, match=r"^rung 1 of 1, \w+, rate .*, seed 1000: ValueError: no good \(its traceback: "):
        run_search(base, settings, Pretended(fail=3), tmp_path / "parts")
    second = Pretended()
    expected = run_search(base, settings, Pretended(), tmp_path / "whole")
    assert run_search(base, settings, second, tmp_path / "parts") == expected
    assert second.trained == 5


@pytest.mark.slow
def test_end_to_end(options: dict, mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained for real: the search needs no test set, the confirmation measures on it, a second call trains nothing."""
    settings = Settings(trials=4, epochs=2, held_out=60, images=100, confirm=4)
    options = options | {LR: 0.1}
    base, home = base_of(options), tmp_path / "runs"
    pool = InProcess()
    trials = run_search(base, settings, pool, home)
    trained = pool.trained
    # four trials, some of them twice, on each side
    assert len(set(trained)) == len(trained) == sum(len(trial.errors) for side in SIDES for trial in trials[side]) > 8
    assert all(len(trials[side]) == 4 for side in SIDES)
    config = load_config(home / trained[0] / f"run_{trained[0]}.py")
    assert config.train_dataloader.dataset.part == "tune" and config.train_dataloader.dataset.num == 100
    assert config.val_dataloader.dataset.part == "held_out" and config.val_dataloader.dataset.held_out == 60
    with pytest.raises(BadDataFileError, match="t10k-images-idx3-ubyte"):
        confirm(base, settings, trials, pool.train, home)
    _write_test_set(mnist)
    trained.clear()
    again = run_search(base, settings, pool, home)
    assert trained == [] and again == trials
    monkeypatch.setattr(command, "WorkerPool", lambda jobs, home: pool)
    out = search_boost(CONFIG, options, settings, 1, tmp_path / "out", home, "tools/search_boost.py ...")
    assert len(trained) == 8
    searched, confirmed = (
        {load_config(home / key / f"run_{key}.py").randomness.seed for key in keys}
        for keys in (trials["softmax"][0].keys, trained)
    )
    assert searched == {1000} and confirmed == {0, 1, 2, 3}
    summary = json.loads((out / "summary.json").read_text())
    for side in SIDES:
        # no network has seen class 9
        assert summary["best"][side]["test_errors"] == [100] * 4 and summary["best"][side]["held_out_error"] < 90
    assert summary["answer"]["outcome"] == "not told apart" and summary["provenance"]["command"] == "tools/search_boost.py ..."
    rows = list(csv.DictReader((out / "trials.csv").open()))
    assert [(row["side"], row["trial"]) for row in rows] == [(side, str(k)) for side in SIDES for k in range(4)]
    for row, trial in zip(rows, [trial for side in SIDES for trial in trials[side]], strict=True):
        assert float(row["lr"]) == trial.candidate.rate and row["keys"].split() == trial.keys
        assert row["error_after_1"] == f"{trial.errors[0]:.4g}"
    text = (out / "README.md").read_text()
    assert "**Not told apart.**" in text and (out / "figure.png").stat().st_size > 10_000
    # what the page shows is what was trained
    shown: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], shown)
    best = best_of(trials["boosted"]).candidate
    assert (
        shown["model"]["head"]["loss"] == {"_delete_": True, **loss_of(best)}
        and shown["optim_wrapper"]["optimizer"]["lr"] == best.rate
    )


def _confirmed(errors: Sequence[float], diverged: int = 0) -> Confirmation:
    trial = Trial(Candidate("boosted", 0, "cubic", {}, 1.0, 0.1, {}))
    results = [RunResult([1], {"accuracy/top1": [100 - error]}, [1.0], None, 1.0, {}) for error in errors]
    return Confirmation(trial, results + [RunResult([1], {}, [1.0], 1, 1.0, {})] * diverged)


GOOD, POOR, WIDE = (_confirmed(errors) for errors in ([1.0, 1.1, 1.2, 1.3], [2.0, 2.1, 2.2, 2.3], [1.0, 2.0, 3.0, 4.0]))


@pytest.mark.parametrize(
    ("boosted", "softmax", "outcome"),
    [
        (GOOD, POOR, "better"),
        (POOR, GOOD, "worse"),
        (GOOD, WIDE, "not told apart"),
        (GOOD, GOOD, "not told apart"),
        (_confirmed([1.0, 1.1], diverged=1), POOR, "not told apart"),
        (_confirmed([], diverged=4), GOOD, "worse"),
        # too few are left to tell
        (GOOD, _confirmed([2.0, 2.1, 2.2], diverged=1), "not told apart"),
        (None, GOOD, "worse"),
        (GOOD, None, "better"),
        (None, None, "not told apart"),
    ],
)
def test_answer(boosted: Confirmation | None, softmax: Confirmation | None, outcome: str) -> None:
    """Better or worse where the intervals do not touch; an output that diverges is not better."""
    verdict = answer({"boosted": boosted, "softmax": softmax})
    assert verdict.outcome == outcome
    if boosted is GOOD:
        assert "1.15 [1.00, 1.30]% test error (4 seeds)" in verdict.because
    assert ("diverged" in verdict.because) == any(side is None or side.diverged > 0 for side in (boosted, softmax))


def test_diverged_before_anything_is_logged(options: dict, mnist: Path, tmp_path: Path) -> None:
    """It is recorded with its iteration and is no failure."""
    _write_test_set(mnist)
    options["model.head.loss"] = dict(_delete_=True, type="ExpGBLoss")
    run = Run("exponential", "search", 1e5, 0, 1, CONFIG, options, False, 1, False, tmp_path / "runs")
    InProcess().train([run])
    result = run.result()
    assert result.steps == [] and result.metrics == {} and 2 <= result.diverged <= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, s: s.update(trials=1), "at least two trials of each side, got 1"),
        (lambda o, s: s.update(epochs=0), "--epochs is at least 1, got 0"),
        (lambda o, s: s.update(confirm=3), "--confirm takes 4 to 1,000 seeds, got 3"),
        (lambda o, s: s.update(held_out=200), "of 200 training images 1 to 199 can be held out, got 200"),
        (lambda o, s: s.update(images=151), "150 training images are left beside the 50 held out, 151 were asked for"),
        (lambda o, s: s.update(seed=-1), "--seed is not negative"),
        (lambda o, s: s.update(sampler="grid"), "--sampler is 'random' or 'tpe', got 'grid'"),
        (
            lambda o, s: o.update({"val_dataloader.dataset.type": "MNIST"}),
            "val_dataloader.dataset is MNIST; search-boost holds",
        ),
        (lambda o, s: o.update({"val_evaluator.topk": (5,)}), "must be Accuracy with 1 in its topk"),
        (lambda o, s: o.update({"train_cfg": dict(_delete_=True, by_epoch=True, max_epochs=3)}), "counts no max_iters"),
        (lambda o, s: o.update({"train_dataloader.dataset.data_root": "nowhere"}), "train-images-idx3-ubyte"),
    ],
)
def test_refused(options: dict, tmp_path: Path, change: Callable[[dict, dict], None], message: str) -> None:
    """Before anything is trained."""
    settings: dict[str, Any] = dict(held_out=50)
    change(options, settings)
    with pytest.raises(ValueError, match=message):
        search_boost(CONFIG, options, Settings(**settings), 1, tmp_path / "out", tmp_path / "runs")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()


def test_no_classifier(tmp_path: Path) -> None:
    """A segmentation network has no top-1 error to compare."""
    with pytest.raises(ValueError, match=r"pixelnet_softmax\.py describes \w+ and no ImageClassifier"):
        search_boost(config_folder("gbseg") / "pixelnet_softmax.py", {}, Settings(), 1, tmp_path / "out", tmp_path / "runs")
