"""What configs name: defaults, the paper's settings, every caller's form, errors, compilation and probabilities."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gbseg import BadLabelError, BoostedLoss, ExpGBLoss, LinearLoss, Pow3GBLoss
from gbseg.boosting import Boost, CubicBoost, ExponentialBoost, LinearBoost, MirroredExponentialBoost

Array = np.ndarray


def _batch(shape: tuple[int, ...] = (2, 4, 3, 2), dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits that require a gradient and labels without an ignored one."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=rng, dtype=dtype).requires_grad_()
    return x, torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=rng)


def _gradient(loss: Tensor, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return gradient


def _one_hot(label: Tensor, num_classes: int) -> Array:
    """(N, *) labels as (N, C, *) zeros and ones; all zeros for a label that is no class."""
    return np.moveaxis(label.numpy()[..., None] == np.arange(num_classes), -1, 1).astype(float)


# --- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "boost", "targets", "name"),
    [
        (ExpGBLoss(), ExponentialBoost(0.1), (0.0, 16.0), "loss_expgb"),
        (Pow3GBLoss(), CubicBoost(0.001, 0.4), (0.0, 10.0), "loss_pow3gb"),
        (LinearLoss(), LinearBoost(), (0.0, 1.0), "loss_linear"),
        (BoostedLoss(LinearBoost()), LinearBoost(), (0.0, 1.0), "loss_boosted"),
    ],
    ids=["exp", "pow3", "linear", "boosted"],
)
def test_defaults(loss: BoostedLoss, boost: Boost, targets: tuple[float, float], name: str) -> None:
    """Figure 1a's settings, no weights and a mean."""
    assert (loss.boost, loss.targets, loss.loss_name) == (boost, targets, name)
    assert (loss.class_weight, loss.loss_weight, loss.reduction, loss.max_delta) == (None, 1.0, "mean", None)
    assert loss.impl == "auto" and loss.bad_label_report() is None
    assert str(boost) in repr(loss) and str(targets) in repr(loss)


@pytest.mark.parametrize(
    ("loss", "config", "at_zero"),
    [
        # the third column is g(0) - t of the wrong and of the right class
        (ExpGBLoss(0.1, (0, 16)), dict(type="ExponentialBoost", alpha=0.1), (0.1, -15.9)),
        (ExpGBLoss(0.1, (0, 6)), dict(type="ExponentialBoost", alpha=0.1), (0.1, -5.9)),
        (ExpGBLoss(alpha=0.01, targets=(0, 10)), dict(type="ExponentialBoost", alpha=0.01), (0.01, -9.99)),
        (Pow3GBLoss(0.001, 0.4, (0, 10)), dict(type="CubicBoost", alpha=0.001, beta=0.4), (0.4, -9.6)),
        (Pow3GBLoss(targets=(-2, 10)), dict(type="CubicBoost", alpha=0.001, beta=0.4), (2.4, -9.6)),
        (LinearLoss(), dict(type="LinearBoost"), (0.0, -1.0)),
    ],
    ids=["cifar-1a", "cifar-1b", "imagenet", "pow3-1a", "pow3-1b", "linear"],
)
def test_settings_of_the_paper(loss: BoostedLoss, config: dict, at_zero: tuple[float, float]) -> None:
    """Each can be built by its own name and by its boost's, and starts with the error deltas of the paper's formulas."""
    same = BoostedLoss(config, loss.targets)
    assert same.boost == loss.boost
    x = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.tensor([[at_zero[0], at_zero[1], at_zero[0]]], dtype=torch.float64)
    for built in (loss, same):
        torch.testing.assert_close(_gradient(built(x, torch.tensor([1])), x), expected, rtol=1e-12, atol=1e-12)


def test_no_state() -> None:
    """Nothing of a loss gets into a checkpoint: a model that had another loss loads."""
    assert not ExpGBLoss(class_weight=[1.0, 2.0]).state_dict()
    ExpGBLoss(class_weight=[1.0, 2.0]).load_state_dict({})


