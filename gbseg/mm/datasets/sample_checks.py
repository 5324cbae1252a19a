"""Checks of images and masks where a pipeline reads them, and errors that name the files of their sample.

The loaders of the MM packages cut label numbers to 8 bits, score JPEGs, and fail without the name of a file. `check_samples`
puts these checks into the pipelines of any data set, in place; `gbseg.mm.hooks.sample_check` does it for every run of a
command, and the data sets of `gbseg.mm.datasets.segmentation` do it themselves.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform, LoadAnnotations
from mmengine import fileio
from mmengine.dataset import Compose
from PIL import Image, UnidentifiedImageError
from torch.nn import ModuleList

from gbseg.data.images import MAX_PIXELS, ImageError, check_file, excess_pixels, open_image, pillow_reads
from gbseg.data.masks import MaskError, converted_by_reader, describe_fault, holds_bytes, label_fault

__all__ = [
    "CheckedLoader",
    "CheckedPipeline",
    "Limits",
    "NamedTransform",
    "SampleError",
    "check_samples",
    "flat_samples",
    "inner_datasets",
]

# what readers and transforms raise because of a file; anything else may be a fault of the code, and keeps its type
_OF_FILES = (OSError, ValueError, AssertionError, EOFError, SyntaxError, cv2.error, Image.DecompressionBombError)


class Limits(NamedTuple):
    """What the images and labels of a data set may be.

    Attributes:
        max_pixels: the most pixels of an image or a mask.
        num_classes: labels are 0..num_classes-1; None where that is not known.
        ignored: labels that do not count.
    """

    max_pixels: int = MAX_PIXELS
    num_classes: int | None = None
    ignored: frozenset[int] = frozenset({255})


class SampleError(ValueError):
    """A sample cannot be read; the message names its files, also when the error comes from a data loader's worker."""

    def __init__(self, message: str) -> None:
        # torch makes the error of a worker again, and gives the worker's traceback as its message
        super().__init__(message.rpartition(f"{type(self).__module__}.{type(self).__name__}: ")[2].strip())


