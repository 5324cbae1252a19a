"""The data stream alone, and whole runs: killed anywhere, resumed, and compared bit for bit with one left in peace."""

import pickle
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
import engine_tiny as tiny
from mmengine.dataset import InfiniteSampler
from torch.utils.data import DataLoader

from gbseg.mm import resumable_sampler as position
from gbseg.mm.loops import ResumableIterLoop
from gbseg.mm.resumable_sampler import ResumableSampler, SampleIndex, SeededDataset, iterations_per_epoch
from gbseg.mm.rng import preserved_rng, rng_state, set_rng_state


def _take(sampler: ResumableSampler, count: int) -> list[tuple[int, int]]:
    return [(int(draw), draw.draw) for draw, _ in zip(sampler, range(count), strict=False)]


def _sampler(size: int = 7, rank: int = 0, world: int = 1, monkeypatch: Any = None, **kwargs: Any) -> ResumableSampler:
    if monkeypatch:
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda: (rank, world))
    return ResumableSampler(range(size), seed=3, **kwargs)


def test_epochs() -> None:
    """Every epoch holds every image once, in an order of its own."""
    images = [image for image, _ in _take(_sampler(), 21)]
    epochs = [images[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [image for image, _ in _take(_sampler(shuffle=False), 9)] == [0, 1, 2, 3, 4, 5, 6, 0, 1]


@pytest.mark.parametrize("start", [0, 1, 6, 7, 20, 29])
def test_late_start(start: int) -> None:
    """A sampler that is started late goes on as one that was started early."""
    late = _sampler()
    late.skip(start)
    assert _take(late, 10) == _take(_sampler(), 40)[start : start + 10]


def test_late_start_costs_nothing() -> None:
    """Nothing is replayed."""
    late = _sampler()
    late.skip(10**15)
    assert _take(late, 1)[0][1] == 10**15


def test_processes_share_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes together draw what one would draw."""
    whole = _take(_sampler(), 24)
    shares = [_take(_sampler(rank=rank, world=3, monkeypatch=monkeypatch), 8) for rank in range(3)]
    assert [shares[draw % 3][draw // 3] for draw in range(24)] == whole
    assert len(_sampler(rank=1, world=3, monkeypatch=monkeypatch)) == 3


@pytest.mark.parametrize("kind", [ResumableSampler, InfiniteSampler])
def test_iterations_of_an_epoch(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as two processes need until every image has been drawn."""
    monkeypatch.setattr(position, "get_world_size", lambda: 2)
    loaders = []
    for rank in range(2):
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda rank=rank: (rank, 2))
        dataset = list(range(10))
        loaders.append(DataLoader(dataset, batch_size=2, sampler=kind(dataset, shuffle=False, seed=0), collate_fn=list))
    drawn: set[int] = set()
    count = 0
    streams = [iter(loader) for loader in loaders]
    while len(drawn) < 10:
        drawn.update(*map(next, streams))
        count += 1
    assert [iterations_per_epoch(loader) for loader in loaders] == [count, count] == [3, 3]
    with pytest.raises(ValueError, match="has no length"):
        iterations_per_epoch(number for number in range(3))


def test_sampler_errors() -> None:
    """An empty data set and a negative position are refused."""
    with pytest.raises(ValueError, match="empty"):
        ResumableSampler([])
    with pytest.raises(ValueError, match="negative"):
        _sampler().skip(-1)


def test_draw() -> None:
    """A draw is an index, and keeps what it knows on the way to a worker."""
    draw = pickle.loads(pickle.dumps(SampleIndex(4, 123, 9)))
    assert [10, 11, 12, 13, 14][draw] == 14
    assert (draw.draw, draw.seed) == (123, 9)


def _dataset(**kwargs: Any) -> SeededDataset:
    return SeededDataset({"type": "TinyDataset", "pipeline": [{"type": "TinyAugment"}], **kwargs})


def test_sample_depends_on_its_draw_alone() -> None:
    """Not on what was drawn before, nor on the generators of the process."""
    dataset = _dataset()
    first = dataset[SampleIndex(2, 40, 1)]["inputs"]
    dataset[SampleIndex(5, 41, 1)]
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    assert torch.equal(dataset[SampleIndex(2, 40, 1)]["inputs"], first)
    assert not torch.equal(dataset[SampleIndex(2, 50, 1)]["inputs"], first)
    assert not torch.equal(dataset[SampleIndex(2, 40, 2)]["inputs"], first)


def test_sample_leaves_the_generators_alone() -> None:
    """Without workers, dropout draws what it draws with them."""
    dataset, before = _dataset(), rng_state()
    dataset[SampleIndex(0, 0, 0)]
    assert tiny.differences(before, rng_state()) == []


def test_wrapped_dataset_shows_through() -> None:
    """What hooks and loaders ask of a data set is answered by the wrapped one."""
    dataset = pickle.loads(pickle.dumps(_dataset()))
    assert dataset.metainfo["classes"] == ("a", "b", "c")
    assert dataset.get_data_info(3)["number"] == 3
    assert len(dataset) == 10
    assert [sample.keys() for sample in dataset.__getitems__([1, 2])] == [dataset[1].keys()] * 2
    assert dataset[4]["number"] == 4


def test_albumentations() -> None:
    """Transforms with generators of their own follow the draw, each independently."""
    pytest.importorskip("mmseg")
    from mmseg.datasets.transforms import Albu

    either = {"type": "OneOf", "transforms": [{"type": "VerticalFlip", "p": 1}], "p": 0.5}
    albu = Albu([{"type": "HorizontalFlip", "p": 0.5}, either])

    class Images:
        def __init__(self) -> None:
            self.pipeline = [albu]

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> np.ndarray:
            image = np.zeros((2, 2, 3), np.uint8)
            image[0, 0] = 1
            return self.pipeline[0].transform({"img": image})["img"][..., 0]

    dataset = SeededDataset(Images())
    places = [int(np.argmax(dataset[SampleIndex(0, draw, 1)])) for draw in range(200)]
    assert places == [int(np.argmax(dataset[SampleIndex(0, draw, 1)])) for draw in range(200)]
    # both flips, independently: one seed for both would only ever give 0 and 3
    counts = np.bincount(places, minlength=4)
    assert counts.min() > 25, counts


def test_rng_state(tmp_path: Path) -> None:
    """The states go through a file that is read with weights_only, and can be put back."""
    state = rng_state()
    torch.save(state, tmp_path / "state.pth")
    drawn = [random.gauss(0, 1), np.random.randn(), torch.rand(2)]  # noqa: NPY002
    set_rng_state(torch.load(tmp_path / "state.pth", weights_only=True))
    again = [random.gauss(0, 1), np.random.randn(), torch.rand(2)]  # noqa: NPY002
    assert tiny.differences(drawn, again) == []
    with preserved_rng() as before:
        torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    assert tiny.differences(before, rng_state()) == []


def test_loop_refuses_other_samplers(tmp_path: Path) -> None:
    """A sampler without a position is refused, and the message says which to use."""
    assert tiny.run(tmp_path, **{"train_dataloader.sampler": {"type": "InfiniteSampler", "_delete_": True}}) == 1
    assert "TypeError: ResumableIterLoop needs train_dataloader" in tiny.output(tmp_path)
    assert "InfiniteSampler" in tiny.output(tmp_path)


def test_loop_takes_a_loader(tmp_path: Path) -> None:
    """A DataLoader that is already built is seeded all the same."""
    data = tiny.TinyDataset(pipeline=[{"type": "TinyAugment"}])
    loader = DataLoader(data, batch_size=2, sampler=ResumableSampler(data, seed=1), collate_fn=list)
    loop = ResumableIterLoop(SimpleNamespace(visualizer=SimpleNamespace()), loader, max_iters=3)
    first, second = (next(iter(loop.dataloader))[0]["inputs"] for _ in range(2))
    assert torch.equal(first, second)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of runs that nobody killed, by the iterations between validations."""
    base = tmp_path_factory.mktemp("undisturbed")
    assert tiny.run(base / "4") == 0
    assert tiny.run(base / "3", val=3) == 0
    return {val: tiny.result(base / str(val)) for val in (3, 4)}


def test_workers_and_validation_do_not_matter(undisturbed: dict, tmp_path: Path) -> None:
    """Neither changes what is trained."""
    assert tiny.run(tmp_path / "workers", workers=2) == 0
    assert tiny.differences(undisturbed[4], tiny.result(tmp_path / "workers")) == []
    weights, others = undisturbed[3]["state_dict"], undisturbed[4]["state_dict"]
    assert tiny.differences(weights, others) == []
    rng, others = (undisturbed[val]["training_state"]["processes"][0]["rng"] for val in (3, 4))
    assert tiny.differences(rng, others) == []


def test_the_run_is_random(undisturbed: dict) -> None:
    """Every iteration differs; otherwise the comparisons here would hold trivially."""
    losses = undisturbed[4]["curves"]["train/loss"]
    assert len(set(losses)) == tiny.MAX_ITERS
    # of a validation, what the log processor's window needs
    assert len(undisturbed[4]["curves"]["val/score"]) == 1
    assert undisturbed[4]["kept"] == ["iter_12.pth", "iter_9.pth"]


# tests/faults/run.py has many more
KILLS = [("before_train_iter", 1), ("after_train_iter", 3), ("after_val_iter", 8)]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "at"), KILLS)
def test_killed_and_resumed(undisturbed: dict, tmp_path: Path, stage: str, at: int) -> None:
    """Killed by SIGKILL at one stage of one iteration."""
    assert tiny.run(tmp_path, kill=(stage, at)) == -9
    assert tiny.run(tmp_path, resume=True) == 0
    assert tiny.differences(undisturbed[4], tiny.result(tmp_path)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "at"), [("after_val_iter", 8)])
def test_killed_and_resumed_with_workers(undisturbed: dict, tmp_path: Path, stage: str, at: int) -> None:
    """The same with two workers, which have prefetched beyond the kill."""
    assert tiny.run(tmp_path, kill=(stage, at), workers=2) == -9
    assert tiny.run(tmp_path, resume=True, workers=2) == 0
    assert tiny.differences(undisturbed[4], tiny.result(tmp_path)) == []


@pytest.mark.parametrize("stage", ["before_val_epoch", "after_val"])
def test_validation_is_made_up_for(undisturbed: dict, tmp_path: Path, stage: str) -> None:
    """A kill between a checkpoint and the validation of the same iteration leaves no hole in the curve."""
    assert tiny.run(tmp_path, kill=(stage, 3), val=3) == -9
    printed = len(tiny.output(tmp_path))
    assert tiny.run(tmp_path, resume=True, val=3) == 0
    rest = tiny.output(tmp_path)[printed:]
    assert "resumed epoch: 0, iter: 3" in rest
    assert tiny.differences(undisturbed[3], tiny.result(tmp_path)) == []
    first = next(line for line in rest.splitlines() if "Iter(" in line)
    # the first result is the best so far, so that the checkpoint was written again with it: then it is not due any more
    assert ("Iter(val)" in first) == (stage == "before_val_epoch"), first
