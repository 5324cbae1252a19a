"""ChannelGain and ResizeAligned against numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmcv")
from mmengine.registry import TRANSFORMS, init_default_scope

from gbseg.mm.config import load_config
from gbseg.mm.datasets.transforms import ChannelGain


def _gained(image: np.ndarray, **settings: float) -> np.ndarray:
    before = image.copy()
    results = TRANSFORMS.build({"type": "ChannelGain", **settings})({"img": image, "other": 1})
    assert results["other"] == 1
    # a cached image must not change under its owner
    np.testing.assert_array_equal(image, before)
    return results["img"]


def test_gains_against_numpy() -> None:
    """One gain a channel, U(0.8, 1.3) of numpy's global generator, rounded to nearest and clipped."""
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.random.seed(3)  # noqa: NPY002  (mmengine seeds the global generator)
    actual = _gained(image)
    np.random.seed(3)  # noqa: NPY002
    gains = np.random.uniform(0.8, 1.3, 3)  # noqa: NPY002
    assert len(set(gains)) == 3
    exact = image.astype(np.float64) * gains
    assert actual.dtype == np.uint8
    assert (np.abs(actual - exact.clip(0, 255)) <= 0.5 + 1e-9).all()
    assert (actual[exact > 255] == 255).all()


def test_bounds_and_distribution() -> None:
    """Gains fill the whole range, evenly; channels are independent."""
    np.random.seed(0)  # noqa: NPY002
    gains = np.stack([_gained(np.full((1, 1, 3), 180, np.uint8))[0, 0] for _ in range(1500)]) / 180
    assert gains.min() == pytest.approx(0.8, abs=0.01)
    assert gains.max() == pytest.approx(1.3, abs=0.01)
    quarters = np.histogram(gains, np.linspace(0.7999, 1.3001, 5))[0] / gains.size
    np.testing.assert_allclose(quarters, 0.25, atol=0.03)
    assert np.abs(np.corrcoef(gains.T) - np.eye(3)).max() < 0.1


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_fixed_gain(gain: float, channels: int) -> None:
    """low = high multiplies every channel of any number by it; 1 changes nothing."""
    image = np.random.default_rng(0).integers(0, 256, (5, 4, channels)).astype(np.uint8)
    expected = np.minimum(np.floor(image * gain + 0.5), 255)
    np.testing.assert_array_equal(_gained(image, low=gain, high=gain), expected)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.1, 1), (1.2, 1.1), (float("nan"), 1), (1, float("nan"))])
def test_wrong_gains(low: float, high: float) -> None:
    """The message names both."""
    with pytest.raises(ValueError, match=f"0 < low <= high, got low={low}, high={high}"):
        ChannelGain(low, high)


