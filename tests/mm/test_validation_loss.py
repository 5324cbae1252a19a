"""``val_loss = True``: the training loss on the validation set, against its definition, and what MMEngine does with it."""

from __future__ import annotations

import gzip
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from engine_tiny import SERVER
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from PIL import Image

import gbseg.mm
from gbseg.config_files import ConfigError
from gbseg.data.scenes import write_scenes
from gbseg.mm.checkpoint_loading import read_checkpoint
from gbseg.mm.config import load_config
from gbseg.mm.hooks.validation_loss import ValidationLossHook
from gbseg.mm.training import train

ROOT = Path(__file__).parents[2]
IMAGES = 3
FCN = dict(
    type="FCNHead",
    in_channels=26,
    in_index=4,
    channels=8,
    num_convs=1,
    concat_input=False,
    num_classes=21,
    norm_cfg=dict(type="BN"),
)
WEIGHTS = [0.5 + index / 10 for index in range(21)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, train=4, val=IMAGES, size=(48, 64))
    # nothing in it counts
    name = (root / "ImageSets/Segmentation/val.txt").read_text().split()[1]
    with Image.open(root / f"SegmentationClass/{name}.png") as image:
        image.putdata([255] * (48 * 64))
        image.save(root / f"SegmentationClass/{name}.png")
    return root


def _config(root: Path, losses: Any = None, **options: Any) -> Config:
    config = load_config(ROOT / "configs/demo_expgb.py")
    for key in ("runs", "prepare", "compare"):
        config.pop(key)
    for split in ("train", "val", "test"):
        config[f"{split}_dataloader"].dataset.data_root = str(root)
        config[f"{split}_dataloader"].batch_size = 2
    config.model.backbone.width = 0.05
    config.model.decode_head.update(in_channels=(3, 6, 13, 26, 26), hidden=(8, 8))
    if losses is not None:
        config.model.type, config.model.test_cfg = "EncoderDecoder", dict(mode="whole")
        config.model.decode_head = FCN | dict(loss_decode=losses)
    config.vis_backends = config.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    config.param_scheduler = []
    config.merge_from_dict({"train_cfg.max_iters": 2, "train_cfg.val_interval": 2, "val_loss": True, **options})
    return config


def _fixed(config: Config) -> Config:
    """A training that changes nothing: without rate and running means."""
    config.optim_wrapper.optimizer.lr = 0.0
    config.model.backbone.batch_norm = False
    config.model.decode_head.norm_cfg = None
    return config


def _records(work_dir: Path) -> list[dict[str, Any]]:
    (file,) = work_dir.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in file.read_text().splitlines()]


