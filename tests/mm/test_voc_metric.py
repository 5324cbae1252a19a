"""`VOCMetric` against MMSegmentation's IoUMetric, in one process, in two, and under a real runner."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
from mmengine.dist import get_rank
from mmengine.registry import METRICS

from gbseg.evaluation.bootstrap import bootstrap_intervals
from gbseg.evaluation.table import score_table
from gbseg.mm import VOCMetric

CLASSES = tuple(f"class{i}" for i in range(21))


def _sample(index: int, folder: str = "JPEGImages", with_label: bool = True) -> dict:
    """One sample as mmseg's `SegDataSample.to_dict` gives it: every image of its own size, and five classes absent."""
    rng = np.random.default_rng(index)
    shape = (1, 12 + index, 17 - index)
    label = rng.integers(0, 16, shape)
    prediction = np.where(rng.random(shape) < 0.5, label, rng.integers(0, 16, shape))
    label[rng.random(shape) < 0.1] = 255
    sample = {
        "pred_sem_seg": {"data": torch.from_numpy(prediction)},
        "img_path": f"{folder}/2007_{index:06d}.jpg",
        "ori_shape": shape[1:],
    }
    if with_label:
        sample["gt_sem_seg"] = {"data": torch.from_numpy(label.astype(np.uint8))}
    return sample


def _metric(**settings: Any) -> VOCMetric:
    metric = METRICS.build({"type": "VOCMetric", **settings})
    metric.dataset_meta = {"classes": CLASSES}
    return metric


def _evaluated(samples: list[dict], **settings: Any) -> dict:
    metric = _metric(**settings)
    metric.process(None, samples[:2])
    metric.process(None, samples[2:])
    return metric.evaluate(len(samples))


def test_scores_against_mmseg() -> None:
    """Every score is that of MMSegmentation's IoUMetric, but unrounded."""
    mmseg_metrics = pytest.importorskip("mmseg.evaluation")
    samples = [_sample(i) for i in range(5)]
    reference = mmseg_metrics.IoUMetric()
    reference.dataset_meta = {"classes": CLASSES}
    reference.process(None, samples)
    areas = [sum(part) for part in zip(*reference.results, strict=True)]
    per_class = reference.total_area_to_metrics(*areas, metrics=["mIoU"])
    rounded = reference.evaluate(len(samples))

    metrics = _evaluated(samples)
    iou = [metrics[f"IoU/{name}"] for name in CLASSES]
    np.testing.assert_allclose(iou, 100 * per_class["IoU"], rtol=1e-6)  # mmseg counts in float32
    assert [name for name, value in zip(CLASSES, iou, strict=True) if math.isnan(value)] == list(CLASSES[16:])
    assert metrics["mIoU"] == pytest.approx(rounded["mIoU"], abs=0.0051)
    assert metrics["aAcc"] == pytest.approx(rounded["aAcc"], abs=0.0051)
    assert metrics["mIoU"] != round(metrics["mIoU"], 2)


def test_a_head_with_one_output() -> None:
    """MMSegmentation's label maps of it are floats. Without `class_numbers`: a TypeError; values between classes stay one."""
    sample = _sample(0)
    as_float = {**sample, "pred_sem_seg": {"data": sample["pred_sem_seg"]["data"].float()}}
    np.testing.assert_equal(_evaluated([as_float]), _evaluated([sample]))
    as_float["pred_sem_seg"]["data"] += 0.5
    with pytest.raises(TypeError, match="prediction must hold integer class numbers"):
        _evaluated([as_float])


def test_headline_and_keys() -> None:
    """The headline is the mean over its classes that occur; all keys carry the prefix and hold plain floats."""
    metrics = _evaluated([_sample(i) for i in range(3)], headline=["class1", "class4", "class20"], prefix="val")
    assert metrics["val/mIoU-3"] == pytest.approx((metrics["val/IoU/class1"] + metrics["val/IoU/class4"]) / 2, rel=1e-14)
    means = {f"val/{name}" for name in ("mIoU", "mIoU-3", "aAcc", "mAcc", "fwIoU", "mDice")}
    assert set(metrics) == means | {f"val/IoU/{name}" for name in CLASSES}
    assert all(type(value) is float for value in metrics.values())


