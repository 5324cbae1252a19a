"""The expected calibration error: how far a network's confidence is from its accuracy. Pure torch.

M bins of equal width over the confidences, C classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Calibration", "Reliability"]


@dataclass(frozen=True)
class Reliability:
    """The data of a reliability diagram: M bins of confidence, bin m from m / M to (m + 1) / M.

    Attributes:
        pixels: number of pixels in every bin.
        confidence: mean confidence of every bin, NaN in an empty one.
        accuracy: share of every bin's pixels that are correct, NaN in an empty one.
        ece: expected calibration error, ``sum_m (n_m / n) |accuracy_m - confidence_m|``, in 0..1.
        mce: maximum calibration error, the largest of those differences over the bins with pixels.
        mean_confidence: over all pixels; a network with more than ``mean_accuracy`` is overconfident.
        mean_accuracy: over all pixels.
    """

    pixels: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    ece: float
    mce: float
    mean_confidence: float
    mean_accuracy: float


class Calibration:
    """Counts pixels and correct pixels by the confidence of the prediction.

    The prediction is the argmax of the logits; its confidence is its probability. The sums are float64 on the device of the
    logits, and the host does not wait for the device before `reliability`. The sums of several processes may be added:
    ``state`` is one tensor, zero before the first image.

    Args:
        bins: M.
        ignore_index: label of the pixels that do not count.

    Raises:
        ValueError: ``bins`` is less than one.
    """

    def __init__(self, bins: int = 15, ignore_index: int = 255) -> None:
        if bins < 1:
            raise ValueError(f"a reliability diagram needs at least one bin, not {bins}")
        self.bins = bins
        self.ignore_index = ignore_index
        # rows: pixels, correct pixels, sum of confidences; the last column is for pixels without a finite confidence or with
        # an impossible label. float64 counts exactly up to 2**53
        self.state = torch.zeros(3, bins + 1, dtype=torch.float64)

    def update(self, logits: Tensor, probabilities: Tensor, label: Tensor) -> None:
        """Add the pixels of one image.

        Args:
            logits: (C, H, W).
            probabilities: (C, H, W), of the link.
            label: (H, W) integers in 0..C-1, or ``ignore_index``.

        Raises:
            ValueError: the shapes do not agree, or there are fewer than two classes.
        """
        if len(logits) < 2:
            raise ValueError(f"calibration needs the probabilities of two classes or more, not of {len(logits)}")
        if probabilities.shape != logits.shape or label.shape != logits.shape[1:]:
            shapes = ", ".join(str(tuple(x.shape)) for x in (logits, probabilities, label))
            raise ValueError(f"logits and probabilities are (C, H, W) and the label (H, W), not {shapes}")
        label = label.to(logits.device).long()
        prediction = logits.argmax(0)
        confidence = probabilities.gather(0, prediction.unsqueeze(0)).squeeze(0).double()
        impossible = ~confidence.isfinite() | (label < 0) | (label >= len(logits))
        # the conversion of NaN to an integer is undefined
        confidence = confidence.masked_fill(impossible, 0.0)
        index = (confidence * self.bins).long().clamp(0, self.bins - 1).masked_fill(impossible, self.bins)
        # ignored pixels have weight zero: to remove them, the host would have to wait for their number
        weight = (label != self.ignore_index).double()
        values = torch.stack((weight, weight * (prediction == label), weight * confidence)).flatten(1)
        if self.state.device != logits.device:
            self.state = self.state.to(logits.device)
        self.state.scatter_add_(1, index.flatten().expand(3, -1), values)

    def reliability(self) -> Reliability:
        """Compute the calibration from the sums. The host waits for the device.

        Raises:
            ValueError: no pixel was counted, or a pixel had a non-finite confidence or an impossible label.
        """
        pixels, correct, confidence = self.state.tolist()
        *pixels, wrong = pixels
        total = sum(pixels)
        if wrong:
            raise ValueError(
                f"{wrong:.0f} of {total + wrong:.0f} pixels have a probability that is no number or a label out of range, so "
                "the calibration error is unknown: look for NaN in the checkpoint's logits, or at the labels."
            )
        if not total:
            raise ValueError("no pixel counts: every label is ignored, or no image was seen, so there is no calibration error.")
        means = tuple(c / n if n else math.nan for c, n in zip(confidence, pixels, strict=False))
        accuracy = tuple(c / n if n else math.nan for c, n in zip(correct, pixels, strict=False))
        gaps = [abs(a - b) for a, b in zip(means, accuracy, strict=True)]
        ece = math.fsum(gap * n for gap, n in zip(gaps, pixels, strict=True) if n) / total
        mce = max(gap for gap in gaps if not math.isnan(gap))
        mean_confidence, mean_accuracy = math.fsum(confidence[:-1]) / total, sum(correct[:-1]) / total
        return Reliability(tuple(map(int, pixels)), means, accuracy, ece, mce, mean_confidence, mean_accuracy)