BUILD_ERRORS: dict[str, tuple[Callable[[], BoostedLoss], str]] = {
    "alpha 0": (lambda: ExpGBLoss(alpha=0.0), "alpha .* must be > 0"),
    "alpha negative": (lambda: Pow3GBLoss(alpha=-1.0), "alpha .* must be > 0"),
    "alpha nan": (lambda: ExpGBLoss(alpha=math.nan), "alpha .* must be > 0, got nan"),
    "targets in no order": (lambda: ExpGBLoss(targets=(6.0, 6.0)), "t_pos must be larger than t_neg"),
    "targets out of reach": (lambda: ExpGBLoss(targets=(-2.0, 10.0)), "t_neg = -2 is negative"),
    "targets infinite": (lambda: LinearLoss(targets=(0.0, math.inf)), "must be finite"),
    "reduction": (lambda: ExpGBLoss(reduction="avg"), "reduction must be one of .*'mean'.*, got 'avg'"),
    "impl": (lambda: ExpGBLoss(impl="magic"), "impl must be one of .*'auto'.*, got 'magic'"),
    "max_delta 0": (lambda: ExpGBLoss(max_delta=0.0), "max_delta .* must be > 0"),
    "max_delta nan": (lambda: ExpGBLoss(max_delta=math.nan), "max_delta .* must be > 0"),
    "loss_weight": (lambda: ExpGBLoss(loss_weight=math.inf), "loss_weight must be a finite number"),
    "loss_name": (lambda: ExpGBLoss(loss_name="expgb"), "loss_name must start with 'loss_'"),
    "class_weight 2-d": (lambda: ExpGBLoss(class_weight=torch.ones(2, 2)), "one finite number >= 0 a class"),
    "class_weight negative": (lambda: ExpGBLoss(class_weight=[1.0, -1.0]), "one finite number >= 0 a class"),
    "class_weight nan": (lambda: ExpGBLoss(class_weight=[1.0, math.nan]), "one finite number >= 0 a class"),
}


@pytest.mark.parametrize(("build", "message"), BUILD_ERRORS.values(), ids=BUILD_ERRORS)
def test_settings_are_refused(build: Callable[[], BoostedLoss], message: str) -> None:
    """Options out of their range, each by its own message."""
    with pytest.raises(ValueError, match=message):
        build()


# --- callers -----------------------------------------------------------------------------------------------------------

MODULES: dict[str, tuple[type[BoostedLoss] | Callable[..., BoostedLoss], tuple[float, float], Callable[[Array], Array]]] = {
    "exp": (ExpGBLoss, (0.0, 16.0), lambda x: 0.1 * np.exp(x)),
    "pow3": (Pow3GBLoss, (0.0, 10.0), lambda x: 0.001 * x**3 + 0.4),
    "linear": (LinearLoss, (0.0, 1.0), lambda x: x),
    "mirrored": (
        lambda **options: BoostedLoss(MirroredExponentialBoost(0.3, 0.2), (-1.0, 5.0), **options),
        (-1.0, 5.0),
        lambda x: 0.3 * np.sign(x) * np.exp(np.abs(x) - 1) + 0.2,
    ),
}
CALLS: dict[str, tuple[tuple[int, ...], str | None, str, dict[str, Any]]] = {
    # shape of pred, reduction_override, kind of labels, other arguments
    "decode head": ((2, 4, 3, 2), None, "ignored", dict(ignore_index=255)),
    "OHEM": ((2, 4, 3, 2), "none", "ignored", dict(ignore_index=255)),
    "PointHead": ((2, 4, 5), None, "ignored", {}),
    "ClsHead": ((6, 4), None, "labels", dict(avg_factor=6)),
    "ClsHead, soft": ((6, 4), None, "soft", dict(avg_factor=6)),
    "box head": ((6, 4), "mean", "weighted", dict(avg_factor=3.5)),
    "box head, tensor": ((6, 4), None, "weighted", dict(avg_factor=torch.tensor(3.5))),
    "box head, sum": ((6, 4), "sum", "weighted", {}),
    "maps, soft": ((2, 4, 3, 2), None, "soft", {}),
    "class 0 ignored": ((6, 4), None, "labels", dict(ignore_index=0)),
    "-100 ignored": ((2, 4, 5), None, "-100", dict(ignore_index=-100)),
}


