"""Mixup and CutMix reach the loss: with labels in one tensor as with data samples, against the mixture worked out by hand."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

pytest.importorskip("mmpretrain")
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.utils import ClsDataPreprocessor as MMPretrainPreprocessor
from mmpretrain.structures import DataSample

from gbseg.losses.modules import ExpGBLoss
from gbseg.mm.config import load_config
from gbseg.mm.datasets.array_dataset import ArrayImages, as_is
from gbseg.mm.training import build_runner

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs/classification"
MIXUP, CUTMIX = dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)
MEAN, STD = [125.3, 123.0, 113.9], [63.0, 62.1, 66.7]


def _model(augments: Any, **settings: Any) -> torch.nn.Module:
    config = load_config(CONFIGS / "cifar5_expgb.py").model
    config.backbone = dict(type="MLP", in_features=3 * 8 * 8, hidden=(16,))
    config.head = dict(
        type="GBClsHead", num_classes=10, in_channels=16, loss=dict(type="ExpGBLoss", alpha=0.1, targets=(0, 16))
    )
    config.update(train_cfg=dict(augments=augments) if augments else None)
    config.data_preprocessor.update(num_classes=10, **settings)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(config)
    torch.manual_seed(0)
    model.init_weights()
    return model


def _batch(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8),
        torch.randint(0, 10, (count,), generator=generator),
    )


def _seed() -> None:
    np.random.seed(7)  # noqa: NPY002  (MMPretrain mixes by this generator)
    torch.manual_seed(7)


def _normalised(inputs: torch.Tensor) -> torch.Tensor:
    return (inputs.float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_mixup_by_hand() -> None:
    """Images and labels are mixed by one ratio and one permutation, and the loss is that of the soft labels."""
    inputs, labels = _batch()
    model = _model(MIXUP)
    _seed()
    mixed = model.data_preprocessor({"inputs": inputs, "data_samples": labels}, training=True)
    _seed()
    ratio, order = np.random.beta(0.8, 0.8), torch.randperm(12)  # noqa: NPY002
    one_hot = F.one_hot(labels, 10).float()
    x = _normalised(inputs)
    torch.testing.assert_close(mixed["inputs"], ratio * x + (1 - ratio) * x[order])
    torch.testing.assert_close(mixed["data_samples"], ratio * one_hot + (1 - ratio) * one_hot[order])
    assert 0.05 < ratio < 0.95 and (mixed["data_samples"].max(1).values < 1).any()
    loss = model(**mixed, mode="loss")["loss"]
    logits = model(mixed["inputs"])
    torch.testing.assert_close(loss, ExpGBLoss(alpha=0.1, targets=(0, 16))(logits, mixed["data_samples"]))
    assert not torch.isclose(loss, ExpGBLoss(alpha=0.1, targets=(0, 16))(logits, labels))


def test_cutmix_by_hand() -> None:
    """Every image is its own but for a box of another one, whose area is the other label's share."""
    inputs, labels = _batch()
    x = _normalised(inputs)
    model = _model(CUTMIX)
    _seed()
    mixed = model.data_preprocessor({"inputs": inputs, "data_samples": labels}, training=True)
    own = (mixed["inputs"] == x).all(1).float().mean((1, 2))
    boxed = own < 1
    assert boxed.any()
    for k in torch.nonzero(boxed).flatten():
        scores = mixed["data_samples"][k]
        assert scores.sum() == 1 and scores[labels[k]] >= own[k] - 1e-6
    # the original batch stays as it is
    assert torch.equal(inputs, _batch()[0])


