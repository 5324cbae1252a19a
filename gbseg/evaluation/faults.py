"""What cannot be in a prediction or a label map, noted on the device and described at the end with the image's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["describe_faults", "image_name", "no_numbers"]


def image_name(sample: Mapping, position: int) -> str:
    """The file name that an image goes by in messages; its position in the set where a sample knows no file."""
    return Path(str(sample.get("img_path") or sample.get("seg_map_path") or f"image {position}")).name


def no_numbers(sample: Mapping, prediction: Tensor) -> Tensor:
    """0 or 1, on the device: whether a pixel has no finite greatest logit, so that its argmax means nothing.

    Minus infinity is a class that was ruled out, and no fault where another one is left.
    """
    logits = sample.get("seg_logits", sample.get("probabilities", {})).get("data")
    if logits is None:
        return torch.zeros((), dtype=torch.int64, device=prediction.device)
    return (~torch.isfinite(logits.amax(dim=0)).all()).long().to(prediction.device)


def describe_faults(names: Sequence[str], bounds: Sequence[Tensor], broken: Sequence[Tensor], num_classes: int) -> list[str]:
    """Describe every image whose values cannot be; the one time that they are fetched from the device."""
    described = []
    flags = torch.stack(list(broken)).tolist() if broken else []
    # format_only keeps no bounds
    rows = torch.stack(list(bounds)).tolist() if bounds else [[0] * 6] * len(flags)
    for name, row, flag in zip(names, rows, flags, strict=True):
        parts = [
            f"{count} {kind}(s) outside 0..{num_classes - 1} (values go from {least} to {greatest})"
            for kind, (count, least, greatest) in (("prediction", row[:3]), ("label", row[3:]))
            if count
        ]
        if flag:
            parts.append("logits that are not finite numbers, so that its labels mean nothing")
        if parts:
            described.append(f"{name}: {', '.join(parts)}")
    return described
