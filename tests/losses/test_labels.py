"""Which labels are refused, what the message says, and the record that a device keeps without asking the host."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gbseg.losses import BadLabelError
from gbseg.losses.functional import default_ignore_index, find_bad_labels, require_labels
from gbseg.losses.labels import LabelRecord


@pytest.mark.parametrize(("num_classes", "expected"), [(2, 255), (21, 255), (255, 255), (256, None), (1000, None)])
def test_default_ignore_index(num_classes: int, expected: int | None) -> None:
    """255, unless it is a class."""
    assert default_ignore_index(num_classes) == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_find_bad_labels(dtype: torch.dtype) -> None:
    """What numpy finds on int64, for labels over the whole range of their type: nothing wraps around."""
    limits = torch.iinfo(dtype)
    label = torch.arange(max(limits.min, -400), min(limits.max, 400) + 1).to(dtype).reshape(-1, 1)
    values = label.numpy().astype(np.int64)
    for num_classes, ignore_index in itertools.product([3, 255, 256, 300], [None, 255, -100, 0, -1, 300]):
        expected = ((values < 0) | (values >= num_classes)) & (values != ignore_index)
        actual = find_bad_labels(label, num_classes, ignore_index).numpy()
        np.testing.assert_array_equal(actual, expected, f"C = {num_classes}, ignored: {ignore_index}")


@pytest.mark.parametrize(
    ("label", "num_classes", "ignore_index", "message"),
    [
        (
            [[0, 255], [255, 0]],
            2,
            None,
            r"2 labels are outside 0\.\.1 \(nothing is ignored\): value 255, first at \(0, 1\), \(1, 0\)\. "
            r"A mask of 0 and 255 .* map 255 to class 1.* pass ignore_index=255",
        ),
        (
            [[0, 38, 75], [14, 255, 2]],
            3,
            255,
            r"3 labels are outside 0\.\.2 \(255 is ignored\): values 14, 38, 75, first at \(0, 1\), \(0, 2\), \(1, 0\)\. "
            r".*palette PNG read as grey",
        ),
        ([1, 2, 3], 3, 255, r"1 label is outside 0\.\.2 \(255 is ignored\): value 3, first at \(2,\)\. .* off by one"),
        ([0, -1, 2], 3, 255, r"1 label is outside 0\.\.2 .*: value -1, first at \(1,\)\. Negative labels .*reduce_zero_label"),
        ([0, 255, 2], 3, -100, r"1 label is outside 0\.\.2 \(-100 is ignored\): value 255, first at \(1,\)"),
        (
            list(range(20)),
            3,
            None,
            r"17 labels are .*: values 3, 4, 5, 6, 7, 8, 9, 10, \.\.\., first at \(3,\), \(4,\), .*\(10,\)\. .*num_classes",
        ),
    ],
    ids=["mask", "palette", "off by one", "negative", "ignored", "many"],
)
def test_message(label: list, num_classes: int, ignore_index: int | None, message: str) -> None:
    """The values, how many, where, and the usual cause."""
    with pytest.raises(BadLabelError, match=message):
        require_labels(torch.tensor(label), num_classes, ignore_index)


def test_good_labels() -> None:
    """Classes and the ignored index pass, and an empty batch does."""
    require_labels(torch.tensor([0, 1, 2, 255]), 3, 255)
    require_labels(torch.tensor([0, 1, 2, -100]), 3, -100)
    require_labels(torch.zeros(0, 4, dtype=torch.long), 3, None)
    assert issubclass(BadLabelError, ValueError)


# --- the record of a device --------------------------------------------------------------------------------------------


def _update(record: Tensor, label: Tensor, num_classes: int = 3, ignore_index: int | None = 255) -> Tensor:
    LabelRecord.update(record, label, find_bad_labels(label, num_classes, ignore_index), num_classes, ignore_index)
    return record


def _batches(shape: tuple[int, ...], rate: float, count: int = 4) -> list[Tensor]:
    """Batches of which the first is clean; a share ``rate`` of the others' labels is bad."""
    rng = np.random.default_rng(sum(shape))
    batches = [rng.integers(0, 3, shape) for _ in range(count)]
    for label in batches:
        label[rng.random(shape) < 0.2] = 255
    for label in batches[1:]:
        label[rng.random(shape) < rate] = rng.integers(3, 200)
        label.flat[-1] = -7
    return [torch.from_numpy(label) for label in batches]