class CheckedLoader(BaseTransform):
    """A pipeline's ``LoadAnnotations`` that refuses a mask if it would give other labels than its file holds.

    All other attributes are the loader's.

    Args:
        loader: the loader.
        max_pixels: the most pixels that a mask may have.
    """

    def __init__(self, loader: LoadAnnotations, max_pixels: int = MAX_PIXELS) -> None:
        self.loader = loader
        self.max_pixels = max_pixels

    def transform(self, results: dict) -> dict | None:
        """Load the labels.

        Raises:
            gbseg.data.masks.MaskError: the mask is empty, damaged, a JPEG, too large, in colours, of another size than its
                image, or holds numbers that the loader changes.
        """
        path = results.get("seg_map_path")
        if not isinstance(path, str | os.PathLike):
            return self.loader(results)
        try:
            content = fileio.get(path, backend_args=getattr(self.loader, "backend_args", None))
        except OSError as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
            raise MaskError(f"{path} {what}") from error
        if not content:
            raise MaskError(f"{path} cannot be read: it is empty (0 bytes)")
        try:
            header: Image.Image | None = open_image(io.BytesIO(content))
        except _OF_FILES:
            # a file that Pillow does not know may still be one to the loader
            header = None
        size = (0, 0) if header is None else header.size
        if excess := excess_pixels(*size, self.max_pixels):
            raise MaskError(f"{path} {excess}")
        try:
            if header is not None and header.format == "PNG":
                # decoding ignores the checksums: a flipped bit could give other labels that are valid classes
                header.verify()
            with pillow_reads(size):
                loaded = self.loader(results)
        # any exception of the MM packages' own: libraries raise many different ones for damaged files
        except Exception as error:
            if not isinstance(error, _OF_FILES) and not type(self.loader).__module__.startswith(("mmseg.", "mmcv.")):
                raise
            what = " ".join(str(error).split()) or type(error).__name__
            # OpenCV gives None for what it cannot decode, and the loader takes it for an array
            what = "no reader knows it" if isinstance(error, AttributeError | UnidentifiedImageError) else what
            raise MaskError(f"{path} cannot be read: {what}") from error
        labels = (loaded or {}).get("gt_seg_map")
        if not isinstance(labels, np.ndarray) or loaded is None:
            return loaded
        if header is not None:
            if labels.ndim < 2 and labels.size == size[0] * size[1]:
                # mmseg squeezes: of an image one pixel high there is one axis left
                labels = loaded["gt_seg_map"] = labels.reshape(size[::-1])
            by_numbers = header.mode == "L" or getattr(self.loader, "imdecode_backend", None) == "pillow"
            if labels.ndim != 2 or not by_numbers or not holds_bytes(header):
                self._require_numbers(str(path), content, labels, results)
        elif labels.ndim != 2:
            raise MaskError(f"{path} is {' x '.join(map(str, labels.shape))}: labels are one number a pixel")
        require_same_size(loaded)
        return loaded

    def _require_numbers(self, path: str, content: bytes, labels: np.ndarray, results: dict) -> None:
        """Raise if the labels are not the numbers of the file."""
        backend = getattr(self.loader, "imdecode_backend", None)
        remapped = bool(results.get("reduce_zero_label") or results.get("label_map"))
        with open_image(io.BytesIO(content)) as image:
            # Pillow gives a palette's numbers, others its colours
            fault = label_fault(image, labels, remapped, compare=image.mode == "P" and backend != "pillow")
            own = not type(self.loader).__module__.startswith(("mmseg.", "mmcv.", "gbseg."))
            if (
                own
                and fault in ("more than 8 bits", "numbers scaled", "numbers changed")
                and not converted_by_reader(image, labels)
            ):
                # class numbers of the user's making
                return
            name = type(self.loader).__name__ + (f"(imdecode_backend={backend!r})" if backend else "")
            if fault and (text := describe_fault(fault, image, name)):
                raise MaskError(f"{path} {text}")

    def __repr__(self) -> str:
        """The loader's own."""
        return repr(self.loader)

    def __getattr__(self, name: str) -> Any:
        """Look all other attributes up in the loader."""
        if name.startswith("__") or name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)


