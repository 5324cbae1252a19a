"""The report of a real test of PixelNet on generated scenes, in one process and in two."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_tiny import SERVER
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS, MODELS, TRANSFORMS, init_default_scope
from mmseg.evaluation import IoUMetric
from PIL import Image
from sklearn.metrics import confusion_matrix

from gbseg.data.scenes import write_scenes
from gbseg.evaluation.calibration import Calibration
from gbseg.losses.modules import Pow3GBLoss
from gbseg.mm.config import load_config
from gbseg.mm.report_metric import add_voc_metric
from gbseg.palettes import VOC_CLASSES
from gbseg.prediction.testing import test as evaluate

ROOT = Path(__file__).parents[2]
IMAGES = 5  # an odd number: of two processes one sees the first image again
HEADLINE = ("background", "cat", "dog")


def _config(root: Path) -> Config:
    config = load_config(ROOT / "configs/demo_expgb.py")
    config.pop("runs")
    config.test_dataloader.dataset.data_root = str(root / "voc")
    config.test_evaluator.headline = HEADLINE
    config.model.backbone.width = 0.05
    config.model.decode_head.update(in_channels=(3, 6, 13, 26, 26), hidden=(8, 8))
    # pow3-GB's probabilities are not the softmax's
    config.model.decode_head.loss_decode = dict(type="Pow3GBLoss")
    config.vis_backends = config.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    return config


def _one_of_two(root: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{root}/meet", rank=rank, world_size=2)
    metrics = evaluate(
        _config(root), root / "weights.pth", out=root / "out2", work_dir=root / "two", ci=300, calibration=True, command="two"
    )
    torch.save(metrics, root / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    root = tmp_path_factory.mktemp("tested")
    write_scenes(root / "voc", train=0, val=IMAGES, size=(48, 64))
    config = _config(root)
    init_default_scope("mmseg")
    torch.manual_seed(3)
    model = MODELS.build(config.model)
    model.init_weights()
    # an output layer that predicts many classes
    torch.nn.init.normal_(model.decode_head.linears[-1].weight)
    torch.save({"state_dict": model.state_dict(), "meta": {}}, root / "weights.pth")
    metrics = evaluate(
        config, root / "weights.pth", out=root / "out1", work_dir=root / "one", ci=300, calibration=True, command="one"
    )
    return root, metrics


def _pairs(root: Path, out: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and written predictions as Pillow reads them, void pixels taken out."""
    pairs = []
    for name in (root / "voc/ImageSets/Segmentation/val.txt").read_text().split():
        label = np.asarray(Image.open(root / f"voc/SegmentationClass/{name}.png"))
        prediction = np.asarray(Image.open(root / out / f"{name}.png"))
        pairs.append((label[label != 255], prediction[label != 255]))
    return pairs


def _iou(matrix: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))


def _check(root: Path, metrics: dict[str, float], work_dir: str, out: str) -> dict:
    pairs = _pairs(root, out)
    assert len(pairs) == IMAGES
    matrix = sum(confusion_matrix(*pair, labels=range(21)) for pair in pairs)
    iou = _iou(matrix)
    assert len(np.unique(np.nonzero(matrix)[1])) > 2, "a prediction of one class would test little"
    # fractions to 1e-12
    assert metrics["mIoU"] / 100 == pytest.approx(np.nanmean(iou), abs=1e-12)
    head = [VOC_CLASSES.index(name) for name in HEADLINE]
    assert metrics["mIoU-3"] / 100 == pytest.approx(np.nanmean(iou[head]), abs=1e-12)
    scores = json.loads((root / work_dir / "test_weights/scores.json").read_text())
    np.testing.assert_array_equal(scores["confusion_matrix"], matrix)
    assert scores["images"] == IMAGES and scores["network input"] == "original"
    assert scores["provenance"]["command"] == work_dir
    for row, value in zip(scores["classes"], iou, strict=True):
        assert row["iou"] is None if np.isnan(value) else row["iou"] == pytest.approx(value, abs=1e-12)
    return scores


def test_scores_equal_those_of_the_written_pngs(tested: tuple[Path, dict[str, float]]) -> None:
    root, metrics = tested
    scores = _check(root, metrics, "one", "out1")
    files = {path.name for path in (root / "one/test_weights").iterdir()}
    assert files == {"scores.json", "confusion.png", "reliability.png", "report.html"}
    assert metrics["mIoU/low"] <= metrics["mIoU"] <= metrics["mIoU/high"]
    assert scores["intervals"]["resamples"] == 300


