"""``gbseg train CONFIG --boost exp`` with configs of MMSegmentation and MMPretrain as they are shipped, then ``gbseg test``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gbseg.cli import main
from gbseg.data.scenes import write_scenes
from gbseg.mm import load_config

pytestmark = pytest.mark.slow
REAL = Path(__file__).parents[3] / "shared/data/VOCdevkit/VOC2012"
CONFIGS = {
    "segformer": "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
    "pspnet": "mmseg::pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512.py",
    "deeplabv3plus": "mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-20k_voc12aug-512x512.py",
}


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real VOC subset where it lies beside the checkout, else generated scenes in the same layout."""
    return REAL if REAL.is_dir() else write_scenes(tmp_path_factory.mktemp("voc"), train=8, val=2, size=(96, 128))


def segmentation_options(name: str, voc: Path, iterations: int, images: int) -> list[str]:
    """Data paths, number of classes, crop and batch size, no weights of ImageNet; and a short training."""
    config = load_config(name)
    found = ["model.backbone.init_cfg=None", "model.data_preprocessor.size=(64,64)", "model.decode_head.num_classes=21"]
    found += ["model.pretrained=None"] * ("pretrained" in config.model)
    found += ["model.auxiliary_head.num_classes=21"] * ("auxiliary_head" in config.model)
    for split, part, batch in (("train", "train", 4), ("val", "val", 1), ("test", "val", 1)):
        loader = f"{split}_dataloader"
        found += [f"{loader}.batch_size={batch}", f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]
        dataset = config[loader].dataset
        places = {f"{loader}.dataset": dataset}
        if "datasets" in dataset:
            places = {f"{loader}.dataset.datasets.{index}": one for index, one in enumerate(dataset.datasets)}
        for place, settings in places.items():
            found += [f"{place}.type=PascalVOCDataset", f"{place}.data_root={voc}"]
            found += [f"{place}.ann_file=ImageSets/Segmentation/{part}.txt", f"{place}.data_prefix.img_path=JPEGImages"]
            found += [f"{place}.data_prefix.seg_map_path=SegmentationClass"]
            found += [f"{place}.indices={images}"] * (split != "train")
            for index, step in enumerate(settings.pipeline):
                changes = {"RandomCrop": "crop_size=(64,64)", "Pad": "size=(64,64)"}
                changes |= {"RandomResize": "scale=(128,64)", "Resize": "scale=(128,64)"}
                if "reduce_zero_label" in step:
                    changes["LoadAnnotations"] = "reduce_zero_label=False"
                found += [f"{place}.pipeline.{index}.{changes[step.type]}"] if step.type in changes else []
    return [
        *found,
        f"train_cfg.max_iters={iterations}",
        f"train_cfg.val_interval={iterations}",
        "default_hooks.logger.interval=5",
    ]


@pytest.mark.parametrize("name", ["segformer", "pspnet"])
def test_a_segmentor(name: str, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains with the config's own rate, and is tested with a report. PSPNet's unweighted losses died at iteration 4."""
    config, options = CONFIGS[name], segmentation_options(CONFIGS[name], voc, 10, 2)
    work = ["--work-dir", str(tmp_path)]
    assert main(["train", config, "--boost", "exp", *work, "--cfg-options", *options]) == 0
    assert "--boost exp changes the config:\nmodel.decode_head.loss_decode\n" in capsys.readouterr().out
    log = [json.loads(line) for path in tmp_path.glob("*/vis_data/*.json") for line in path.read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses and all(map(math.isfinite, losses)) and "mIoU" in log[-1]
    checkpoint = str(tmp_path / "iter_10.pth")
    # the checkpoint is of another loss than the original's
    assert main(["test", config, checkpoint, *work, "--cfg-options", *options]) == 1
    assert "was trained with another boost" in capsys.readouterr().err
    assert main(["test", str(tmp_path / Path(config.partition("::")[2]).name), checkpoint, *work]) == 0
    assert (tmp_path / "test_iter_10/report.html").is_file()


def test_a_classifier(tmp_path: Path) -> None:
    """MMPretrain's ResNet-18 of CIFAR-10, on pictures in folders, with scores by the link of pow3-GB."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(2):
            folder = tmp_path / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = random.integers(0, 100, (32, 32, 3)) + 150 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    config = "mmpretrain::resnet/resnet18_8xb16_cifar10.py"
    file = tmp_path / "cifar.py"
    text = f"_base_ = ['{config}']\nmodel = dict(head=dict(num_classes=2, topk=(1,)))\n"
    for split in ("train", "val", "test"):
        pipeline = "train_pipeline" if split == "train" else "test_pipeline"
        text += f"""
{split}_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(
    _delete_=True, type='CustomDataset', data_root='{tmp_path}', data_prefix='{split.replace("val", "test")}',
    pipeline=[dict(type='LoadImageFromFile'), *_base_.{pipeline}]))
"""
    file.write_text(
        f"{text}\nval_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))\ntrain_cfg = dict(max_epochs=2)\n"
    )
    assert main(["train", str(file), "--boost", "pow3", "--work-dir", str(tmp_path / "work")]) == 0
    assert main(["test", str(tmp_path / "work/cifar.py"), str(tmp_path / "work/epoch_2.pth"), "--work-dir", str(tmp_path)]) == 0