def _direct(config: Config, checkpoint: Path, root: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Float64 logits (C, H, W) and labels (H, W) of every image."""
    init_default_scope("mmseg")
    model = MODELS.build(config.model)
    model.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    model.eval()
    pixels = []
    for name in (root / "ImageSets/Segmentation/val.txt").read_text().split():
        image = np.array(Image.open(root / f"JPEGImages/{name}.jpg"))[..., ::-1]
        batch = {"inputs": [torch.from_numpy(image.copy()).permute(2, 0, 1)], "data_samples": None}
        with torch.no_grad():
            logits = model.test_step(batch)[0].seg_logits.data.double()
        label = torch.from_numpy(np.array(Image.open(root / f"SegmentationClass/{name}.png"))).long()
        pixels.append((logits, label))
    return pixels


def _pixels(images: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all pixels that count."""
    kept = [(logits[:, label != 255].T, label[label != 255]) for logits, label in images]
    assert [len(label) == 0 for _, label in kept] == [False, True, False]
    return torch.cat([logits for logits, _ in kept]), torch.cat([label for _, label in kept])


def _expgb(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    z = 0.1 * logits.exp().sum(1) / 16
    return 16 * (F.cross_entropy(logits, label, reduction="none") + z - z.log() - 1)


CASES: dict[str, Any] = {
    "expgb": None,
    "softmax": dict(type="CrossEntropyLoss"),
    "weighted": dict(type="CrossEntropyLoss", class_weight=WEIGHTS, loss_weight=0.4),
    "labels": dict(type="SoftmaxLoss", class_weight=WEIGHTS, class_weight_mode="labels", loss_weight=0.4),
    "two": [dict(type="CrossEntropyLoss"), dict(type="ExpGBLoss", loss_weight=1 / 16)],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_mean_over_the_labelled_pixels_of_the_set(case: str, scenes: Path, tmp_path: Path) -> None:
    """Whatever the sizes of batches and images: against the definition in float64, in log, records and hub.

    Without the hook's own entry in the hub nothing is logged; with a priority above RuntimeInfoHook's it is "loss" as well,
    which TensorBoard would draw into the curve of the training.
    """
    config = _config(scenes, CASES[case])
    train(config, tmp_path)
    logits, label = _pixels(_direct(config, tmp_path / "iter_2.pth", scenes))
    weight = torch.tensor(WEIGHTS, dtype=torch.float64)
    expected = {
        "expgb": lambda: _expgb(logits, label).mean(),
        "softmax": lambda: F.cross_entropy(logits, label),
        "weighted": lambda: 0.4 * F.cross_entropy(logits, label, weight),
        "labels": lambda: 0.4 * F.cross_entropy(logits, label, weight),
        "two": lambda: F.cross_entropy(logits, label) + _expgb(logits, label).mean() / 16,
    }[case]()
    values = [record["val_loss"] for record in _records(tmp_path) if "mIoU" in record]
    assert values == [pytest.approx(float(expected), rel=2e-5)]
    assert not any("loss" in record and "mIoU" in record for record in _records(tmp_path)), "curves of their own"
    (log,) = tmp_path.glob("*/*.log")
    assert "val_loss: the mean of " in log.read_text()
    assert re.search(rf"Iter\(val\).* val_loss: {values[0]:.4f}", log.read_text())


@pytest.mark.slow
def test_a_loss_that_is_no_mean_over_pixels(scenes: Path, tmp_path: Path) -> None:
    """Dice of every image, weighted by its labelled pixels; an image without any does not count."""
    settings = dict(type="DiceLoss", loss_weight=3.0)
    config = _config(scenes, settings)
    train(config, tmp_path)
    (value,) = [record["val_loss"] for record in _records(tmp_path) if "mIoU" in record]
    images = _direct(config, tmp_path / "iter_2.pth", scenes)
    loss, counts = MODELS.build(settings), [int((label != 255).sum()) for _, label in images]
    values = [float(loss(logits[None], label[None], ignore_index=255)) for logits, label in images]
    assert value == pytest.approx(np.average(values, weights=counts), rel=1e-5)
    assert len(set(values)) == 3 and counts[1] == 0


@pytest.mark.slow
def test_early_stopping_and_the_best_checkpoint(scenes: Path, tmp_path: Path) -> None:
    """Both know that less is better. Without the hook: MMEngine's RuntimeError, that no loss is available."""
    hooks = [dict(type="EarlyStoppingHook", monitor="loss", patience=2)]
    options = {"train_cfg.max_iters": 9, "train_cfg.val_interval": 1, "custom_hooks": hooks}
    options |= {"default_hooks.checkpoint.save_best": "loss", "default_hooks.checkpoint.interval": 1}
    train(_fixed(_config(scenes, dict(type="CrossEntropyLoss"), **options)), tmp_path)
    assert (tmp_path / "last_checkpoint").read_text().endswith("iter_3.pth")
    assert [path.name for path in tmp_path.glob("best_*")] == ["best_loss_iter_1.pth"]
    losses = [record["val_loss"] for record in _records(tmp_path) if "mIoU" in record]
    assert len(losses) == 3 and len(set(losses)) == 1


def _one_of_two(root: Path, work_dir: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{work_dir}/meet", rank=rank, world_size=2)
    losses = [dict(type="CrossEntropyLoss"), dict(type="ExpGBLoss", sync_divisor=True)]
    train(_fixed(_config(root, losses)), work_dir / "two")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_loss_of_one(scenes: Path, tmp_path: Path) -> None:
    """Three images: of two processes one sees the first image again, which counts once.

    Without the count of images: rank 1 adds the first image a second time. A ``sync_divisor`` that was at work while
    validating would wait for ever, since the second image has no labelled pixel and the processes see unequal numbers.
    """
    processes = [SERVER.Process(target=_one_of_two, args=(scenes, tmp_path, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    losses = [dict(type="CrossEntropyLoss"), dict(type="ExpGBLoss")]
    train(_fixed(_config(scenes, losses)), tmp_path / "one")
    one, two = ([record["val_loss"] for record in _records(tmp_path / name) if "mIoU" in record] for name in ("one", "two"))
    assert two == [pytest.approx(one[0], rel=1e-6)]


def _digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    for stem, count in (("train", 40), ("t10k", 21)):
        labels = random.integers(0, 10, count)
        pixels = random.integers(0, 256, (count, 28, 28))
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))
    return pixels, labels


@pytest.mark.slow
def test_a_classifier(tmp_path: Path) -> None:
    """The loss of the head's output, over all images; the scores beside it stay."""
    pixels, labels = _digits(tmp_path)
    options: dict[str, Any] = {f"{split}_dataloader.dataset.data_root": str(tmp_path) for split in ("train", "val", "test")}
    options |= {f"{split}_dataloader.batch_size": 8 for split in ("train", "val")}
    options |= {"train_cfg.max_iters": 2, "train_cfg.val_interval": 2, "val_loss": True}
    options |= {"val_dataloader.dataset.part": "test", "val_dataloader.dataset.held_out": 0}
    config = load_config(ROOT / "configs/classification/mnist_softmax.py", options)
    train(config, tmp_path / "work")
    (record,) = [record for record in _records(tmp_path / "work") if "accuracy/top1" in record]
    init_default_scope("mmpretrain")
    model = MODELS.build(config.model)
    checkpoint = (tmp_path / "work/last_checkpoint").read_text()
    model.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    model.eval()
    batch = {"inputs": torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, 28, 28), "data_samples": torch.from_numpy(labels)}
    data = model.data_preprocessor(batch)
    with torch.no_grad():
        logits = model.head(model.extract_feat(data["inputs"])).double()
    assert record["val_loss"] == pytest.approx(float(F.cross_entropy(logits, torch.from_numpy(labels))), rel=1e-5)


class _Head(torch.nn.Module):
    """Of another author."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("head", "val_loss: the losses of _Head are not computed from its predictions. Leave out val_loss, and monitor"),
        ("one output", "val_loss: FCNHead has one output, and predictions keep its sigmoid, not its logits."),
        ("no head", "val_loss: EncoderDecoder has neither decode_head nor a head with a loss_module."),
        ("no validation", "val_loss=True needs a validation: give val_dataloader, val_cfg and val_evaluator, or"),
        ("text", "val_loss is 'loss'. True or False is needed."),
    ],
)
def test_what_has_none(change: str, message: str, scenes: Path, tmp_path: Path) -> None:
    """A sentence before the training."""
    config = _config(scenes, dict(type="CrossEntropyLoss"))
    if change == "no validation":
        config.val_dataloader = config.val_cfg = config.val_evaluator = None
    if change == "text":
        config.val_loss = "loss"
    if change in ("no validation", "text"):
        with pytest.raises(ValueError, match=re.escape(message)):
            train(config, tmp_path)
        return
    config.work_dir = str(tmp_path)
    config.experiment_name = f"none {change}"
    runner = Runner.from_cfg(config)
    if change == "head":
        runner.model.decode_head = _Head()
    elif change == "one output":
        runner.model.decode_head.out_channels = 1
    else:
        del runner.model.decode_head
    with pytest.raises(ValueError, match=re.escape(message)):
        ValidationLossHook().before_train(runner)


def test_misspelt(scenes: Path) -> None:
    """The key is one that `--cfg-options` knows."""
    assert load_config(ROOT / "configs/demo_expgb.py", {"val_loss": True}).val_loss is True
    with pytest.raises(ConfigError, match="there is no key val_los, perhaps val_loss"):
        load_config(ROOT / "configs/demo_expgb.py", {"val_los": True})
    assert gbseg.mm.ValidationLossHook is ValidationLossHook