@pytest.mark.parametrize("augments", [MIXUP, CUTMIX, [MIXUP, CUTMIX]], ids=["mixup", "cutmix", "both"])
def test_as_with_data_samples(augments: Any) -> None:
    """MMPretrain's own path gives the same images, the same loss and the same gradient."""
    inputs, labels = _batch()
    results = []
    for samples in (labels, [DataSample().set_gt_label(int(label)) for label in labels]):
        model = _model(copy.deepcopy(augments))
        _seed()
        mixed = model.data_preprocessor({"inputs": inputs, "data_samples": samples}, training=True)
        loss = model(**mixed, mode="loss")["loss"]
        loss.backward()
        results.append((mixed["inputs"], loss.detach(), model.head.fc.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_not_mixed() -> None:
    """Evaluation, a model without augmentations, a batch that ``probs`` leaves alone; ``to_onehot`` alone is the same loss."""
    inputs, labels = _batch()
    batch = {"inputs": inputs, "data_samples": labels}
    for model, training in ((_model(MIXUP), False), (_model(None), True)):
        plain = model.data_preprocessor(batch, training=training)
        torch.testing.assert_close(plain["inputs"], _normalised(inputs))
        assert plain["data_samples"] is labels
    expected = _model(None)(**_model(None).data_preprocessor(batch, training=True), mode="loss")["loss"]
    never = _model(None, to_onehot=True)
    torch.testing.assert_close(never(**never.data_preprocessor(batch, training=True), mode="loss")["loss"], expected)
    assert len(never(**never.data_preprocessor(batch), mode="predict")) == 12
    seldom = _model(None, batch_augments=dict(augments=dict(MIXUP), probs=[0.0]))
    torch.testing.assert_close(seldom.data_preprocessor(batch, training=True)["inputs"], _normalised(inputs))


def test_every_classifier_has_it() -> None:
    """All configs of the folder, and a config that names MMPretrain's type."""
    for path in sorted(CONFIGS.glob("*.py")):
        config = load_config(path)
        config.model.train_cfg = dict(augments=dict(MIXUP))
        config.model.data_preprocessor.num_classes = config.model.head.num_classes
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            preprocessor = MODELS.build({"type": "mmpretrain.ClsDataPreprocessor", **_preprocessor(config)})
        inputs = torch.zeros(4, 1 if "mnist" in path.name else 3, 8, 8, dtype=torch.uint8)
        mixed = preprocessor({"inputs": inputs, "data_samples": torch.arange(4)}, training=True)
        assert isinstance(preprocessor, MMPretrainPreprocessor)
        assert mixed["data_samples"].shape == (4, config.model.head.num_classes), path


def _preprocessor(config: Any) -> dict:
    return {**config.model.data_preprocessor, "batch_augments": config.model.train_cfg}


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        content = {b"data": random.integers(0, 256, (20, 3072), np.uint8), b"labels": random.integers(0, 10, 20).tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


def _options(root: Path, **options: Any) -> dict:
    loaders = {f"{loader}_dataloader.dataset.data_root": str(root) for loader in ("train", "val", "test")}
    return {
        **loaders,
        "train_cfg.max_iters": 2,
        "train_cfg.val_interval": 2,
        "model.train_cfg.augments": [MIXUP, CUTMIX],
        **options,
    }


def _losses_seen(config: Any, tmp_path: Path) -> tuple[Any, list[torch.Tensor]]:
    """A run of two iterations, and the targets that reached the loss."""
    runner = build_runner(config, tmp_path / "work")
    seen: list[torch.Tensor] = []
    runner.model.head.loss_module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    runner.train()
    return runner, seen


def test_a_run_on_arrays(cifar: Path, tmp_path: Path) -> None:
    """By options of a shipped config; the number of classes is the head's."""
    config = load_config(CONFIGS / "cifar5_expgb.py", _options(cifar, **{"train_dataloader.batch_size": 50}))
    runner, seen = _losses_seen(config, tmp_path)
    assert runner.model.data_preprocessor.num_classes == 10
    assert [tuple(target.shape) for target in seen] == [(50, 10)] * 2
    for target in seen:
        torch.testing.assert_close(target.sum(1), torch.ones(50))
    assert any((target.max(1).values < 0.999).any() for target in seen)
    config.model.data_preprocessor.num_classes = 7
    with pytest.raises(ValueError, match=r"data_preprocessor\.num_classes=7, by which labels are mixed, .*num_classes=10"):
        build_runner(config, tmp_path / "other").train()


def test_the_class_instead_of_its_name(cifar: Path, tmp_path: Path) -> None:
    """MMPretrain's own class would pass the labels on unmixed: refused before the first step."""
    config = load_config(CONFIGS / "cifar5_expgb.py", _options(cifar))
    config.model.data_preprocessor.type = MMPretrainPreprocessor
    with pytest.raises(ValueError, match=r"ClsDataPreprocessor would not mix images of ArrayImages: write"):
        build_runner(config, tmp_path / "work").train()


def test_a_run_on_class_folders(tmp_path: Path) -> None:
    """Data samples, as MMPretrain mixes them, with the number of classes of the head."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("n01", "n02", "n03"):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(4):
                Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(
                    tmp_path / split / name / f"{k}.JPEG", "JPEG"
                )
    network = {
        "model.backbone": dict(_delete_=True, type="MLP", in_features=3 * 224 * 224, hidden=(4,)),
        "model.head.in_channels": 4,
    }
    workers = {
        f"{loader}_dataloader.{key}": value
        for loader in ("train", "val", "test")
        for key, value in (("num_workers", 0), ("persistent_workers", False), ("batch_size", 6))
    }
    options = _options(
        tmp_path, **network, **workers, **{"model.head.num_classes": 3, "model.head.topk": (1,), "val_evaluator.topk": (1,)}
    )
    _, seen = _losses_seen(load_config(CONFIGS / "alexnet_bn_imagenet_expgb.py", options), tmp_path)
    assert [tuple(target.shape) for target in seen] == [(6, 3)] * 2
    assert any((target.max(1).values < 0.999).any() for target in seen)


def test_without_the_number_of_classes(cifar: Path) -> None:
    """MMPretrain's tools do not fill it in: it is asked for."""
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        preprocessor = MODELS.build(dict(type="ClsDataPreprocessor", batch_augments=dict(augments=dict(MIXUP))))
    dataset = ArrayImages("CIFAR10", cifar, device="cpu")
    with pytest.raises(ValueError, match=r"set model\.data_preprocessor\.num_classes"):
        preprocessor(as_is(dataset.__getitems__([0, 1])), training=True)
