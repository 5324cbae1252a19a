"""The ImageNet configs: against the paper and MMPretrain; and trained, killed, resumed and tested on small folders."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.transforms import Compose
from mmengine.registry import MODELS
from PIL import Image
from torchvision.datasets import ImageFolder

from gbseg.cli import main
from gbseg.mm.config import load_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs/classification"
LOSSES = ("softmax", "expgb", "pow3gb")
IMAGES, T_POS = 1_281_167, 10


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("loss", LOSSES)
def test_alexnet_as_in_table_2(loss: str) -> None:
    """Rates, targets and ten epochs of the paper."""
    config = load_config(CONFIGS / f"alexnet_bn_imagenet_{loss}.py")
    expected = {
        "softmax": (0.01, {"type": "SoftmaxLoss"}),
        "expgb": (0.001, {"type": "ExpGBLoss", "alpha": 0.01, "targets": [0, T_POS]}),
        "pow3gb": (0.001, {"type": "Pow3GBLoss", "alpha": 0.001, "beta": 0.4, "targets": [0, T_POS]}),
    }[loss]
    assert (config.optim_wrapper.optimizer.lr, _plain(config.model.head.loss)) == expected
    assert config.param_scheduler is None
    epoch = math.ceil(IMAGES / config.train_dataloader.batch_size)
    assert config.train_cfg.max_iters == 10 * epoch and config.train_cfg.val_interval == epoch


def test_resnet50_is_mmpretrains_recipe() -> None:
    """Network, data, optimizer and schedule of the softmax, in iterations instead of epochs."""
    ours = load_config(CONFIGS / "resnet50_imagenet_softmax.py")
    theirs = load_config("mmpretrain::resnet/resnet50_8xb32_in1k.py")
    assert _plain(ours.model.backbone) == _plain(theirs.model.backbone) and ours.model.neck == theirs.model.neck
    for key in ("mean", "std", "to_rgb"):
        assert ours.model.data_preprocessor[key] == theirs.data_preprocessor[key]
    for loader in ("train_dataloader", "val_dataloader"):
        assert _plain(ours[loader].dataset.pipeline) == _plain(theirs[loader].dataset.pipeline)
    assert ours.optim_wrapper.optimizer == theirs.optim_wrapper.optimizer
    assert ours.train_dataloader.batch_size == 8 * theirs.train_dataloader.batch_size == theirs.auto_scale_lr.base_batch_size
    epoch = math.ceil(IMAGES / ours.train_dataloader.batch_size)
    [schedule] = ours.param_scheduler
    assert schedule.milestones == [epoch * k for k in theirs.param_scheduler.milestones]
    assert schedule.gamma == theirs.param_scheduler.gamma and not schedule.by_epoch
    assert ours.train_cfg.max_iters == epoch * theirs.train_cfg.max_epochs


def test_resnet50_expgb_is_the_softmax_recipe_translated() -> None:
    """Rate times t_pos and decay over t_pos are the softmax's: a step on t_pos times the cross-entropy is then the same."""
    softmax, expgb = (load_config(CONFIGS / f"resnet50_imagenet_{loss}.py") for loss in ("softmax", "expgb"))
    a, b = (config.optim_wrapper.optimizer for config in (softmax, expgb))
    start = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.full((7,), 1 / 7, dtype=torch.float64)
    ends = []
    for optimizer, scale in ((a, 1), (b, expgb.model.head.loss.targets[1])):
        x = start.clone().requires_grad_()
        stepper = torch.optim.SGD([x], optimizer.lr, optimizer.momentum, weight_decay=optimizer.weight_decay)
        for _ in range(5):
            stepper.zero_grad()
            (scale * F.cross_entropy(x[None], target[None])).backward()
            stepper.step()
        ends.append(x.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=0)
    assert not torch.allclose(ends[0], start)
    for key in ("param_scheduler", "train_cfg", "train_dataloader"):
        assert softmax[key] == expgb[key]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", ["alexnet_bn", "resnet50"])
