"""Checks of a config's data sets: lists, folders, images and masks."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import UnidentifiedImageError

from gbseg.data.images import ImageError, check_file, pillow_reads
from gbseg.data.lists import abbreviate
from gbseg.doctor.finding import ERROR, NOTE, OK, WARNING, Finding
from gbseg.doctor.label_checks import Masks, judge
from gbseg.doctor.model_checks import sub_configs, types_in
from gbseg.doctor.remedy import Changes, config_lines, head_keys, import_gbseg, inner_datasets_of, remedied
from gbseg.errors import is_refusal
from gbseg.mm.component_errors import build_error
from gbseg.mm.config import max_pixels
from gbseg.mm.datasets.list_faults import find_faults
from gbseg.mm.datasets.sample_checks import CheckedLoader
from gbseg.mm.hooks.train_test_overlap import evaluated_splits, find_overlap, image_paths, unwrap

__all__ = ["check_data", "data_of"]

SAMPLE = 40  # files of each list that are read


def data_of(config: Config) -> dict[str, Any]:
    """Everything that `check_data` looks at: of configs for which it is equal, one is enough to check."""
    head = _head(config)
    loaders = {split: config.get(f"{split}_dataloader") for split in ("train", "val", "test")}
    loop = (config.get("train_cfg") or {}).get("type")
    return {**loaders, "head": [head.get("num_classes"), head.get("ignore_index")], "loop": loop}


def check_data(config: Config, every: bool = False, prepare: dict | None = None) -> Iterator[Finding]:
    """Build the data sets of a config, read their images and masks as its pipelines do, and compare the lists.

    Args:
        config: config of one run.
        every: read all files instead of ``SAMPLE`` of each list, evenly spaced.
        prepare: the setting ``prepare`` of the config, which may create the data when training starts.
    """
    yield from _check_albumentations_seed(config)
    if prepare and prepare.get("root") and not Path(prepare["root"]).exists():
        yield Finding(NOTE, "data", f"{prepare['root']} is made by {prepare['type']} when training starts.")
        return
    loaders = {"train": config.get("train_dataloader"), **evaluated_splits(config)}
    paths: dict[str, list[Path]] = {}
    for split, loader in loaders.items():
        where = f"{split} data"
        if not loader:
            yield Finding(NOTE, where, f"the config has no {split}_dataloader.")
            continue
        try:
            dataset = DATASETS.build(dict(loader["dataset"]))
            paths[split] = image_paths(dataset)
        # any exception: this runs code of any data set while it looks for its files
        except Exception as error:
            # gbseg's own messages already say what to do
            if is_refusal(error):
                yield Finding(ERROR, where, str(error))
            else:
                text = f"the data set cannot be built: {build_error(error, config, 'dataset')}"
                settings = " and ".join(f"{name}_dataloader.dataset" for name in split.split("/"))
                yield Finding(ERROR, where, text, f"correct {settings}.")
            continue
        for part in unwrap(dataset):
            for fault in find_faults(part):
                # authors repeat images of a training list on purpose
                level = WARNING if fault.usual and split == "train" else ERROR
                yield Finding(level, where, f"{fault.text}.", f"{fault.remedy}.")
            yield from _check_dataset(part, where, config, every)
    train_paths = paths.pop("train", None)
    if train_paths is None:
        return
    for split, evaluated in paths.items():
        overlap = find_overlap(train_paths, evaluated, split)
        if overlap is None:
            yield Finding(OK, "overlap", f"no image of {split} is trained on.")
        else:
            yield Finding(WARNING, "overlap", overlap.sentence() + ".", overlap.meaning())


def _check_albumentations_seed(config: Config) -> Iterator[Finding]:
    """Whether albumentations draws different numbers in every worker of the data loader, and the same in every run."""
    # a plain dict, in which classes that a config imports have names as well
    settings = config.to_dict()
    loader = settings.get("train_dataloader") or {}
    types = {name.rpartition(".")[-1] for name in types_in([loader, settings.get("train_cfg")])}
    # these two seed albumentations' own generators for every sample
    if "Albu" in types and not types & {"ResumableIterLoop", "SeededDataset"}:
        workers = loader.get("num_workers", 0)
        same = f"all {workers} workers of the data loader augment with the same numbers, and " if workers > 1 else ""
        text = (
            "Albu draws from generators of albumentations' own, which no seed of the config reaches: "
            f"{same}no run can be repeated."
        )
        changes = [(f"{key}.type", "SeededAlbu") for key in _albu_keys("train_dataloader", loader)]
        advice = "write SeededAlbu, or train with train_cfg.type='ResumableIterLoop', which seeds it too"
        yield remedied(config, WARNING, "train data", text, advice, *changes, *import_gbseg(config))


def _albu_keys(key: str, node: Any) -> Iterator[str]:
    """The keys of everything of the type Albu in a part of a config."""
    if isinstance(node, Mapping):
        if isinstance(node.get("type"), str) and node["type"].rpartition(".")[-1] == "Albu":
            yield key
        for name, value in node.items():
            yield from _albu_keys(f"{key}.{name}", value)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _albu_keys(f"{key}[{index}]", value)


def _head(config: Config) -> Mapping[str, Any]:
    return [{}, *sub_configs(config.get("model") or {}, "decode_head").values()][-1]


def _check_dataset(dataset: Any, where: str, config: Config, every: bool) -> Iterator[Finding]:
    name = type(dataset).__name__
    if not hasattr(dataset, "get_data_info"):
        yield Finding(NOTE, where, f"{name} does not say where its files are: not looked at.")
        return
    count = len(dataset)
    if count == 0:
        yield Finding(ERROR, where, f"{name} is empty.", "check data_root, data_prefix, ann_file and suffixes.")
        return
    infos = [dataset.get_data_info(index) for index in range(count)]
    files = [info[key] for info in infos for key in ("img_path", "seg_map_path") if info.get(key)]
    if missing := [path for path in files if not Path(path).is_file()]:
        text = f"{len(missing)} files of its {count} images are missing, first {missing[0]}."
        yield Finding(ERROR, where, text, "put them there.")
        return
    transforms = getattr(getattr(dataset, "pipeline", None), "transforms", ())
    # the plain loaders, since the findings here say more than a refusal
    transforms = [t.loader if isinstance(t, CheckedLoader) else t for t in transforms]
    limit = max_pixels(config)
    load_image = next((t for t in transforms if isinstance(t, LoadImageFromFile)), None)
    load_mask = next((t for t in transforms if isinstance(t, LoadAnnotations)), None)
    sample = infos if every or count <= SAMPLE else [infos[i] for i in np.linspace(0, count - 1, SAMPLE).astype(int)]
    head, meta = _head(config), dataset.metainfo
    classes = meta.get("classes") or ()
    masks = Masks(
        classes,
        num_classes=head.get("num_classes", len(classes)),
        ignore_index=head.get("ignore_index", 255),
        reduce_zero_label=bool(getattr(dataset, "reduce_zero_label", False)),
        palette=meta.get("palette") or (),
        backend=getattr(load_mask, "imdecode_backend", "?"),
        takes_ignored=hasattr(dataset, "ignored"),
    )
    size_mismatches, unreadable = [], []
    for info in sample:
        try:
            if load_image is not None:
                with pillow_reads(_check(info["img_path"], limit)):
                    info = load_image.transform(info)
            if load_mask is not None and info.get("seg_map_path"):
                with pillow_reads(_check(info["seg_map_path"], limit)):
                    info = load_mask.transform(info)
                masks.add(info["seg_map_path"], info["gt_seg_map"], info)
        # any exception: libraries raise many different ones for damaged files
        except Exception as error:
            name = _file_name(info, load_image)
            unreadable.append(f"{name}: {str(error).removeprefix(f'{name} ') or type(error).__name__}")
            continue
        if "gt_seg_map" in info and "img" in info and info["img"].shape[:2] != info["gt_seg_map"].shape[:2]:
            size_mismatches.append((info["seg_map_path"], info["gt_seg_map"].shape[:2], info["img"].shape[:2]))
    if unreadable:
        text = f"{len(unreadable)} of {len(sample)} samples cannot be read, first {unreadable[0]}"
        yield Finding(ERROR, where, text, "replace the damaged files.")
    if size_mismatches:
        path, mask, image = size_mismatches[0]
        sizes = f"{mask[0]} x {mask[1]}, image {image[0]} x {image[1]}"
        text = f"{len(size_mismatches)} masks are not of their image's size, first {path}: {sizes}."
        remedy = "make masks of the size of their images. If the sides are swapped: images are read turned by their EXIF tag, "
        remedy += "which color_type='color_ignore_orientation' in LoadImageFromFile leaves be."
        yield Finding(ERROR, where, text, remedy)
    if not unreadable and not size_mismatches:
        yield Finding(OK, where, f"{count:,} images, first {_file_name(infos[0], load_image)}; {len(sample):,} read.")
    if classes and len(classes) != masks.num_classes:
        names = abbreviate([str(name) for name in classes], 4)
        text = f"the data set has {len(classes)} classes ({names}), decode_head.num_classes is {masks.num_classes}."
        changes = [(f"{key}.num_classes", len(classes)) for key in head_keys(config)]
        advice = "give the heads as many outputs (or name other classes in the data sets' metainfo)"
        yield remedied(config, ERROR, where, text, advice, *changes)
    for finding, alternatives in judge(masks):
        yield _with_lines(finding._replace(where=f"{where}, labels"), config, alternatives, masks)


def _with_lines(finding: Finding, config: Config, names: Sequence[str], masks: Masks) -> Finding:
    """A finding on labels with the lines of its remedy, one group for each alternative.

    Args:
        finding: what `gbseg.doctor.label_checks.judge` yields.
        config: of the run.
        names: the alternatives, as label_problems.toml has them.
        masks: of the data set.
    """
    several = len(names) > 1
    advice, changes = finding.remedy, finding.changes
    for number, name in enumerate(names):
        # a background is a class, and is not to be ignored
        if several and name == "reduce" and [str(one).lower() for one in masks.classes[:1]] in (["background"], ["bg"]):
            continue
        alternative = _label_changes(name, config, masks)
        if lines := config_lines(config, alternative):
            changes = changes or alternative
            advice += f"\n({'abc'[number]})" * several + f"\n{lines}"
    return finding._replace(remedy=advice, changes=changes)


def _label_changes(name: str, config: Config, masks: Masks) -> Changes:
    """The changes of the config that one alternative of a remedy is, in every data set."""
    data = inner_datasets_of(config)
    if name == "pillow":
        loaders = [loader for key, dataset in data for loader in _loaders(f"{key}.pipeline", dataset.get("pipeline") or ())]
        return tuple((key, {**kept, "type": "LoadAnnotations", "imdecode_backend": "pillow"}) for key, kept in loaders)
    if name == "ignore":
        # as the files have them
        found = sorted(
            value + masks.reduce_zero_label for value in masks.values if masks.num_classes <= value != masks.ignore_index
        )
        return tuple((f"{key}.ignored", tuple(found)) for key, _ in data) if masks.takes_ignored else ()
    if name in ("reduce", "not reduce"):
        return tuple((f"{key}.reduce_zero_label", name == "reduce") for key, _ in data)
    names = [str(one) for one in masks.classes]
    names = names[:2] if name == "two classes" else [*names, f"class {len(names)}"]
    heads = tuple((f"{key}.num_classes", len(names)) for key in head_keys(config))
    return tuple((f"{key}.metainfo", dict(classes=tuple(names))) for key, _ in data) + heads


def _loaders(key: str, steps: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and kept arguments of the transforms of a pipeline that load masks."""
    for index, step in enumerate(steps):
        if isinstance(step, Mapping):
            kind = step.get("type")
            kind = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
            if isinstance(kind, type) and issubclass(kind, LoadAnnotations):
                yield f"{key}[{index}]", {"reduce_zero_label": step["reduce_zero_label"]} if "reduce_zero_label" in step else {}
            for name, value in step.items():
                if isinstance(value, list | tuple):
                    yield from _loaders(f"{key}[{index}].{name}", value)
        elif isinstance(step, list | tuple):
            yield from _loaders(f"{key}[{index}]", step)


def _check(path: str, limit: int) -> tuple[int, int]:
    """Read a file to its end: OpenCV makes grey of the rest of a truncated one, and says nothing. Returns its size."""
    try:
        return check_file(path, limit, decode=True)
    except ImageError as error:
        # a format that Pillow does not know may still be one to the pipeline
        if isinstance(error.__cause__, UnidentifiedImageError):
            return 0, 0
        raise


def _file_name(info: dict, load_image: Any) -> str:
    return info["seg_map_path"] if "img" in info or load_image is None else info["img_path"]
