"""Data sets for MMSegmentation with helpful errors for missing files: PASCAL VOC 2012, and folders of images and masks."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from mmengine.registry import DATASETS

from gbseg.data.layout import read_lines
from gbseg.files import is_dead_link, walk_files
from gbseg.mm.compat import BaseSegDataset
from gbseg.mm.datasets.label_counts import load_labels
from gbseg.mm.datasets.list_faults import ListFault, masks_without_image, names_listed_twice, record_faults
from gbseg.mm.datasets.sample_checks import check_samples
from gbseg.palettes import VOC_CLASSES, VOC_PALETTE, default_palette

__all__ = ["FolderSegmentation", "VOCSegmentation"]

OTHER_DATA_ROOT = (
    "Data that lie elsewhere: link them there, or name them by --cfg-options train_dataloader.dataset.data_root=FOLDER "
    "val_dataloader.dataset.data_root=FOLDER test_dataloader.dataset.data_root=FOLDER."
)
IGNORED = 255
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@DATASETS.register_module()
class VOCSegmentation(BaseSegDataset):
    """Images and indexed label PNGs in VOC's layout, chosen by a list of ids.

    ``data_root/JPEGImages/<id>.jpg``, ``data_root/SegmentationClass/<id>.png``, ``data_root/ImageSets/Segmentation/*.txt``.
    Labels are palette indices: read them with ``dict(type='LoadAnnotations', imdecode_backend='pillow')``. Blank lines and a
    byte order mark mean nothing in a list. What is wrong with it is handled as by `FolderSegmentation`; an id that is listed
    more than once is one of these faults, since training lists of others repeat images on purpose.

    Args:
        ann_file: the list of ids, below ``data_root``; None takes every image, in sub-folders and links to folders as well.
        ignored: labels of the files that do not count, such as CamVid's ``(11,)``: 255 when they are read.
        settings: arguments of mmseg's ``BaseSegDataset``, such as ``img_suffix='.jpg'`` and ``seg_map_suffix='.png'``.

    Raises:
        FileNotFoundError: the list, a folder or a listed file is missing; the message names it and says how to get it.
        ValueError: the list is no text, a link leads to a folder that holds it, ``ignored`` are no labels, or a fault of the
            list with ``test_mode=True``.
    """

    METAINFO: ClassVar[dict] = {"classes": VOC_CLASSES, "palette": [list(colour) for colour in VOC_PALETTE[: len(VOC_CLASSES)]]}

    def __init__(self, ann_file: str | None = "", ignored: int | Sequence[int] = (), **settings: object) -> None:
        self.ignored = _label_numbers(ignored)
        super().__init__(ann_file=ann_file or "", **settings)
        check_samples(self)

    def get_cat_ids(self, idx: int) -> list[int]:
        """The classes that occur in an image's mask, rising: what MMEngine's ``ClassBalancedDataset`` asks for."""
        return _classes_in(self, idx)

    def load_data_list(self) -> list[dict]:
        """One dict of paths per image, in the order of the list."""
        where = f"(looked for in {Path(self.data_root or '.').resolve()})"
        how = (
            "VOC 2012 and SBD are downloaded and prepared, with all lists, by: python tools/prepare_voc.py data (the same as "
            "gbseg prepare-voc data); data/README.md says what goes where. " + OTHER_DATA_ROOT
        )
        if self.ann_file and not Path(self.ann_file).is_file():
            raise FileNotFoundError(f"VOC: there is no list {self.ann_file} {where}. {how}")
        for kind, folder in self.data_prefix.items():
            if folder and not Path(folder).is_dir():
                raise FileNotFoundError(f"VOC: there is no folder {folder} for {kind} {where}. {how}")
        images = self.data_prefix["img_path"]
        if self.ann_file:
            names = _read_names(self.ann_file)
            faults = names_listed_twice(self.ann_file, names)
        else:
            paths = (path for path in _walk_images(images, (self.img_suffix,)) if path.name.endswith(self.img_suffix))
            names = sorted(path.relative_to(images).as_posix().removesuffix(self.img_suffix) for path in paths)
            faults = _lonely_masks(self, dict.fromkeys(names), (self.img_suffix,))
        if not names:
            raise FileNotFoundError(f"VOC: {self.ann_file or images} names no image {where}. {how}")
        data = [_entry(self, Path(images, name + self.img_suffix), name) for name in names]
        _require_files(data, "VOC", "", how)
        record_faults(self, faults)
        return data


@DATASETS.register_module()
class FolderSegmentation(BaseSegDataset):
    """A folder of images and a folder of masks with the same names, with any classes.

    A mask is an indexed or grey PNG whose pixels are class indices, 0 for the first class, 255 for pixels that do not count.
    Read it with ``dict(type='LoadAnnotations', imdecode_backend='pillow')``. Sub-folders and links to folders are searched
    too: ``images/a/b.jpg`` has the mask ``masks/a/b.png``. Names that begin with a dot are skipped.

    Without a list, masks without an image are a fault of ``list_faults``: a warning when the data set is built, refused where
    it is evaluated on (``test_mode=True``, or `gbseg.mm.hooks.list_check.ListCheckHook`).

    Args:
        metainfo: ``dict(classes=(...), palette=[...])``; without a palette they get
            `gbseg.palettes.default_palette`.
        data_root: folder that contains the two folders.
        data_prefix: the two folders below ``data_root``; without ``seg_map_path`` there are only images.
        ann_file: a list of names below ``data_root``, one per line, with or without the image's suffix; '' takes every image.
        img_suffix: one or several suffixes of the images, in any case.
        ignored: labels of the files that do not count, such as CamVid's ``(11,)``: 255 when they are read.
        settings: arguments of mmseg's ``BaseSegDataset``; ``seg_map_suffix`` is what follows the image's name in the name of
            its mask: ``'.png'`` (the default), ``'_mask.png'``.

    Raises:
        FileNotFoundError: a folder, the list, an image or a mask is missing, or there is no image; the message names it.
        ValueError: no classes, ``ignored`` that are no labels, two images with the same name, a name that is listed twice, a
            list that is no text, a link that leads to a folder that holds it, or masks without an image with
            ``test_mode=True``.
    """

    def __init__(
        self,
        metainfo: dict,
        data_root: str = "",
        data_prefix: dict | None = None,
        ann_file: str | None = "",
        img_suffix: str | Sequence[str] = IMAGE_SUFFIXES,
        ignored: int | Sequence[int] = (),
        **settings: object,
    ) -> None:
        self.ignored = _label_numbers(ignored)
        classes = metainfo.get("classes")
        if not classes or isinstance(classes, str):
            raise ValueError(
                f"FolderSegmentation: metainfo=dict(classes=('background', ...)) names every class, got {classes!r}."
            )
        if not metainfo.get("palette"):
            metainfo = {**metainfo, "palette": default_palette(classes)}
        self.img_suffixes = tuple(s.lower() for s in ([img_suffix] if isinstance(img_suffix, str) else img_suffix))
        super().__init__(
            metainfo=metainfo,
            data_root=data_root,
            data_prefix=dict(data_prefix or dict(img_path="images", seg_map_path="masks")),
            ann_file=ann_file or "",
            **settings,
        )
        check_samples(self)

    def get_cat_ids(self, idx: int) -> list[int]:
        """The classes that occur in an image's mask, rising: what MMEngine's ``ClassBalancedDataset`` asks for."""
        return _classes_in(self, idx)

    def load_data_list(self) -> list[dict]:
        """One dict of paths per image, sorted by name, or in the order of the list."""
        how = (
            "Set data_root at the top of the config (it is looked for from the folder in which you start the command), and see "
            "docs/your_own_data.md for what goes where."
        )
        images, masks = self.data_prefix["img_path"], self.data_prefix.get("seg_map_path")
        for kind, folder in (("images", images), ("masks", masks)):
            if folder and not Path(folder).is_dir():
                raise FileNotFoundError(f"there is no folder {folder} for {kind} (it would be {Path(folder).resolve()}). {how}")
        image_by_name: dict[str, Path] = {}
        for path in _walk_images(images, () if self.ann_file else self.img_suffixes):
            # masks may lie beside their images
            if path.suffix.lower() not in self.img_suffixes or (masks == images and path.name.endswith(self.seg_map_suffix)):
                continue
            name = path.relative_to(images).with_suffix("").as_posix()
            if name in image_by_name:
                raise ValueError(f"{image_by_name[name]} and {path} have one name, so one mask: rename or remove one of them.")
            image_by_name[name] = path
        names = self._listed_names(image_by_name) if self.ann_file else list(image_by_name)
        if not names:
            suffixes = ", ".join(self.img_suffixes)
            raise FileNotFoundError(f"{self.ann_file or images} names no image (suffixes looked for: {suffixes}). {how}")
        data = [_entry(self, image_by_name[name], name) for name in names]
        _require_files(data, "masks", f" Every image needs a mask of its name, ending in {self.seg_map_suffix}.", how)
        record_faults(self, [] if self.ann_file else _lonely_masks(self, image_by_name, self.img_suffixes))
        return data

    def _listed_names(self, image_by_name: dict[str, Path]) -> list[str]:
        file = Path(self.ann_file)
        if not file.is_file():
            raise FileNotFoundError(f"there is no list {file} (it would be {file.resolve()}).")
        lines = _read_names(file)
        names = [str(Path(n).with_suffix("")) if Path(n).suffix.lower() in self.img_suffixes else n for n in lines]
        if duplicate := next((name for name, count in Counter(names).items() if count > 1), None):
            raise ValueError(f"{file} names {duplicate} more than once: an image is listed once.")
        if missing := [name for name in names if name not in image_by_name]:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(names)} names in {file} have no image in {self.data_prefix['img_path']}, first "
                f"{missing[0]}."
            )
        return names


def _label_numbers(ignored: int | Sequence[int]) -> tuple[int, ...]:
    """``ignored`` as a tuple."""
    labels = (ignored,) if isinstance(ignored, int) else tuple(ignored)
    if not all(isinstance(label, int) and not isinstance(label, bool) and 0 <= label <= 255 for label in labels):
        raise ValueError(
            f"ignored are labels of the masks that do not count, numbers in 0..255 such as (11,), not {ignored!r}."
        )
    return labels


def _classes_in(dataset: BaseSegDataset, idx: int) -> list[int]:
    """The classes in a mask; a wrapper asks for them twice, so they are kept."""
    kept: dict[int, list[int]] = vars(dataset).setdefault("_cat_ids", {})
    if idx not in kept:
        kept[idx] = [int(label) for label in np.unique(load_labels(dataset, idx)) if label < len(dataset.metainfo["classes"])]
    return kept[idx]


def _read_names(file: str | Path) -> list[str]:
    """The names in a list, in its order; blank lines and a byte order mark mean nothing."""
    return [name for line in read_lines(file) if (name := line.removeprefix("\ufeff").strip())]


def _walk_images(folder: str, suffixes: Sequence[str]) -> Iterator[Path]:
    """The files below a folder of images; with suffixes, a dead link without one of them is refused as a lost folder."""
    for path in walk_files(folder):
        if suffixes and not path.name.lower().endswith(tuple(suffixes)) and is_dead_link(path):
            raise FileNotFoundError(f"{path} is a link to {path.readlink()}, which does not exist: mend or remove it.")
        yield path


def _entry(dataset: BaseSegDataset, image: Path, name: str) -> dict:
    """What mmseg's pipelines start from."""
    label_map = dataset.label_map
    if dataset.ignored:
        # the loader reduces first; 0 is ignored then anyway
        shift = int(dataset.reduce_zero_label)
        label_map = (label_map or {}) | {label - shift: IGNORED for label in dataset.ignored if label >= shift}
    entry = dict(img_path=str(image), label_map=label_map, reduce_zero_label=dataset.reduce_zero_label, seg_fields=[])
    if masks := dataset.data_prefix.get("seg_map_path"):
        entry["seg_map_path"] = str(Path(masks, name + dataset.seg_map_suffix))
    return entry


def _lonely_masks(dataset: BaseSegDataset, names: Collection[str], suffixes: Sequence[str]) -> list[ListFault]:
    if not (masks := dataset.data_prefix.get("seg_map_path")):
        return []
    images, root = Path(dataset.data_prefix["img_path"]), Path(dataset.data_root or ".")
    return masks_without_image(images, Path(masks), root, names, suffixes, dataset.seg_map_suffix)


def _require_files(data: list[dict], title: str, rule: str, how: str) -> None:
    for kind in ("img_path", "seg_map_path"):
        paths = [entry[kind] for entry in data if entry.get(kind)]
        if missing := [path for path in paths if not Path(path).is_file()]:
            # where some are there, the folder is the right one
            advice = f" {how}" if len(missing) == len(paths) or not rule else ""
            raise FileNotFoundError(
                f"{title}: {len(missing)} of {len(data)} listed files are missing, first {missing[0]}.{rule}{advice}"
            )
