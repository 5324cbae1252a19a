"""COCO as a data set for pre-training, with the 20 classes and the folder layout of VOC."""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import UnidentifiedImageError

from gbseg._moved import add_moved_names
from gbseg.data.images import open_image
from gbseg.data.layout import IMAGES, LISTS, MASKS, MASKS_AUG
from gbseg.data.lists import list_bytes
from gbseg.data.masks import MaskError, encode_mask, read_mask
from gbseg.data.prepare.coco_instances import CROWD, CocoFault, CocoImage, draw_mask, read_instances
from gbseg.files import FileWriteError, lock_folder, remove_temporary_files, sync_disks, temporary_path, write_atomically
from gbseg.parallel import run_in_processes

__all__ = ["LINK_MODES", "SPLITS", "CocoSplit", "find_coco", "prepare_coco"]

#: The splits that can be prepared.
SPLITS = ("train", "val")
#: How images get into ``JPEGImages``.
LINK_MODES = ("symlink", "hardlink", "copy")
FORMAT = 1  # raise it with every change that changes a byte of a mask


@dataclass(frozen=True)
class CocoSplit:
    """Result of `prepare_coco`.

    Attributes:
        name: name of the list.
        listed: number of images in the list.
        images: number of images in the annotations.
        broken: number of images that were left out because they or their annotations are broken.
    """

    name: str
    listed: int
    images: int
    broken: int = 0


def prepare_coco(
    coco: str | Path,
    out: str | Path,
    split: str,
    min_pixels: int = 1000,
    images: Literal["symlink", "hardlink", "copy"] = "symlink",
    processes: int | None = None,
    skip_broken: bool = False,
) -> CocoSplit:
    """Make ``<out>/SegmentationClass/<id>.png``, ``JPEGImages/<id>.jpg`` and the list ``coco_<split>`` of one split of COCO.

    Reads ``<coco>/annotations/instances_<split>2017.json`` and ``<coco>/<split>2017/``. `gbseg.data.prepare.coco_instances`
    says how instances become labels. The next run continues an interrupted one, and a second run changes nothing; the sorted
    list is written last. ``coco_<split>.json`` holds the annotations' SHA-256 and the settings, so that masks of different
    settings are never mixed.

    Args:
        coco: COCO's folder.
        out: folder of the data set to make; not VOC's.
        split: ``train`` or ``val``.
        min_pixels: images with fewer pixels of VOC's classes (1..20, without crowds) are left out.
        images: how COCO's images get into ``JPEGImages``: as relative links (nothing is copied), hard links, or copies.
        processes: number of processes, by default one per core.
        skip_broken: leave out images that are broken, or of which an annotation is; without it there is no list then.

    Raises:
        FileNotFoundError: annotations or images are missing.
        ValueError: an argument is not one of the above, ``out`` is VOC's folder or was made with other settings, or files are
            damaged. Broken images and annotations are collected over the whole split: ``coco_<split>_broken.txt`` in ``out``
            lists all, the message the first ten.
        OSError: the system refused to write.
        RuntimeError: a worker was killed, or another process prepares ``out``.
    """
    coco, out = Path(coco), Path(out)
    if images not in LINK_MODES:
        raise ValueError(f"images must be one of {', '.join(LINK_MODES)}, not {images!r}")
    if min_pixels < 1:
        raise ValueError(
            f"min_pixels must be at least 1, not {min_pixels}: without a pixel of a class there is nothing to learn"
        )
    if (out / MASKS_AUG).exists() or (out / LISTS / "train.txt").exists():
        raise ValueError(f"{out} holds VOC itself; COCO needs a folder of its own (docs/data.md says how to train on both)")
    annotations, source = find_coco(coco, split)
    faults: list[CocoFault] = []
    coco_images = read_instances(annotations, faults)
    total = len(coco_images) + len({fault.image for fault in faults} - {None})
    with annotations.open("rb") as file:
        settings = {
            "format": FORMAT,
            "annotations": annotations.name,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "min_pixels": min_pixels,
        }
    with lock_folder(out):
        _require_settings(out, split, settings, coco_images)
        for folder in (IMAGES, MASKS, LISTS):
            (out / folder).mkdir(parents=True, exist_ok=True)
            remove_temporary_files(out / folder)
        results: list[tuple[CocoImage, int]] = []
        prepare = functools.partial(_prepare, source=source, out=out, min_pixels=min_pixels, mode=images)
        failed = run_in_processes(prepare, coco_images, f"COCO {split}", processes, lambda *result: results.append(result))
        broken = total - len(coco_images) + len(failed)
        _report_broken(
            out, split, [fault.text for fault in faults] + [str(error) for _, error in failed], broken, total, skip_broken
        )
        ids = sorted(image.id for image, pixels in results if pixels >= min_pixels)
        if not ids:
            raise ValueError(f"no image of COCO {split} has {min_pixels:,} pixels of VOC's classes: lower --min-pixels")
        path, content = out / LISTS / f"coco_{split}.txt", list_bytes(ids)
        if not path.exists() or path.read_bytes() != content:
            # the list must not reach the disk before the files that it names
            sync_disks()
            write_atomically(content, path)
        return CocoSplit(path.stem, len(ids), total, broken)