def test_intervals() -> None:
    """The intervals are those of the images' own counts; without them nothing is kept, and one image has none."""
    samples = [_sample(i) for i in range(6)]
    metric = _metric(ci=300, headline=["class1", "class4"])
    metric.process(None, samples)
    metrics = metric.evaluate(6)
    counts = np.zeros((6, 3, 21), np.int64)
    for i, sample in enumerate(samples):
        prediction, label = (sample[key]["data"].numpy() for key in ("pred_sem_seg", "gt_sem_seg"))
        for c in range(21):
            kept = label != 255
            counts[i, :, c] = ((label == c) & (prediction == c)).sum(), (label == c).sum(), (kept & (prediction == c)).sum()
    expected = bootstrap_intervals(counts, [1, 4], resamples=300)
    assert metric.last is not None and repr(metric.last.intervals) == repr(expected)
    assert (metrics["mIoU/low"], metrics["mIoU/high"]) == tuple(100 * end for end in expected.miou)
    assert metrics["mIoU/low"] < metrics["mIoU"] < metrics["mIoU/high"]
    assert expected.headline_miou and metrics["mIoU-2/high"] == 100 * expected.headline_miou[1]
    assert "mIoU/low" not in _evaluated(samples)
    assert "mIoU/low" not in _evaluated(samples[:1], ci=True)
    with pytest.raises(ValueError, match="number of bootstrap resamples, not -5"):
        _metric(ci=-5)


def test_table() -> None:
    """The log's table has every class, the means, and the intervals behind them."""
    metric = _metric(ci=True, headline=["class1", "class4"])
    metric.process(None, [_sample(i) for i in range(6)])
    values = metric.evaluate(6)
    assert metric.last is not None and metric.last.intervals is not None
    lines = score_table(6, metric.last.scores, values, metric.last.intervals).splitlines()
    low, high = (100 * end for end in metric.last.intervals.miou)
    assert f"mIoU {values['mIoU']:.2f} [{low:.2f}, {high:.2f}]" in [" ".join(line.split()) for line in lines]
    row = next(line for line in lines if line.startswith("  class4 "))
    scores = metric.last.scores
    assert row.split()[1:3] == ["*", f"{100 * scores.iou[4]:.2f}"]
    assert row.split()[-3:] == [f"{100 * scores.dice[4]:.2f}", f"{100 * scores.accuracy[4]:.2f}", str(scores.labelled[4])]
    assert next(line for line in lines if "class20 " in line).split()[1:] == ["absent"]
    assert "class16, class17, class18, class19, class20" in lines[-1]


def test_nothing_waits_for_the_device() -> None:
    """An epoch's images pass without asking the device for a value: tensors of the meta device have none."""
    metric = _metric(ci=True)
    for _ in range(3):
        maps = {key: {"data": torch.zeros(1, 8, 9, dtype=torch.int64, device="meta")} for key in ("pred_sem_seg", "gt_sem_seg")}
        logits = {"data": torch.zeros(21, 8, 9, device="meta")}
        metric.process(None, [{**maps, "img_path": "a.jpg", "seg_logits": logits}])
    with pytest.raises((RuntimeError, NotImplementedError)):
        metric.evaluate(3)


