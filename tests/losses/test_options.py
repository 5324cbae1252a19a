"""Options that losses share with ``F.cross_entropy`` and MMSegmentation's losses, against these; and divisors."""

from __future__ import annotations

import json
import math
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gbseg import BadLabelError, BoostedLoss, ExpGBLoss, LinearLoss, Pow3GBLoss
from gbseg.losses import L1Loss, SigmoidBCELoss, SoftmaxLoss, WestonWatkinsLoss, boosted_linear_loss, boosted_resize_loss
from gbseg.losses.functional import fused_boosted_loss
from gbseg.losses.modules import GuardedLoss
from gbseg.losses.resize import upsample

WEIGHTS = [0.25, 1.0, 0.0, 2.75]  # exact in float32
KINDS: dict[str, Callable[..., BoostedLoss]] = {
    "exp": ExpGBLoss,
    "pow3": lambda **options: Pow3GBLoss(max_delta=2.0, **options),
    "linear": lambda **options: LinearLoss((-1.0, 3.0), **options),
}


def _batch(count: int = 3, size: tuple[int, ...] = (5, 2), dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(count)
    x = torch.randn(count, 4, *size, generator=rng, dtype=dtype).requires_grad_()
    return x, torch.randint(0, 4, (count, *size), generator=rng)


def _soft(x: Tensor) -> Tensor:
    return torch.softmax(2 * x.detach().flip(1), 1)


def _same(actual: Tensor, expected: Tensor, x: Tensor, rtol: float = 1e-11) -> None:
    """The same value, and the same gradient in x."""
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol)
    gradients = [torch.autograd.grad(value.sum(), x, retain_graph=True)[0] for value in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=rtol, atol=rtol)


def _entropy(p: Tensor) -> Tensor:
    """That of the labels of each pixel, which is where the cross-entropy of soft labels has its minimum, and exp-GB has 0."""
    return -torch.special.xlogy(p, p).sum(1)


def _excess(x: Tensor, alpha: float = 0.1, t_pos: float = 16.0) -> Tensor:
    """What exp-GB adds to a pixel's cross-entropy, over ``t_pos``."""
    z = alpha * x.exp().sum(1) / t_pos
    return z - z.log() - 1


# --- the divisor -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -2.0, math.nan])
def test_a_divisor_that_is_not_positive(value: float) -> None:
    """On the CPU a tensor is refused as the number is, by losses and functions."""
    x, label = _batch()
    maps, row = x, x[:, :, 0, 0]
    boost, targets = ExpGBLoss().boost, (0.0, 16.0)
    for number in (value, torch.tensor(value), torch.tensor([value])):
        for call in (
            lambda n: ExpGBLoss()(x, label, avg_factor=n),
            lambda n: SoftmaxLoss()(x, label, avg_factor=n),
            lambda n: ExpGBLoss().resized(maps, label, avg_factor=n),
            lambda n: fused_boosted_loss(x, label, boost, targets, avg_factor=n),
            lambda n: boosted_resize_loss(maps, label, boost, targets, avg_factor=n),
            lambda n: boosted_linear_loss(
                row, torch.zeros(2, 4).double(), None, label[:, 0, 0] % 2, boost, targets, avg_factor=n
            ),
        ):
            with pytest.raises(ValueError, match="avg_factor divides the loss and must be > 0, got "):
                call(number)


@pytest.mark.parametrize("kind", [ExpGBLoss, SoftmaxLoss])
def test_a_divisor_that_is_not_read(kind: type) -> None:
    """Where the host cannot read it: 0 where nothing has a loss, else NaN, in value and gradient; else the quotient."""
    torch.compiler.reset()
    x, label = _batch()
    loss, nothing = kind(), torch.zeros(label.shape)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    zero = torch.tensor(0.0)
    for avg_factor in (zero, torch.tensor([0.0]), torch.tensor(-3.0), torch.tensor(math.nan)):
        value = compiled(x, label, avg_factor=avg_factor)
        assert value.isnan() and torch.autograd.grad(value, x)[0].isnan().all()
    for arguments in (dict(weight=nothing), dict(target=torch.full_like(label, 255))):
        value = compiled(x, **{"target": label, "avg_factor": zero, **arguments})
        assert value == 0 and not torch.autograd.grad(value, x)[0].any()
    _same(compiled(x, label, avg_factor=torch.tensor(7)), loss(x, label, reduction_override="sum") / 7, x)