@pytest.mark.parametrize(("shape", "override", "kind", "options"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("build", "targets", "g"), MODULES.values(), ids=MODULES)
def test_gradient_of_every_call(
    build: Callable[..., BoostedLoss],
    targets: tuple[float, float],
    g: Callable[[Array], Array],
    shape: tuple[int, ...],
    override: str | None,
    kind: str,
    options: dict[str, Any],
) -> None:
    """``loss_weight * class_weight * weight * (g(x) - t) / divisor`` for the calls of every head."""
    x, label = _batch(shape)
    valid = np.ones(label.shape)
    t = targets[0] + (targets[1] - targets[0]) * _one_hot(label, 4)
    factor = valid
    if kind in ("ignored", "-100"):
        ignored = 255 if kind == "ignored" else -100
        label.view(-1)[::3] = ignored
        valid = (label != ignored).numpy().astype(float)
    elif options.get("ignore_index") == 0:
        valid = (label != 0).numpy().astype(float)
    elif kind == "soft":
        label = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        t = targets[0] + (targets[1] - targets[0]) * label.numpy()
    elif kind == "weighted":
        options = dict(options, weight=torch.tensor([0.0, 1.0, 0.25, 3.0, 1.0, 0.5]))
        factor = options["weight"].double().numpy()
    class_weight = np.array([0.3, 1.0, 0.0, 2.7])
    loss = build(class_weight=torch.tensor(class_weight), loss_weight=0.4)(x, label, reduction_override=override, **options)
    assert loss.shape == (valid.shape if override == "none" else ())
    divisor = float(options.get("avg_factor", valid.sum())) if override in (None, "mean") else 1.0
    per_class = class_weight.reshape(1, -1, *[1] * (x.ndim - 2))
    expected = 0.4 * per_class * (factor * valid)[:, None] * (g(x.detach().numpy()) - t) / divisor
    np.testing.assert_allclose(_gradient(loss, x).numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("override", [None, "none", "sum", "mean"])
def test_reduction(reduction: str, override: str | None) -> None:
    """The override wins; 'sum' and 'mean' are those of the values that 'none' gives."""
    x, label = _batch()
    pixels = ExpGBLoss(reduction="none")(x, label)
    assert pixels.shape == label.shape
    expected = {"none": pixels, "sum": pixels.sum(), "mean": pixels.mean()}[override or reduction]
    torch.testing.assert_close(ExpGBLoss(reduction=reduction)(x, label, reduction_override=override), expected)


@pytest.mark.parametrize("avg_factor", [5, 5.0, torch.tensor(5.0), torch.tensor([5.0])], ids=repr)
def test_avg_factor(avg_factor: float | Tensor) -> None:
    """Any form of a number divides the sum and leaves a scalar (mmdet's DETR heads give a tensor of shape (1,))."""
    x, label = _batch()
    loss = LinearLoss()(x, label, avg_factor=avg_factor)
    torch.testing.assert_close(loss, LinearLoss(reduction="sum")(x, label) / 5)
    pixels = LinearLoss(reduction="none")
    assert torch.equal(pixels(x, label, avg_factor=avg_factor), pixels(x, label))


@pytest.mark.parametrize(
    ("num_classes", "ignore_index", "ignored"),
    [(4, None, 255), (255, None, 255), (256, None, None), (1000, None, None), (1000, 255, 255), (4, 0, 0), (4, -100, -100)],
)
def test_ignore_index(num_classes: int, ignore_index: int | None, ignored: int | None) -> None:
    """None ignores 255 where it cannot be a class and nothing else; an index given is always honoured."""
    x = torch.zeros(3, num_classes, requires_grad=True)
    label = torch.tensor([1, 255 if ignored is None else ignored, 2])
    gradient = _gradient(LinearLoss()(x, label, ignore_index=ignore_index), x)
    expected = np.zeros((3, num_classes), np.float32)
    expected[[0, 2], [1, 2]] = -1
    if ignored is None:
        expected[1, 255] = -1
    np.testing.assert_allclose(gradient.numpy(), expected / (3 if ignored is None else 2))


@pytest.mark.parametrize(
    ("num_classes", "ignore_index", "values"),
    [(200, -100, [156, 3]), (256, None, [0, 255]), (300, None, [44, 255]), (255, None, [0, 255]), (21, 255, [255, 20])],
)
def test_uint8_labels(num_classes: int, ignore_index: int | None, values: list[int]) -> None:
    """Masks of bytes mean what the same numbers mean as int64: neither C nor the ignored index wraps around."""
    x, _ = _batch((2, num_classes))
    gradients = [
        _gradient(ExpGBLoss()(x, torch.tensor(values, dtype=dtype), ignore_index=ignore_index), x)
        for dtype in (torch.int64, torch.uint8)
    ]
    assert torch.equal(*gradients)


def test_int8_labels() -> None:
    """A label of -1 is not 255."""
    with pytest.raises(BadLabelError, match="value -1"):
        ExpGBLoss()(X, (Y - 1).to(torch.int8))


def test_bound_of_the_gradient() -> None:
    """``max_delta`` reaches the loss."""
    x, label = _batch()
    gradient = _gradient(ExpGBLoss(max_delta=0.5, reduction="sum")(10 * x, label), x) / 10
    assert gradient.abs().max().item() == 0.5


# --- refusals ----------------------------------------------------------------------------------------------------------

X, Y = torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long)
CALL_ERRORS: dict[str, tuple[tuple, dict[str, Any], str]] = {
    "labels of another shape": ((X, Y[:, :3]), {}, r"pred \(2, 3, 4\) needs labels of shape \(2, 4\), got \(2, 3\)"),
    "labels with a channel": ((X, Y[:, None]), {}, r"needs labels of shape \(2, 4\), got \(2, 1, 4\)"),
    "float class numbers": ((X, Y.float()), {}, r"soft labels of pred's shape .*target\.long\(\)"),
    "integer one-hot": ((X, X.long()), {}, r"If they are one-hot, pass them as floats"),
    "soft labels with a gradient": ((X, X.clone().requires_grad_()), {}, r"get no gradient; pass target\.detach\(\)"),
    "integer logits": ((X.long(), Y), {}, r"pred must be floating logits .* torch\.int64"),
    "flat logits": ((X[0, 0], Y[0]), {}, r"pred must be floating logits \(N, C, \*\)"),
    "other devices": ((X.to("meta"), Y), {}, "pred is on meta and target on cpu"),
    "weight of another shape": ((X, Y, torch.ones(2)), {}, r"weight must have the shape of the pixels \(2, 4\), got \(2,\)"),
    "weight of a class": ((X, Y, torch.ones(2, 3, 4)), {}, r"weight must have the shape of the pixels \(2, 4\)"),
    "reduction": ((X, Y), dict(reduction_override="avg"), "reduction_override must be one of"),
    "avg_factor of a sum": ((X, Y), dict(reduction_override="sum", avg_factor=2), "avg_factor divides a mean; with .*'sum'"),
    "avg_factor 0": ((X, Y), dict(avg_factor=0), "must be > 0, got 0"),
    "avg_factor negative": ((X, Y), dict(avg_factor=-1.5), "must be > 0, got -1.5"),
    "avg_factor nan": ((X, Y), dict(avg_factor=math.nan), "must be > 0, got nan"),
    "avg_factor of several": ((X, Y), dict(avg_factor=torch.ones(2)), r"one number, got a tensor of shape \(2,\)"),
    "negative soft label": ((X, X - 0.5), {}, r"24 soft label values are negative or not finite, first at \(0, 0, 0\), "),
    "nan soft label": ((X, X + math.nan), {}, "24 soft label values are negative or not finite"),
    "infinite soft label": ((X, X + math.inf), {}, "24 soft label values are negative or not finite"),
    "0/255 mask": ((X, 255 * (Y + 1)), dict(ignore_index=-100), r"8 labels .* value 255, first at \(0, 0\), .*0 and 255"),
    "palette": ((X, Y + 38), {}, "palette PNG read as grey"),
    "off by one": ((X, Y + 3), {}, "off by one"),
    "negative": ((X, Y - 1), {}, "reduce_zero_label"),
}


@pytest.mark.parametrize(("arguments", "keywords", "message"), CALL_ERRORS.values(), ids=CALL_ERRORS)
def test_calls_are_refused(arguments: tuple, keywords: dict[str, Any], message: str) -> None:
    """What does not fit together, each by its own message."""
    with pytest.raises(ValueError, match=message):
        ExpGBLoss()(*arguments, **keywords)


def test_class_weight_of_other_classes() -> None:
    """As many class weights as classes."""
    with pytest.raises(ValueError, match="class_weight has 2 values, pred has 3 classes"):
        ExpGBLoss(class_weight=[1.0, 2.0])(X, Y)


class _Watch(TorchDispatchMode):
    """Notes every operation on floating numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if any(isinstance(value, Tensor) and value.is_floating_point() for value in args):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_labels_are_refused_first() -> None:
    """On the CPU nothing is computed from the logits of a batch with bad labels."""
    with _Watch() as watch, pytest.raises(BadLabelError):
        ExpGBLoss()(X, Y + 3)
    assert watch.seen == []
    with pytest.raises(BadLabelError):
        ExpGBLoss()(X, X - 1)
    with _Watch() as watch:
        ExpGBLoss()(X, Y)
    assert watch.seen


def test_unknown_arguments_warn() -> None:
    """Arguments of other losses are named in a warning, unless they are None."""
    with pytest.warns(UserWarning, match="ExpGBLoss has no use for label_smoothing, pos_weight and ignores it"):
        ExpGBLoss()(X, Y, pos_weight=2, label_smoothing=0.1, avg_non_ignore=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ExpGBLoss()(X, Y, avg_non_ignore=None)


# --- without the host, and compiled ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, dict(max_delta=3.0, class_weight=[1.0, 2.0, 3.0])], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", [ExpGBLoss, Pow3GBLoss, LinearLoss])
def test_no_synchronisation(kind: type[BoostedLoss], options: dict[str, Any]) -> None:
    """On a device that has no values to read, the loss finds nothing to read; buffers do not become fake themselves."""
    loss = kind(**options)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 3, 4, 4, device="cuda", requires_grad=True)
        label = torch.empty(2, 4, 4, dtype=torch.long, device="cuda")
        value = loss(x, label, weight=torch.empty(2, 4, 4, device="cuda"), avg_factor=torch.empty((), device="cuda"))
        assert value.shape == () and value.device.type == "cuda"
        assert all(type(buffer) is Tensor and buffer.device.type == "cpu" for buffer in loss.buffers())
        with pytest.raises(DataDependentOutputException):
            bool((label < 0).any())


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 4), (0, 3), (0, 3, 4, 4), (2, 3, 0)], ids=str)
def test_no_synchronisation_of_the_gradient(shape: tuple[int, ...]) -> None:
    """The same with the backward pass, on the device that stores nothing; a batch without pixels too."""
    x = torch.zeros(shape, device="meta", requires_grad=True)
    label = torch.zeros(shape[0], *shape[2:], dtype=torch.long, device="meta")
    assert _gradient(ExpGBLoss(max_delta=1.0)(x, label), x).shape == shape


def test_evaluation_first() -> None:
    """The buffers that follow the logits to their device in inference mode serve the training that comes after."""
    loss = ExpGBLoss(class_weight=[1.0, 2.0, 3.0])
    x = torch.zeros(2, 3, device="meta", requires_grad=True)
    label = torch.zeros(2, dtype=torch.long, device="meta")
    with torch.inference_mode():
        loss(x, label)
    assert loss.record.device.type == "meta"
    assert _gradient(loss(x, label), x).shape == (2, 3)


COMPILED: dict[str, tuple[Callable[[], BoostedLoss], dict[str, Any]]] = {
    "exp": (ExpGBLoss, {}),
    "pow3": (lambda: Pow3GBLoss(class_weight=[1.0, 2.0, 0.5, 1.0], max_delta=1.0), dict(avg_factor=torch.tensor(9.0))),
    "mirrored": (
        lambda: BoostedLoss(MirroredExponentialBoost(), (-1.0, 4.0), reduction="none", loss_weight=0.3),
        dict(weight=torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(2))),
    ),
}


@pytest.mark.parametrize(
    ("build", "options", "backend"),
    [(*case, "aot_eager") for case in COMPILED.values()] + [(*COMPILED["exp"], "inductor")],
    ids=[*COMPILED, "inductor"],
)
def test_compiled(build: Callable[[], BoostedLoss], options: dict[str, Any], backend: str) -> None:
    """One graph without breaks, with eager's value and gradient; bad labels give NaN in both, and a report."""
    torch.compiler.reset()
    loss = build()
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    x, label = _batch(dtype=torch.float32)
    label[0, 1] = 255
    value, expected = compiled(x, label, **options), build()(x, label, **options)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(_gradient(value, x), _gradient(expected, x))
    assert loss.bad_label_report() is None
    # the first batch with bad labels is described, the labels of both are counted
    first, second = label.clone(), label.clone()
    first[1, 0, 1], first[1, 2, 0], second[0, 2, 0] = 38, 75, 9
    for bad in (first, second):
        value = compiled(x, bad, **options)
        assert value.isnan().all()
        assert _gradient(value, x)[(bad != 255).unsqueeze(1).expand(x.shape)].isnan().all()
    report = loss.bad_label_report()
    assert report is not None and report.startswith(
        "3 labels are outside 0..3 (255 is ignored): value 38, first at row 1 of the batch, position 1. "
    )
    # and training may go on
    assert compiled(x, label, **options).isfinite().all()


def test_compiled_soft_labels() -> None:
    """The same with soft labels, of which a negative or infinite one gives NaN."""
    torch.compiler.reset()
    compiled = torch.compile(ExpGBLoss(), fullgraph=True, backend="aot_eager")
    x, _ = _batch((5, 3), dtype=torch.float32)
    label = torch.softmax(x.detach(), 1)
    value, expected = compiled(x, label), ExpGBLoss()(x, label)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(_gradient(value, x), _gradient(expected, x))
    for bad in (-0.5, math.inf, math.nan):
        label[3, 1] = bad
        value = compiled(x, label)
        assert value.isnan() and _gradient(value, x).isnan().all()


# --- probabilities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        ExpGBLoss(),
        ExpGBLoss(0.01, (1.0, 10.0)),
        Pow3GBLoss(),
        Pow3GBLoss(targets=(-2.0, 10.0)),
        LinearLoss(),
        LinearLoss(targets=(-1.0, 3.0)),
        BoostedLoss(MirroredExponentialBoost(), (1.0, 10.0)),
    ],
    ids=lambda loss: f"{type(loss.boost).__name__}{loss.targets}",
)
@pytest.mark.parametrize("class_weight", [None, [0.5, 1.0, 2.0, 3.0]], ids=["", "weighted"])
def test_probabilities_are_calibrated(loss: BoostedLoss, class_weight: list[float] | None) -> None:
    """The logits with the smallest loss on random labels give the labels' frequencies, class weights or not."""
    label = torch.from_numpy(np.random.default_rng(0).choice(4, 4000, p=[0.6, 0.25, 0.1, 0.05]))
    frequencies = np.bincount(label.numpy(), minlength=4) / 4000
    loss = BoostedLoss(loss.boost, loss.targets, class_weight=class_weight)

    def gradient(logits: Array) -> Array:
        x = torch.tensor(logits, requires_grad=True)
        return _gradient(loss(x.expand(4000, 4), label), x).numpy()

    def value(logits: Array) -> float:
        return loss(torch.tensor(logits).expand(4000, 4), label).item()

    near = scipy.optimize.minimize(value, np.full(4, 2.0), jac=gradient, method="BFGS").x
    # the minimum of a function is known to half its digits only; the root of its gradient to all
    best = scipy.optimize.root(gradient, near, tol=1e-13).x
    assert np.abs(best - near).max() < 1e-2 and np.abs(gradient(best)).max() < 1e-9
    actual = loss.probabilities(torch.tensor(best[None]))[0].numpy()
    np.testing.assert_allclose(actual, frequencies, atol=1e-6)
    np.testing.assert_allclose(best, loss.prior_logits(torch.tensor(frequencies)).numpy(), atol=1e-5)


