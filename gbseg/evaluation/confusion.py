"""The confusion matrix of a set of label maps, and PASCAL VOC's scores of it. Pure torch.

Shapes: C classes; label maps may have any shape, (H, W) as a rule. Scores are fractions in 0..1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHOWN = 8  # values out of range that an error message lists


def count_bins(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Count every pixel by (label, prediction) in one pass, values out of range included.

    Only shapes and types are checked; values out of range are counted in bins of their own. The host does not wait for a GPU.

    Args:
        prediction: predicted class of every pixel, integer, any shape.
        label: true class of every pixel, integer, the same shape.
        num_classes: C.
        ignore_index: label of the pixels that do not count; None to count all.

    Returns:
        (C + 2, C + 1) int64 on the device of the inputs. Rows: labels 0..C-1, labels out of range, ignored pixels.
        Columns: predictions 0..C-1, predictions out of range.

    Raises:
        TypeError: an input is not of an integer type.
        ValueError: the shapes differ, or ``num_classes`` is less than 1.
    """
    for name, tensor in (("prediction", prediction), ("label", label)):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(f"{name} must hold integer class numbers, not {tensor.dtype}")
    if prediction.shape != label.shape:
        raise ValueError(f"prediction is {tuple(prediction.shape)} and label is {tuple(label.shape)}: they must agree")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    # values out of range go to bins of their own, -1 or C, instead of being dropped
    label = label.reshape(-1).long()
    row = label.clamp(-1, num_classes)
    if ignore_index is not None:
        row.masked_fill_(label == ignore_index, num_classes + 1)
    size = num_classes + 2
    index = prediction.reshape(-1).long().clamp(-1, num_classes).add_(row, alpha=size).add_(size + 1)
    length = size * (size + 1)
    # bincount reads the greatest index to size its output, for which the host would wait on a GPU
    bins = torch.bincount(index, minlength=length) if index.device.type == "cpu" else scatter_count(index, length)
    bins = bins.view(size + 1, size)
    # values below 0 are counted with those beyond C - 1
    bins[num_classes + 1] += bins[0]
    bins[:, num_classes + 1] += bins[:, 0]
    return bins[1:, 1:]


def scatter_count(index: Tensor, length: int) -> Tensor:
    """(length,) int64: how often each of 0..length-1 occurs in index (N,) int64; ``torch.bincount`` without synchronization."""
    # integers have the same sum in any order; in torch's deterministic mode scatter_add_ sorts first
    return index.new_zeros(length).scatter_add_(0, index, index.new_ones(()).expand_as(index))


def _describe_wrong(name: str, values: Tensor, num_classes: int, ignore_index: int | None = None) -> list[str]:
    """Which values of a label map are out of range, the number of their pixels, and the position of the first; [] if none."""
    values = values.long()  # torch does not compare uint16
    wrong = (values < 0) | (values >= num_classes)
    if ignore_index is not None:
        wrong &= values != ignore_index
    where = wrong.nonzero()
    if not len(where):
        return []
    bad = values[wrong].unique().tolist()
    listed = ", ".join(str(value) for value in bad[:SHOWN]) + (", ..." if len(bad) > SHOWN else "")
    first = tuple(where[0].tolist())
    return [f"{len(where)} of {values.numel()} {name}s are out of range 0..{num_classes - 1}: {listed}, first at {first}"]


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int | None = 255) -> Tensor:
    """Count the pixels of each true class that went to each predicted class.

    ``matrix[i, j]`` is the number of pixels with label i and prediction j, ignored pixels left out. The matrices of several
    images add up to the matrix of the set.

    Args:
        prediction: predicted class of every pixel, integer, any shape, all in 0..C-1 (ignored pixels included, as
            VOC's own evaluation code demands).
        label: true class of every pixel, integer, the same shape and device, in 0..C-1 or ``ignore_index``.
        num_classes: C.
        ignore_index: label of the pixels that do not count; None where all count. An index given is always
            honoured, so with more than 255 classes pass another one than 255.

    Returns:
        (C, C) int64 on the device of the inputs, rows = label, columns = prediction.

    Raises:
        TypeError: an input is not of an integer type.
        ValueError: the shapes differ, or predictions or labels are out of range (the message says which, where and how many).
    """
    bins = count_bins(prediction, label, num_classes, ignore_index)
    if int(bins[:, num_classes].sum() + bins[num_classes].sum()):
        ignored = "nothing is ignored" if ignore_index is None else f"{ignore_index} is ignored"
        labels = [f"{text} ({ignored})" for text in _describe_wrong("label", label, num_classes, ignore_index)]
        raise ValueError("; ".join(_describe_wrong("prediction", prediction, num_classes) + labels))
    return bins[:num_classes, :num_classes]


