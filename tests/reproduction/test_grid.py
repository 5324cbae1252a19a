"""Claims, their grids, what a sweep chooses, and the processes that run them."""

from __future__ import annotations

import os
from pathlib import Path

import processes
import pytest
from conftest import CONFIGS, ROOT
from grids import put, tiny
from mmengine.registry import DATASETS, DefaultScope

from reproduction import pool as pool_module
from reproduction import runs as runs_module
from reproduction import worker
from reproduction.grid import Claim, Grid, SweepResult, load_claim
from reproduction.pool import RunFailedError, train_runs
from reproduction.verdicts import VERDICTS

COMMITTED = sorted(path.stem for path in (CONFIGS / "reproduction").glob("*.py"))


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"budget": "huge"}, "tiny: budget is one of full, small, got 'huge'"),
        ({}, {"trials": 0}, "at least one trial is needed, got 0"),
        ({}, {"trials": -1}, "at least one trial is needed, got -1"),
        ({"arms.linear.rates": [0.1]}, {}, "at least two rates to choose from; linear has fewer"),
        ({"arms.linear.rates": [0.1, 0.1]}, {}, "at least two rates to choose from; linear has fewer"),
        ({"arms.linear.rates": [0.1, 0.2, 0.3]}, {}, r"same number of rates.*'linear': 3, 'softmax': 2"),
        ({"sweep.choose": "median"}, {}, "'min', 'last' or 'mean'.*got 'median'"),
        (
            {"contests": dict(one=dict(boosted=["linear"], softmax=["linear", "softmax"]))},
            {},
            r"tiny: both sides of the contest 'one' get as many tries .*'boosted': 2, 'softmax': 4",
        ),
        ({"together": 2, "final.every": 2}, {}, "tiny: runs trained together are measured after every epoch"),
    ],
)
def test_claims_that_make_no_sense(claims: Path, mnist: Path, changes: dict, arguments: dict, message: str) -> None:
    tiny(claims, mnist, **changes)
    with pytest.raises(ValueError, match=message):
        load_claim("tiny", **arguments)


