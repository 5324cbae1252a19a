"""`gbseg.Segmenter`: the labels of tools/test.py for every kind of image, whole or in tiles."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_segmentors import ROOT, write_segmentor

import gbseg
from gbseg.data.images import ImageError
from gbseg.data.masks import read_mask
from gbseg.data.scenes import write_scenes
from gbseg.mm.config import load_config
from gbseg.palettes import VOC_CLASSES, VOC_PALETTE, default_palette
from gbseg.prediction.segmenter import Segmentation, Segmenter
from gbseg.prediction.testing import test as evaluate
from gbseg.report.label_overlay import overlay

REAL = ROOT.parent / "shared/data"
RESIZE = "dict(type='Resize', scale=(96, 80), keep_ratio=True),"
SMOOTH = cv2.resize(np.random.default_rng(0).integers(0, 256, (13, 19, 3), dtype=np.uint8), (150, 110))
"""(110, 150, 3), red first."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "voc", train=1, val=3, size=(48, 64))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return Segmenter(*write_segmentor(tmp_path_factory.mktemp("model")), device="cpu")


SETTINGS = {
    "original": dict(kind="pixelnet"),
    "fixed": dict(kind="pixelnet", size=(40, 56)),
    "resized": dict(kind="fcn", resize=RESIZE),
}