def test_class_255_trains(network: str, loss: str) -> None:
    """Segmentation's ignored label is a class here: its error reaches the output."""
    config = load_config(CONFIGS / f"{network}_imagenet_{loss}.py")
    head = MODELS.build(config.model.head)
    head.init_weights()
    features = torch.randn(1, head.in_channels, generator=torch.Generator().manual_seed(0))
    head.loss((features,), torch.tensor([255]))["loss"].backward()
    x = head.fc(features).detach().double()[0]
    assert len(x) == 1000
    t = torch.zeros(1000, dtype=torch.float64)
    t[255] = T_POS
    expected = {"softmax": x.softmax(0) - t / T_POS, "expgb": 0.01 * x.exp() - t, "pow3gb": 0.001 * x**3 + 0.4 - t}[loss]
    torch.testing.assert_close(head.fc.bias.grad.double(), expected, rtol=1e-4, atol=1e-7)


def _folders(root: Path, split: str, number: int, classes: tuple[str, ...] = ("n01", "n02", "n03")) -> None:
    random = np.random.default_rng(len(split))
    for label, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for k in range(number):
            # of different sizes, and each class of a colour
            pixels = random.integers(0, 120, (40 + 5 * k, 60, 3), np.uint8)
            pixels[..., label % 3] += 120
            Image.fromarray(pixels).save(root / split / name / f"{name}_{k}.JPEG", format="JPEG")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exp-GB config of AlexNet on three classes, with a network of a few kilobytes; `CROPS` make its crops 32 x 32."""
    folder = tmp_path_factory.mktemp("imagenet")
    _folders(folder / "data", "train", 6)
    _folders(folder / "data", "val", 5)
    path = folder / "tiny.py"
    path.write_text(f"""
_base_ = [{str(CONFIGS / "alexnet_bn_imagenet_expgb.py")!r}]
few = dict(num_workers=0, persistent_workers=False)
root = dict(data_root={str(folder / "data")!r})
train_dataloader = dict(batch_size=4, dataset=root, **few)
val_dataloader = dict(batch_size=4, dataset=root, **few)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, 2))
test_evaluator = val_evaluator
model = dict(
    backbone=dict(_delete_=True, type="SmallConvNet", widths=(4, 4, 8, 8)),
    head=dict(num_classes=3, in_channels=32, topk=(1, 2)),
)
train_cfg = dict(max_iters=10, val_interval=5)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
""")
    return path


CROPS = ["train_dataloader.dataset.pipeline.1.scale=32"]
for _part in ("val", "test"):
    CROPS += [f"{_part}_dataloader.dataset.pipeline.1.scale=36", f"{_part}_dataloader.dataset.pipeline.2.crop_size=32"]


@pytest.fixture(scope="module")
def trained(config: Path) -> Path:
    work = config.parent / "whole"
    assert main(["train", str(config), "--work-dir", str(work), "--cfg-options", *CROPS]) == 0
    return work


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_weights_bit_for_bit(config: Path, trained: Path) -> None:
    work = config.parent / "killed"
    arguments = ["train", str(config), "--work-dir", str(work), "--cfg-options", *CROPS]
    # between the checkpoints of iterations 4 and 6, and after the validation at 5
    dying = f"""