def test_probabilities_of_maps() -> None:
    """Classes along dimension 1 unless told; the loss's own boost and targets decide."""
    x, _ = _batch()
    x = (x - x.mean(1, keepdim=True)).detach()
    torch.testing.assert_close(ExpGBLoss().probabilities(x), torch.softmax(x, 1))
    torch.testing.assert_close(ExpGBLoss().probabilities(x, dim=-1), torch.softmax(x, -1))
    clipped = x.clamp(min=0)
    torch.testing.assert_close(LinearLoss().probabilities(x), clipped / clipped.sum(1, keepdim=True))


def test_larger_linear_targets_are_a_rate_a_layer() -> None:
    """Targets c times as large: output weights that start at 1/c, and hidden layers at c^2 times the rate (docs/verdict.md)."""
    rng, c, rate = torch.Generator().manual_seed(0), 16.0, 0.01
    x, label = torch.randn(32, 5, generator=rng, dtype=torch.float64), torch.randint(0, 3, (32,), generator=rng)

    def train(t_pos: float, start: float, hidden_rate: float) -> Tensor:
        torch.manual_seed(1)
        hidden, output = nn.Linear(5, 7, dtype=torch.float64), nn.Linear(7, 3, dtype=torch.float64)
        with torch.no_grad():
            output.weight.mul_(start)
            output.bias.mul_(start)
        groups = [dict(params=hidden.parameters(), lr=hidden_rate), dict(params=output.parameters())]
        optimizer, loss = torch.optim.SGD(groups, lr=rate), LinearLoss((0.0, t_pos))
        for _ in range(20):
            optimizer.zero_grad()
            loss(output(torch.tanh(hidden(x))), label).backward()
            optimizer.step()
        return output(torch.tanh(hidden(x))).detach()

    torch.testing.assert_close(train(c, 1.0, rate), c * train(1.0, 1 / c, c**2 * rate), rtol=1e-9, atol=0)
