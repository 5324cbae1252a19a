"""The mean of augmented predictions against a loop in float64, mmseg's softmax average, and networks that cannot be fooled."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from mmseg.models.segmentors import SegTTAModel
from mmseg.structures import SegDataSample
from tiny_segmentors import write_segmentor
from torch import Tensor, nn

from gbseg.mm.models.link_tta import SCALES, LinkTTAModel, enable_tta
from gbseg.prediction.segmenter import Segmenter

IMAGE = cv2.resize(np.random.default_rng(1).integers(0, 256, (9, 14, 3), dtype=np.uint8), (70, 45))


def _network(tmp_path: Path, **options: object) -> nn.Module:
    return Segmenter(*write_segmentor(tmp_path, **options), device="cpu").network


def _batch(images: list[np.ndarray]) -> dict:
    inputs = [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images]
    shapes = [image.shape[:2] for image in images]
    samples = [SegDataSample(metainfo={"ori_shape": s, "img_shape": s, "img_path": f"{i}.jpg"}) for i, s in enumerate(shapes)]
    return {"inputs": inputs, "data_samples": samples}


def _link(loss: str, logits: np.ndarray) -> np.ndarray:
    """The definition, in float64."""
    x = logits.astype(np.float64)
    exponential = np.exp(x - x.max(0))
    softmax = exponential / exponential.sum(0)
    if loss != "pow3":
        return softmax
    share = np.maximum(0, (0.001 * x**3 + 0.4 - 0) / 10)
    total = share.sum(0)
    return np.where(total > 0, share / np.where(total > 0, total, 1), softmax)


def _logits(network: nn.Module, image: Tensor, shape: tuple[int, int]) -> np.ndarray:
    """Logits of one float image, at ``shape``, by the network's own prediction."""
    sample = SegDataSample(metainfo={"ori_shape": shape, "img_shape": tuple(image.shape[-2:])})
    with torch.no_grad():
        [predicted] = network.predict(image[None], [sample])
    return predicted.seg_logits.data.numpy()


@pytest.mark.parametrize("kind", ["pixelnet", "fcn"])
@pytest.mark.parametrize("loss", ["pow3", "exp", "softmax"])
def test_equals_a_loop_over_the_augmentations(kind: str, loss: str, tmp_path: Path) -> None:
    network = _network(tmp_path, kind=kind, loss=loss)
    scales = (0.6, 1.0, 1.5)
    with torch.no_grad():
        [result] = LinkTTAModel(network, scales=scales).eval().test_step(_batch([IMAGE]))
    image = torch.from_numpy(IMAGE.transpose(2, 0, 1).copy()).float()
    mean = np.zeros((21, 45, 70))
    # 45 * 0.6 = 27, 45 * 1.5 = 67.5, which is rounded up
    for size in ((27, 42), (45, 70), (68, 105)):
        seen = F.interpolate(image[None], size, mode="bilinear")[0]
        mean += _link(loss, _logits(network, seen, (45, 70))) / 6
        mirrored = torch.from_numpy(seen.numpy()[:, :, ::-1].copy())
        mean += _link(loss, _logits(network, mirrored, (45, 70))[:, :, ::-1]) / 6
    np.testing.assert_allclose(result.probabilities.data.numpy(), mean, atol=2e-6)
    labels = result.pred_sem_seg.data.numpy()
    assert labels.shape == (1, 45, 70)
    two = np.sort(mean, axis=0)[-2:]
    clear = two[1] - two[0] > 1e-5
    assert clear.mean() > 0.98
    assert (labels[0] == mean.argmax(0))[clear].all()
    assert len(np.unique(labels)) > 2
    assert "seg_logits" not in result and result.img_path == "0.jpg"


def test_images_of_a_batch_are_merged_each_on_its_own(tmp_path: Path) -> None:
    network = _network(tmp_path)
    other = IMAGE[:, ::-1].copy()
    model = LinkTTAModel(network, scales=(1.0, 0.5))
    with torch.no_grad():
        together = model.test_step(_batch([IMAGE, other]))
        alone = [model.test_step(_batch([image]))[0] for image in (IMAGE, other)]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.probabilities.data, b.probabilities.data)
    assert not torch.equal(together[0].pred_sem_seg.data, together[1].pred_sem_seg.data)


def test_a_network_that_knows_no_left_and_right_gains_nothing_by_flips(tmp_path: Path) -> None:
    """Every kernel is made its own mirror image."""
    network = _network(tmp_path)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
    # an even number of every pooling's windows
    batch = [IMAGE[:, :64]]
    with torch.no_grad():
        [plain] = LinkTTAModel(network, scales=(1.0,), flip=False).test_step(_batch(batch))
        [flipped] = LinkTTAModel(network, scales=(1.0,), flip=True).test_step(_batch(batch))
    torch.testing.assert_close(flipped.probabilities.data, plain.probabilities.data, rtol=0, atol=1e-6)
    assert (flipped.pred_sem_seg.data == plain.pred_sem_seg.data).float().mean() > 0.999
    # and with weights that do know, the mean differs
    network.backbone.layers["conv1_1"][0].weight.data[..., 0] += 0.3
    with torch.no_grad():
        [plain] = LinkTTAModel(network, scales=(1.0,), flip=False).test_step(_batch(batch))
        [flipped] = LinkTTAModel(network, scales=(1.0,), flip=True).test_step(_batch(batch))
    assert (flipped.probabilities.data - plain.probabilities.data).abs().max() > 1e-3


