"""COCO as a data set for pre-training: images and masks of the 20 VOC classes in VOC's layout."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from gbseg.data.layout import IMAGES, LISTS, MASKS, MASKS_AUG
from gbseg.data.lists import list_bytes
from gbseg.data.masks import MaskError, encode_mask, read_mask
from gbseg.data.prepare.coco_instances import CROWD, Picture, draw, read_instances
from gbseg.files import FileWriteError, lock_folder, remove_temporary_files, sync_disks, temporary_path, write_atomically
from gbseg.parallel import run_in_processes

__all__ = ["HOW", "SPLITS", "CocoSplit", "find_coco", "prepare_coco"]

SPLITS = ("train", "val")
HOW = ("symlink", "hardlink", "copy")
FORMAT = 1  # raise it with every change that changes a byte of a mask


@dataclass(frozen=True)
class CocoSplit:
    """What `prepare_coco` made.

    Attributes:
        name: of the list.
        listed: how many images it names.
        images: how many there are in the annotations.
    """

    name: str
    listed: int
    images: int


def prepare_coco(
    coco: str | Path,
    out: str | Path,
    split: str,
    min_pixels: int = 1000,
    images: Literal["symlink", "hardlink", "copy"] = "symlink",
    processes: int | None = None,
) -> CocoSplit:
    """Make ``<out>/SegmentationClass/<id>.png``, ``JPEGImages/<id>.jpg`` and the list ``coco_<split>`` of one split of COCO.

    Read are ``<coco>/annotations/instances_<split>2017.json`` and ``<coco>/<split>2017/``. `coco_instances` says how
    instances become labels. Images with fewer than ``min_pixels`` pixels of VOC's classes (1..20; crowds do not count) are
    left out. Done again, it goes on where it ended, and changes nothing if it was at the end; the list, sorted, is written
    last. ``coco_<split>.json`` holds the annotations' SHA-256 and the settings: masks made otherwise are never mixed.

    Args:
        coco: the folder of COCO.
        out: the data set to make, another folder than VOC's.
        split: ``train`` or ``val``.
        min_pixels: see above.
        images: how COCO's images get into ``JPEGImages``: as relative links (nothing to copy), hard links, or copies.
        processes: how many; None for as many as there are cores.

    Raises:
        FileNotFoundError: annotations or images are missing.
        ValueError: a file is damaged, an argument is none of the above, ``out`` was made with other settings or is VOC's
            folder. Of images and annotations that are damaged one by one, all are looked at and the first ten are named.
        OSError: the system refused to write.
        RuntimeError: a worker was killed, or another process prepares ``out``.
    """
    coco, out = Path(coco), Path(out)
    if images not in HOW:
        raise ValueError(f"images must be one of {', '.join(HOW)}, not {images!r}")
    if min_pixels < 1:
        raise ValueError(
            f"min_pixels must be at least 1, not {min_pixels}: without a pixel of a class there is nothing to learn"
        )
    if (out / MASKS_AUG).exists() or (out / LISTS / "train.txt").exists():
        raise ValueError(f"{out} holds VOC itself; COCO needs a folder of its own (docs/data.md says how to train on both)")
    annotations, source = find_coco(coco, split)
    pictures = read_instances(annotations)
    with annotations.open("rb") as file:
        settings = {
            "format": FORMAT,
            "annotations": annotations.name,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "min_pixels": min_pixels,
        }
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out):
        _agree(out, split, settings, pictures)
        for folder in (IMAGES, MASKS, LISTS):
            (out / folder).mkdir(parents=True, exist_ok=True)
            remove_temporary_files(out / folder)
        pixels: dict[str, int] = {}
        work = functools.partial(_prepare, source=source, out=out, min_pixels=min_pixels, how=images)
        failed = run_in_processes(
            work, pictures, f"COCO {split}", processes, lambda picture, count: pixels.update({picture.id: count})
        )
        if failed:
            more = f"\n  and {len(failed) - 10:,} more" if len(failed) > 10 else ""
            raise ValueError(
                f"{len(failed):,} of {len(pictures):,} images of COCO {split} could not be prepared, so there is no list yet; "
                "repair these and start again, what is done stays done:"
                + "".join(f"\n  {error}" for _, error in failed[:10])
                + more
            )
        ids = sorted(key for key, count in pixels.items() if count >= min_pixels)
        if not ids:
            raise ValueError(f"no image of COCO {split} has {min_pixels:,} pixels of VOC's classes: lower --min-pixels")
        path, content = out / LISTS / f"coco_{split}.txt", list_bytes(ids)
        if not path.exists() or path.read_bytes() != content:
            sync_disks()
            write_atomically(content, path)
        return CocoSplit(path.stem, len(ids), len(pictures))


def find_coco(coco: str | Path, split: str) -> tuple[Path, Path]:
    """The annotations and the folder of images of a split.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"COCO's splits are {' and '.join(SPLITS)}, not {split!r}")
    annotations, images = Path(coco) / "annotations" / f"instances_{split}2017.json", Path(coco) / f"{split}2017"
    if not images.is_dir():
        raise FileNotFoundError(f"there are no images {images}: unpack {split}2017.zip there")
    if not annotations.is_file():
        raise FileNotFoundError(f"there are no annotations {annotations}: unpack annotations_trainval2017.zip there")
    return annotations, images