# --- weights of labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("impl", ["auto", "reference", "compile", "triton"])
def test_weights_of_labels_are_those_of_cross_entropy(impl: str, reduction: str) -> None:
    """exp-GB is ``t_pos`` times cross-entropy and a penalty on each pixel: with ``weight``, divisor and all."""
    if impl == "triton":
        pytest.importorskip("triton")
    dtype = torch.float32 if impl == "triton" else torch.float64
    x, label = _batch(dtype=dtype)
    label[0, :2] = 255
    weight = torch.tensor(WEIGHTS, dtype=dtype)
    loss = ExpGBLoss(class_weight=WEIGHTS, class_weight_mode="labels", reduction=reduction, impl=impl)
    pixels = torch.where(label == 255, 0.0, weight[label % 255 % 4])
    excess = (pixels * _excess(x)).sum() if reduction == "sum" else pixels * _excess(x)
    excess = excess.sum() / pixels.sum() if reduction == "mean" else excess
    expected = 16 * (F.cross_entropy(x, label, weight, ignore_index=255, reduction=reduction) + excess)
    _same(loss(x, label), expected, x, rtol=1e-5 if impl == "triton" else 1e-11)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_weights_of_soft_labels_are_those_of_cross_entropy(reduction: str) -> None:
    """The mean over labels drawn from them, as ``F.cross_entropy`` has it; 'mean' divides by the number of pixels there."""
    x, _ = _batch()
    soft, weight = _soft(x), torch.tensor(WEIGHTS).double()
    loss = ExpGBLoss(class_weight=WEIGHTS, class_weight_mode="labels", reduction=reduction)
    shares = soft * weight.view(1, 4, 1, 1)
    pixels = shares.sum(1)
    excess = pixels * (_excess(x) - _entropy(shares / pixels.unsqueeze(1)))
    excess = dict(none=excess, sum=excess.sum(), mean=excess.mean())[reduction]
    _same(loss(x, soft), 16 * (F.cross_entropy(x, soft, weight, reduction=reduction) + excess), x)
    # and one-hot soft labels are labels
    label = soft.argmax(1)
    one_hot = F.one_hot(label, 4).movedim(-1, 1).double()
    _same(loss(x, one_hot, reduction_override="sum"), loss(x, label, reduction_override="sum"), x)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_weights_of_labels_multiply_pixels(kind: Callable[..., BoostedLoss]) -> None:
    """For every boost: the weights of pixels by another name, in the plain call and in that of small logits."""
    x, label = _batch()
    label[1, 3] = 255
    loss = kind(class_weight=WEIGHTS, class_weight_mode="labels")
    own = torch.rand(label.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pixels = torch.where(label == 255, 0.0, torch.tensor(WEIGHTS)[label % 255 % 4])
    _same(loss(x, label), kind()(x, label, weight=pixels, avg_factor=pixels.sum()), x)
    _same(loss(x, label, weight=own, avg_factor=3.0), kind()(x, label, weight=pixels * own, avg_factor=3.0), x)
    large = label.repeat_interleave(2, 1)
    many = pixels.repeat_interleave(2, 1)
    _same(loss.resized(x, large), kind().resized(x, large, weight=many, avg_factor=many.sum()), x)
    # the linear layer takes them as weights of rows
    weight, features = torch.randn(4, 6, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64).requires_grad_()
    rows = torch.tensor(WEIGHTS)[torch.arange(8) % 4]
    joined = boosted_linear_loss(
        features, weight, None, torch.arange(8) % 4, loss.boost, loss.targets, max_delta=loss.max_delta, row_weight=rows,
        avg_factor=rows.sum(),
    )  # fmt: skip
    _same(joined, loss(F.linear(features, weight), torch.arange(8) % 4), features)


def test_the_divisor_of_a_query_head() -> None:
    """Mask2Former divides by the sum of its labels' weights: the loss is the weighted mean, as cross-entropy's is."""
    x, label = _batch(12, ())
    weight = torch.tensor([1.0, 1.0, 1.0, 0.125])
    query = dict(weight=torch.ones(12), avg_factor=weight[label].sum())
    loss = ExpGBLoss(class_weight=weight, class_weight_mode="labels")
    _same(loss(x, label, **query), loss(x, label), x)
    expected = 16 * (F.cross_entropy(x, label, weight.double()) + (weight[label] * _excess(x)).sum() / weight[label].sum())
    _same(loss(x, label, **query), expected, x)


def test_labels_that_all_weigh_nothing() -> None:
    x, label = _batch()
    loss = ExpGBLoss(class_weight=WEIGHTS, class_weight_mode="labels")
    for nothing in (torch.full_like(label, 2), torch.full_like(label, 255)):
        value = loss(x, nothing)
        assert value == 0 and not torch.autograd.grad(value, x)[0].any()


def test_weights_of_outputs_are_the_default() -> None:
    x, label = _batch()
    _same(ExpGBLoss(class_weight=WEIGHTS)(x, label), ExpGBLoss(class_weight=WEIGHTS, class_weight_mode="outputs")(x, label), x)


@pytest.mark.parametrize("kind", ["npy", "json"])
def test_weights_from_a_file(kind: str, tmp_path: Path) -> None:
    """As MMSegmentation reads them."""
    file = tmp_path / f"weights.{kind}"
    if kind == "npy":
        np.save(file, np.array(WEIGHTS))
    else:
        file.write_text(json.dumps(WEIGHTS))
    x, label = _batch()
    _same(ExpGBLoss(class_weight=str(file))(x, label), ExpGBLoss(class_weight=WEIGHTS)(x, label), x)


class _Bomb:
    def __reduce__(self) -> tuple:
        return pytest.fail, ("code of a file of weights was run",)


def test_weights_from_a_file_that_runs_code(tmp_path: Path) -> None:
    """A pickle is refused, under any name; so is a file that is not there, or holds something else."""
    for name in ("weights.pkl", "weights.npy"):
        (tmp_path / name).write_bytes(pickle.dumps(_Bomb()))
    np.save(tmp_path / "object.npy", np.array([_Bomb()]), allow_pickle=True)
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "short.npy", np.ones(4))
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-9])
    np.savez(tmp_path / "archive.npz", np.ones(4))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    for number, values in enumerate((["a"], [1j], [[1.0, 2.0]], 1.0, [1.0, -1.0], [np.nan])):
        np.save(tmp_path / f"{number}.npy", np.array(values))
    for name, content in {
        "broken": "[1, 2",
        "empty": "",
        "deep": "[" * 100_000,
        "null": "null",
        "dict": '{"0": 1}',
        "gap": "[1, null]",
        "ragged": "[[1], [1, 2]]",
        "number": "1",
        "text": '["1"]',
        "infinite": "[1, 1e999]",
        "huge": "[1" + "0" * 30 + "]",
        "none": "[]",
    }.items():
        (tmp_path / f"{name}.json").write_text(content)
    (tmp_path / "utf-16.json").write_text("[1, 2]", encoding="utf-16")
    unread = ["weights.npy", "object.npy", "empty.npy", "short.npy", "archive.npy"]
    unread += ["broken.json", "empty.json", "deep.json", "utf-16.json"]
    absent = ["weights.pkl", "absent.npy", "absent.json", "folder.npy"]
    for file in [*sorted(tmp_path.iterdir()), tmp_path / "absent.npy", tmp_path / "absent.json"]:
        what = "cannot be read: " if file.name in unread else "is no file " if file.name in absent else "holds "
        with pytest.raises(ValueError, match=f"class_weight: {re.escape(str(file))} {what}.*(write|numpy.save)") as error:
            ExpGBLoss(class_weight=str(file))
        assert len(str(error.value)) < 400 + len(str(file)) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"holds None; write one finite number >= 0 a class there"):
        ExpGBLoss(class_weight=str(tmp_path / "null.json"))