def _test_time_aug() -> dict:
    """What MMSegmentation's configs write, applied to an image in memory."""
    pipeline = [
        dict(type="LoadImageFromNDArray"),
        dict(
            type="TestTimeAug",
            transforms=[
                [dict(type="Resize", scale_factor=r, keep_ratio=True) for r in (0.75, 1.0, 1.25)],
                [dict(type="RandomFlip", prob=float(p), direction="horizontal") for p in (0, 1)],
                [dict(type="PackSegInputs")],
            ],
        ),
    ]
    with DefaultScope.overwrite_default_scope("mmseg"):
        # mmseg's average asks for the image's name
        return pseudo_collate([Compose(pipeline)({"img": IMAGE})])


@pytest.mark.parametrize("loss", ["softmax", "exp", "pow3"])
def test_batches_of_test_time_aug_against_mmseg(loss: str, tmp_path: Path) -> None:
    """Where the link is a softmax, both give the same; after cubic boosting they do not."""
    network = _network(tmp_path, kind="fcn", loss=loss)
    with torch.no_grad():
        [ours] = LinkTTAModel(network).test_step(_test_time_aug())
        [theirs] = SegTTAModel(network).test_step(_test_time_aug())
        separate = [[network.test_step({k: v[i] for k, v in _test_time_aug().items()})[0] for i in range(6)]]
        [merged] = LinkTTAModel(network).merge_preds(separate)
    same = (ours.pred_sem_seg.data[0] == theirs.pred_sem_seg.data).float().mean()
    if loss == "pow3":
        assert same < 0.99
    else:
        assert same > 0.999
    assert torch.equal(merged.pred_sem_seg.data, ours.pred_sem_seg.data)
    torch.testing.assert_close(ours.probabilities.data.sum(0), torch.ones(45, 70))


def test_scales_of_a_fixed_input_are_scales_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """96 x 64 times every scale, to multiples of the deepest stride, 4; the image itself is not resized."""
    network = _network(tmp_path, size=(98, 64))
    seen = []
    forward = network.backbone.forward
    monkeypatch.setattr(network.backbone, "forward", lambda x: seen.append(tuple(x.shape[2:])) or forward(x))
    with torch.no_grad():
        [result] = LinkTTAModel(network, scales=(0.5, 1.0, 1.26)).test_step(_batch([IMAGE]))
    # 49 / 4 = 12.25, 98 as configured, 123.48 / 4 = 30.87; 80.64 / 4 = 20.16
    assert seen == [(48, 32)] * 2 + [(98, 64)] * 2 + [(124, 80)] * 2
    assert result.pred_sem_seg.data.shape == (1, 45, 70)
    with pytest.raises(ValueError, match=r"resizes all of them to test_cfg\.input=\(98, 64\)"):
        LinkTTAModel(network).test_step(_test_time_aug())
    batch = _batch([IMAGE, IMAGE])
    for sample, scale in zip(batch["data_samples"], (1, 2), strict=True):
        sample.set_metainfo({"input_scale": scale})
    with pytest.raises(ValueError, match=r"different values of input_scale: \[1, 2\]"):
        network.test_step(batch)


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    network = _network(tmp_path)
    for scales in ((), (0,), (1, -1)):
        with pytest.raises(ValueError, match="positive factors"):
            LinkTTAModel(network, scales=scales)
    with pytest.raises(ValueError, match="augmented by TestTimeAug already"):
        LinkTTAModel(network, scales=(1,)).test_step(_test_time_aug())
    network.out_channels = 1
    with pytest.raises(ValueError, match="num_classes=2"):
        LinkTTAModel(network)


def test_what_a_config_asks_for() -> None:
    def config(**keys: object) -> Config:
        base = dict(model=dict(type="PixelNet"), test_dataloader=dict(dataset=dict(pipeline=["test"])))
        config = Config({**base, **keys})
        enable_tta(config)
        return config

    plain = config()
    assert plain.model == dict(type="LinkTTAModel", module=dict(type="PixelNet"))
    assert plain.test_dataloader.dataset.pipeline == ["test"]
    # mmseg's runtime and data configs, which name its average for every loss
    mmseg = config(tta_model=dict(type="SegTTAModel"), tta_pipeline=["augmented"])
    assert mmseg.model.type == "LinkTTAModel"
    assert mmseg.test_dataloader.dataset.pipeline == ["augmented"]
    own = config(tta_model=dict(type="LinkTTAModel", scales=(1, 2), flip=False))
    assert own.model == dict(type="LinkTTAModel", scales=(1, 2), flip=False, module=dict(type="PixelNet"))
    assert config(tta_model=dict(type="Mine")).model.type == "Mine"
    with pytest.raises(ValueError, match="tta_pipeline and scales in tta_model"):
        config(tta_model=dict(type="LinkTTAModel", scales=(1, 2)), tta_pipeline=["augmented"])
    assert SCALES == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
