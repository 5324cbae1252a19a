"""Labels that no class has: refused on the CPU, turned into NaN and recorded on a device.

Shapes: N images or rows, C classes, * any trailing dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BadLabelError", "LabelRecord", "default_ignore_index", "find_bad_labels", "require_labels", "require_soft_labels"]

_SHOWN = 8
"""How many values and positions a message names, and how many rows of a batch the record of a device remembers."""


class BadLabelError(ValueError):
    """A label is neither one of the classes nor the ignored index."""


def default_ignore_index(num_classes: int) -> int | None:
    """255 where it cannot be a class, else nothing is ignored (ImageNet's class 255 must train)."""
    return 255 if num_classes <= 255 else None


def find_bad_labels(label: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Where ``label`` (N, *) is outside 0..C-1 and not ignored; a bool tensor of its shape."""
    # small label types would wrap: 255 is -1 as int8, and uint8 holds no 1000 classes
    label = label.long()
    bad = (label < 0) | (label >= num_classes)
    return bad if ignore_index is None else bad & (label != ignore_index)


def _usual_cause(values: list[int], num_classes: int) -> str:
    if values == [255]:
        return "A mask of 0 and 255 marks its object with 255: map 255 to class 1. If 255 is the border, pass ignore_index=255."
    if values and min(values) < 0:
        return "Negative labels usually come from subtracting 1 (reduce_zero_label) from labels that already start at 0."
    if values == [num_classes]:
        return "Labels that run from 1 to C are off by one, or num_classes is one too small."
    return (
        "This is usual for a palette PNG read as grey (read it with Pillow, mode 'P', "
        "or imdecode_backend='pillow' in LoadAnnotations), or for num_classes set too small."
    )


def _describe(values: list[int], count: int, places: str, num_classes: int, ignore_index: int | None) -> str:
    ignored = "nothing is ignored" if ignore_index is None else f"{ignore_index} is ignored"
    shown = ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")
    return (
        f"{count} label{'s are' if count != 1 else ' is'} outside 0..{num_classes - 1} ({ignored}): "
        f"value{'s' if len(values) != 1 else ''} {shown}, first at {places}. {_usual_cause(values, num_classes)}"
    )


def require_labels(label: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Read the labels on the host and refuse those that are no class.

    Raises:
        BadLabelError: names the values, how many, where the first stand, and the usual cause.
    """
    bad = find_bad_labels(label, num_classes, ignore_index)
    if not bool(bad.any()):
        return
    values = torch.unique(label[bad]).tolist()
    places = ", ".join(str(tuple(place)) for place in torch.nonzero(bad)[:_SHOWN].tolist())
    raise BadLabelError(_describe(values, int(bad.sum()), places, num_classes, ignore_index))


def require_soft_labels(target: Tensor) -> None:
    """Read soft labels on the host and refuse those that are no share of a class: not finite, or negative.

    Raises:
        BadLabelError: says how many, and where the first stand.
    """
    bad = ~(torch.isfinite(target) & (target >= 0))
    if bool(bad.any()):
        places = ", ".join(str(tuple(place)) for place in torch.nonzero(bad)[:_SHOWN].tolist())
        raise BadLabelError(
            f"{int(bad.sum())} soft label values are negative or not finite, first at {places}. "
            "Soft labels are shares of the classes, usually a softmax or a mix of one-hot vectors."
        )


class LabelRecord:
    """What the labels of a device were like, kept there until somebody asks: no synchronisation before that.

    One int64 vector: count, C, the ignored index (or NO_INDEX); then for the first rows of the batch that held bad labels:
    the row, the flat position inside the row, and the value there. It describes the first offending batch and counts all.
    """

    NOTHING = -1
    NO_INDEX = -(2**62)
    SIZE = 3 + 3 * _SHOWN

    @staticmethod
    def empty(device: torch.device | str | None = None) -> Tensor:
        """A record in which nothing has happened."""
        return torch.zeros(LabelRecord.SIZE, dtype=torch.int64, device=device)

    @staticmethod
    def update(record: Tensor, label: Tensor, bad: Tensor, num_classes: int, ignore_index: int | None) -> None:
        """Add a batch to ``record`` in place: three reductions over ``bad``, no copy to the host."""
        if bad.numel() == 0:
            return
        rows = bad.reshape(bad.shape[0], -1)
        position = torch.argmax(rows.to(torch.uint8), dim=1, keepdim=True)  # the first bad one of each row
        value = label.reshape(rows.shape).gather(1, position).squeeze(1).long()
        hit = rows.any(dim=1)
        # rows with bad labels first, in their order
        order = torch.argsort(~hit, stable=True)[:_SHOWN]
        seen = torch.stack([order, position.squeeze(1)[order], value[order]], dim=1)
        seen = torch.where(hit[order].unsqueeze(1), seen, LabelRecord.NOTHING)
        missing = seen.new_full((_SHOWN - seen.shape[0], 3), LabelRecord.NOTHING)
        # filled on the device: a tensor made of host numbers would be copied there, and the copy synchronises
        classes = seen.new_full((1,), num_classes)
        ignored = seen.new_full((1,), LabelRecord.NO_INDEX if ignore_index is None else ignore_index)
        fresh = torch.cat([rows.sum().view(1), classes, ignored, torch.cat([seen, missing]).flatten()])
        earlier = record.clone()
        record.copy_(torch.where(earlier[0] > 0, earlier, fresh))
        record[0] = earlier[0] + fresh[0]

    @staticmethod
    def describe(record: Tensor) -> str | None:
        """The message of a record, read from its device now; None where no bad label was seen."""
        count, num_classes, ignored, *seen = record.tolist()
        if not count:
            return None
        triples = [seen[k : k + 3] for k in range(0, len(seen), 3) if seen[k] != LabelRecord.NOTHING]
        places = ", ".join(f"row {row} of the batch, position {position}" for row, position, _ in triples)
        values = sorted({value for _, _, value in triples})
        ignore_index = None if ignored == LabelRecord.NO_INDEX else ignored
        return _describe(values, count, places, num_classes, ignore_index)