@pytest.mark.parametrize("values", [{"0": 1}, [1, None], ["1"], [[1], [1, 2]], 1.0, [], [1j], [-1.0]], ids=str)
def test_weights_that_are_no_numbers(values: Any) -> None:
    with pytest.raises(ValueError, match=r"class_weight is one finite number >= 0 a class, got "):
        ExpGBLoss(class_weight=values)


# --- ignored labels and smoothing --------------------------------------------------------------------------------------


def test_ignore_index_of_the_constructor() -> None:
    """As that of ``nn.CrossEntropyLoss``; a call may still give its own."""
    x, label = _batch()
    label[0, :3] = -100
    _same(SoftmaxLoss(ignore_index=-100)(x, label), F.cross_entropy(x, label), x)
    _same(ExpGBLoss(ignore_index=-100)(x, label), ExpGBLoss()(x, label, ignore_index=-100), x)
    small = ExpGBLoss(ignore_index=-100).resized(x, label)
    _same(small, ExpGBLoss().resized(x, label, ignore_index=-100), x)
    label[0, :3] = 255
    with pytest.raises(BadLabelError, match=r"\(-100 is ignored\): value 255"):
        ExpGBLoss(ignore_index=-100)(x, label)


def test_two_ignored_indices() -> None:
    """The call's is used, and one warning says where a head of MMSegmentation takes its own from."""
    x, label = _batch()
    label[0, :3] = 255
    loss = ExpGBLoss(ignore_index=-100)
    message = r"ExpGBLoss\(ignore_index=-100\) is called with ignore_index=255, .* set decode_head\.ignore_index=-100"
    with pytest.warns(UserWarning, match=message):
        value = loss(x, label, ignore_index=255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _same(value, ExpGBLoss(ignore_index=255)(x, label, ignore_index=255), x)
        loss(x, label, ignore_index=255)


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_label_smoothing(reduction: str, soft: bool) -> None:
    """``F.cross_entropy``'s, for the softmax and for exp-GB, ignored labels and soft ones too."""
    x, label = _batch()
    label[0, :2] = 255
    target = _soft(x) if soft else label
    options: dict[str, Any] = dict(label_smoothing=0.2, reduction=reduction)
    expected = F.cross_entropy(x, target, **options) if soft else F.cross_entropy(x, target, ignore_index=255, **options)
    _same(SoftmaxLoss(**options)(x, target), expected, x)
    valid = torch.ones(label.shape, dtype=torch.bool) if soft else label != 255
    smoothed = 0.8 * (target if soft else F.one_hot(label % 255 % 4, 4).movedim(-1, 1).double()) + 0.2 / 4
    excess = torch.where(valid, _excess(x) - _entropy(smoothed), 0.0)
    excess = dict(none=excess, sum=excess.sum(), mean=excess.sum() / valid.sum())[reduction]
    _same(ExpGBLoss(**options)(x, target), 16 * (expected + excess), x)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_weights_of_labels_and_smoothing(reduction: str, soft: bool, smoothing: float) -> None:
    """``F.cross_entropy`` weighs the share that is spread by the classes which it goes to; its divisor does not know of it."""
    x, label = _batch()
    label[0, :2] = 255
    weight, ignored = torch.tensor(WEIGHTS).double(), label == 255
    options: dict[str, Any] = dict(label_smoothing=smoothing, reduction=reduction)
    target = _soft(x) if soft else label
    expected = F.cross_entropy(x, target, weight, ignore_index=-100 if soft else 255, **options)
    loss = SoftmaxLoss(class_weight=WEIGHTS, class_weight_mode="labels", **options)
    _same(loss(x, target), expected, x)
    # exp-GB is ``t_pos`` times that, with the labels that are weighted alike
    p = target if soft else F.one_hot(torch.where(ignored, 0, label), 4).movedim(-1, 1).double()
    shares = ((1 - smoothing) * p + smoothing / 4) * weight.view(1, 4, 1, 1)
    pixels = shares.sum(1)
    excess = pixels * (_excess(x) - _entropy(shares / torch.where(pixels > 0, pixels, 1).unsqueeze(1)))
    excess = excess if soft else torch.where(ignored, 0.0, excess)
    divisor = pixels.numel() if soft else torch.where(ignored, 0.0, weight[label % 255 % 4]).sum()
    excess = dict(none=excess, sum=excess.sum(), mean=excess.sum() / divisor)[reduction]
    for impl in ("auto", "reference"):
        boosted = ExpGBLoss(class_weight=WEIGHTS, class_weight_mode="labels", impl=impl, **options)
        _same(boosted(x, target), 16 * (expected + excess), x)


@pytest.mark.parametrize("kind", [*KINDS.values(), SoftmaxLoss], ids=[*KINDS, "softmax"])
def test_weights_of_labels_and_smoothing_are_those_of_soft_labels(kind: Callable[..., GuardedLoss]) -> None:
    """Small logits too; what an ignored pixel's logits are does not matter."""
    x, label = _batch()
    label[0, :2] = 255
    ignored = label == 255
    soft = F.one_hot(torch.where(ignored, 0, label), 4).movedim(-1, 1).double()
    factors, valid = dict(class_weight=WEIGHTS, class_weight_mode="labels"), (~ignored).double()
    loss, divisor = kind(label_smoothing=0.1, **factors), torch.tensor(WEIGHTS)[label[~ignored]].sum()
    expected = kind(**factors)(x, 0.9 * soft + 0.025, weight=valid, avg_factor=divisor)
    _same(loss(x, label), expected, x)
    _same(loss(x, label, weight=valid / 2, avg_factor=3), expected * divisor / 6, x)
    wild = torch.where(ignored.unsqueeze(1), math.inf, x.detach()).requires_grad_()
    value = loss(wild, label)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, wild), torch.autograd.grad(expected, x))
    if isinstance(loss, BoostedLoss):
        large = label.repeat_interleave(2, 2)
        _same(loss.resized(x, large), loss(upsample(x, large.shape[1:], False), large), x)
    # nothing but ignored pixels
    assert loss(x, torch.full_like(label, 255)) == 0


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_smoothed_labels_are_soft_ones(kind: Callable[..., BoostedLoss]) -> None:
    x, label = _batch()
    smoothed = 0.9 * F.one_hot(label, 4).movedim(-1, 1).double() + 0.025
    for impl in ("auto", "reference"):
        _same(kind(label_smoothing=0.1, impl=impl)(x, label), kind()(x, smoothed), x)
    for baseline in (SigmoidBCELoss, L1Loss):
        _same(baseline(label_smoothing=0.1)(x, label), baseline()(x, smoothed), x)
    large = label.repeat_interleave(2, 2)
    _same(kind(label_smoothing=0.1).resized(x, large), kind(label_smoothing=0.1, impl="reference").resized(x, large), x, 1e-10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ExpGBLoss(label_smoothing=1.0), r"label_smoothing is a share of the labels in \[0, 1\), got 1.0"),
        (lambda: SoftmaxLoss(label_smoothing=-0.1), r"label_smoothing .*, got -0.1"),
        (lambda: ExpGBLoss(class_weight_mode="label"), r"class_weight_mode must be one of .*'labels'.*, got 'label'"),
        (lambda: WestonWatkinsLoss(label_smoothing=0.1), "WestonWatkinsLoss .* takes no label_smoothing, got 0.1"),
        (lambda: SoftmaxLoss(class_weight=WEIGHTS), "takes no class_weight of outputs.* class_weight_mode='labels'"),
    ],
)
def test_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# --- what is said of labels --------------------------------------------------------------------------------------------


def test_pytorchs_ignored_index_is_recognised() -> None:
    x, label = _batch()
    label[0, 0] = -100
    with pytest.raises(
        BadLabelError, match=r"value -100, .* -100 is the index that PyTorch ignores .*: pass ignore_index=-100\."
    ):
        ExpGBLoss()(x, label)


def test_one_output_for_two_classes_is_a_sigmoid_head() -> None:
    x, label = _batch()
    with pytest.raises(BadLabelError, match=r"value 1, .* is a sigmoid head \(out_channels=1\).*: out_channels=2\."):
        ExpGBLoss()(x[:, :1], label % 2)
    assert ExpGBLoss()(x[:, :1], label * 0).isfinite()