def test_an_unknown_claim(claims: Path, mnist: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no config .*reproduction.nothing\.py"):
        load_claim("nothing")


def test_a_budget_is_laid_over_the_claim(claims: Path, mnist: Path) -> None:
    tiny(claims, mnist)
    full, small = load_claim("tiny"), load_claim("tiny", "small", trials=7)
    assert (full.label, small.label) == ("tiny", "tiny_small")
    assert (full.settings.final.trials, small.settings.final.trials) == (3, 7)
    assert (full.settings.sweep.epochs, small.settings.sweep.epochs) == (2, 1)
    assert full.settings.arms == small.settings.arms and small.settings.sweep.held_out == 100


def budgets(name: str) -> list[str]:
    return ["full", *load_claim(name).settings.get("budgets", {})]


@pytest.mark.usefixtures("parsed_once")
@pytest.mark.parametrize(("name", "budget"), [(name, budget) for name in COMMITTED for budget in budgets(name)])
def test_a_committed_claim_can_be_run(name: str, budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs have configs, which are distinct, and it is tuned on images that it neither trains on nor is judged by."""
    monkeypatch.chdir(ROOT)
    # the number of images, which the length of a run is made of, without the data
    monkeypatch.setattr(runs_module, "count_images", lambda dataset, scope: 10_000)
    claim = load_claim(name, budget)
    assert claim.settings.verdict in VERDICTS
    grid = Grid(claim)
    runs = grid.sweep()
    chosen = SweepResult({}, 0.12345)
    runs += [run for run in grid.final(dict.fromkeys(claim.settings.arms, chosen)) if run.seed == 0]
    keys = [run.key for run in runs]
    assert len(set(keys)) == len(keys)
    seen = {}
    for run in runs:
        config = run.resolved
        assert config.optim_wrapper.optimizer.lr == run.rate and config.randomness.seed == run.seed
        assert config.train_cfg.max_iters == round(run.epochs * run.epoch)
        parts = [loader.dataset.to_dict() for loader in (config.train_dataloader, config.val_dataloader)]
        seen[run.stage] = seen.get(run.stage, [*parts])
        # all arms see the same images
        assert seen[run.stage] == parts
    (tune, held_out), (final, test) = seen["sweep"], seen["final"]
    if tune["type"] in ("ArrayImages", "ClassFolders"):
        assert (tune["part"], held_out["part"]) == ("tune", "held_out")
        assert tune["held_out"] == held_out["held_out"] > 0 and "num" not in held_out
        if tune["type"] == "ArrayImages":
            assert (final["part"], test["part"]) == ("train", "test")
        else:
            assert tune["data_prefix"] == held_out["data_prefix"] == final["data_prefix"] == "train"
            assert "part" not in final and test["data_prefix"] == "val"
    else:
        # VOC: one list, of which the sweep trains on the beginning and is judged on the end
        assert tune["type"] == "VOCSegmentation" and tune["ann_file"] == held_out["ann_file"] == final["ann_file"]
        images = {"ImageSets/Segmentation/paper_train.txt": 8398, "ImageSets/Segmentation/train.txt": 464}[tune["ann_file"]]
        assert tune["indices"] > 0 > held_out["indices"] and tune["indices"] - held_out["indices"] == images
        assert "indices" not in final and test["ann_file"] != final["ann_file"]


def test_held_out_images(claims: Path, mnist: Path) -> None:
    """The sweep trains on some training images, is judged on the others, and on none of the test's."""
    tiny(claims, mnist)
    grid = Grid(load_claim("tiny"))
    config = grid.sweep()[0].resolved
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        final = grid.final({"linear": SweepResult({}, 0.1), "softmax": SweepResult({}, None)})
        assert {run.arm for run in final} == {"linear"}
        loaders = [*(config[name] for name in ("train_dataloader", "val_dataloader"))]
        loaders += [final[0].resolved[name] for name in ("train_dataloader", "val_dataloader")]
        tune, held_out, train, test = (
            {image.numpy().tobytes() for image in DATASETS.build(one.dataset.to_dict()).pixels} for one in loaders
        )
    assert (len(tune), len(held_out), len(train), len(test)) == (500, 100, 600, 200)
    assert tune | held_out == train and not tune & held_out and not train & test


@pytest.mark.parametrize("choose", ["min", "last", "mean"])
def test_what_a_sweep_chooses(claims: Path, mnist: Path, tmp_path: Path, choose: str) -> None:
    """The lowest mean over the seeds of what ``choose`` names; here by hand for every rule."""
    errors = {0.1: [[30, 40], [10, 60]], 0.2: [[45, 20], [25, 40]], 0.4: [[33, 33], [31, 31]]}
    by_hand = {
        "min": {0.1: 20, 0.2: 22.5, 0.4: 32},
        "last": {0.1: 50, 0.2: 30, 0.4: 32},
        "mean": {0.1: 35, 0.2: 32.5, 0.4: 32},
    }[choose]
    best = min(by_hand, key=by_hand.__getitem__)
    rates = {"arms.linear.rates": list(errors), "arms.softmax.rates": [1.0, 2.0, 3.0], "sweep.seeds": 2}
    tiny(claims, mnist, **rates, **{"sweep.choose": choose})
    grid = Grid(load_claim("tiny"), tmp_path / "home")
    for run in grid.sweep():
        if run.arm == "linear":
            put(run, errors[run.rate][run.seed - 1000])
    results = grid.sweep_results()
    assert results["linear"].scores == pytest.approx(by_hand)
    assert results["linear"].best == best and results["linear"].at_edge == (best != 0.2)
    assert [run.rate for run in grid.final(results)] == [best] * 3
    # nothing was run of the other arm: it did not diverge
    assert (results["softmax"].scores, results["softmax"].best, results["softmax"].missing) == ({}, None, 3)
    assert not results["softmax"].diverged


def test_rates_that_diverged_or_are_missing(claims: Path, mnist: Path, tmp_path: Path) -> None:
    """One seed that diverges is enough to lose a rate; an arm waits for the last of its runs."""
    rates = {f"arms.{arm}.rates": [0.1, 0.2, 0.4] for arm in ("linear", "softmax")}
    tiny(claims, mnist, **rates, **{"sweep.seeds": 2})
    grid = Grid(load_claim("tiny"), tmp_path / "home")
    sweep = grid.sweep()
    for run in sweep:
        if run.arm == "linear" and (run.rate, run.seed) != (0.1, 1001):
            # the lowest errors by far, before it diverged
            diverged = (run.rate, run.seed) == (0.4, 1001)
            put(run, [1, 1] if run.rate == 0.4 else [50, 50], diverged=9 if diverged else None)
        elif run.arm == "softmax":
            put(run, [], diverged=1)
    results = grid.sweep_results()
    assert results["linear"].scores == {0.2: 50, 0.4: None}
    assert (results["linear"].best, results["linear"].missing, results["linear"].diverged) == (None, 1, False)
    assert results["softmax"].scores == {0.1: None, 0.2: None, 0.4: None}
    assert (results["softmax"].best, results["softmax"].missing, results["softmax"].diverged) == (None, 0, True)
    assert grid.final(results) == []
    put(next(run for run in sweep if (run.arm, run.rate, run.seed) == ("linear", 0.1, 1001)), [60, 60])
    result = grid.sweep_results()["linear"]
    assert (result.scores, result.best, result.missing) == ({0.1: 55, 0.2: 50, 0.4: None}, 0.2, 0)
    # a rate above it was tried
    assert not result.at_edge


def test_a_metric_that_was_not_measured(claims: Path, mnist: Path, tmp_path: Path) -> None:
    tiny(claims, mnist, metric="accuracy/top3")
    grid = Grid(load_claim("tiny"), tmp_path / "home")
    for run in grid.sweep():
        put(run, [50.0])
    with pytest.raises(ValueError, match=r"tiny: its metric 'accuracy/top3' was not measured; accuracy/top1 was"):
        grid.sweep_results()


def test_batches_of_equal_size(claims: Path, mnist: Path) -> None:
    tiny(claims, mnist, **{"sweep.seeds": 6})
    runs = Grid(load_claim("tiny")).sweep()
    batches = list(pool_module._batches(runs, 10))
    assert [len(batch) for batch in batches] == [6, 6, 6, 6]
    # in turn: an interrupted grid has as many runs of every arm
    assert {batch[0].arm for batch in batches[:2]} == {"softmax", "linear"}
    assert all(len({run.arm for run in batch}) == 1 for batch in batches)
    assert sorted(run.key for batch in batches for run in batch) == sorted(run.key for run in runs)
    assert [len(batch) for batch in pool_module._batches(runs, 0)] == [1] * 24


@pytest.fixture
def light(claims: Path, mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grid:
    """A grid whose processes are real and train nothing."""
    tiny(claims, mnist)
    monkeypatch.setattr(worker, "init_worker", processes.init_worker)
    monkeypatch.setattr(worker, "train_folders", processes.work)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "helpers"), str(ROOT)]))
    return Grid(load_claim("tiny"), tmp_path / "home")


