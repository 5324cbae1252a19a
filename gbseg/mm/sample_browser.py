"""Show what a network sees: the samples of a config's own data set, pipeline, batches and pixel sampler."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATA_SAMPLERS, DATASETS, MODELS, init_default_scope
from torch import Tensor

from gbseg.files import write_atomically
from gbseg.mm.compat import swaps_channels
from gbseg.mm.component_errors import config_errors
from gbseg.mm.config import default_work_dir, max_pixels
from gbseg.mm.datasets.sample_checks import check_samples
from gbseg.mm.models.pixelnet_head import PixelNetHead
from gbseg.mm.resumable_sampler import SampleIndex, SeededDataset
from gbseg.mm.training import prepare
from gbseg.palettes import default_palette
from gbseg.report.label_overlay import VOID
from gbseg.report.sheet import OTHERS, Cell, contact_sheet

__all__ = ["INDEX", "browse", "iter_samples"]

INDEX = "sheets.json"


def browse(
    config: Config,
    out: Path | str | None = None,
    split: str = "train",
    number: int = 12,
    image: str | None = None,
    seed: int | None = None,
    scale: int | None = None,
    per_page: int = 12,
) -> list[Path]:
    """Write contact sheets of the samples that a config's network sees, in the order in which it sees them.

    The folder's ``sheets.json`` lists the sheets: the next call replaces or removes these files and no others.

    The marked pixels come from the same sampler as in training, but are not training's own: there, the network uses the random
    generator before the sampler.

    Args:
        config: config of one run.
        out: folder of the sheets; by default ``<work dir of the config>/browse``.
        split: 'train', 'val' or 'test'.
        number: number of samples.
        image: show this image ``number`` times, to see how augmentation varies: its name, or its index in the list.
        seed: seed of order, augmentation and marked pixels; None takes the config's, so that the sheets show the first samples
            of a training by `gbseg.mm.loops.ResumableIterLoop`.
        scale: pixels of the sheet per pixel of a sample; None makes panels about 256 wide.
        per_page: samples per sheet.

    Returns:
        The PNG files.

    Raises:
        ValueError: no such split or image, a number below 1, or a file in the folder that no earlier call has written.
    """
    if number < 1 or per_page < 1:
        raise ValueError(f"the number of samples, and of samples a sheet, is at least 1, not {number} and {per_page}.")
    seed = config.get("randomness", {}).get("seed", 0) if seed is None else seed
    folder = Path(out) if out is not None else default_work_dir(config) / "browse"
    dataset, samples = _open(config, split, image, seed or 0)
    classes = dataset.metainfo.get("classes") or ()
    palette = dataset.metainfo.get("palette") or default_palette(classes)
    sheets = [folder / f"{split}_{page + 1:02d}.png" for page in range(-(-number // per_page))]
    listed = _listed_sheets(folder)
    for sheet in sheets:
        if sheet.name not in listed and os.path.lexists(sheet):
            raise ValueError(f"{sheet} is not a sheet of an earlier gbseg browse: name another --out, or move it away.")
    config_name, written = Path(config.filename or "config").name, []
    title = f"{config_name}, {split}: {len(dataset):,} images, seed {seed}; sizes are height x width"
    samples = islice(samples, number)
    for sheet in sheets:
        if not (page := list(islice(samples, per_page))):
            break
        contact_sheet(page, sheet, palette, classes, title, scale)
        written.append(sheet)
        # after the sheet: listed files may be removed, so nothing is listed that was never written
        listed.add(sheet.name)
        write_atomically(json.dumps(sorted(listed)).encode(), folder / INDEX)
    # an earlier call may have written more pages
    for name in {name for name in listed if name.startswith(f"{split}_")} - {sheet.name for sheet in written}:
        (folder / name).unlink(missing_ok=True)
        listed.remove(name)
        write_atomically(json.dumps(sorted(listed)).encode(), folder / INDEX)
    return written


def _listed_sheets(folder: Path) -> set[str]:
    """The names of the sheets that earlier calls wrote to a folder."""
    path = folder / INDEX
    if not path.exists():
        return set()
    try:
        names = json.loads(path.read_bytes())
    except ValueError:
        names = None
    # a name with a path in it would remove files elsewhere
    if not isinstance(names, list) or not all(re.fullmatch(r"(train|val|test)_\d+\.png", str(name)) for name in names):
        raise ValueError(f"{path} is not the list of sheets that gbseg browse writes: name another --out, or move it away.")
    return set(names)


def iter_samples(config: Config, split: str = "train", image: str | None = None, seed: int = 0) -> Iterator[Cell]:
    """The samples that `browse` shows, one after the other; endless for a train split."""
    return _open(config, split, image, seed)[1]


def _open(config: Config, split: str, image: str | None, seed: int) -> tuple[Any, Iterator[Cell]]:
    loader = config.get(f"{split}_dataloader")
    if split not in ("train", "val", "test") or not loader:
        raise ValueError(f"{config.filename} has no {split}_dataloader.")
    prepare(config)
    with config_errors(config):
        init_default_scope(config.get("default_scope") or "mmseg")
        dataset = SeededDataset(DATASETS.build(dict(loader.dataset)))
        check_samples(dataset, max_pixels(config), (config.get("model") or {}).get("decode_head"))
        indices = _indices(dataset, loader, image, seed, split == "train")
    # test images are not padded to each other
    batch_size = loader.get("batch_size", 1) if split == "train" else 1
    batches = iter(lambda: [dataset[index] for index in islice(indices, batch_size)], [])
    return dataset, _cells(config, dataset, batches, seed, split == "train")


def _indices(dataset: SeededDataset, loader: dict, image: str | None, seed: int, training: bool) -> Iterator[SampleIndex]:
    if image is not None:
        index = _image_index(dataset, image)
        return (SampleIndex(index, draw, seed) for draw in count())
    settings = loader.get("sampler") or dict(type="DefaultSampler", shuffle=training)
    sampler = DATA_SAMPLERS.build(dict(settings), default_args=dict(dataset=dataset, seed=seed))
    # a ResumableSampler gives a SampleIndex itself
    return (i if isinstance(i, SampleIndex) else SampleIndex(i, draw, seed) for draw, i in enumerate(sampler))


def _image_index(dataset: SeededDataset, image: str) -> int:
    paths = [Path(dataset.get_data_info(i)["img_path"]) for i in range(len(dataset))]
    for i, path in enumerate(paths):
        if image in (path.stem, path.name, str(path)):
            return i
    if image.isdecimal() and int(image) < len(paths):
        return int(image)
    raise ValueError(f"there is no image {image!r}: the list has {len(paths)}, from {paths[0].name} to {paths[-1].name}.")


def _cells(config: Config, dataset: SeededDataset, batches: Iterable[list], seed: int, training: bool) -> Iterator[Cell]:
    model: dict = config.get("model") or {}
    with config_errors(config):
        preprocessor = MODELS.build(model["data_preprocessor"]) if model.get("data_preprocessor") else None
        head = model.get("decode_head") or {}
        head = head[-1] if isinstance(head, Sequence) else head
        head_class = MODELS.get(head["type"]) if isinstance(head.get("type"), str) else head.get("type")
        sampler = None
        if training and isinstance(head_class, type) and issubclass(head_class, PixelNetHead):
            sampler = MODELS.build(dict(head.get("sampler") or dict(type="UniformPixelSampler")))
    ignore_index = head.get("ignore_index", VOID)
    for number, batch in enumerate(batches):
        data = pseudo_collate(batch)
        augmented = data["inputs"]
        if preprocessor is not None:
            data = preprocessor(data, training)
        labels = [s.gt_sem_seg.data.squeeze(0) for s in data["data_samples"] if "gt_sem_seg" in s]
        points: list[Any] = [None] * len(batch)
        if sampler is not None and len(labels) == len(batch):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed + number)
                points = list(sampler(torch.stack(labels), head["num_classes"], ignore_index).points.numpy())
        for sample, x, tensor, pixels in zip(data["data_samples"], data["inputs"], augmented, points, strict=True):
            image = _to_image(x, preprocessor, dataset)
            label = _sheet_label(sample.gt_sem_seg.data[0].numpy(), ignore_index) if "gt_sem_seg" in sample else None
            caption = _caption(sample.metainfo, tuple(tensor.shape[1:]), tuple(image.shape[:2]), config, training)
            if pixels is not None:
                caption += f"; {len(np.unique(pixels, axis=0)):,} pixels by {type(sampler).__name__}"
            yield Cell(image, label, pixels, [Path(sample.img_path).name, caption])


def _to_image(x: Tensor, preprocessor: Any, dataset: Any) -> np.ndarray:
    """The network's input (C, H, W) as an image (H, W, 3), uint8 BGR: normalisation and channel order undone."""
    x = x.detach().cpu().double()
    if preprocessor is not None:
        if getattr(preprocessor, "mean", None) is not None:
            x = x * preprocessor.std.double() + preprocessor.mean.double()
        if swaps_channels(preprocessor) and len(x) == 3:
            x = x.flip(0)
    for transform in getattr(getattr(dataset, "pipeline", None), "transforms", ()):
        # older configs normalise in the pipeline
        if type(transform).__name__ == "Normalize":
            x = x * torch.tensor(transform.std).view(-1, 1, 1) + torch.tensor(transform.mean).view(-1, 1, 1)
            x = x.flip(0) if transform.to_rgb else x
    x = x.expand(3, -1, -1) if len(x) == 1 else x[:3]
    return x.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def _sheet_label(label: np.ndarray, ignore_index: int) -> np.ndarray:
    """Labels with ``ignore_index`` at 255, where the sheet expects it, and labels that fit no byte beside it at ``OTHERS``."""
    sheet_label = np.where((label < 0) | (label > OTHERS), OTHERS, label).astype(np.uint8)
    sheet_label[label == ignore_index] = VOID
    return sheet_label


def _caption(meta: dict, augmented: tuple, final: tuple, config: Config, training: bool) -> str:
    sizes = [tuple(meta.get("ori_shape", augmented))[:2], augmented, final]
    test_size = ((config.get("model") or {}).get("test_cfg") or {}).get("input", "original")
    if not training and test_size != "original":
        sizes.append(tuple(test_size))
    steps = [size for i, size in enumerate(sizes) if i == 0 or size != sizes[i - 1]]
    flipped = f", flipped {meta.get('flip_direction') or ''}".rstrip() if meta.get("flip") else ""
    return " > ".join(f"{height} x {width}" for height, width in steps) + flipped
