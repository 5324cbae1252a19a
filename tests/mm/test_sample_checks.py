"""Masks and images that lie, through what trains, validates and tests, in configs of ours and of others."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

pytest.importorskip("mmseg")
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from gbseg.cli import main
from gbseg.mm import LabelledPixelsHook, SampleCheckHook
from gbseg.mm.datasets.sample_checks import CheckedPipeline, check_samples
from gbseg.mm.training import build_runner

SIZE = (12, 16)


@pytest.fixture(autouse=True)
def _scope(monkeypatch: pytest.MonkeyPatch) -> None:
    init_default_scope("mmseg")
    # a second of every short run: the config's text is laid out anew each time
    monkeypatch.setattr(Config, "pretty_text", property(lambda self: repr(self.to_dict())))


CONFIG = """
default_scope = 'mmseg'
custom_imports = dict(imports=['gbseg.mm'])
model = dict(
    type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor', size=(12, 16), seg_pad_val=255),
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4, num_stages=1, strides=(1,), dilations=(1,),
        out_indices=(0,), norm_cfg=dict(type='BN')),
    decode_head=dict(type='FCNHead', in_channels=4, channels=4, num_convs=0, concat_input=False, num_classes=21,
        norm_cfg=dict(type='BN'), loss_decode=dict(type='CrossEntropyLoss')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
pipeline = [dict(type='LoadImageFromFile'), {loader}, dict(type='Resize', scale=(16, 12)), dict(type='PackSegInputs')]
dataset = dict(type='{dataset}', data_root='{root}', data_prefix=dict(img_path='images', seg_map_path='masks'),
    metainfo=dict(classes=tuple(map(str, range(21))), palette=[[i, i, i] for i in range(21)]), serialize_data=False,
    pipeline=pipeline)
train_dataloader = dict(batch_size=2, num_workers={workers}, sampler=dict(type='{sampler}', shuffle=False), dataset=dataset)
val_dataloader = dict(batch_size=1, num_workers={workers}, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, pipeline=[dict(type='LoadImageFromFile'), {loader}, dict(type='PackSegInputs')]))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='{metric}')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
train_cfg = dict(type='{loop}', max_iters=3, val_begin=10)
val_cfg, test_cfg = dict(), dict()
default_hooks = dict(checkpoint=None)
log_processor = dict(by_epoch=False)
"""
OURS = dict(dataset="FolderSegmentation", sampler="ResumableSampler", loop="ResumableIterLoop", metric="VOCMetric")
OTHERS = dict(dataset="BaseSegDataset", sampler="InfiniteSampler", loop="IterBasedTrainLoop", metric="IoUMetric")


def write(root: Path, mask: Callable[[int], np.ndarray] | None = None, suffix: str = ".png") -> Path:
    """Four images and their masks, labels 0..2 and 255."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(root / f"images/{number}.jpg")
        values = mask(number) if mask else rng.choice([0, 1, 2, 255], SIZE).astype(np.uint8)
        Image.fromarray(values).save(root / f"masks/{number}{suffix}")
    return root


def config(
    root: Path, kind: dict[str, str], loader: str = "dict(type='LoadAnnotations')", workers: int = 0, **options: Any
) -> Config:
    file = root / "config.py"
    file.write_text(CONFIG.format(root=root, loader=loader, workers=workers, **kind))
    config = Config.fromfile(str(file))
    config.merge_from_dict(options)
    return config


def labels_seen(root: Path, kind: dict[str, str], **options: Any) -> list[np.ndarray]:
    """The labels of a training's batches, as the network gets them."""
    runner = build_runner(config(root, kind, **options), root / "work")
    seen: list[np.ndarray] = []
    network = runner.model
    plain = network.loss

    def loss(inputs: Any, samples: Any) -> Any:
        seen.extend(sample.gt_sem_seg.data[0].numpy().copy() for sample in samples)
        return plain(inputs, samples)

    network.loss = loss
    runner.train()
    return seen