class CheckedPipeline(Compose):
    """A data set's pipeline that checks image and labels, and whose errors name the image and the mask.

    Args:
        pipeline: the pipeline; it is not copied.
        limits: what images and labels may be.
    """

    def __init__(self, pipeline: Callable[[dict], dict | None], limits: Limits) -> None:
        # a subclass of Compose may do more than to call its transforms
        self.transforms: list[Any] = vars(pipeline)["transforms"] if type(pipeline) is Compose else [pipeline]
        self.limits = limits

    def __call__(self, data: dict) -> dict | None:
        """Apply the transforms one after the other.

        Raises:
            SampleError: the image or the mask is missing, damaged, too large or unfit, a label is no class, or a transform
                refused the sample.
        """
        results: Any = data
        # what is no sample of the MM packages (torchvision's transforms take the image alone) has nothing to look at
        given = data if isinstance(data, dict) else {}
        paths = {name: given.get(key) for name, key in (("image", "img_path"), ("mask", "seg_map_path"))}
        compared = not given
        with _named(paths, "reading"):
            size = self._check_image(paths["image"])
        with pillow_reads(size):
            for transform in self.transforms:
                with _named(paths, type(transform).__name__):
                    results = transform(results)
                    if results is None:
                        return None
                    if not compared and isinstance(results, dict) and {"gt_seg_map", "ori_shape"} <= results.keys():
                        compared = True
                        require_same_size(results)
        with _named(paths, "reading"):
            self._require_classes(results, paths["mask"])
        return results

    def _check_image(self, path: Any) -> tuple[int, int]:
        """Check a sample's image file, if it is on this machine; its width and height, (0, 0) where they are unknown."""
        if not isinstance(path, str | os.PathLike) or not Path(path).is_file():
            return 0, 0
        return check_file(path, self.limits.max_pixels)

    def _require_classes(self, results: Any, path: Any) -> None:
        """Raise if the labels that a sample ends with are neither classes nor ignored."""
        count, ignored = self.limits.num_classes, self.limits.ignored
        if count is None or not isinstance(results, dict):
            return
        # test-time augmentation gives a list of samples
        samples = flat_samples([results.get("data_samples")])
        maps = [getattr(getattr(sample, "gt_sem_seg", None), "data", None) for sample in samples]
        for labels in (results.get("gt_seg_map"), *maps):
            labels = labels.numpy() if isinstance(labels, torch.Tensor) else labels
            if isinstance(labels, np.ndarray) and labels.size and (labels.min() < 0 or labels.max() >= count):
                self._require_ignored(labels, count, ignored, path)

    @staticmethod
    def _require_ignored(labels: np.ndarray, count: int, ignored: frozenset[int], path: Any) -> None:
        """Raise if some labels are neither classes nor ignored."""
        outside = labels[(labels < 0) | (labels >= count)]
        for value in ignored:
            outside = outside[outside != value]
        if outside.size:
            wrong = np.unique(outside).tolist()
            shown = ", ".join(map(str, wrong[:5])) + ", ..." * (len(wrong) > 5)
            ignored_values = ", ".join(map(str, sorted(ignored)))
            raise MaskError(
                f"{path or 'a mask'} holds labels that are no class, as the pipeline gives them: {shown}; {count} classes are "
                f"0..{count - 1}, ignored is {ignored_values}. Correct the mask, or the classes and num_classes; "
                "FolderSegmentation and VOCSegmentation take labels that do not count as ignored=(...)"
            )


class NamedTransform(BaseTransform):
    """A transform of several samples, such as a mosaic, whose errors name the files of the first one.

    All other attributes are the transform's.

    Args:
        step: the transform.
    """

    def __init__(self, step: Callable[[dict], dict | None]) -> None:
        self.step = step

    def transform(self, results: dict) -> dict | None:
        """Apply it."""
        paths = {name: results.get(key) for name, key in (("image", "img_path"), ("mask", "seg_map_path"))}
        with _named(paths, type(self.step).__name__):
            return self.step(results)

    def __getattr__(self, name: str) -> Any:
        """Look all other attributes up in the transform."""
        if name.startswith("__") or name == "step":
            raise AttributeError(name)
        return getattr(self.step, name)


@contextmanager
def _named(paths: dict[str, Any], step: str) -> Iterator[None]:
    """Name the files of a sample in the errors of a step."""
    try:
        yield
    except SampleError:
        raise
    except (MaskError, ImageError) as error:
        raise SampleError(_name_files(str(error), paths)) from error
    except _OF_FILES as error:
        text = f"{step} failed: {type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"
        raise SampleError(_name_files(text, paths)) from error
    except Exception as error:
        error.add_note(_name_files(f"{step} failed", paths))
        raise


def require_same_size(results: dict) -> None:
    """Raise if labels are not of the size at which their image was read.

    Raises:
        gbseg.data.masks.MaskError: they are not.
    """
    labels, shape = results.get("gt_seg_map"), results.get("ori_shape")
    # volumes have more sides
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or shape is None or labels.shape == tuple(shape[:2]):
        return
    (height, width), (image_height, image_width) = labels.shape, shape[:2]
    mask, image = (results.get(key) or "unnamed" for key in ("seg_map_path", "img_path"))
    text = f"{mask} is {width} x {height} pixels (width x height), its image {image} {image_width} x {image_height}"
    remedy = "make masks of the size of their images"
    if (width, height) == (image_height, image_width):
        remedy += " (images are read turned by their EXIF tag, which color_type='color_ignore_orientation' in LoadImageFromFile"
        remedy += " leaves be)"
    raise MaskError(f"{text}: {remedy}")