def _agree(out: Path, split: str, settings: dict[str, object], pictures: list[Picture]) -> None:
    """Record the settings before the first mask, or refuse to go on with masks that were made with others."""
    path = out / f"coco_{split}.json"
    how = f"remove {out / MASKS} and {path}, or choose another folder by --out"
    if path.exists():
        try:
            recorded = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): {how}") from error
        if recorded == settings:
            return
        if not isinstance(recorded, dict):
            raise ValueError(f"{path} is damaged: {how}")
        differ = [
            f"{key} {recorded.get(key)} there, {value} now" for key, value in settings.items() if recorded.get(key) != value
        ]
        raise ValueError(f"{out} was made with other settings ({'; '.join(differ)}): {how}")
    if stale := next((key.id for key in pictures if (out / MASKS / f"{key.id}.png").exists()), None):
        raise ValueError(f"{out / MASKS / stale}.png is there already and nothing says how it was made: {how}")
    write_atomically(json.dumps(settings, indent=1).encode() + b"\n", path)


def _prepare(picture: Picture, source: Path, out: Path, min_pixels: int, how: str) -> int:
    """One image: its mask, unless it is there, and its file in place. Returns its number of pixels of VOC's classes."""
    path = out / MASKS / f"{picture.id}.png"
    values = None
    if path.exists():
        try:
            values = read_mask(path)
        except MaskError:
            values = None
    there = values is not None and values.shape == (picture.height, picture.width)
    if values is None or not there:
        values = draw(picture)
    count = int(np.count_nonzero((values != 0) & (values != CROWD)))
    if count < min_pixels:
        return count
    image = source / picture.file_name
    try:
        with Image.open(image) as file:
            size = (file.height, file.width)
    except FileNotFoundError as error:
        raise ValueError(f"{image} is missing: unpack {source.name}.zip again") from error
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{image} is no image: unpack {source.name}.zip again") from error
    if size != (picture.height, picture.width):
        have, want = f"{size[1]} x {size[0]}", f"{picture.width} x {picture.height}"
        raise ValueError(f"{image} is {have} pixels, the annotations say {want}: they are of another image")
    _place(image, out / IMAGES / f"{picture.id}.jpg", how)
    # last, because it is what says that this image is done
    if not there:
        # not durable: a mask that cannot be read is made again; all are on the disk before the list names them
        write_atomically(encode_mask(values), path, durable=False)
    return count


def _place(source: Path, target: Path, how: str) -> None:
    """Have ``target`` show the image ``source``."""
    if target.parent.samefile(source.parent):
        # the user linked the whole folder: a link would replace the image itself
        return
    if target.exists():
        linked, same = target.is_symlink(), target.samefile(source)
        equal = same or target.stat().st_size == source.stat().st_size
        if {"symlink": linked and same, "hardlink": same and not linked, "copy": equal and not same and not linked}[how]:
            return
        if not linked and not equal:
            raise ValueError(f"{target} is another file than {source}: remove it and start again")
    if how == "copy":
        write_atomically(source.read_bytes(), target)
        return
    temporary = temporary_path(target)
    try:
        if how == "symlink":
            temporary.symlink_to(os.path.relpath(source.absolute(), target.parent.resolve()))
        else:
            temporary.hardlink_to(source)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        other = "hardlink or copy" if how == "symlink" else "symlink or copy"
        raise FileWriteError(
            error.errno, f"{target} could not be made a {how} to {source}: {error.strerror}; try --images {other}"
        ) from error