def test_a_broken_run_does_not_stop_the_others(light: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = light.sweep()
    monkeypatch.setenv("BREAK", runs[1].key)
    said: list[str] = []
    with pytest.raises(RunFailedError, match=r"^sweep linear, rate .*: no good \(its traceback: .*process_\*\.log\)$"):
        train_runs(runs, 2, log=said.append)
    assert [run.result() is not None for run in runs] == [True, False, True, True]
    assert len(said) == 4 and sum("failed" in line for line in said) == 1
    assert [line.split("]")[0] for line in said] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    # the same again runs only what has no result
    monkeypatch.setenv("BREAK", "")
    said.clear()
    train_runs(runs, 2, log=said.append)
    assert said[0] == "3 of 4 runs are there already." and len(said) == 2 and "[1/1]" in said[1]
    assert all(run.result() for run in runs)
    said.clear()
    train_runs(runs, 2, log=said.append)
    assert said == ["4 of 4 runs are there already."]


def test_a_killed_process_is_said_once(light: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = light.sweep()
    monkeypatch.setenv("KILL", runs[1].key)
    with pytest.raises(RunFailedError, match=r"^a process of the grid was killed, .* what is done stays done\.$"):
        train_runs(runs, 1, log=lambda text: None)
    assert runs[0].result() is not None and runs[1].result() is None
    monkeypatch.setenv("KILL", "")
    train_runs(runs, 1, log=lambda text: None)
    assert all(run.result() for run in runs)


def test_equal_runs_are_run_once(claims: Path, mnist: Path, light: Grid, tmp_path: Path) -> None:
    """Two arms that differ in their names alone."""
    tiny(claims, mnist, **{"arms.softmax.config": "classification/mnist_linear.py"})
    grid = Grid(Claim("tiny", "full", load_claim("tiny").settings), tmp_path / "home")
    said: list[str] = []
    train_runs(grid.sweep(), 1, log=said.append)
    # four runs, of which one is of both arms
    assert sum("]" in line for line in said) == 3
    assert all(run.result() for run in grid.sweep())