def test_images_of_the_page(tested: tuple[Path, dict[str, float]]) -> None:
    """The worst images come first, by the mean IoU of the classes in their label or prediction."""
    root, _ = tested
    names = (root / "voc/ImageSets/Segmentation/val.txt").read_text().split()
    means = [np.nanmean(_iou(confusion_matrix(*pair, labels=range(21)))) for pair in _pairs(root, "out1")]
    order = [names[i] for i in np.argsort(means)]
    page = (root / "one/test_weights/report.html").read_text()
    places = [page.index(f'alt="image of {name}"') for name in (*order[:3], *order[:2:-1])]
    assert places == sorted(places)
    for name, mean in zip(names, means, strict=True):
        assert f'<b class="number">{100 * mean:.1f}</b><span>{name}</span>' in page


def test_two_processes_give_what_one_gives(tested: tuple[Path, dict[str, float]]) -> None:
    root, metrics = tested
    processes = [SERVER.Process(target=_one_of_two, args=(root, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    scores = _check(root, metrics, "two", "out2")
    for rank in range(2):
        both = torch.load(root / f"{rank}.pt")
        assert both.keys() == metrics.keys()
        # the order in which confidences are added up differs, nothing else does
        for name, value in metrics.items():
            assert both[name] == pytest.approx(value, rel=1e-12 if name == "ECE" else 0, nan_ok=True), name
    alone = json.loads((root / "one/test_weights/scores.json").read_text())
    assert scores["calibration"]["pixels"] == alone["calibration"]["pixels"]
    assert (scores["classes"], scores["intervals"]) == (alone["classes"], alone["intervals"])
    pages = [(root / name / "test_weights/report.html").read_text() for name in ("one", "two")]
    cut = [page[page.index("<main>") : page.index('id="calibration"')] for page in pages]
    assert cut[0] == cut[1]


def test_calibration_goes_through_the_link(tested: tuple[Path, dict[str, float]]) -> None:
    """The error of the run is that of the model's own logits through pow3-GB's link, and not through a softmax."""
    root, metrics = tested
    config = _config(root)
    init_default_scope("mmseg")
    model = MODELS.build(config.model)
    model.load_state_dict(torch.load(root / "weights.pth")["state_dict"])
    model.eval()
    linked, soft = Calibration(), Calibration()
    for name in (root / "voc/ImageSets/Segmentation/val.txt").read_text().split():
        image = np.array(Image.open(root / f"voc/JPEGImages/{name}.jpg"))[..., ::-1]
        batch = torch.from_numpy(image.copy()).permute(2, 0, 1)
        with torch.no_grad():
            logits = model.test_step({"inputs": [batch], "data_samples": None})[0].seg_logits.data
        label = torch.from_numpy(np.array(Image.open(root / f"voc/SegmentationClass/{name}.png")))
        linked.update(logits, Pow3GBLoss().probabilities(logits[None])[0], label)
        soft.update(logits, logits.softmax(0), label)
    # JPEG decoders may differ by a grey level
    assert metrics["ECE"] / 100 == pytest.approx(linked.reliability().ece, abs=1e-3)
    assert abs(metrics["ECE"] / 100 - soft.reliability().ece) > 0.01


class ShareOfZero(BaseMetric):
    """Whoever computes something of his own."""

    def process(self, data_batch: Any, data_samples: list[dict]) -> None:
        """Count one class."""
        self.results += [float((sample["pred_sem_seg"]["data"] == 0).float().mean()) for sample in data_samples]

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Average it."""
        return {"mIoU": sum(results) / len(results)}


METRICS.register_module(module=ShareOfZero)
# settings of an IoUMetric; whether VOCMetric takes its place; and the prefix of VOCMetric's scores beside it
EVALUATORS: list[tuple[Any, bool, str]] = [
    (dict(type="IoUMetric"), True, ""),
    (dict(type="IoUMetric", iou_metrics=["mIoU"], prefix="val"), True, "val/"),
    ([dict(type="mmseg.IoUMetric", iou_metrics="mIoU"), dict(type="ShareOfZero", prefix="own")], True, ""),
    (dict(metrics=[dict(type="IoUMetric")]), True, ""),
    (dict(type="IoUMetric", iou_metrics=["mIoU", "mDice", "mFscore"]), False, "gbseg/"),
    (dict(type="IoUMetric", iou_metrics=["mDice", "mIoU"], prefix="val"), False, "val/gbseg/"),
    (dict(type="IoUMetric", nan_to_num=0), False, "gbseg/"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("evaluator", "replaced", "prefix"), EVALUATORS, ids=range(len(EVALUATORS)))
def test_the_report_of_an_iou_metric(
    evaluator: Any, replaced: bool, prefix: str, tested: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    """`gbseg test` reports it as it does a `VOCMetric`, with the same scores as IoUMetric's own, which are rounded.

    Without `add_voc_metric` there is no report, and ``--out`` and ``--ci`` are refused.
    """
    root, metrics = tested
    config = _config(root)
    config.test_evaluator = evaluator
    plain = evaluate(config, root / "weights.pth", work_dir=tmp_path / "plain", report=False)
    assert not list(tmp_path.glob("plain/test*"))
    arguments: dict[str, Any] = dict(out=tmp_path / "out", ci=300, calibration=True)
    reported = evaluate(config, root / "weights.pth", work_dir=tmp_path / "work", **arguments)
    assert config.test_evaluator == evaluator, "the caller's config is left as it is"
    folder = tmp_path / "work/test_weights"
    assert {path.name for path in folder.iterdir()} == {"scores.json", "confusion.png", "reliability.png", "report.html"}
    assert len(list((tmp_path / "out").glob("*.png"))) == IMAGES
    (log,) = (tmp_path / "work").glob("*/*.log")
    beside = f"VOCMetric stands beside IoUMetric for the report: its scores are {prefix}mIoU"
    assert ("VOCMetric replaces IoUMetric" if replaced else beside) in log.read_text()
    # as another metric computes it from the same predictions
    for name in ("mIoU", "aAcc", "mAcc"):
        own = prefix if replaced else prefix.removesuffix("gbseg/")
        ours, theirs = reported[prefix + name], plain.get(own + name)
        assert ours == pytest.approx(metrics[name], abs=1e-12)
        if theirs is not None and (name == "aAcc" or "nan_to_num" not in str(evaluator)):
            assert ours == pytest.approx(theirs, abs=0.0051), name
        if not replaced:
            assert reported[own + name] == theirs
    assert reported.get("own/mIoU") == plain.get("own/mIoU")
    assert reported[f"{prefix}mIoU/low"] == metrics["mIoU/low"]
    assert reported["ECE"] == metrics["ECE"]


def test_which_metric_is_reported() -> None:
    """A `VOCMetric` that is there stays the only one; what computes something else, or only writes, gets none."""
    for evaluator in (
        [dict(type="IoUMetric"), dict(type="VOCMetric", prefix="own")],
        dict(type="VOCMetric", ci=5),
        dict(type="ShareOfZero"),
        dict(type="Accuracy"),
        dict(type="IoUMetric", format_only=True, output_dir="out"),
    ):
        config = Config(dict(test_evaluator=evaluator, default_scope="mmseg"))
        assert add_voc_metric(config) is None
        assert config.test_evaluator == evaluator
    assert add_voc_metric(config, writes=True) is not None
    assert config.test_evaluator[1] == dict(type="VOCMetric", format_only=True, prefix="gbseg")
    config = Config(dict(test_evaluator=[dict(type="IoUMetric", ignore_index=0), dict(type="ShareOfZero")]))
    assert add_voc_metric(config) is not None
    assert config.test_evaluator[2] == dict(type="VOCMetric", ignore_index=0, prefix="gbseg"), "ShareOfZero may have its names"
    # subclasses may compute anything, and what is a class or a metric already has no settings
    other = type("IoUMetric", (IoUMetric,), {})
    assert add_voc_metric(Config(dict(test_evaluator=[dict(type=other)]))) is None
    config.test_evaluator = dict(type=IoUMetric)
    assert add_voc_metric(config) is not None and config.test_evaluator[0].type == "VOCMetric"


def test_what_cannot_be_reported(tested: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    root, _ = tested
    config = _config(root)
    config.test_evaluator = dict(type="ShareOfZero")
    with pytest.raises(ValueError, match="--ci and --calibration need a VOCMetric or IoUMetric as test_evaluator"):
        evaluate(config, root / "weights.pth", work_dir=tmp_path, ci=True)
    with pytest.raises(ValueError, match="--out needs a VOCMetric or IoUMetric as test_evaluator"):
        evaluate(config, root / "weights.pth", work_dir=tmp_path, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"--ci is a number of bootstrap resamples, e\.g\. 2000, not -5"):
        evaluate(_config(root), root / "weights.pth", work_dir=tmp_path, ci=-5)
    metrics = evaluate(config, root / "weights.pth", work_dir=tmp_path)
    assert "mIoU" in metrics and not list(tmp_path.glob("test*"))
    config = _config(root)
    config.model.decode_head.update(loss_decode=dict(type="HuasdorffDisstanceLoss"), init_bias=None)
    with pytest.raises(ValueError, match="as probabilities is not known for HuasdorffDisstanceLoss"):
        evaluate(config, root / "weights.pth", work_dir=tmp_path, calibration=True)


def test_each_kind_of_test_has_its_folder(tested: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    """Of its own checkpoint and augmentation; without a page there are the numbers and the asked-for diagram alone."""
    root, _ = tested
    config = _config(root)
    config.tta_model = dict(type="LinkTTAModel", scales=(1.0,))
    arguments = dict(work_dir=tmp_path, calibration=True, report=False)
    evaluate(config, root / "weights.pth", **arguments)
    evaluate(config, root / "weights.pth", tta=True, **arguments)
    for name in ("test_weights", "test_weights_tta"):
        assert {path.name for path in (tmp_path / name).iterdir()} == {"scores.json", "reliability.png"}


@TRANSFORMS.register_module()
class LoadPoem(BaseTransform):
    """Images as nobody else stores them: numbers as text."""

    def transform(self, results: dict) -> dict:
        """Read one."""
        image = np.loadtxt(results["img_path"], dtype=np.uint8).reshape(48, 64, 3)
        return results | {"img": image, "img_shape": (48, 64), "ori_shape": (48, 64)}


@pytest.mark.parametrize("kind", ["loader", "nameless", "bytes"])
def test_pictures_do_not_end_a_test(
    kind: str, tested: tuple[Path, dict[str, float]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever the images are called and read by, the scores come, and the page says what it could not show."""
    root, metrics = tested
    config = _config(root)
    dataset = config.test_dataloader.dataset
    names = (root / "voc/ImageSets/Segmentation/val.txt").read_text().split()
    if kind == "nameless":
        keys = ("seg_map_path", "ori_shape", "img_shape", "pad_shape", "scale_factor", "flip", "reduce_zero_label")
        dataset.pipeline[-1].meta_keys = keys
    else:
        dataset.data_root = str(tmp_path / "voc")
        for name in names:
            new = (name.encode() + b"\xe9").decode(errors="surrogateescape") if kind == "bytes" else name
            with Image.open(root / f"voc/JPEGImages/{name}.jpg") as image:
                values = np.asarray(image)[..., ::-1]
            for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
                (tmp_path / "voc" / folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(root / f"voc/{folder}/{name}.{suffix}", tmp_path / f"voc/{folder}/{new}.{suffix}")
            if kind == "loader":
                np.savetxt(tmp_path / f"voc/JPEGImages/{name}.jpg", values.reshape(48, -1), fmt="%d")
        dataset.ann_file = ""
    if kind == "loader":
        dataset.pipeline[0] = dict(type="LoadPoem")
    # named by config and second, two runs would share a logger, which writes where the output of the first one went
    config.__dict__["_filename"] = f"{tmp_path.name}.py"
    scores = evaluate(config, root / "weights.pth", work_dir=tmp_path, show_dir=tmp_path / "shown")
    assert scores["mIoU"] == pytest.approx(metrics["mIoU"], abs=1e-9)
    page = (tmp_path / "test_weights/report.html").read_text()
    assert page.count("<img ") == (4 * IMAGES if kind == "bytes" else 0)
    assert page.count("not shown: ") == (0 if kind == "bytes" else IMAGES)
    pictures = [os.fsencode(path.stem) for path in (tmp_path / "shown").iterdir()]
    assert sorted(pictures) == ([name.encode() + b"\xe9" for name in names] if kind == "bytes" else [])
    said = capfd.readouterr()
    assert (said.out + said.err).count("No picture") == (0 if kind == "bytes" else IMAGES)
    if kind == "bytes":
        assert f"<span>{names[0]}\\udce9</span>" in page