def test_ranges_are_looked_for_where_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the overflow bins say at once whether the least and the greatest value are of interest."""
    calls = []
    real = torch.Tensor.aminmax
    monkeypatch.setattr(torch.Tensor, "aminmax", lambda tensor: calls.append(tensor) or real(tensor))
    metric, sample = _metric(), _sample(0)
    metric.process(None, [_sample(1)])
    assert not calls
    sample["gt_sem_seg"]["data"][0, 0, 0] = 77
    metric.process(None, [sample])
    assert len(calls) == 2
    with pytest.raises(ValueError, match=r"1 label\(s\) outside 0\.\.20 \(values go from 0 to 77\)"):
        metric.evaluate(2)


def test_unknown_headline() -> None:
    """An unknown headline class is refused with the first batch, not after the epoch."""
    metric = _metric(headline=["class1", "dog"])
    with pytest.raises(ValueError, match="'dog'; known are class0"):
        metric.process(None, [_sample(0)])


def test_reset() -> None:
    """Every epoch starts from nothing, after an error too."""
    metric = _metric()
    metric.process(None, [_sample(0)])
    first = metric.evaluate(1)
    bad = _sample(1)
    bad["pred_sem_seg"]["data"][0, 0, 0] = 21
    metric.process(None, [bad])
    with pytest.raises(ValueError, match="2007_000001"):
        metric.evaluate(1)
    metric.process(None, [_sample(0)])
    np.testing.assert_equal(metric.evaluate(1), first)


def test_out_of_range() -> None:
    """Values out of range raise at the end of the epoch, with the images' names, and are never dropped."""
    samples = [_sample(i) for i in range(4)]
    samples[1]["pred_sem_seg"]["data"][0, 0, :3] = torch.tensor([21, -1, 40])
    samples[3]["gt_sem_seg"]["data"][0, 1, 1] = 99
    metric = _metric()
    metric.process(None, samples)
    with pytest.raises(ValueError) as caught:
        metric.evaluate(4)
    assert str(caught.value) == (
        "2 of 4 images hold values that cannot be: "
        "2007_000001.jpg: 3 prediction(s) outside 0..20 (values go from -1 to 40); "
        "2007_000003.jpg: 1 label(s) outside 0..20 (values go from 0 to 99)"
    )


def test_wrong_use(tmp_path: Path) -> None:
    """Settings and samples that cannot work are refused with a message that says what to do."""
    with pytest.raises(ValueError, match="needs an out_dir"):
        _metric(format_only=True)
    with pytest.raises(KeyError, match=r"2007_000000.jpg has no gt_sem_seg.*format_only=True"):
        _metric().process(None, [_sample(0, with_label=False)])
    sample = _sample(0)
    sample["gt_sem_seg"]["data"] = sample["gt_sem_seg"]["data"][:, :-1]
    with pytest.raises(ValueError, match=r"2007_000000.jpg: prediction is \(12, 17\) and label is \(11, 17\)"):
        _metric().process(None, [sample])
    with pytest.raises(ValueError, match="seen no image"):
        _metric().evaluate(0)
    metric = _metric()
    metric.process(None, [_sample(i) for i in range(3)])
    with pytest.raises(ValueError, match="seen 3 images, but the set holds 2"):
        metric.evaluate(2)
    with pytest.raises(ValueError, match=r"a/2007_000000.jpg and b/2007_000000.jpg would both"):
        _metric(out_dir=tmp_path).process(None, [_sample(0, "a"), _sample(0, "b")])
    metric = VOCMetric()
    with pytest.raises(ValueError, match="no metainfo with class names"):
        metric.process(None, [_sample(0)])


def test_pngs(tmp_path: Path) -> None:
    """Predictions come back from their PNGs: mode P, VOC's palette, original size, named by the image's stem."""
    samples = [_sample(i, with_label=False) for i in range(3)]
    height, width = samples[2]["ori_shape"]
    samples[2]["ori_shape"] = (2 * height, 2 * width)
    assert _evaluated(samples, out_dir=tmp_path / "png", format_only=True) == {}
    # no half-written file is left beside them
    assert sorted(p.name for p in (tmp_path / "png").iterdir()) == [f"2007_{i:06d}.png" for i in range(3)]
    for i, sample in enumerate(samples):
        image = Image.open(tmp_path / "png" / f"2007_{i:06d}.png")
        values = sample["pred_sem_seg"]["data"][0].numpy()
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), values.repeat(2, 0).repeat(2, 1) if i == 2 else values)
    # colours of VOC's devkit, from its own label files
    known = {0: (0, 0, 0), 1: (128, 0, 0), 8: (64, 0, 0), 12: (64, 0, 128), 15: (192, 128, 128), 255: (224, 224, 192)}
    palette = image.getpalette()
    assert palette is not None and len(palette) == 768
    assert {value: tuple(palette[3 * value : 3 * value + 3]) for value in known} == known