def _report_broken(out: Path, split: str, faults: Sequence[str], broken: int, total: int, skip: bool) -> None:
    """Write the faults to a file, and refuse them unless they are to be left out."""
    path = out / f"coco_{split}_broken.txt"
    if not faults:
        path.unlink(missing_ok=True)
        return
    write_atomically("".join(f"{fault}\n" for fault in faults).encode(), path)
    if skip:
        return
    first = "".join(f"\n  {fault}" for fault in faults[:10])
    more = f"\n  and {len(faults) - 10:,} more" if len(faults) > 10 else ""
    raise ValueError(
        f"{broken:,} of {total:,} images of COCO {split} could not be prepared, so there is no list yet; repair these and "
        f"start again, or leave them out by --skip-broken; what is done stays done. {path} lists them all:{first}{more}"
    )


def find_coco(coco: str | Path, split: str) -> tuple[Path, Path]:
    """Paths of the annotations and of the folder of images of a split.

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


def _require_settings(out: Path, split: str, settings: dict[str, object], images: Sequence[CocoImage]) -> None:
    """Record the settings before the first mask is written, or refuse to mix masks of different settings."""
    path = out / f"coco_{split}.json"
    remedy = f"remove {out / MASKS} and {path}, or choose another folder by --out"
    if path.exists():
        try:
            recorded = dict(json.loads(path.read_bytes()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
        if recorded == settings:
            return
        different = "; ".join(
            f"{key} {recorded.get(key)} there, {value} now" for key, value in settings.items() if recorded.get(key) != value
        )
        raise ValueError(f"{out} was made with other settings ({different}): {remedy}")
    if stale := next((image.id for image in images if (out / MASKS / f"{image.id}.png").exists()), None):
        raise ValueError(f"{out / MASKS / stale}.png is there already and nothing says how it was made: {remedy}")
    write_atomically(json.dumps(settings, indent=1).encode() + b"\n", path)


def _prepare(image: CocoImage, source: Path, out: Path, min_pixels: int, mode: str) -> int:
    """Write an image's mask, unless it exists, and link or copy the image. Returns its number of pixels of VOC's classes."""
    mask_path = out / MASKS / f"{image.id}.png"
    shape = (image.height, image.width)
    mask = None
    with contextlib.suppress(MaskError):
        mask = read_mask(mask_path)
    exists = mask is not None and mask.shape == shape
    if mask is None or not exists:
        mask = draw_mask(image)
    pixels = int(np.count_nonzero((mask != 0) & (mask != CROWD)))
    if pixels < min_pixels:
        return pixels
    image_path = source / image.file_name
    try:
        with open_image(image_path) as file:
            height, width = file.height, file.width
    except (FileNotFoundError, UnidentifiedImageError, SyntaxError) as error:
        fault = "is missing" if isinstance(error, FileNotFoundError) else "is no image"
        raise ValueError(f"{image_path} {fault}: unpack {source.name}.zip again") from error
    if (height, width) != shape:
        expected = f"{image.width} x {image.height}"
        raise ValueError(
            f"{image_path} is {width} x {height} pixels, the annotations say {expected}: they are of another image"
        )
    _link_or_copy(image_path, out / IMAGES / f"{image.id}.jpg", mode)
    # the mask comes last, because its existence means that this image is done
    if not exists:
        # not durable: a mask that cannot be read is made again; all are on the disk before the list names them
        write_atomically(encode_mask(mask), mask_path, durable=False)
    return pixels


def _link_or_copy(source: Path, target: Path, mode: str) -> None:
    """Make ``target`` a link to, or a copy of, the image ``source``."""
    if target.parent.samefile(source.parent):
        # the user linked the whole folder: a link would replace the image itself
        return
    if target.exists():
        linked, same = target.is_symlink(), target.samefile(source)
        equal = same or target.stat().st_size == source.stat().st_size
        done = {"symlink": linked and same, "hardlink": same and not linked, "copy": equal and not same and not linked}
        if done[mode]:
            return
        if not linked and not equal:
            raise ValueError(f"{target} is another file than {source}: remove it and start again")
    if mode == "copy":
        write_atomically(source.read_bytes(), target)
        return
    temporary = temporary_path(target)
    try:
        if mode == "symlink":
            temporary.symlink_to(os.path.relpath(source.absolute(), target.parent.resolve()))
        else:
            temporary.hardlink_to(source)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        alternatives = " or ".join(alternative for alternative in LINK_MODES if alternative != mode)
        raise FileWriteError(
            error.errno, f"{target} could not be made a {mode} to {source}: {error.strerror}; try --images {alternatives}"
        ) from error


add_moved_names(__name__)