@pytest.mark.parametrize("tta", [False, True], ids=["once", "tta"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_labels_are_those_that_testing_writes(setting: str, tta: bool, scenes: Path, tmp_path: Path) -> None:
    extra = "tta_model = dict(type='LinkTTAModel', scales=(0.75, 1.0))"
    config, checkpoint = write_segmentor(tmp_path, data=scenes, extra=extra, **SETTINGS[setting])
    evaluate(load_config(config), checkpoint, out=tmp_path / "out", work_dir=tmp_path / "work", tta=tta)
    segmenter = Segmenter(config, checkpoint, "cpu", tta=tta)
    different = []
    for file in sorted((tmp_path / "out").glob("*.png")):
        path = scenes / f"JPEGImages/{file.stem}.jpg"
        with Image.open(path) as image:
            results = [segmenter(path), segmenter(image), segmenter(cv2.imread(str(path)), bgr=True)]
        for result in results:
            np.testing.assert_array_equal(result.labels, read_mask(file))
            assert result.labels.dtype == np.uint8
        different.append(len(np.unique(results[0].labels)))
    assert len(different) == 3 and max(different) > 2


def test_labels_are_those_that_testing_writes_for_real_photographs(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip("the real VOC subset is not beside this checkout (../shared/data)")
    root = REAL / "VOCdevkit/VOC2012"
    config, checkpoint = write_segmentor(tmp_path, data=root, change=("ann_file=", "indices=3, ann_file="))
    evaluate(load_config(config), checkpoint, out=tmp_path / "out", work_dir=tmp_path / "work")
    segmenter = Segmenter(config, checkpoint, "cpu")
    files = sorted((tmp_path / "out").glob("*.png"))
    assert len(files) == 3
    for file in files:
        np.testing.assert_array_equal(segmenter(root / f"JPEGImages/{file.stem}.jpg").labels, read_mask(file))


def test_probabilities_overlay_names_and_colours(segmenter: Segmenter) -> None:
    result = segmenter(SMOOTH)
    with pytest.raises(ValueError, match=r"alpha must lie in 0\.\.1, not 60"):
        result.overlay(60)
    x = torch.from_numpy(SMOOTH[..., ::-1].transpose(2, 0, 1).copy()).float()[None]
    network = segmenter.network
    with torch.no_grad():
        logits = network.decode_head(network.backbone(x), (110, 150))[0].double().numpy()
    share = np.maximum(0, (0.001 * logits**3 + 0.4) / 10)
    assert (share.sum(0) > 0).all()
    np.testing.assert_allclose(result.probabilities, share / share.sum(0), atol=1e-6)
    assert result.probabilities.dtype == np.float32
    np.testing.assert_array_equal(result.labels, logits.argmax(0))
    np.testing.assert_array_equal(segmenter(SMOOTH, probabilities=True).probabilities, result.probabilities)
    np.testing.assert_array_equal(result.image, SMOOTH)
    expected = overlay(SMOOTH[..., ::-1].copy(), result.labels, VOC_PALETTE, 0.4)
    foreground = (result.labels != result.class_names.index("background"))[..., None]
    assert 0 < foreground.mean() < 1
    np.testing.assert_array_equal(result.overlay(0.4), np.where(foreground, expected[..., ::-1], SMOOTH))
    assert result.class_names == VOC_CLASSES
    assert result.palette == VOC_PALETTE[:21]


def _png(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


GREY = np.repeat(SMOOTH[..., :1], 3, axis=2)
INDEXED = Image.fromarray(SMOOTH).quantize(64)
TURNED = Image.Exif()
TURNED[0x112] = 6  # the camera was held upright: the image is to be turned by 90 degrees, clockwise
ALIKE = {
    "grey png": (_png(Image.fromarray(SMOOTH[..., 0])), GREY),
    "rgba png": (_png(Image.fromarray(np.dstack([SMOOTH, SMOOTH[..., 1]]))), SMOOTH),
    "indexed png": (_png(INDEXED), np.asarray(INDEXED.convert("RGB"))),
    "16-bit png": (cv2.imencode(".png", SMOOTH[..., ::-1].astype(np.uint16) * 256 + 77)[1].tobytes(), SMOOTH),
    "16-bit grey png": (cv2.imencode(".png", SMOOTH[..., 0].astype(np.uint16) * 256 + 200)[1].tobytes(), GREY),
    "turned png": (_png(Image.fromarray(SMOOTH), exif=TURNED), np.rot90(SMOOTH, -1)),
    "grey array": (SMOOTH[..., 0], GREY),
    "rgba array": (np.dstack([SMOOTH, SMOOTH[..., 1]]), SMOOTH),
    "bgr array": (SMOOTH[..., ::-1], SMOOTH),
    "16-bit array": (SMOOTH.astype(np.uint16) * 256 + 255, SMOOTH),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_every_kind_of_image_is_its_plain_picture(kind: str, segmenter: Segmenter, tmp_path: Path) -> None:
    given, plain = ALIKE[kind]
    if isinstance(given, bytes):
        (tmp_path / "image").write_bytes(given)
        results = [segmenter(tmp_path / "image")]
        with Image.open(tmp_path / "image") as image:
            results.append(segmenter(image))
    else:
        results = [segmenter(given, bgr=kind == "bgr array")]
    expected = segmenter(np.ascontiguousarray(plain)).labels
    assert len(np.unique(expected)) > 2
    for result in results:
        assert result.labels.shape == plain.shape[:2]
        np.testing.assert_array_equal(result.labels, expected)
        np.testing.assert_array_equal(result.image, plain)


def test_cmyk_jpeg(segmenter: Segmenter, tmp_path: Path) -> None:
    """Inks are turned into light with rounding, so the picture is nearly the same, and so are most labels."""
    (tmp_path / "inks.jpg").write_bytes(_png(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=98))
    result = segmenter(tmp_path / "inks.jpg")
    assert np.abs(result.image.astype(int) - SMOOTH).mean() < 3
    assert (result.labels == segmenter(SMOOTH).labels).mean() > 0.8


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 300), (31, 2)])
@pytest.mark.parametrize("setting", SETTINGS)
def test_tiny_images(setting: str, shape: tuple[int, int], tmp_path: Path) -> None:
    segmenter = Segmenter(*write_segmentor(tmp_path, **SETTINGS[setting]), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    if setting == "resized" and shape == (1, 300):
        with pytest.raises(ImageError, match="an image of 300 x 1 pixels does not pass the config's test pipeline"):
            segmenter(image)
        return
    result = segmenter(image)
    assert result.labels.shape == shape
    assert result.probabilities.shape == (21, *shape)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(result.probabilities.argmax(0), result.labels)


LARGE = cv2.resize(np.random.default_rng(2).integers(0, 256, (40, 50, 3), dtype=np.uint8), (290, 230))


@pytest.mark.parametrize("setting", ["original", "fixed", "shrunk", "upsampled"])
def test_tiles_give_what_the_whole_image_gives(setting: str, tmp_path: Path) -> None:
    """Networks that see 20 pixels far, tiles that share 64, and (for the stride of 2) sides that are even."""
    options = {
        "shrunk": dict(kind="fcn", resize="dict(type='Resize', scale=(192, 160)),"),
        "upsampled": dict(kind="fcn", resize="dict(type='Resize', scale=(384, 320)),"),
    }
    config, checkpoint = write_segmentor(tmp_path, **{**SETTINGS, **options}[setting])
    whole = Segmenter(config, checkpoint, "cpu")(LARGE)
    segmenter = Segmenter(config, checkpoint, "cpu", tile=128, overlap=64)
    tiled = segmenter(LARGE, probabilities=True)
    np.testing.assert_array_equal(segmenter(LARGE).labels, tiled.labels)
    assert len(np.unique(whole.labels)) > 2
    np.testing.assert_allclose(tiled.probabilities, whole.probabilities, atol=2e-5)
    if setting in ("original", "fixed"):
        np.testing.assert_array_equal(tiled.labels, whole.labels)
    assert (tiled.labels == whole.labels).mean() > 0.999
    # tiles that share nothing see less at their borders
    if setting == "original":
        apart = Segmenter(config, checkpoint, "cpu", tile=128, overlap=0)(LARGE)
        assert np.abs(apart.probabilities - whole.probabilities).max() > 1e-3


def test_tiles_with_augmentation(tmp_path: Path) -> None:
    """A scale of one in tiles and whole; a fixed input is compared at the largest of its scales."""
    extra = "tta_model = dict(type='LinkTTAModel', scales=(1.0,))"
    config, checkpoint = write_segmentor(tmp_path, extra=extra)
    whole = Segmenter(config, checkpoint, "cpu", tta=True)(LARGE[:, :256])
    tiled = Segmenter(config, checkpoint, "cpu", tta=True, tile=128, overlap=64)(LARGE[:, :256])
    np.testing.assert_allclose(tiled.probabilities, whole.probabilities, atol=1e-5)
    config, checkpoint = write_segmentor(tmp_path, size=(64, 64), extra=extra)
    whole = Segmenter(config, checkpoint, "cpu", tta=True)(LARGE)
    tiled = Segmenter(config, checkpoint, "cpu", tta=True, tile=128, overlap=64)(LARGE)
    np.testing.assert_array_equal(tiled.labels, whole.labels)
    several = "tta_model = dict(type='LinkTTAModel', scales=(0.75, 1.0, 1.5))"
    config, checkpoint = write_segmentor(tmp_path, size=(64, 64), extra=several)
    whole = Segmenter(config, checkpoint, "cpu", tta=True)(LARGE)
    tiled = Segmenter(config, checkpoint, "cpu", tta=True, tile=128, overlap=64)(LARGE)
    # the mean is taken at the largest scale and upsampled, instead of every scale by itself
    assert (tiled.labels == whole.labels).mean() > 0.99


MEMORY = """
import resource, sys
import numpy as np
from gbseg.prediction.segmenter import Segmenter

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
small, large = np.zeros((64, 64, 3), np.uint8), np.zeros((3000, 2000, 3), np.uint8)
large[::7] = 90
for config, checkpoint in zip(sys.argv[1::2], sys.argv[2::2]):
    segmenter = Segmenter(config, checkpoint, "cpu", tile=512, overlap=64)
    segmenter(small)
    before = peak()
    result = segmenter(large)
    assert result.labels.shape == (3000, 2000)
    print("MEMORY", peak() - before)
"""


@pytest.mark.slow
def test_memory_of_a_very_large_image(tmp_path: Path) -> None:
    """Six megapixels, whose logits would take 481 MiB; the image itself takes 17 as bytes and 69 as floats."""
    tiled = write_segmentor(tmp_path / "a", kind="fcn")
    fixed = write_segmentor(tmp_path / "b", size=(64, 64))
    arguments = [sys.executable, "-c", MEMORY, *tiled, *fixed]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    peaks = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("MEMORY")]
    assert peaks[0] < 250, peaks
    assert peaks[1] < 250, peaks


def test_what_does_not_fit_is_said(segmenter: Segmenter, tmp_path: Path) -> None:
    config, checkpoint = write_segmentor(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*none\.pth"):
        Segmenter(config, tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"demo_expgb\.py lists the runs softmax, expgb"):
        Segmenter(ROOT / "configs/demo_expgb.py", checkpoint)
    _, other = write_segmentor(tmp_path / "other", kind="fcn")
    with pytest.raises(ValueError, match=r"fcn\.pth does not belong .* are missing or of another shape: "):
        Segmenter(config, other)
    stored = torch.load(checkpoint, weights_only=False)
    stored["state_dict"]["decode_head.linears.1.weight"] = torch.zeros(5, 8)
    torch.save(stored, tmp_path / "shape.pth")
    with pytest.raises(ValueError, match=r"shape\.pth does not belong .*linears\.1\.weight \(5, 8\) instead of"):
        Segmenter(config, tmp_path / "shape.pth")
    with pytest.raises(ValueError, match="multiples of 32"):
        Segmenter(config, checkpoint, tile=1000)
    for image, message in ((tmp_path / "none.jpg", "is missing"), (config, "cannot be read as an image"), (3, "not int")):
        with pytest.raises(ImageError, match=message):
            segmenter(image)
    with pytest.warns(UserWarning, match="tta_pipeline is for tools/test.py"):
        Segmenter(*write_segmentor(tmp_path, extra="tta_pipeline = []"), device="cpu", tta=True)


def test_the_limit_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config's, also for a loader that reads by Pillow, whose own limit does not hold."""
    config, checkpoint = write_segmentor(tmp_path)
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match=r"photo\.png has 50 x 40 pixels; at most 1,999 can be read: .*max_pixels=N"):
        Segmenter(config, checkpoint, "cpu", cfg_options={"max_pixels": 1999})(tmp_path / "photo.png")
    settings = load_config(config, {"max_pixels": 2000})
    settings.test_dataloader.dataset.pipeline[0].imdecode_backend = "pillow"
    assert Segmenter(settings, checkpoint, "cpu")(tmp_path / "photo.png").labels.shape == (40, 50)
    with pytest.raises(ValueError, match=r"max_pixels is the most pixels of an image or a mask, .* not 0"):
        Segmenter(config, checkpoint, "cpu", cfg_options={"max_pixels": 0})


@pytest.mark.parametrize("way", ["whole", "tiles", "tta"])
def test_a_network_of_nan_gives_no_labels(way: str, tmp_path: Path) -> None:
    config, checkpoint = write_segmentor(tmp_path)
    stored = torch.load(checkpoint, weights_only=False)
    stored["state_dict"]["decode_head.linears.1.bias"][3] = np.nan
    torch.save(stored, checkpoint)
    segmenter = Segmenter(config, checkpoint, "cpu", tta=way == "tta", tile=32 if way == "tiles" else 1024, overlap=0)
    with pytest.raises(ValueError, match=r"logits are NaN or infinite, .*: look for a training that diverged"):
        segmenter(SMOOTH)


def test_options_change_a_config_too(tmp_path: Path) -> None:
    """The same as of a file; what was given stays as it was."""
    file, checkpoint = write_segmentor(tmp_path)
    config = load_config(file)
    options = {"model.test_cfg.input": (40, 56), "model.decode_head.loss_decode": dict(_delete_=True, type="ExpGBLoss")}
    segmenter = Segmenter(config, checkpoint, "cpu", cfg_options=options)
    assert segmenter.network.input_size == (40, 56)
    expected = Segmenter(file, checkpoint, "cpu", cfg_options=options)(SMOOTH)
    np.testing.assert_array_equal(segmenter(SMOOTH).probabilities, expected.probabilities)
    assert config.model.test_cfg.input == "original" and "_delete_" in options["model.decode_head.loss_decode"]


def test_overlay_of_many_classes() -> None:
    """Beyond 255 a class has its own colour still, and 255 is a class like others."""
    labels = np.array([[254, 255, 256, 299]], np.int32)
    palette = tuple((i // 2, 255 - i // 2, 0) for i in range(300))
    overlay = Segmentation(labels, np.zeros((1, 4, 3), np.uint8), tuple(map(str, range(300))), palette, np.empty).overlay(1.0)
    assert overlay[0].tolist() == [list(palette[label]) for label in labels[0]]


def test_names_of_a_checkpoint_without_them(tmp_path: Path) -> None:
    """The data set of the config names the classes, if it has as many; else numbers do."""
    config, checkpoint = write_segmentor(tmp_path)
    stored = torch.load(checkpoint, weights_only=False)
    torch.save({"state_dict": {f"module.{name}": x for name, x in stored["state_dict"].items()}}, checkpoint)
    assert Segmenter(config, checkpoint, "cpu").class_names == VOC_CLASSES
    metainfo = {"test_dataloader.dataset.metainfo": dict(classes=["a", "b"], palette=[[0, 0, 0], [1, 1, 1]])}
    segmenter = Segmenter(config, checkpoint, "cpu", cfg_options=metainfo)
    assert segmenter.class_names == tuple(map(str, range(21)))
    assert segmenter.palette == tuple(map(tuple, default_palette(segmenter.class_names)))


def test_unusable_names_of_a_checkpoint(tmp_path: Path) -> None:
    """What is no list of names or colours counts as absent, and the data set's own are taken."""
    config, checkpoint = write_segmentor(tmp_path)
    stored = torch.load(checkpoint, weights_only=False)
    for wrong in (
        [1],
        5,
        {"classes": 5, "palette": 5},
        {"classes": [[]] * 21, "palette": [[1, 2]] * 21},
        {"palette": [5] * 21},
    ):
        stored["meta"] = {"dataset_meta": wrong}
        torch.save(stored, checkpoint)
        segmenter = Segmenter(config, checkpoint, "cpu")
        assert segmenter.class_names == VOC_CLASSES and segmenter.palette == VOC_PALETTE[:21]
    stored["meta"]["dataset_meta"] = {"classes": list("abcdefghijklmnopqrstu"), "palette": np.full((21, 3), 7)}
    torch.save(stored, checkpoint)
    segmenter = Segmenter(config, checkpoint, "cpu")
    assert segmenter.class_names[:2] == ("a", "b") and segmenter.palette == ((7, 7, 7),) * 21


def test_it_is_there_when_it_is_asked_for() -> None:
    assert gbseg.Segmenter is Segmenter
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        _ = gbseg.Segmentor
    code = "import gbseg, sys; assert not {'mmseg', 'mmcv', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