def _expected(batches: list[Tensor]) -> tuple[int, list[tuple[int, int, int]]]:
    """How many bad labels there are, and (row, position, value) of the first of each row, in the first batch that has any."""
    count = 0
    seen: list[tuple[int, int, int]] = []
    for label in batches:
        actual = []
        for row, values in enumerate(label.reshape(len(label), -1).tolist()):
            bad = [(row, position, value) for position, value in enumerate(values) if value not in (0, 1, 2, 255)]
            count += len(bad)
            actual += bad[:1]
        seen = seen or actual[:8]
    return count, seen


@pytest.mark.parametrize("rate", [0.02, 0.5])
@pytest.mark.parametrize("shape", [(64,), (1, 5), (3, 7), (12, 4, 5), (30, 2, 2)], ids=str)
def test_record(shape: tuple[int, ...], rate: float) -> None:
    """It counts everything, and describes the first batch that held bad labels, eight rows at most."""
    batches = _batches(shape, rate)
    record = LabelRecord.empty()
    assert LabelRecord.describe(_update(record, batches[0])) is None
    for label in batches[1:]:
        _update(record, label)
    count, seen = _expected(batches)
    assert record[:3].tolist() == [count, 3, 255]
    rest = [(LabelRecord.NOTHING,) * 3] * (8 - len(seen))
    assert record[3:].tolist() == list(itertools.chain(*seen, *rest))
    report = LabelRecord.describe(record)
    assert report is not None
    values = ", ".join(map(str, sorted({value for _, _, value in seen})))
    positions = ", ".join(f"row {row} of the batch, position {position}" for row, position, _ in seen)
    plural = "s" if "," in values else ""
    assert report.startswith(
        f"{count} labels are outside 0..2 (255 is ignored): value{plural} {values}, first at {positions}. "
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64], ids=str)
def test_record_of_any_integers(dtype: torch.dtype) -> None:
    """Labels of any integer type; the rest of the report is that of the CPU's error."""
    record = _update(LabelRecord.empty(), torch.tensor([[0, 1], [9, 7]], dtype=dtype))
    report = LabelRecord.describe(record)
    assert report is not None and report.startswith(
        "2 labels are outside 0..2 (255 is ignored): value 9, first at row 1 of the batch, position 0. This is usual for"
    )


@pytest.mark.parametrize("ignore_index", [None, 0, 255, -100, 3])
def test_record_of_ignored_index(ignore_index: int | None) -> None:
    """The report says what was ignored, also where that is the number of classes."""
    report = LabelRecord.describe(_update(LabelRecord.empty(), torch.tensor([[9]]), 3, ignore_index))
    ignored = "nothing is ignored" if ignore_index is None else f"{ignore_index} is ignored"
    assert report is not None and f"({ignored})" in report


@pytest.mark.parametrize("shape", [(0,), (0, 4, 4), (2, 0)], ids=str)
def test_record_of_empty_batch(shape: tuple[int, ...]) -> None:
    """A batch without pixels (a detector without proposals, say) leaves the record as it was."""
    record = _update(LabelRecord.empty(), torch.zeros(shape, dtype=torch.long))
    assert not record.any()


def test_record_needs_no_host() -> None:
    """The update is a fixed graph of tensor operations: traced without values, it serves other batches unchanged."""
    clean, *batches = _batches((12, 4, 5), 0.3)
    traced = make_fx(lambda record, label: _update(record, label), tracing_mode="fake")(LabelRecord.empty(), clean)
    record = LabelRecord.empty()
    for label in batches:
        traced(record, label)
    expected = LabelRecord.empty()
    for label in batches:
        _update(expected, label)
    assert torch.equal(record, expected) and record[0] > 0
    # what reads a value fails under this trace, or it would prove nothing
    with pytest.raises(Exception, match=r"(?i)data.dependent|item"):
        make_fx(lambda label: torch.tensor(int(label.sum())), tracing_mode="fake")(clean)