def test_png_out_of_range(tmp_path: Path) -> None:
    """A prediction that a PNG cannot hold is not written at all."""
    sample = _sample(0)
    sample["pred_sem_seg"]["data"][0, 0, 0] = 256
    with pytest.raises(ValueError, match=r"2007_000000.jpg: predictions 0..256 are out of range 0..20"):
        _metric(out_dir=tmp_path).process(None, [sample])
    assert list(tmp_path.iterdir()) == []


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    samples = [_sample(i) for i in range(5)]
    mine = [samples[i] for i in ([0, 2, 4], [1, 3, 0])[rank]]  # as DefaultSampler deals out five: the first again
    metric = _metric(headline=["class1", "class4"], ci=200)
    metric.process(None, mine)
    metrics = metric.evaluate(5)
    mine[1]["pred_sem_seg"]["data"][0, 0, 0] = 21 + rank
    metric.process(None, mine)
    message = ""
    try:
        metric.evaluate(5)
    except ValueError as error:
        message = str(error)
    clash, broken = "", ""
    metric = _metric(out_dir=f"{folder}/png")
    metric.process(None, [_sample(0, "ab"[rank])])
    try:
        metric.evaluate(2)
    except ValueError as error:
        clash = str(error)
    metric = _metric(out_dir=f"{folder}/png", format_only=True)
    metric.process(None, [{**_sample(rank, with_label=False), "seg_logits": {"data": torch.zeros(21, 3, 3) / (1 - rank)}}])
    try:
        metric.evaluate(2)
    except ValueError as error:
        broken = str(error)
    torch.save((metrics, message, clash, broken, get_rank()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """Two processes count what one counts, the repeated image once, and both stop at a fault of either."""
    torch.multiprocessing.start_processes(_one_of_two, (str(tmp_path),), nprocs=2, start_method="forkserver")
    expected = _evaluated([_sample(i) for i in range(5)], headline=["class1", "class4"], ci=200)
    for rank in range(2):
        metrics, message, clash, broken, its_rank = torch.load(tmp_path / f"{rank}.pt")
        assert its_rank == rank
        np.testing.assert_equal(metrics, expected)
        # both processes stop, and both name the images of both
        assert "2007_000002.jpg" in message and "2007_000003.jpg" in message and "2 of 5 images" in message
        assert clash == f"a/2007_000000.jpg and b/2007_000000.jpg were both written as {tmp_path}/png/2007_000000.png"
        assert "1 of 2 images" in broken and "2007_000001.jpg: logits" in broken


def test_runner(tmp_path: Path) -> None:
    """MMEngine's runner finds the metric, validates with it and keeps the best checkpoint by its keys."""
    from mmengine.model import BaseModel
    from mmengine.runner import Runner
    from mmengine.structures import BaseDataElement, PixelData

    class Echo(BaseModel):
        """Predicts what it is given; one weight, so that there is something to train and save."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, inputs: torch.Tensor, label: torch.Tensor, mode: str = "tensor") -> Any:
            """Give mmseg's kind of samples, or a loss."""
            if mode == "loss":
                return {"loss": self.weight**2}
            made = []
            for image, target in zip(inputs, label, strict=True):
                sample = BaseDataElement(metainfo={"img_path": "a.jpg", "ori_shape": tuple(image.shape[1:])})
                sample.set_data({"pred_sem_seg": PixelData(data=image), "gt_sem_seg": PixelData(data=target)})
                made.append(sample)
            return made

    class Pairs(torch.utils.data.Dataset):
        """Two images of 4 x 4 pixels: all of class a, a quarter of the second taken for b."""

        metainfo = {"classes": ("a", "b")}  # noqa: RUF012

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> dict:
            prediction = torch.zeros(1, 4, 4, dtype=torch.int64)
            prediction[:, 0] = index
            return {"inputs": prediction, "label": torch.zeros(1, 4, 4, dtype=torch.uint8)}

    loader = {"batch_size": 2, "num_workers": 0, "dataset": Pairs(), "sampler": {"type": "DefaultSampler"}}
    keep = {"type": "CheckpointHook", "interval": -1, "by_epoch": False, "save_best": ["mIoU", "mIoU-1"]}
    runner = Runner(
        model=Echo(),
        work_dir=str(tmp_path),
        train_dataloader=loader,
        val_dataloader=loader,
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": 2, "val_interval": 1},
        val_cfg={},
        val_evaluator={"type": "VOCMetric", "headline": ["a"]},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        default_hooks={"checkpoint": keep},
        log_processor={"by_epoch": False},
        experiment_name=tmp_path.name,
        log_level="WARNING",
    )
    runner.train()
    # class a: 28 of 32 pixels right; class b: 4 predicted, none right
    assert runner.message_hub.get_info("best_score_mIoU") == 43.75
    assert runner.message_hub.get_info("best_score_mIoU-1") == 87.5
    assert len(list(tmp_path.glob("best_mIoU_iter_*.pth"))) == len(list(tmp_path.glob("best_mIoU-1_iter_*.pth"))) == 1


@pytest.mark.parametrize("format_only", [False, True])
@pytest.mark.parametrize("field", ["seg_logits", "probabilities"])
@pytest.mark.parametrize(
    ("value", "place", "broken"),
    [
        (math.nan, np.s_[4, 2, 3], True),
        (math.inf, np.s_[4, 2, 3], True),
        (-math.inf, np.s_[:, 2, 3], True),
        (-math.inf, np.s_[4, 2, 3], False),
        (-math.inf, np.s_[:20], False),
    ],
)
def test_logits_that_are_no_numbers(
    value: float, place: Any, broken: bool, field: str, format_only: bool, tmp_path: Path
) -> None:
    """A network that gives NaN has labels too, and a score that would look like one; a class ruled out is no fault."""
    metric = _metric(format_only=format_only, out_dir=tmp_path if format_only else None)
    for number in range(3):
        sample = _sample(number, with_label=not format_only)
        logits = torch.randn(21, *sample["pred_sem_seg"]["data"].shape[1:])
        if number == 1:
            logits[place] = value
        metric.process(None, [{**sample, field: {"data": logits}}])
    if broken:
        with pytest.raises(ValueError, match=r"1 of 3 images .*2007_000001.*: logits that are not finite numbers"):
            metric.evaluate(3)
    else:
        assert metric.evaluate(3).get("mIoU", 1.0) > 0


def test_images_without_a_file() -> None:
    """They go by their mask's name, or by their position in the set."""
    sample = _sample(0)
    sample["pred_sem_seg"]["data"][0, 0, 0] = 21
    sample.pop("img_path")
    metric = _metric()
    metric.process(None, [{**sample, "seg_map_path": "masks/a.png"}, sample])
    with pytest.raises(ValueError, match=r"2 of 2 images hold .*: a\.png: 1 prediction.*; image 1: 1 prediction"):
        metric.evaluate(2)


def test_colours_of_the_data_set(tmp_path: Path) -> None:
    """PNGs have the data set's colours where it has some, and VOC's for the values that are no class."""
    metric = _metric(out_dir=tmp_path)
    metric.dataset_meta = {"classes": CLASSES, "palette": [[9, 8, i] for i in range(21)]}
    metric.process(None, [_sample(0)])
    with Image.open(tmp_path / "2007_000000.png") as image:
        palette = np.array(image.getpalette()).reshape(-1, 3)
    assert palette[:21].tolist() == metric.dataset_meta["palette"]
    assert palette[[21, 255]].tolist() == [[128, 64, 128], [224, 224, 192]]


def test_more_classes_than_a_png_holds(tmp_path: Path) -> None:
    """Of 300 classes the first 256 can be written; the message speaks of the file, as the class itself is right."""
    metric = _metric(out_dir=tmp_path, ignore_index=-1)
    metric.dataset_meta = {"classes": tuple(map(str, range(300)))}
    sample = _sample(0)
    sample["pred_sem_seg"]["data"][0, 0, 0] = 255
    metric.process(None, [sample])
    with Image.open(tmp_path / "2007_000000.png") as image:
        assert image.getpixel((0, 0)) == 255
    sample["pred_sem_seg"]["data"][0, 0, 0] = 299
    with pytest.raises(ValueError, match=r"2007_000000.jpg: a prediction of class 299 cannot .*: a PNG holds 256 classes"):
        metric.process(None, [sample])
