"""The confusion matrix and the scores against scikit-learn, a loop over pixels, and numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics

from gbseg.evaluation import confusion_matrix, scores
from gbseg.evaluation.confusion import count_bins, scatter_count

NAMES = tuple(f"class{i}" for i in range(7))


def _random_maps(
    seed: int, classes: int = 7, shape: tuple[int, int] = (31, 53), ignored: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, shape)
    prediction = np.where(rng.random(shape) < 0.6, label, rng.integers(0, classes, shape))
    label[rng.random(shape) < ignored] = 255
    return torch.from_numpy(prediction), torch.from_numpy(label)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_matrix_against_sklearn(dtype: torch.dtype) -> None:
    """The matrix is scikit-learn's, for every integer type that label maps come in."""
    prediction, label = _random_maps(0)
    kept = label != 255
    expected = metrics.confusion_matrix(label[kept], prediction[kept], labels=range(7))
    result = confusion_matrix(prediction.to(dtype), label.to(dtype), 7)
    assert result.dtype == torch.int64 and result.shape == (7, 7)
    np.testing.assert_array_equal(result.numpy(), expected)


@pytest.mark.parametrize("ignore_index", [255, 3, -1, None])
def test_matrix_against_loop(ignore_index: int | None) -> None:
    """The matrix is that of a loop over the pixels, whatever is ignored: a class, a negative index, nothing."""
    prediction, label = _random_maps(1, shape=(9, 11), ignored=0.0)
    if ignore_index is not None:
        label[2:4] = ignore_index
    expected = torch.zeros(7, 7, dtype=torch.int64)
    for p, t in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
        if t != ignore_index:
            expected[t, p] += 1
    assert torch.equal(confusion_matrix(prediction, label, 7, ignore_index), expected)


@pytest.mark.parametrize("ignore_index", [255, 3, -2, None])
def test_bins_of_what_is_impossible(ignore_index: int | None) -> None:
    """Every pixel is in one bin: labels out of range in row C, ignored ones in row C + 1, predictions in column C."""
    rng = np.random.default_rng(4)
    values = np.array([-(2**40), -2, -1, 0, 3, 6, 7, 8, 255, 256, 2**33])
    prediction, label = rng.choice(values, (2, 30, 40))
    expected = np.zeros((9, 8), np.int64)
    for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
        row = 8 if t == ignore_index else t if 0 <= t < 7 else 7
        expected[row, p if 0 <= p < 7 else 7] += 1
    result = count_bins(torch.from_numpy(prediction), torch.from_numpy(label), 7, ignore_index)
    np.testing.assert_array_equal(result.numpy(), expected)


def test_counting_without_waiting_for_the_device() -> None:
    """What a GPU counts by is `bincount`, and asks for no value of a tensor: those of the meta device have none."""
    index = torch.from_numpy(np.random.default_rng(5).integers(0, 40, 1000))
    assert torch.equal(scatter_count(index, 50), torch.bincount(index, minlength=50))
    maps = torch.empty(2, 30, 40, dtype=torch.int64, device="meta")
    assert count_bins(maps[0], maps[1], 7, 255).shape == (9, 8)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.bincount(maps[0].flatten())


def test_matrices_add_up() -> None:
    """The matrices of images add up to that of the set."""
    maps = [_random_maps(seed) for seed in range(3)]
    whole = confusion_matrix(torch.cat([p for p, _ in maps]), torch.cat([t for _, t in maps]), 7)
    assert torch.equal(sum(confusion_matrix(p, t, 7) for p, t in maps), whole)


def test_out_of_range() -> None:
    """Impossible values are named, counted and located."""
    prediction, label = torch.zeros(4, 5, dtype=torch.uint8), torch.zeros(4, 5, dtype=torch.uint8)
    prediction[1, 2], prediction[3, 0] = 21, 30
    label[2, 4], label[0, 0] = 77, 255
    with pytest.raises(ValueError, match="out of range") as caught:
        confusion_matrix(prediction, label, 21)
    assert str(caught.value) == (
        "2 of 20 predictions are out of range 0..20: 21, 30, first at (1, 2); "
        "1 of 20 labels are out of range 0..20: 77, first at (2, 4) (255 is ignored)"
    )
    with pytest.raises(ValueError, match=r"1 of 20 labels .* 255, first at \(0, 0\) \(nothing is ignored\)"):
        confusion_matrix(torch.zeros_like(label), label.clamp(max=255).where(label == 255, 0), 21, ignore_index=None)
    with pytest.raises(ValueError, match=r"1 of 2 labels .* -1, first at \(1,\)"):
        confusion_matrix(torch.tensor([0, 0]), torch.tensor([0, -1]), 21)
    with pytest.raises(ValueError, match=r"0\.\.20: 100, 101, 102, 103, 104, 105, 106, 107, \.\.\., first"):
        confusion_matrix(torch.arange(100, 120), torch.zeros(20).long(), 21)