import os
from gbseg.mm.loops import ResumableIterLoop as Loop
step = Loop.run_iter
Loop.run_iter = lambda self, batch: (self._iter == 5 and os.kill(os.getpid(), 9), step(self, batch))
from gbseg.cli import main
main({arguments!r})
"""
    # as many threads as here: sums over a batch are rounded by how they are divided among them
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", dying], cwd=ROOT, env={**os.environ, **threads}, capture_output=True, timeout=300
    )
    assert done.returncode == -9, done.stderr.decode()
    assert (work / "iter_4.pth").exists() and not (work / "iter_6.pth").exists()
    assert main([*arguments[:4], "--resume", *arguments[4:]]) == 0
    a, b = (torch.load(folder / "iter_10.pth", weights_only=False)["state_dict"] for folder in (trained, work))
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


def test_top_1_and_top_5_are_printed(config: Path, trained: Path, capsys: pytest.CaptureFixture) -> None:
    """As a network of our own loading, fed one by one from torchvision's list of files, says."""
    capsys.readouterr()
    assert (
        main(
            [
                "test",
                str(config),
                str(trained / "iter_10.pth"),
                "--work-dir",
                str(config.parent / "test"),
                "--cfg-options",
                *CROPS,
            ]
        )
        == 0
    )
    said = capsys.readouterr()
    model = MODELS.build(load_config(config).model)
    model.load_state_dict(torch.load(trained / "iter_10.pth", weights_only=False)["state_dict"])
    steps = Compose(
        [
            dict(type="LoadImageFromFile"),
            dict(type="ResizeEdge", scale=36, edge="short"),
            dict(type="CenterCrop", crop_size=32),
            dict(type="PackInputs"),
        ]
    )
    hits = []
    for path, label in ImageFolder(config.parent / "data/val").samples:
        sample = steps({"img_path": path, "gt_label": label})
        batch = model.eval().data_preprocessor({"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]})
        with torch.no_grad():
            order = model(batch["inputs"])[0].argsort(descending=True).tolist()
        hits.append([label == order[0], label in order[:2]])
    top1, top2 = 100 * np.mean(hits, 0)
    assert 0 < top1 <= top2
    assert f"accuracy/top1: {top1:.4f}  accuracy/top2: {top2:.4f}" in said.out + said.err


@pytest.mark.parametrize("option", ["--tta", "--calibration", "--show-dir=x", "--out=x", "--ci", "--submit=x.tgz"])
def test_options_of_segmentation(config: Path, trained: Path, option: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["test", str(config), str(trained / "iter_10.pth"), option]) == 1
    assert f"{option.partition('=')[0]}: of segmentation; a classifier is tested" in capsys.readouterr().err


def test_another_number_of_classes(config: Path, trained: Path, capsys: pytest.CaptureFixture) -> None:
    """One sentence with both numbers, before a step and before a score; also of sets held in memory."""
    options = ["--work-dir", str(config.parent / "wrong"), "--cfg-options", *CROPS]
    assert main(["train", str(config), *options, "model.head.num_classes=4"]) == 1
    train = f"the training data in {config.parent}/data/train have 3 classes and the head has num_classes=4: set"
    assert train in capsys.readouterr().err
    four = config.parent / "four"
    _folders(four, "val", 1, ("n01", "n02", "n03", "n04"))
    checkpoint = str(trained / "iter_10.pth")
    assert main(["test", str(config), checkpoint, *options, f"test_dataloader.dataset.data_root={four}"]) == 1
    assert f"the test data in {four}/val have 4 classes and the head has num_classes=3" in capsys.readouterr().err
    assert main(["train", str(config), *options, f"val_dataloader.dataset.data_root={four}"]) == 1
    assert f"the validation data in {four}/val have 4 classes" in capsys.readouterr().err
    other = config.parent / "other"
    _folders(other, "val", 1, ("n01", "n03", "n04"))
    assert main(["train", str(config), *options, f"val_dataloader.dataset.data_root={other}"]) == 1
    assert (
        "2 of the classes have other names in the training data than in the validation data, the first one 'n02' and 'n03'"
        in (capsys.readouterr().err)
    )
    memory = {"type": "ArrayImages", "source": "folder", "data_root": str(config.parent / "equal"), "_delete_": True}
    _folders(config.parent / "equal", "train", 1)
    memory_config = config.parent / "memory.py"
    memory_config.write_text(f"""
_base_ = ["tiny.py"]
train_dataloader = dict(dataset={memory!r}, collate_fn=dict(type="as_is"))
model = dict(head=dict(num_classes=2))
""")
    assert main(["train", str(memory_config), "--work-dir", str(config.parent / "wrong")]) == 1
    assert "the training data have 3 classes and the head has num_classes=2" in capsys.readouterr().err
    assert not list((config.parent / "wrong").glob("*.pth"))
