"""Impossible values in predictions and label maps: recorded on the device, described at the end with the image's name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gbseg._moved import add_moved_names

__all__ = ["describe_faults", "image_name", "non_finite_logits", "value_range"]


def image_name(sample: Mapping[str, Any], position: int) -> str:
    """The file name of an image for messages; its position in the set where the sample has no path."""
    return Path(str(sample.get("img_path") or sample.get("seg_map_path") or f"image {position}")).name


def non_finite_logits(sample: Mapping[str, Any], prediction: Tensor) -> Tensor:
    """0 or 1 on the device of the prediction: whether the greatest logit of any pixel is not finite.

    The argmax of such a pixel is meaningless. Minus infinity marks a class that was ruled out, and is no fault unless every
    class of a pixel is.
    """
    logits = sample.get("seg_logits", sample.get("probabilities", {})).get("data")
    if logits is None:
        return torch.zeros((), dtype=torch.int64, device=prediction.device)
    return (~torch.isfinite(logits.amax(dim=0)).all()).long().to(prediction.device)


def value_range(bins: Tensor, prediction: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """(6,) int64: number out of range, least and greatest value of a prediction, then the same of its label.

    On a CPU the values of an image without faults are not looked at, and all six are 0. On a GPU they are always computed:
    reading the counts first would make the host wait.

    Args:
        bins: from `gbseg.evaluation.confusion.count_bins`.
        prediction: what was counted.
        label: what was counted.
        ignore_index: the label that is left out.
    """
    num_classes = bins.shape[1] - 1
    wrong = bins[:, num_classes].sum(), bins[num_classes].sum()
    if bins.device.type == "cpu" and not any(wrong):
        return bins.new_zeros(6)
    valid = label.long().masked_fill(label == ignore_index, 0)
    return torch.stack([wrong[0], *prediction.long().aminmax(), wrong[1], *valid.aminmax()])


def describe_faults(names: Sequence[str], records: Sequence[Tensor], num_classes: int) -> list[str]:
    """Describe every image with impossible values. Fetches the records from the device, once.

    Args:
        names: of the images.
        records: (7,) of every image: `value_range` and `non_finite_logits`.
        num_classes: C.
    """
    described = []
    rows = torch.stack(list(records)).tolist() if records else []
    for name, (*ranges, non_finite) in zip(names, rows, strict=True):
        parts = [
            f"{count} {kind}(s) outside 0..{num_classes - 1} (values go from {least} to {greatest})"
            for kind, (count, least, greatest) in (("prediction", ranges[:3]), ("label", ranges[3:]))
            if count
        ]
        if non_finite:
            parts.append("logits that are not finite numbers, so that its labels mean nothing")
        if parts:
            described.append(f"{name}: {', '.join(parts)}")
    return described


add_moved_names(__name__)