@dataclass(frozen=True)
class Scores:
    """VOC's scores of one confusion matrix, as fractions in 0..1. C classes.

    Attributes:
        class_names: the C classes.
        iou: intersection over union of every class, NaN where the class occurs in neither label nor prediction.
        dice: 2 TP / (2 TP + FP + FN) of every class, NaN where ``iou`` is.
        accuracy: share of every class's labelled pixels that is predicted as it, NaN where no label has the class.
        labelled: number of valid pixels by their label.
        predicted: number of valid pixels by their prediction.
        miou: mean of ``iou`` over the classes that occur; NaN where none does.
        mdice: mean of ``dice`` over the same.
        macc: mean of ``accuracy`` over the classes that occur in the labels.
        fwiou: mean of ``iou`` weighted by ``labelled``.
        pixel_accuracy: correct pixels over all valid pixels; NaN where there are none.
        absent: names of the classes left out of ``miou``.
        headline_classes: the classes of the headline; None without one.
        headline_miou: mean of ``iou`` over those of ``headline_classes`` that occur; None without a headline.
    """

    class_names: tuple[str, ...]
    iou: tuple[float, ...]
    dice: tuple[float, ...]
    accuracy: tuple[float, ...]
    labelled: tuple[int, ...]
    predicted: tuple[int, ...]
    miou: float
    mdice: float
    macc: float
    fwiou: float
    pixel_accuracy: float
    absent: tuple[str, ...]
    headline_classes: tuple[str, ...] | None = None
    headline_miou: float | None = None


def check_headline(class_names: Sequence[str], classes: Sequence[str]) -> None:
    """Check that a headline is a set of distinct classes of the data set.

    Args:
        class_names: the names of all classes.
        classes: the names of the headline's classes.

    Raises:
        ValueError: ``classes`` is empty, holds a name twice, or holds an unknown one (the message lists the known names).
    """
    unknown = [name for name in classes if name not in class_names]
    if unknown:
        raise ValueError(f"unknown class(es) {', '.join(map(repr, unknown))}; known are {', '.join(class_names)}")
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"the headline needs one or more different classes, not {list(classes)}")


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return math.fsum(present) / len(present) if present else math.nan


def scores(matrix: Tensor, class_names: Sequence[str], classes: Sequence[str] | None = None) -> Scores:
    """Compute VOC's scores from the confusion matrix of a whole set.

    ``IoU_c = TP_c / (TP_c + FP_c + FN_c)`` with the counts of the set, not averaged over images (Everingham et al., The PASCAL
    Visual Object Classes Challenge, section 4.4). mIoU is its mean over the classes with ``TP + FP + FN > 0``,
    ``Dice_c = 2 TP_c / (2 TP_c + FP_c + FN_c)``, ``accuracy_c = TP_c / (TP_c + FN_c)``, and the frequency-weighted IoU is
    ``sum_c (TP_c + FN_c) IoU_c / sum_c (TP_c + FN_c)``. Computed in float64 on the CPU: counts are exact up to 2**53 pixels.

    Args:
        matrix: (C, C) integer counts, rows = label, columns = prediction.
        class_names: the C names in the order of the rows.
        classes: names of the classes whose mean IoU is the headline; None for no headline.

    Returns:
        The scores, as fractions in 0..1.

    Raises:
        ValueError: the matrix is not square, ``class_names`` does not fit it or holds a name twice, or ``classes`` is empty,
            holds a name twice or an unknown one (the message lists the known names).
    """
    names = tuple(class_names)
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"a matrix of shape {tuple(matrix.shape)} does not fit {len(names)} class names")
    if len(set(names)) != len(names):
        raise ValueError(f"class names must differ: {', '.join(names)}")
    counts = matrix.detach().cpu().double()
    hit, labelled, predicted, total = counts.diagonal(), counts.sum(1), counts.sum(0), counts.sum()
    # 0 / 0 is NaN, the score of a class without a pixel
    iou = tuple((hit / (labelled + predicted - hit)).tolist())
    dice = tuple((2 * hit / (labelled + predicted)).tolist())
    accuracy = tuple((hit / labelled).tolist())
    weighted = [count * value for count, value in zip(labelled.tolist(), iou, strict=True) if count]
    headline = None
    if classes is not None:
        check_headline(names, classes)
        headline = _mean([iou[names.index(name)] for name in classes])
    return Scores(
        class_names=names,
        iou=iou,
        dice=dice,
        accuracy=accuracy,
        labelled=tuple(map(int, labelled.tolist())),
        predicted=tuple(map(int, predicted.tolist())),
        miou=_mean(iou),
        mdice=_mean(dice),
        macc=_mean(accuracy),
        fwiou=math.fsum(weighted) / float(total) if total else math.nan,
        pixel_accuracy=float(hit.sum() / total),
        absent=tuple(name for name, value in zip(names, iou, strict=True) if math.isnan(value)),
        headline_classes=None if classes is None else tuple(classes),
        headline_miou=headline,
    )