def check_samples(dataset: Any, max_pixels: int = MAX_PIXELS, head: Any = None) -> None:
    """Put the checks into the pipelines of a data set, also of a wrapped one, in place. A second call sets the limits anew.

    Args:
        dataset: any data set of the MM packages; one without a pipeline stays as it is.
        max_pixels: the most pixels that an image or a mask may have.
        head: the decode head, or its settings, whose ``num_classes`` and ``ignore_index`` say which labels there are; by
            default the data set's classes do. 255 and the data set's ``ignore_index`` are always ignored.
    """
    head = head[-1] if isinstance(head, Sequence | ModuleList) and len(head) else head
    head = head if isinstance(head, Mapping) or head is None else vars(head)
    for part in _parts(dataset):
        pipeline = getattr(part, "__dict__", {}).get("pipeline")
        if isinstance(pipeline, list):
            # of samples that are mixed
            pipeline[:] = [step if isinstance(step, NamedTransform) else NamedTransform(step) for step in pipeline]
        if pipeline is None or not callable(pipeline):
            continue
        classes = (getattr(part, "metainfo", None) or {}).get("classes") or ()
        ignored = (255, getattr(part, "ignore_index", None), (head or {}).get("ignore_index"))
        named = frozenset(value for value in ignored if value is not None)
        count = (head or {}).get("num_classes") or len(classes)
        # a single output is a sigmoid's, of which the labels are 0 and 1
        limits = Limits(max_pixels, max(count, 2) if count else None, named)
        if isinstance(pipeline, CheckedPipeline):
            pipeline.limits = limits
        else:
            part.pipeline = CheckedPipeline(pipeline, limits)
        _check_loaders(part.pipeline.transforms, max_pixels)


def _parts(dataset: Any) -> Iterator[Any]:
    """A data set, and those inside it."""
    yield dataset
    for part in inner_datasets(dataset):
        yield from _parts(part)


def inner_datasets(dataset: Any) -> list[Any]:
    """The data sets that a wrapper (repeated, concatenated, mixed) wraps itself."""
    attributes = getattr(dataset, "__dict__", {})
    several, one = attributes.get("datasets"), attributes.get("dataset")
    return [*(several if isinstance(several, list | tuple) else ()), *(() if one is None else (one,))]


def flat_samples(samples: Sequence[Any]) -> Iterator[Any]:
    """The samples of a list that may hold lists, as test-time augmentation gives them."""
    for sample in samples:
        yield from flat_samples(sample) if isinstance(sample, list | tuple) else (sample,)


def _check_loaders(transforms: list, max_pixels: int, depth: int = 0) -> None:
    """Put a `CheckedLoader` in place of every loader of a list, and of the lists inside its transforms."""
    for index, transform in enumerate(transforms if depth < 8 else ()):
        if isinstance(transform, CheckedLoader):
            transform.max_pixels = max_pixels
        elif isinstance(transform, LoadAnnotations):
            # mmcv's own may be of boxes alone
            if transform.with_seg or type(transform).transform is not LoadAnnotations.transform:
                transforms[index] = CheckedLoader(transform, max_pixels)
        elif isinstance(transform, list):
            _check_loaders(transform, max_pixels, depth + 1)
        else:
            # RandomApply, RandomChoice, TestTimeAug and the like keep lists and Composes
            for value in getattr(transform, "__dict__", {}).values():
                value = getattr(value, "transforms", value)
                if isinstance(value, list):
                    _check_loaders(value, max_pixels, depth + 1)


def _name_files(text: str, paths: dict[str, Any]) -> str:
    """A message followed by the files of the sample that it does not name."""
    others = ", ".join(f"{name} {path}" for name, path in paths.items() if path is not None and str(path) not in text)
    return f"{text} ({others})" if others else text
