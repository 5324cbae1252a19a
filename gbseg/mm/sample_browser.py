"""Looking at what a network sees: the samples of a config's own data set, pipeline, batches and pixel sampler."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATA_SAMPLERS, DATASETS, MODELS, init_default_scope
from torch import Tensor

from gbseg.files import write_atomically
from gbseg.mm.config import default_work_dir
from gbseg.mm.models.pixelnet_head import PixelNetHead
from gbseg.mm.resumable_sampler import Draw, SeededDataset
from gbseg.mm.training import prepare
from gbseg.report.overlay import VOID
from gbseg.report.sheet import OTHERS, Cell, contact_sheet

__all__ = ["INDEX", "browse", "seen"]

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

    The folder's ``sheets.json`` lists what was written: the next call replaces or removes these files and no others.

    The marked pixels are a draw of the same sampler, not training's own, whose generator the network has used before.

    Args:
        config: of one run.
        out: the folder; by default ``<work dir of the config>/browse``.
        split: 'train', 'val' or 'test'.
        number: of samples.
        image: show this one ``number`` times, to see how much augmentation varies: its name, or its place in the list.
        seed: of order, augmentation and marked pixels; None takes the config's, so that the sheets show the first samples of a
            training by gbseg's `ResumableIterLoop`.
        scale: pixels of the sheet a pixel of a sample; None makes panels about 256 wide.
        per_page: samples a sheet.

    Returns:
        The PNG files.

    Raises:
        ValueError: no such split or image, a number below 1, or a file in the way that is none of an earlier call's.
    """
    if number < 1 or per_page < 1:
        raise ValueError(f"the number of samples, and of samples a sheet, is at least 1, not {number} and {per_page}.")
    seed = config.get("randomness", {}).get("seed", 0) if seed is None else seed
    folder = Path(out) if out is not None else default_work_dir(config) / "browse"
    dataset, cells = _open(config, split, image, seed or 0)
    classes = dataset.metainfo.get("classes") or ()
    palette = dataset.metainfo.get("palette") or ()
    sheets = [folder / f"{split}_{page + 1:02d}.png" for page in range(-(-number // per_page))]
    owned = _sheets(folder)
    for sheet in sheets:
        if sheet.name not in owned and os.path.lexists(sheet):
            raise ValueError(f"{sheet} is not a sheet of an earlier gbseg browse: name another --out, or move it away.")
    name, written = Path(config.filename or "config").name, []
    what = f"{name}, {split}: {len(dataset):,} images, seed {seed}; sizes are height x width"
    shown = islice(cells, number)
    for sheet in sheets:
        if not (page := list(islice(shown, per_page))):
            break
        contact_sheet(page, sheet, palette, classes, what, scale)
        written.append(sheet)
        # after the sheet: what is listed may be removed, so nothing is listed that was never written
        owned.add(sheet.name)
        write_atomically(json.dumps(sorted(owned)).encode(), folder / INDEX)
    # an earlier call with more pages would leave some of them
    stale = {old for old in owned if old.startswith(f"{split}_")} - {sheet.name for sheet in written}
    for old in stale:
        (folder / old).unlink(missing_ok=True)
    if stale:
        write_atomically(json.dumps(sorted(owned - stale)).encode(), folder / INDEX)
    return written


def _sheets(folder: Path) -> set[str]:
    """The names of the sheets that earlier calls wrote into a folder."""
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


def seen(config: Config, split: str = "train", image: str | None = None, seed: int = 0) -> Iterator[Cell]:
    """The samples that `browse` draws, one after the other; of a train split, endlessly."""
    return _open(config, split, image, seed)[1]


def _open(config: Config, split: str, image: str | None, seed: int) -> tuple[Any, Iterator[Cell]]:
    loader = config.get(f"{split}_dataloader")
    if split not in ("train", "val", "test") or not loader:
        raise ValueError(f"{config.filename} has no {split}_dataloader.")
    prepare(config)
    init_default_scope(config.get("default_scope") or "mmseg")
    dataset = SeededDataset(DATASETS.build(dict(loader.dataset)))
    return dataset, _cells(config, dataset, loader, split, image, seed)


def _cells(config: Config, dataset: SeededDataset, loader: dict, split: str, image: str | None, seed: int) -> Iterator[Cell]:
    training = split == "train"
    draws = _draws(dataset, loader, image, seed, training)
    model = config.get("model") or {}
    preprocessor = MODELS.build(model.data_preprocessor) if model.get("data_preprocessor") else None
    head = model.get("decode_head") or {}
    head = head[-1] if isinstance(head, Sequence) else head
    sampler = None
    kind = MODELS.get(head["type"]) if isinstance(head.get("type"), str) else head.get("type")
    if training and isinstance(kind, type) and issubclass(kind, PixelNetHead):
        sampler = MODELS.build(dict(head.get("sampler") or dict(type="UniformPixelSampler")))
    ignored = head.get("ignore_index", VOID)
    # test images are not padded to each other
    size = loader.get("batch_size", 1) if training else 1
    number = 0
    while batch := list(islice(draws, size)):
        data = pseudo_collate([dataset[draw] for draw in batch])
        raw = data["inputs"]
        if preprocessor is not None:
            data = preprocessor(data, training)
        labels = [s.gt_sem_seg.data.squeeze(0) if "gt_sem_seg" in s else None for s in data["data_samples"]]
        points: list[Any] = [None] * len(batch)
        if sampler is not None and all(label is not None for label in labels):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed + number)
                points = list(sampler(torch.stack(labels), head["num_classes"], ignored).points.numpy())
        for index, sample in enumerate(data["data_samples"]):
            picture = _picture(data["inputs"][index], preprocessor, dataset)
            label = None if labels[index] is None else _shown(labels[index].numpy(), ignored)
            caption = _caption(sample.metainfo, tuple(raw[index].shape[1:]), tuple(picture.shape[:2]), config, training)
            if points[index] is not None:
                caption += f"; {len(np.unique(points[index], axis=0)):,} pixels by {type(sampler).__name__}"
            yield Cell(picture, label, points[index], [Path(sample.img_path).name, caption])
        number += 1


def _draws(dataset: SeededDataset, loader: dict, image: str | None, seed: int, training: bool) -> Iterator[Draw]:
    if image is not None:
        index = _index(dataset, image)
        return (Draw(index, draw, seed) for draw in range(2**31))
    settings = loader.get("sampler")
    if not settings:
        settings = dict(type="DefaultSampler", shuffle=training)
    order = DATA_SAMPLERS.build(dict(settings), default_args=dict(dataset=dataset, seed=seed))
    # ResumableSampler gives draws of its own
    return (index if isinstance(index, Draw) else Draw(index, draw, seed) for draw, index in enumerate(order))


def _index(dataset: SeededDataset, image: str) -> int:
    names = [Path(dataset.get_data_info(i)["img_path"]) for i in range(len(dataset))]
    for i, path in enumerate(names):
        if image in (path.stem, path.name, str(path)):
            return i
    if image.isdecimal() and int(image) < len(names):
        return int(image)
    raise ValueError(f"there is no image {image!r}: the list has {len(names)}, from {names[0].name} to {names[-1].name}.")


def _picture(x: Tensor, preprocessor: Any, dataset: Any) -> np.ndarray:
    """The network's input (C, H, W) as an image (H, W, 3), uint8 BGR: normalisation and change of channels undone."""
    x = x.detach().cpu().double()
    if preprocessor is not None:
        if getattr(preprocessor, "mean", None) is not None:
            x = x * preprocessor.std.double() + preprocessor.mean.double()
        if getattr(preprocessor, "_channel_conversion", False) and len(x) == 3:
            x = x.flip(0)
    for transform in getattr(getattr(dataset, "pipeline", None), "transforms", ()):
        # older configs normalise in the pipeline
        if type(transform).__name__ == "Normalize":
            x = x * torch.tensor(transform.std).view(-1, 1, 1) + torch.tensor(transform.mean).view(-1, 1, 1)
            x = x.flip(0) if transform.to_rgb else x
    x = x.expand(3, -1, -1) if len(x) == 1 else x[:3]
    return x.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def _shown(label: np.ndarray, ignored: int) -> np.ndarray:
    """Labels with the ignored one at 255, where the sheet expects it; what has no number of its own then is `OTHERS`."""
    shown = np.where((label < 0) | (label > OTHERS), OTHERS, label).astype(np.uint8)
    shown[label == ignored] = VOID
    return shown


def _caption(meta: dict, augmented: tuple, final: tuple, config: Config, training: bool) -> str:
    sizes = [tuple(meta.get("ori_shape", augmented))[:2], augmented, final]
    test_size = ((config.get("model") or {}).get("test_cfg") or {}).get("input", "original")
    if not training and test_size != "original":
        sizes.append(tuple(test_size))
    steps = [size for i, size in enumerate(sizes) if i == 0 or size != sizes[i - 1]]
    flipped = f", flipped {meta.get('flip_direction') or ''}".rstrip() if meta.get("flip") else ""
    return " > ".join(f"{height} x {width}" for height, width in steps) + flipped
