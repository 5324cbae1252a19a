"""Every loss under every tool of PyTorch that cross-entropy survives, and the table of docs/pytorch.md.

python tests/helpers/loss_tools.py  # writes the table into the page
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from functorch.compile import aot_module, nop
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from gbseg.boosting import CubicBoost, ExponentialBoost
from gbseg.losses import (
    BoostedLoss,
    ExpGBLoss,
    L1Loss,
    LinearLoss,
    Pow3GBLoss,
    SigmoidBCELoss,
    SigmoidMSELoss,
    SoftmaxLoss,
    TanhMSELoss,
    WestonWatkinsLoss,
    boosted_linear_loss,
    boosted_resize_loss,
    fused_boosted_loss,
)
from gbseg.losses.reference import boosted_loss
from gbseg.losses.resize import upsample

PAGE = Path(__file__).parents[2] / "docs/pytorch.md"
CLASSES = 4
WEIGHTS = [0.25, 1.0, 0.5, 2.75]  # exact in float32
RNG = torch.Generator().manual_seed(0)
MATRIX, BIAS = (torch.randn(*shape, generator=RNG, dtype=torch.float64) for shape in ((CLASSES, 5), (CLASSES,)))
BOOST = dict(boost=ExponentialBoost(0.1), targets=(0.0, 6.0))

Loss = Callable[[Tensor, Tensor], Tensor]


class Calls(nn.Module):
    """A function of (x, label) as a module, with the module that it calls, if any, or tensors."""

    def __init__(self, function: Callable[..., Tensor], inner: nn.Module | None = None, **tensors: Tensor) -> None:
        super().__init__()
        self.function, self.inner = function, inner
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """The function's value."""
        return self.function(x, label, *self.buffers(recurse=False))


