"""What is reported about bad labels: an error on the CPU, a record on a device, where the loss becomes NaN.

`gbseg.losses.functional.find_bad_labels` finds them. Shapes: N images or rows, C classes, ``*`` any trailing dimensions.
"""

import torch
from torch import Tensor

from gbseg._moved import add_moved_names

__all__ = ["BadLabelError", "LabelRecord", "bad_label_error", "require_soft_labels"]

_SHOWN = 8
"""How many values and positions a message names, and how many rows of a batch a record holds."""


class BadLabelError(ValueError):
    """A label is neither a class nor the ignored index."""


def _usual_cause(values: list[int], num_classes: int) -> str:
    if num_classes == 1:
        return "One output for two classes is a sigmoid head (out_channels=1); here each class has its own: out_channels=2."
    if -100 in values:
        return "-100 is the index that PyTorch ignores by default: pass ignore_index=-100."
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


def _describe(values: list[int], count: int, positions: str, num_classes: int, ignore_index: int | None) -> str:
    ignored = "nothing is ignored" if ignore_index is None else f"{ignore_index} is ignored"
    shown = ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")
    return (
        f"{count} label{'s are' if count != 1 else ' is'} outside 0..{num_classes - 1} ({ignored}): "
        f"value{'s' if len(values) != 1 else ''} {shown}, first at {positions}. {_usual_cause(values, num_classes)}"
    )


def bad_label_error(label: Tensor, bad: Tensor, num_classes: int, ignore_index: int | None) -> BadLabelError:
    """The error about the labels ``(N, *)`` where ``bad`` is true: values, number, first positions, and the usual cause."""
    values = torch.unique(label[bad]).tolist()
    return BadLabelError(_describe(values, int(bad.sum()), _first_positions(bad), num_classes, ignore_index))


def _first_positions(bad: Tensor) -> str:
    return ", ".join(str(tuple(position)) for position in torch.nonzero(bad)[:_SHOWN].tolist())


def require_soft_labels(target: Tensor) -> None:
    """Read soft labels on the host and refuse values that are negative or not finite.

    Raises:
        BadLabelError: gives their number and the first positions.
    """
    bad = ~(torch.isfinite(target) & (target >= 0))
    if bool(bad.any()):
        raise BadLabelError(
            f"{int(bad.sum())} soft label values are negative or not finite, first at {_first_positions(bad)}. "
            "Soft labels are shares of the classes, usually a softmax or a mix of one-hot vectors."
        )


class LabelRecord:
    """A record of bad labels, kept on their device until it is read, so that nothing synchronises before.

    One int64 vector: their number in all batches, C, ignore_index (or NO_INDEX); then, for the first rows with bad labels of
    the first such batch, the row, the flat position in the row, and the value.
    """

    NOTHING = -1
    NO_INDEX = -(2**62)
    SIZE = 3 + 3 * _SHOWN

    @staticmethod
    def empty(device: torch.device | str | None = None) -> Tensor:
        """A record without bad labels."""
        return torch.zeros(LabelRecord.SIZE, dtype=torch.int64, device=device)

    @staticmethod
    def update(record: Tensor, label: Tensor, bad: Tensor, num_classes: int, ignore_index: int | None) -> None:
        """Add a batch to ``record`` in place: three reductions over ``bad``, no copy to the host."""
        if bad.numel() == 0:
            return
        rows = bad.reshape(bad.shape[0], -1)
        # the first bad one of each row; not an argmax, which compiled code for a CPU gets wrong over 8 bits that are all zero
        size = rows.shape[1]
        position = torch.where(rows, torch.arange(size, dtype=torch.int32, device=bad.device), size).amin(1).long()
        hit = position < size
        value = label.reshape(rows.shape).gather(1, position.clamp(max=size - 1).unsqueeze(1)).squeeze(1).long()
        # rows with bad labels in their order; the others, and those beyond, share a place that is cut off
        place = torch.where(hit, hit.cumsum(0) - 1, _SHOWN).clamp(max=_SHOWN)
        triples = torch.stack([torch.arange(bad.shape[0], device=bad.device), position, value], dim=1)
        seen = triples.new_full((_SHOWN + 1, 3), LabelRecord.NOTHING).index_copy(0, place, triples)[:_SHOWN]
        # filled on the device: a tensor made of host numbers would be copied there, and the copy synchronises
        classes = seen.new_full((1,), num_classes)
        ignored = seen.new_full((1,), LabelRecord.NO_INDEX if ignore_index is None else ignore_index)
        fresh = torch.cat([rows.sum().view(1), classes, ignored, seen.flatten()])
        earlier = record.clone()
        record.copy_(torch.where(earlier[0] > 0, earlier, fresh))
        record[0] = earlier[0] + fresh[0]

    @staticmethod
    def describe(record: Tensor) -> str | None:
        """The message of a record, which is read from its device; None without bad labels."""
        count, num_classes, ignored, *seen = record.tolist()
        if not count:
            return None
        triples = [seen[k : k + 3] for k in range(0, len(seen), 3) if seen[k] != LabelRecord.NOTHING]
        positions = ", ".join(f"row {row} of the batch, position {position}" for row, position, _ in triples)
        values = sorted({value for _, _, value in triples})
        ignore_index = None if ignored == LabelRecord.NO_INDEX else ignored
        return _describe(values, count, positions, num_classes, ignore_index)


add_moved_names(__name__)