def scores_of(root: Path, kind: dict[str, str], **options: Any) -> dict[str, float]:
    """The scores of an untrained network."""
    settings = dict(
        train_cfg=None, train_dataloader=None, optim_wrapper=None, val_cfg=None, val_dataloader=None, val_evaluator=None
    )
    return build_runner(config(root, kind, **options), root / "work", **settings).test()


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def jpeg(values: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", values)[1].tobytes()


def tiff(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="TIFF")
    return buffer.getvalue()


LABELS = np.resize(np.arange(3), SIZE)
SPOILT = {
    "16 bits": (png((LABELS + 256).astype(np.uint16)), "holds the numbers 256, 257, 258, which do not fit"),
    "32 bits": (tiff((LABELS + 512).astype(np.int32)), "holds the numbers 512, 513, 514, which do not fit"),
    "negative": (tiff((LABELS - 1).astype(np.int32)), "holds the numbers -1, which do not fit"),
    "fractions": (tiff((LABELS / 2).astype(np.float32)), "holds the numbers 0.5, which do not fit"),
    "JPEG": (jpeg(LABELS.astype(np.uint8)), "is a JPEG, whose compression changes class numbers"),
    "RGB": (png(np.zeros((*SIZE, 3), np.uint8)), r"holds colours \(RGB\) instead of class numbers"),
    "RGBA": (png(np.zeros((*SIZE, 4), np.uint8)), r"holds colours \(RGBA\) instead of class numbers"),
    "size": (png(np.zeros((9, 16), np.uint8)), r"is 16 x 9 pixels \(width x height\), its image .*images/1\.jpg 16 x 12"),
    "empty": (b"", r"it is empty \(0 bytes\)"),
    "cut off": (png(np.random.default_rng(0).integers(0, 3, SIZE, np.uint8))[:-30], "cannot be read"),
    "no image": (b"no image", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [OURS, OTHERS], ids=["ours", "others"])
@pytest.mark.parametrize("backend", ["pillow", "cv2"])
@pytest.mark.parametrize("fault", SPOILT)
def test_masks_that_would_give_other_labels(fault: str, backend: str, kind: dict, tmp_path: Path) -> None:
    """In the pipelines of training and of evaluation."""
    root = write(tmp_path)
    content, message = SPOILT[fault]
    (root / "masks/1.png").write_bytes(content)
    settings = config(root, kind, f"dict(type='LoadAnnotations', imdecode_backend='{backend}')")
    for loader in (settings.train_dataloader, settings.val_dataloader):
        dataset = DATASETS.build(loader.dataset)
        if kind is OTHERS:
            SampleCheckHook().before_train(
                SimpleNamespace(model=nn.Module(), train_dataloader=SimpleNamespace(dataset=dataset))
            )
        assert dataset[0]["data_samples"].gt_sem_seg.shape[-2:] == SIZE
        with pytest.raises(ValueError, match=message) as caught:
            dataset[1]
        assert str(root / "masks/1.png") in str(caught.value) and str(root / "images/1.jpg") in str(caught.value)


@pytest.mark.parametrize(
    "settings", [dict(format="JPEG2000", irreversible=True), dict(format="TIFF", compression="jpeg")], ids=["wavelet", "TIFF"]
)
@pytest.mark.parametrize("use", ["training", "evaluation"])
def test_masks_that_are_compressed_like_photographs(use: str, settings: dict[str, Any], tmp_path: Path) -> None:
    root = write(tmp_path)
    Image.fromarray(LABELS.astype(np.uint8)).save(root / "masks/1.png", **settings)
    match = rf"masks/1\.png is a {settings['format']} .* changes class numbers: make it again as a PNG"
    with pytest.raises(ValueError, match=match):
        (labels_seen if use == "training" else scores_of)(root, OTHERS)


@pytest.mark.parametrize("use", ["training", "evaluation"])
def test_the_checks_are_in_every_run(use: str, tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "masks/1.png").write_bytes(SPOILT["JPEG"][0])
    with pytest.raises(ValueError, match=r"masks/1\.png is a JPEG"):
        (labels_seen if use == "training" else scores_of)(root, OTHERS)


@pytest.mark.parametrize("kind", [OURS, OTHERS], ids=["ours", "others"])
def test_wide_masks_whose_numbers_fit_are_read_right(kind: dict, tmp_path: Path) -> None:
    root = write(tmp_path)
    values = [np.random.default_rng(n).choice([0, 1, 2, 20, 255], SIZE) for n in range(4)]
    kinds = (np.uint16, np.int32, np.float32, np.uint8)
    for number, (labels, dtype) in enumerate(zip(values, kinds, strict=True)):
        content = (png if dtype in (np.uint8, np.uint16) else tiff)(labels.astype(dtype))
        (root / f"masks/{number}.png").write_bytes(content)
    seen = labels_seen(root, kind)
    for number in range(4):
        np.testing.assert_array_equal(seen[number], values[number])


@pytest.mark.parametrize(
    ("content", "message", "kind", "workers"),
    [
        (b"", r"it is empty \(0 bytes\)", OURS, 1),
        (b"x", "LoadImageFromFile failed", OTHERS, 1),
        (jpeg(np.zeros((50, 50, 3), np.uint8))[:400], "cannot be read|failed", OURS, 0),
    ],
    ids=["empty", "no image", "cut off"],
)
def test_images_that_cannot_be_read(content: bytes, message: str, kind: dict, workers: int, tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "images/2.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        labels_seen(root, kind, workers=workers)
    said = str(caught.value)
    assert str(root / "images/2.jpg") in said and str(root / "masks/2.png") in said and "Traceback" not in said


@TRANSFORMS.register_module()
class Stumble:
    """A transform that fails at one image."""

    def __init__(self, kind: str) -> None:
        self.error = {"ValueError": ValueError, "KeyError": KeyError}[kind]

    def __call__(self, results: dict) -> dict:
        """Fail."""
        if results["img_path"].endswith("3.jpg"):
            raise self.error("too small to crop")
        return results


def test_a_transform_that_fails_names_the_files(tmp_path: Path) -> None:
    root = write(tmp_path)
    for kind in ("ValueError", "KeyError"):
        settings = config(root, OTHERS)
        settings.train_dataloader.dataset.pipeline.insert(2, dict(type="Stumble", kind=kind))
        # a failure of the code keeps its type
        with pytest.raises(ValueError if kind == "ValueError" else KeyError, match="too small to crop") as caught:
            build_runner(settings, root / "work").train()
        said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
        assert "Stumble failed" in said and str(root / "images/3.jpg") in said and str(root / "masks/3.png") in said


@pytest.mark.parametrize("kind", [OURS, OTHERS], ids=["ours", "others"])
def test_labels_of_no_class_name_their_mask(kind: dict, tmp_path: Path) -> None:
    """In training and evaluation; what head and data set ignore is no fault."""
    root = write(tmp_path)
    (root / "masks/1.png").write_bytes(png(np.resize(np.array([0, 30, 254, 255], np.uint8), SIZE)))
    for use in (labels_seen, scores_of):
        with pytest.raises(ValueError, match=r"masks/1\.png holds labels that are no class, .*: 30, 254; 21 classes are 0"):
            use(root, kind)
    for number in range(4):
        (root / f"masks/{number}.png").write_bytes(png(np.resize(np.array([0, 20, 254, 255], np.uint8), SIZE)))
    head = {"model.decode_head.ignore_index": 254, "train_cfg.max_iters": 1}
    runner = build_runner(config(root, kind, **head), root / "work")
    SampleCheckHook().before_train(runner)
    assert set(np.unique(runner.train_dataloader.dataset[0]["data_samples"].gt_sem_seg.data)) == {0, 20, 254, 255}


def test_mixed_samples_name_the_first(tmp_path: Path) -> None:
    root = write(tmp_path)
    settings = config(root, OTHERS)
    inner = dict(settings.train_dataloader.dataset, pipeline=settings.train_dataloader.dataset.pipeline[:-1])
    steps = [dict(type="RandomMosaic", img_scale=(12, 16), prob=1.0), dict(type="Stumble", kind="ValueError")]
    settings.train_dataloader.dataset = dict(
        type="MultiImageMixDataset",
        dataset=dict(type="ConcatDataset", datasets=[inner]),
        pipeline=[*steps, dict(type="PackSegInputs")],
    )
    with pytest.raises(ValueError, match=r"Stumble failed: ValueError: too small to crop \(image .*images/3\.jpg"):
        build_runner(settings, root / "work").train()


@TRANSFORMS.register_module()
class LoadAsBytes(LoadAnnotations):
    """A loader such as users write."""

    def transform(self, results: dict) -> dict:
        results["gt_seg_map"] = np.asarray(Image.open(results["seg_map_path"])).astype(np.uint8)
        results["seg_fields"].append("gt_seg_map")
        return results


def test_loaders_of_others_are_checked_wherever_they_stand(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "masks/1.png").write_bytes(SPOILT["16 bits"][0])
    for loader in ("dict(type='LoadAsBytes')", "dict(type='RandomApply', transforms=[dict(type='LoadAsBytes')], prob=1.0)"):
        with pytest.raises(ValueError, match=r"masks/1\.png holds the numbers 256, 257, 258"):
            labels_seen(root, OTHERS, loader=loader)


def test_a_mask_one_pixel_high(tmp_path: Path) -> None:
    root = write(tmp_path)
    for number in range(4):
        Image.fromarray(np.zeros((1, 16, 3), np.uint8)).save(root / f"images/{number}.jpg")
        Image.fromarray(np.full((1, 16), 2, np.uint8)).save(root / f"masks/{number}.png")
    assert all((labels == 2).all() and labels.shape == SIZE for labels in labels_seen(root, OURS))


@pytest.mark.parametrize("kind", [OURS, OTHERS], ids=["ours", "others"])
def test_pixels_have_one_limit(kind: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images and masks, in training and evaluation, by one key; Pillow's own limit does not hold."""
    root = write(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    limits = {"max_pixels": SIZE[0] * SIZE[1]}
    assert labels_seen(root, kind, **limits) and scores_of(root, kind, **limits)
    for use in (labels_seen, scores_of):
        with pytest.raises(ValueError, match=r"images/0\.jpg has 16 x 12 pixels; at most 191 can be read: .*max_pixels=N"):
            use(root, kind, max_pixels=191)
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(root / "masks/0.png")
    with pytest.raises(ValueError, match=r"masks/0\.png has 40 x 40 pixels; at most 192 can be read"):
        labels_seen(root, kind, **limits)
    with pytest.raises(ValueError, match=r"max_pixels is the most pixels .* not '9'"):
        labels_seen(root, kind, max_pixels="9")


@pytest.mark.parametrize("kind", [OURS, OTHERS], ids=["ours", "others"])
def test_no_pixel_has_a_label(kind: dict, tmp_path: Path) -> None:
    root = write(tmp_path, lambda n: np.full(SIZE, 255, np.uint8))
    patience = dict(custom_hooks=[dict(type="LabelledPixelsHook", patience=2)])
    with pytest.raises(ValueError, match="nothing can be learned: no pixel has a label in the first 4 images"):
        labels_seen(root, kind, **patience)

    def logged() -> str:
        return "".join(path.read_text() for path in (root / "work").glob("*/*.log"))

    # a run that is shorter than the hook's patience
    assert "Nothing was learned" not in logged()
    labels_seen(root, kind, **{"train_cfg.max_iters": 1})
    assert "Nothing was learned: no pixel has a label in the first 2 images of the training" in logged()
    if kind is OURS:
        with pytest.raises(ValueError, match=r"no labelled pixel in 4 images: all are 255 \(ignored\)"):
            scores_of(root, kind)
    else:
        scores_of(root, kind)
        assert "These scores mean nothing: no pixel has a label in the first 4 images of the evaluation" in logged()


def test_a_crop_without_labels_is_not_the_end(tmp_path: Path) -> None:
    """The first batches of an epoch that is one image long may miss its labels."""
    mask = np.full(SIZE, 255, np.uint8)
    mask[:, :4] = 1
    root = write(tmp_path, lambda n: mask)
    (root / "one.txt").write_text("0\n")
    crops = iter([mask[:, 8:], mask[:, 8:], mask[:, :8]])
    runner = build_runner(
        config(root, OTHERS, **{"train_dataloader.dataset.ann_file": "one.txt", "train_dataloader.batch_size": 1}),
        root / "work",
    )
    plain = runner.model.loss

    def loss(inputs: Any, samples: Any) -> Any:
        # as a transform would have cut it
        samples[0].gt_sem_seg.data = torch.from_numpy(np.resize(next(crops), SIZE))[None].long()
        return plain(inputs, samples)

    runner.model.loss = loss
    runner.train()
    assert runner.iter == 3


def _one_of_two(rank: int, store: str, folder: str, labelled: tuple[bool, bool]) -> None:
    """Three iterations of the hook in one of two processes; writes how they ended."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    hook = LabelledPixelsHook(patience=2)
    runner: Any = SimpleNamespace(
        train_dataloader=[0, 1], model=SimpleNamespace(decode_head=SimpleNamespace(ignore_index=255)), logger=MMLogger("test")
    )
    label = 1 if labelled[rank] else 255
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, 2, 2), label)))
    end = "went on"
    try:
        hook.before_train(runner)
        for iteration in range(3):
            hook.after_train_iter(runner, iteration, dict(data_samples=[sample]))
    except ValueError as error:
        end = str(error)
    Path(folder, f"end_{rank}").write_text(end)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("labelled", [(True, False), (False, False)])
def test_two_processes_decide_together(labelled: tuple[bool, bool], tmp_path: Path) -> None:
    """One without a label does not end alone, with the other one waiting for its gradients."""
    arguments = str(tmp_path / "store"), str(tmp_path), labelled
    torch.multiprocessing.start_processes(_one_of_two, arguments, nprocs=2, start_method="forkserver")
    for rank in range(2):
        text = (tmp_path / f"end_{rank}").read_text()
        assert text == "went on" if any(labelled) else text.startswith("nothing can be learned: ")


def test_one_labelled_pixel_is_enough(tmp_path: Path) -> None:
    def mask(number: int) -> np.ndarray:
        values = np.full(SIZE, 255, np.uint8)
        values[3, 3] = 1 if number == 3 else 255
        return values

    root = write(tmp_path, mask)
    assert labels_seen(root, OURS) and scores_of(root, OURS)["mIoU"] >= 0


def test_a_command_says_it_in_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path)
    (root / "masks/1.png").write_bytes(SPOILT["16 bits"][0])
    for workers in (0, 1):
        config(root, OTHERS, workers=workers)
        assert main(["train", str(root / "config.py"), "--work-dir", str(root / "work")]) == 1
        said = capfd.readouterr().err
        assert f"gbseg: {root}/masks/1.png holds the numbers 256, 257, 258" in said and f"(image {root}/images/1.jpg)" in said
        assert "Traceback" not in said


def test_a_single_output_has_two_classes(tmp_path: Path) -> None:
    """A sigmoid's labels are 0 and 1."""
    root = write(tmp_path, lambda n: np.resize(np.uint8([0, 1, 255]), SIZE))
    binary = {
        "model.decode_head.num_classes": 1,
        "model.decode_head.loss_decode": dict(type="mmseg.CrossEntropyLoss", use_sigmoid=True),
        "train_dataloader.dataset.metainfo": dict(classes=("road",), palette=[[1, 1, 1]]),
    }
    assert set(np.unique(labels_seen(root, OTHERS, **binary))) == {0, 1, 255}
    (root / "masks/1.png").write_bytes(png(np.full(SIZE, 2, np.uint8)))
    with pytest.raises(ValueError, match=r"masks/1\.png holds labels that are no class, .*: 2; 2 classes are 0\.\.1"):
        labels_seen(root, OTHERS, **binary)


def test_augmented_tests_are_checked(tmp_path: Path) -> None:
    """Every view of an image has its labels."""
    root = write(tmp_path)
    (root / "masks/1.png").write_bytes(png(np.full(SIZE, 30, np.uint8)))
    views = [[dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)], [dict(type="LoadAnnotations")]]
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="TestTimeAug", transforms=[*views, [dict(type="PackSegInputs")]]),
    ]
    settings = config(root, OTHERS)
    settings.model = dict(type="SegTTAModel", module=settings.model)
    settings.test_dataloader.dataset.pipeline = pipeline
    with pytest.raises(ValueError, match=r"masks/1\.png holds labels that are no class, .*: 30; 21 classes"):
        build_runner(settings, root / "work").test()


@TRANSFORMS.register_module()
class _Thousands(LoadAnnotations):
    """A user's loader that makes classes of ids on purpose: of Cityscapes' instances, of merged colours."""

    def transform(self, results: dict) -> dict:
        ids = cv2.imread(results["seg_map_path"], cv2.IMREAD_UNCHANGED)
        results["gt_seg_map"] = (ids // 1000 if ids.dtype == np.uint16 else ids[..., 0] // 100).astype(np.uint8)
        return results


def test_classes_that_a_loader_makes_on_purpose(tmp_path: Path) -> None:
    root = write(tmp_path)
    ids = np.resize(np.arange(3), SIZE)
    for number in range(4):
        (root / f"masks/{number}.png").write_bytes(png((ids * 1000 + 17).astype(np.uint16)))
    palette = Image.fromarray(ids.astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 0, 0, 120, 0, 0, 240])
    palette.save(root / "masks/3.png")
    seen = labels_seen(root, OTHERS, loader="dict(type='_Thousands')")
    assert len(seen) >= 4 and all((labels == ids).all() for labels in seen)


@TRANSFORMS.register_module()
class _Careless(LoadAnnotations):
    """A user's loader that loses what does not fit into 8 bits, or reads a palette's colours."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def transform(self, results: dict) -> dict:
        stored = cv2.imread(results["seg_map_path"], cv2.IMREAD_UNCHANGED)
        grey = cv2.imread(results["seg_map_path"], cv2.IMREAD_GRAYSCALE)
        read = dict(cut=lambda: stored.astype(np.uint8), limited=lambda: np.clip(stored, 0, 255), grey=lambda: grey)[self.how]()
        results["gt_seg_map"] = read.astype(np.uint8)
        return results


@pytest.mark.parametrize("how", ["cut", "limited", "grey"])
def test_classes_that_a_loader_loses(how: str, tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "masks/1.png").write_bytes(png((LABELS * 1000).astype(np.uint16)))
    with pytest.raises(ValueError, match=r"masks/1\.png holds the numbers 1000, 2000, which do not fit"):
        labels_seen(root, OTHERS, loader=f"dict(type='_Careless', how='{how}')")
    if how == "grey":
        palette = Image.fromarray(LABELS.astype(np.uint8), mode="P")
        palette.putpalette([0, 0, 0, 0, 10, 60, 90, 0, 20])
        palette.save(root / "masks/1.png")
        with pytest.raises(ValueError, match=r"masks/1\.png is read by _Careless.* as other numbers than are stored"):
            labels_seen(root, OTHERS, loader=f"dict(type='_Careless', how='{how}')")


class _Torchvision(Dataset):
    """Not a data set of the MM packages: its transforms take an image, or image and label."""

    def __init__(self, pipeline: Callable) -> None:
        self.pipeline = pipeline

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return self.pipeline(Image.new("RGB", (4, 4)))


@pytest.mark.parametrize("pipeline", [lambda image: image, np.asarray, lambda image: (np.asarray(image), 1)])
def test_samples_of_others_pass(pipeline: Callable) -> None:
    dataset = _Torchvision(pipeline)
    plain = dataset[0]
    check_samples(dataset)
    assert isinstance(dataset.pipeline, CheckedPipeline) and type(dataset[0]) is type(plain)
    check_samples([dict(inputs=0)])


@pytest.mark.parametrize("key", ["train_dataloader", "val_dataloader"])
def test_a_set_without_samples(key: str, tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "none.txt").write_text("")
    with pytest.raises(ValueError, match=rf"{key}\.dataset: \w+ has no samples"):
        labels_seen(
            root, OTHERS, **{f"{key}.dataset.ann_file": "none.txt", "train_cfg.val_interval": 1, "train_cfg.val_begin": 1}
        )
    with pytest.raises(ValueError, match=rf"{key}\.dataset: list has no samples"):
        labels_seen(root, OTHERS, **{f"{key}.dataset": [], "train_cfg.val_interval": 1, "train_cfg.val_begin": 1})