@dataclass(frozen=True)
class Case:
    """A loss: how it is made, its definition by plain operations, and what its inputs look like."""

    make: Callable[[], nn.Module]
    reference: Loss | None = None  # None: the plain call is its own definition
    soft: bool = False
    pixels: tuple[int, ...] = (3, 2)
    small: tuple[int, ...] | None = None  # the logits' size, where it is not that of the labels
    channels: int = CLASSES
    function: Callable[..., Tensor] | None = None

    def batch(self, count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs in float64 that require a gradient, and labels, of which some are ignored."""
        rng = torch.Generator().manual_seed(seed)
        size = self.pixels if self.small is None else self.small
        x = torch.randn(count, self.channels, *size, generator=rng, dtype=torch.float64)
        if self.soft:
            label = torch.rand(count, CLASSES, *self.pixels, generator=rng, dtype=torch.float64)
            return x.requires_grad_(), label / label.sum(1, keepdim=True)
        label = torch.randint(0, CLASSES, (count, *self.pixels), generator=rng)
        label.view(-1)[3::5] = 255
        return x.requires_grad_(), label

    def spoil(self, label: Tensor, row: int) -> Tensor:
        """The labels with one in this row that is none."""
        label = label.clone()
        label[row].view(-1)[0] = -0.5 if self.soft else 77
        return label

    def defined(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The value by definition, and its gradient in x, in float64 and eagerly."""
        x = x.detach().requires_grad_()
        value = (self.reference or self.make())(x, label)
        return value.detach(), torch.autograd.grad(value, x)[0]


def _by_reference(**options: Any) -> Loss:
    """The definition, with the settings of a loss of `LOSSES`."""
    settings = {**BOOST, "ignore_index": 255, **options}
    if "class_weight" in settings:
        settings["class_weight"] = torch.tensor(settings["class_weight"])
    return lambda x, label: boosted_loss(x, label, **settings)


def _labels_mode(x: Tensor, label: Tensor) -> Tensor:
    """Pixels weighted as ``F.cross_entropy`` weights them, by a definition of its own."""
    weight = torch.tensor([*WEIGHTS, *[0.0] * 252], dtype=x.dtype)[label]
    return _by_reference(weight=weight, avg_factor=weight.sum())(x, label)


def _smoothed(x: Tensor, label: Tensor) -> Tensor:
    """Smoothed labels as soft ones; ignored pixels by their weight."""
    valid = label != 255
    soft = 0.9 * F.one_hot(torch.where(valid, label, 0), CLASSES).movedim(-1, 1).to(x) + 0.1 / CLASSES
    return _by_reference(weight=valid.to(x), avg_factor=valid.sum())(x, soft)


def _labels_mode_smoothed(x: Tensor, label: Tensor) -> Tensor:
    """Pixels weighted as ``F.cross_entropy`` weights smoothed labels."""
    valid = (label != 255).to(x)
    soft = 0.9 * F.one_hot(torch.where(label == 255, 0, label), CLASSES).movedim(-1, 1).to(x) + 0.1 / CLASSES
    shares = soft * torch.tensor(WEIGHTS, dtype=x.dtype).view(1, -1, *[1] * (x.ndim - 2))
    divisor = torch.tensor([*WEIGHTS, *[0.0] * 252], dtype=x.dtype)[label].sum()
    pixels = shares.sum(1)
    return _by_reference(weight=pixels * valid, avg_factor=divisor)(x, shares / pixels.unsqueeze(1))


def _resized_reference(x: Tensor, label: Tensor) -> Tensor:
    return _by_reference()(upsample(x, label.shape[1:], False), label)


def _resized() -> nn.Module:
    loss = ExpGBLoss(0.1, (0, 6))
    return Calls(loss.resized, loss)


def _linear(x: Tensor, label: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return boosted_linear_loss(x, weight, bias, label, **BOOST, ignore_index=255)


LOSSES: dict[str, Case] = {
    "`ExpGBLoss`": Case(lambda: ExpGBLoss(0.1, (0, 6)), _by_reference()),
    "`Pow3GBLoss`": Case(lambda: Pow3GBLoss(), _by_reference(boost=CubicBoost(0.001, 0.4), targets=(0.0, 10.0))),
    "`LinearLoss`": Case(lambda: LinearLoss(), lambda x, label: LinearLoss(impl="reference")(x, label)),
    "`BoostedLoss`, `max_delta`": Case(
        lambda: BoostedLoss(ExponentialBoost(0.1), (0, 6), max_delta=2.5), _by_reference(max_delta=2.5)
    ),
    "soft labels": Case(lambda: ExpGBLoss(0.1, (0, 6)), _by_reference(), soft=True),
    "`class_weight`": Case(lambda: ExpGBLoss(0.1, (0, 6), class_weight=WEIGHTS), _by_reference(class_weight=WEIGHTS)),
    "`class_weight`, 'labels'": Case(
        lambda: ExpGBLoss(0.1, (0, 6), class_weight=WEIGHTS, class_weight_mode="labels"), _labels_mode
    ),
    "`label_smoothing`": Case(lambda: ExpGBLoss(0.1, (0, 6), label_smoothing=0.1), _smoothed),
    "`label_smoothing`, 'labels'": Case(
        lambda: ExpGBLoss(0.1, (0, 6), class_weight=WEIGHTS, class_weight_mode="labels", label_smoothing=0.1),
        _labels_mode_smoothed,
    ),
    "`SoftmaxLoss`": Case(lambda: SoftmaxLoss(), lambda x, label: F.cross_entropy(x, label, ignore_index=255)),
    "`SoftmaxLoss`, `penalty`": Case(lambda: SoftmaxLoss(scale=6, penalty=1, t_pos=6), _by_reference()),
    "`SigmoidMSELoss`": Case(lambda: SigmoidMSELoss()),
    "`TanhMSELoss`": Case(lambda: TanhMSELoss()),
    "`SigmoidBCELoss`": Case(lambda: SigmoidBCELoss()),
    "`WestonWatkinsLoss`": Case(lambda: WestonWatkinsLoss()),
    "`L1Loss`": Case(lambda: L1Loss()),
    "`loss.resized`": Case(_resized, _resized_reference, pixels=(5, 4), small=(3, 2)),
    "`boosted_resize_loss`": Case(
        lambda: Calls(lambda x, label: boosted_resize_loss(x, label, **BOOST, ignore_index=255)),
        _resized_reference,
        pixels=(5, 4),
        small=(3, 2),
        function=boosted_resize_loss,
    ),
    "`boosted_linear_loss`": Case(
        lambda: Calls(_linear, weight=MATRIX, bias=BIAS),
        lambda x, label: _by_reference()(F.linear(x, MATRIX, BIAS), label),
        pixels=(),
        channels=5,
        function=boosted_linear_loss,
    ),
    "`fused_boosted_loss`": Case(
        lambda: Calls(lambda x, label: fused_boosted_loss(x, label, **BOOST, ignore_index=255)),
        _by_reference(),
        function=fused_boosted_loss,
    ),
}

# what checks no labels, by its documentation
UNGUARDED = ("`fused_boosted_loss`",)


def _same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-10, atol=1e-12)


def _held(case: Case, function: Loss, *counts: int, guarded: bool = True) -> None:
    """Value and gradient at batches of these sizes are the definition's; a bad label makes both NaN where it is not read."""
    for count in counts:
        x, label = case.batch(count, seed=count)
        value, gradient = case.defined(x, label)
        actual = function(x, label)
        _same(actual, value)
        _same(torch.autograd.grad(actual, x)[0], gradient)
    if guarded:
        value = function(x, case.spoil(label, 1))
        assert value.isnan() and torch.autograd.grad(value, x)[0].isnan().any(), "a bad label passed"


def plain(case: Case, guarded: bool) -> None:
    """The call itself."""
    _held(case, case.make(), 3, 9, guarded=False)
    if guarded:
        x, label = case.batch(3)
        try:
            case.make()(x, case.spoil(label, 1))
        except ValueError:
            return
        raise AssertionError("a bad label passed")


def compiled(case: Case, guarded: bool) -> None:
    """``torch.compile`` without a graph break, once for batches of any size."""
    torch.compiler.reset()
    function = torch.compile(case.make(), fullgraph=True, backend="aot_eager")

    def of_any_size(x: Tensor, label: Tensor) -> Tensor:
        for tensor in (x, label):
            torch._dynamo.mark_dynamic(tensor, 0)
        return function(x, label)

    with torch._dynamo.config.patch(error_on_recompile=True):
        _held(case, of_any_size, 3, 9, guarded=guarded)


def exported(case: Case, guarded: bool) -> None:
    """``torch.export`` with a batch of any size; on either side of the eight rows that a record holds."""
    count = torch.export.Dim("count", min=2, max=4096)
    loss, batch = case.make(), case.batch(5)
    names = ("x", "label") if isinstance(loss, Calls) else ("pred", "target")
    program = torch.export.export(loss, batch, dynamic_shapes={name: {0: count} for name in names})
    _held(case, program.module(), 2, 5, 8, 20, guarded=guarded)


def vmap_labels(case: Case, guarded: bool) -> None:
    """``torch.func.vmap`` over the labels of one batch of logits."""
    loss, (x, _) = case.make(), case.batch(3)
    labels = torch.stack([case.batch(3, seed)[1] for seed in range(4)])
    _same(vmap(loss, (None, 0))(x, labels), torch.stack([case.defined(x, label)[0] for label in labels]))
    if guarded:
        labels[2] = case.spoil(labels[2], 1)
        assert vmap(loss, (None, 0))(x, labels).isnan().tolist() == [False, False, True, False]


def per_sample(case: Case, guarded: bool) -> None:
    """``vmap(grad(f), (None, 0, 0))``: the gradient of every sample in shared parameters."""
    loss, (x, label) = case.make(), case.batch(5)
    parameters = torch.linspace(0.5, 1.5, case.channels, dtype=torch.float64)

    def of_sample(parameters: Tensor, x: Tensor, label: Tensor) -> Tensor:
        return loss((x.movedim(0, -1) * parameters).movedim(-1, 0).unsqueeze(0), label.unsqueeze(0))

    actual = vmap(grad(of_sample), (None, 0, 0))(parameters, x.detach(), label)
    for index in range(len(x)):
        shared = parameters.clone().requires_grad_()
        row = (x[index].detach().movedim(0, -1) * shared).movedim(-1, 0).unsqueeze(0)
        _, gradient = case.defined(row, label[index : index + 1])
        _same(actual[index], torch.autograd.grad(row, shared, gradient)[0])
    if guarded:
        actual = vmap(grad(of_sample), (None, 0, 0))(parameters, x.detach(), case.spoil(label, 3))
        assert actual.isnan().any(1).tolist() == [False, False, False, True, False]


def fake(case: Case, guarded: bool) -> None:
    """``FakeTensorMode``: shapes and dtypes without values, in the forward and in the backward."""
    # parameters of the functions here are real tensors, which a module's buffers are as well
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        loss = case.make()
        x, label = (mode.from_tensor(tensor.detach()) for tensor in case.batch(3))
        value = loss(x.requires_grad_(), label)
        (gradient,) = torch.autograd.grad(value, x)
    assert isinstance(value, FakeTensor) and (value.shape, value.dtype) == ((), torch.float64)
    assert isinstance(gradient, FakeTensor) and gradient.shape == x.shape


def traced_fx(case: Case, guarded: bool) -> None:
    """``make_fx`` of loss and gradient, with real and with symbolic tensors, whose batch may have any size."""

    def step(loss: nn.Module, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value = loss(x, label)
        return value, torch.autograd.grad(value, x)[0]

    for mode in ("real", "symbolic"):
        loss, batch = case.make(), case.batch(3)
        graph = make_fx(lambda *batch, loss=loss: step(loss, *batch), tracing_mode=mode, _allow_non_fake_inputs=True)(*batch)
        for count in (3, 9) if mode == "symbolic" else (3,):
            x, label = case.batch(count, seed=5)
            for actual, expected in zip(graph(x, label), case.defined(x, label), strict=True):
                _same(actual, expected)
        if guarded:
            assert graph(x, case.spoil(label, 1))[0].isnan()


def aot(case: Case, guarded: bool) -> None:
    """``functorch.compile.aot_module``, which is ``aot_function`` with the buffers: forward and backward ahead of time."""
    _held(case, aot_module(case.make(), fw_compiler=nop), 3, guarded=guarded)


def jit_trace(case: Case, guarded: bool) -> None:
    """``torch.jit.trace`` of a batch, called with others; nothing is a constant that is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("error", torch.jit.TracerWarning)
        _held(case, torch.jit.trace(case.make(), case.batch(3)), 3, 9, guarded=guarded)


def jit_script(case: Case, guarded: bool) -> None:
    """``torch.jit.script``, which refuses functions of keyword arguments itself."""
    loss = case.make()
    script: Any = loss if not isinstance(loss, Calls) or loss.inner is not None else case.function
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(script)


def forward_mode(case: Case, guarded: bool) -> None:
    """Forward-mode derivatives: dual numbers, and ``torch.func.jvp``."""
    loss, (x, label) = case.make(), case.batch(3)
    value, gradient = case.defined(x, label)
    tangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(loss(forward_ad.make_dual(x.detach(), tangent), label))
    assert dual.tangent is not None
    for primal, derivative in (dual, jvp(lambda x: loss(x, label), (x.detach(),), (tangent,))):
        _same(primal, value)
        _same(derivative, (gradient * tangent).sum())


def finite_differences(case: Case, guarded: bool) -> None:
    """``torch.autograd.gradcheck``, forward mode and batches of gradients included."""
    loss, (x, label) = case.make(), case.batch(2)
    assert torch.autograd.gradcheck(lambda x: loss(x, label), x, check_forward_ad=True, check_batched_grad=True, fast_mode=True)


def double_backward(case: Case, guarded: bool) -> None:
    """``create_graph=True`` and ``gradgradcheck``."""
    loss, (x, label) = case.make(), case.batch(2)
    (first,) = torch.autograd.grad(loss(x, label), x, create_graph=True)
    assert first.requires_grad or not torch.autograd.functional.hessian(lambda x: loss(x, label), x).any()
    assert torch.autograd.gradgradcheck(lambda x: loss(x, label), x, fast_mode=True)


def second_derivatives(case: Case, guarded: bool) -> None:
    """``torch.func.hessian``, forward over reverse, against two backward passes of the definition."""
    loss, (x, label) = case.make(), case.batch(1)
    expected = torch.autograd.functional.hessian(lambda x: (case.reference or loss)(x, label), x.detach())
    _same(hessian(lambda x: loss(x, label))(x.detach()), expected)


def called_functionally(case: Case, guarded: bool) -> None:
    """``torch.func.functional_call``, with buffers of another dtype where there are any."""
    loss = case.make()
    buffers = {name: buffer.double() for name, buffer in loss.named_buffers() if buffer.is_floating_point()}
    _held(case, lambda x, label: functional_call(loss, buffers, (x, label)), 3, 9, guarded=False)


def checkpointed(case: Case, guarded: bool) -> None:
    """``torch.utils.checkpoint``."""
    loss = case.make()
    _held(case, lambda x, label: checkpoint(loss, x, label, use_reentrant=False), 3, guarded=False)


TOOLS: dict[str, Callable[[Case, bool], None]] = {
    "the call": plain,
    "`torch.compile`": compiled,
    "`torch.export`": exported,
    "`vmap` over labels": vmap_labels,
    "per-sample gradients": per_sample,
    "`FakeTensorMode`": fake,
    "`make_fx`": traced_fx,
    "`aot_function`": aot,
    "`functional_call`": called_functionally,
    "`checkpoint`": checkpointed,
    "forward mode": forward_mode,
    "`gradcheck`": finite_differences,
    "double backward": double_backward,
    "`hessian`": second_derivatives,
    "`jit.trace`": jit_trace,
    "`jit.script`": jit_script,
}


def result(tool: str, loss: str) -> str:
    """What becomes of a loss under a tool: 'yes', or 'refused' where one sentence says that the tool is not supported."""
    try:
        TOOLS[tool](LOSSES[loss], loss not in UNGUARDED)
    except (NotImplementedError, torch.jit.frontend.NotSupportedError) as error:
        sentence = r"\w+Loss is not made for torch\.jit\.script, .*|(?s:Compiled functions can't take .*)"
        if tool != "`jit.script`" or not re.fullmatch(sentence, str(error)):
            raise
        return "refused"
    return "yes"


def table(cells: dict[tuple[str, str], str]) -> str:
    """The table as the page has it: a row for each loss, a column for each tool."""
    lines = ["| | " + " | ".join(TOOLS) + " |", "|---" * (1 + len(TOOLS)) + "|"]
    lines += [f"| {loss} | " + " | ".join(cells[tool, loss] for tool in TOOLS) + " |" for loss in LOSSES]
    return "\n".join(lines)


def cells_of_page() -> dict[tuple[str, str], str]:
    """The cells of the table as it is on the page."""
    text = PAGE.read_text(encoding="utf-8").partition("<!-- losses and tools -->")[2].partition("<!-- end -->")[0]
    head, _, *rows = [[cell.strip() for cell in line.split(" | ")] for line in text.strip().splitlines()]
    tools = [cell.strip("| ") for cell in head[1:]]
    return {(tool, row[0].strip("| ")): cell.strip("| ") for row in rows for tool, cell in zip(tools, row[1:], strict=True)}


def main() -> int:
    """Try everything and write the table; 1 if something failed, which is printed."""
    cells: dict[tuple[str, str], str] = {}
    for tool in TOOLS:
        for loss in LOSSES:
            if sys.argv[2:] and not any(word in f"{tool}, {loss}" for word in sys.argv[2:]):
                cells[tool, loss] = "?"
                continue
            try:
                cells[tool, loss] = result(tool, loss)
            except Exception as error:  # whatever a tool raises
                cells[tool, loss] = "NO"
                print(f"{tool}, {loss}: {type(error).__name__}: {str(error).strip().splitlines()[:1]}", flush=True)
    text = PAGE.read_text(encoding="utf-8")
    if "--dry-run" in sys.argv:
        print(table(cells))
    else:
        marks = r"(?s)(<!-- losses and tools -->\n).*?(<!-- end -->)"
        PAGE.write_text(re.sub(marks, lambda match: f"{match[1]}\n{table(cells)}\n\n{match[2]}", text), encoding="utf-8")
    return int("NO" in cells.values())


if __name__ == "__main__":
    raise SystemExit(main())