def _centres(source: int, target: int) -> list[int]:
    """The rule, by hand: the source pixel that holds the centre of each target pixel."""
    return [int((2 * i + 1) * source // (2 * target)) for i in range(target)]


def _resized(shape: tuple[int, int], **settings: Any) -> dict:
    """A label map that says of each pixel where it came from, and an image of its size."""
    init_default_scope("mmseg")
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    results = dict(img=np.zeros((*shape, 3), np.uint8), gt_seg_map=(1000 * rows + columns).astype(np.int32))
    results |= dict(seg_fields=["gt_seg_map"], img_shape=shape, ori_shape=shape)
    if settings["type"] == "Resize":
        # it does not resize these numbers by Pillow
        results["seg_fields"] = []
    return TRANSFORMS.build(settings)(results)


def _sources(labels: np.ndarray) -> tuple[list[int], list[int]]:
    """Rows and columns that a map of `_resized` was made of."""
    rows, columns = (labels[:, 0] // 1000), labels[0] % 1000
    np.testing.assert_array_equal(labels, 1000 * rows[:, None] + columns)
    return rows.tolist(), columns.tolist()


@pytest.mark.parametrize(
    ("shape", "settings", "expected"),
    [
        ((375, 500), dict(scale=(224, 224)), (224, 224)),
        ((224, 224), dict(scale=(500, 375)), (375, 500)),
        ((333, 500), dict(scale=(512, 256), keep_ratio=True), (256, 384)),
        ((97, 61), dict(scale_factor=0.5), (49, 31)),
        ((97, 61), dict(scale_factor=(1.5, 0.7), keep_ratio=False), (68, 92)),
        ((480, 640), dict(scale=(224, 224), backend="pillow"), (224, 224)),
    ],
)
def test_labels_lie_under_the_pixels_centres(shape: tuple, settings: dict, expected: tuple) -> None:
    """By a brute force rule; the image is mmseg's."""
    results = _resized(shape, type="ResizeAligned", **settings)
    labels = results["gt_seg_map"]
    assert labels.shape == results["img"].shape[:2] == results["img_shape"] == expected
    assert _sources(labels) == (_centres(shape[0], expected[0]), _centres(shape[1], expected[1]))
    plain = _resized(shape, type="Resize", **settings)
    np.testing.assert_array_equal(plain["img"], results["img"])
    compared = [name for name in plain if name not in ("img", "gt_seg_map", "seg_fields")]
    assert {"scale", "scale_factor", "keep_ratio"} < set(compared)
    assert [plain[name] for name in compared] == [results[name] for name in compared]


@pytest.mark.parametrize("outer", ["RandomResize", "RandomChoiceResize"])
def test_it_is_the_resize_of_others(outer: str) -> None:
    sizes = dict(scale=(96, 64), ratio_range=(0.5, 2.0)) if outer == "RandomResize" else dict(scales=[(96, 64), (50, 60)])
    np.random.seed(0)  # noqa: NPY002
    for _ in range(5):
        labels = _resized((375, 500), type=outer, resize_type="ResizeAligned", keep_ratio=True, **sizes)["gt_seg_map"]
        assert _sources(labels) == (_centres(375, len(labels)), _centres(500, labels.shape[1]))


def _pipelines(value: Any) -> Any:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from [item] if key.endswith("pipeline") and isinstance(item, list) else _pipelines(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _pipelines(item)


def test_shipped_configs_resize_labels_by_centres() -> None:
    """Every transform of theirs that resizes labels: a grey ramp and its labels, the same picture, come out alike."""
    init_default_scope("mmseg")
    ramp = np.repeat(np.arange(250, dtype=np.uint8)[None], 90, axis=0).repeat(2, axis=1)
    seen = set()
    for file in sorted((Path(__file__).parents[2] / "configs").rglob("*.py")):
        if "classification" in file.parts or "reproduction" in file.parts or "_base_" in file.parent.name:
            continue
        config = load_config(file)
        if config.get("default_scope") == "mmpretrain":
            continue
        for pipeline in _pipelines(config.to_dict()):
            # what comes before the labels does not change them
            types = [step["type"] for step in pipeline]
            for step in pipeline[types.index("LoadAnnotations") if "LoadAnnotations" in types else 0 :]:
                kinds = [step, *step.get("transforms", [])]
                if not any("Resize" in kind["type"] or "Crop" in kind["type"] for kind in kinds):
                    continue
                if step["type"] == "SeededAlbu":
                    pytest.importorskip("albumentations")
                    step = {**step, "transforms": [kind for kind in kinds if "Crop" in kind["type"]]}
                seen.add(step["type"])
                results = dict(img=np.stack([ramp] * 3, -1), gt_seg_map=ramp, seg_fields=["gt_seg_map"])
                results = TRANSFORMS.build(step)(results)
                difference = results["img"][:, 2:-2, 0].astype(float) - results["gt_seg_map"][:, 2:-2]
                # a label is one of two columns: half a level off at most, and none on average
                assert abs(difference.mean()) < 0.15, (file, step)
    assert seen == {"ResizeAligned", "SeededAlbu", "RandomResize", "RandomCrop"}