def test_out_of_range_where_ignored() -> None:
    """A prediction out of range is an error at ignored pixels too, as in VOC's own code."""
    with pytest.raises(ValueError, match=r"1 of 1 predictions .* 255"):
        confusion_matrix(torch.tensor([255]), torch.tensor([255]), 21)


def test_shapes_and_types() -> None:
    """Shapes that differ, labels that are no integers and an empty list of classes are refused."""
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        confusion_matrix(torch.zeros(2, 3).long(), torch.zeros(3, 2).long(), 2)
    with pytest.raises(TypeError, match="label must hold integer class numbers"):
        confusion_matrix(torch.zeros(2).long(), torch.zeros(2), 2)
    with pytest.raises(ValueError, match="at least 1"):
        confusion_matrix(torch.zeros(2).long(), torch.zeros(2).long(), 0)


def test_scores_against_sklearn() -> None:
    """IoU, its means and the accuracy are scikit-learn's."""
    prediction, label = _random_maps(2)
    kept = label != 255
    result = scores(confusion_matrix(prediction, label, 7), NAMES, classes=["class5", "class0"])
    expected = metrics.jaccard_score(label[kept], prediction[kept], labels=range(7), average=None)
    np.testing.assert_allclose(result.iou, expected, rtol=1e-14)
    assert result.miou == pytest.approx(expected.mean(), rel=1e-14)
    assert result.headline_miou == pytest.approx((expected[5] + expected[0]) / 2, rel=1e-14)
    assert result.pixel_accuracy == pytest.approx(metrics.accuracy_score(label[kept], prediction[kept]), rel=1e-14)
    assert result.absent == () and result.headline_classes == ("class5", "class0")
    pair = label[kept], prediction[kept]
    np.testing.assert_allclose(result.dice, metrics.f1_score(*pair, average=None), rtol=1e-14)
    np.testing.assert_allclose(result.accuracy, metrics.recall_score(*pair, average=None), rtol=1e-14)
    assert result.mdice == pytest.approx(metrics.f1_score(*pair, average="macro"), rel=1e-14)
    assert result.macc == pytest.approx(metrics.balanced_accuracy_score(*pair), rel=1e-14)
    assert result.fwiou == pytest.approx(metrics.jaccard_score(*pair, average="weighted"), rel=1e-14)
    assert result.labelled == tuple(np.bincount(label[kept], minlength=7))
    assert result.predicted == tuple(np.bincount(prediction[kept], minlength=7))


def test_absent_classes() -> None:
    """Absent classes are left out and named, those that are only predicted count as zero."""
    # rows = label: a is right 3 times of 4, its miss went to c, which has no pixel of its own; b does not occur
    matrix = torch.tensor([[3, 0, 1], [0, 0, 0], [0, 0, 0]])
    result = scores(matrix, ["a", "b", "c"], classes=["b", "c"])
    assert result.iou[0] == 0.75 and math.isnan(result.iou[1]) and result.iou[2] == 0.0
    assert result.miou == 0.375 and result.pixel_accuracy == 0.75
    assert result.absent == ("b",) and result.headline_miou == 0.0
    # c has no label to be accurate about, and weighs nothing
    assert result.dice[0] == 6 / 7 and result.dice[2] == 0.0 and result.mdice == 3 / 7
    assert result.accuracy[0] == result.macc == 0.75 and math.isnan(result.accuracy[2]) and result.fwiou == 0.75
    assert scores(matrix, ["a", "b", "c"]).headline_miou is None
    assert math.isnan(scores(matrix, ["a", "b", "c"], ["b"]).headline_miou or 0.0)


def test_empty_set() -> None:
    """A set without a pixel that counts scores NaN."""
    result = scores(torch.zeros(2, 2, dtype=torch.int64), ["a", "b"])
    assert math.isnan(result.miou) and math.isnan(result.pixel_accuracy) and result.absent == ("a", "b")
    assert all(math.isnan(value) for value in (result.mdice, result.macc, result.fwiou))


def test_large_counts() -> None:
    """Counts that float32 cannot hold stay exact."""
    # 2**24 + 1 is the first integer that float32 lacks
    result = scores(torch.tensor([[2**24 + 1, 1], [0, 1]]), ["a", "b"])
    assert result.iou[0] == (2**24 + 1) / (2**24 + 2)


def test_names_that_do_not_fit() -> None:
    """Names that do not fit the matrix, and headlines of unknown, repeated or no classes, are refused."""
    matrix = torch.eye(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"unknown class.* 'dogs', 'cow'; known are cat, dog, person"):
        scores(matrix, ["cat", "dog", "person"], classes=["cat", "dogs", "cow"])
    with pytest.raises(ValueError, match=r"\(3, 3\) does not fit 2 class names"):
        scores(matrix, ["cat", "dog"])
    with pytest.raises(ValueError, match="must differ"):
        scores(matrix, ["cat", "cat", "dog"])
    with pytest.raises(ValueError, match="one or more different classes"):
        scores(matrix, ["cat", "dog", "person"], classes=[])
    with pytest.raises(ValueError, match="one or more different classes"):
        scores(matrix, ["cat", "dog", "person"], classes=["cat", "cat"])
