"""PixelNet's head: its first layer, its training step and its dense prediction against concatenated hypercolumns.

The reference is what `gbseg.pixelnet.hypercolumn` keeps for the tests: ``F.grid_sample`` of every map, concatenated, then
multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inputs import IGNORE
from benchmarks.table import Row, Settings, by_contender
from benchmarks.timing import measure
from gbseg.mm.models import PixelNetHead, VGG16Trunk
from gbseg.pixelnet.hypercolumn import Level, gather_linear, hypercolumn_linear_reference

REFERENCE, OURS, PRODUCT = "grid_sample, concatenated", "gbseg", "a large product"
TAPS = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "fc7")
STRIDES = (1, 2, 4, 8, 16, 32)
# an image of VOC's, over a minute for the reference on a CPU
LARGE = (375, 500)


@dataclass(frozen=True)
class Widths:
    """Of a PixelNet: channels of its six maps, units of its two hidden layers, points an image."""

    channels: tuple[int, ...] = (64, 128, 256, 512, 512, 4096)
    hidden: int = 4096
    points: int = 2000

    def __str__(self) -> str:
        """'5568-4096-4096-21'."""
        return f"{sum(self.channels)}-{self.hidden}-{self.hidden}-21"


QUICK = Widths((4, 8, 8, 16, 16, 32), 32, 100)


class ReferenceHead(PixelNetHead):
    """The same network, computed plainly."""

    def classify(self, levels: Sequence[Level], points: Tensor) -> Tensor:
        """Logits (N, P, C) at points (N, P, 2)."""
        first, *others = self.linears
        x = hypercolumn_linear_reference(levels, points, first.weight, first.bias)
        for linear in others:
            x = linear(self.dropout(torch.relu(x)))
        return x

    def forward(self, inputs: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Dense logits (N, C, H, W), all pixels at once."""
        rows, columns = (torch.arange(side, device=inputs[0].device) for side in size)
        points = torch.cartesian_prod(rows, columns).expand(len(inputs[0]), -1, 2)
        return self.classify(self.levels(inputs, size), points).transpose(1, 2).unflatten(2, size)


def maps(widths: Widths, images: int, size: tuple[int, int], device: str) -> list[Tensor]:
    """Feature maps as a trunk in channels_last gives them; they require gradients."""
    features = []
    for channels, stride in zip(widths.channels, STRIDES, strict=True):
        feature = torch.randn(images, channels, *(-(-side // stride) for side in size), device=device).relu_()
        features.append(feature.contiguous(memory_format=torch.channels_last).requires_grad_())
    return features


def draws(images: int, points: int, size: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    """Points (N, P, 2) and their labels (N, P)."""
    pixels = torch.stack([torch.randint(side, (images, points)) for side in size], -1)
    return pixels.to(device), torch.randint(21, (images, points)).to(device)


def heads(widths: Widths, device: str) -> dict[str, PixelNetHead]:
    """The reference and ours with the same weights."""
    built = {}
    for name, kind, impl in ((REFERENCE, ReferenceHead, "reference"), (OURS, PixelNetHead, "auto")):
        torch.manual_seed(0)
        hidden, loss = (widths.hidden, widths.hidden), dict(type="ExpGBLoss", impl=impl)
        head = kind(widths.channels, 21, strides=STRIDES, hidden=hidden, init_std=None, loss_decode=loss)
        head.init_weights()
        built[name] = head.to(device)
    return built


def same(results: dict[str, Tensor]) -> None:
    """Refuse to time what does not compute the same.

    In norm, not number by number: a unit whose sum is a rounding from 0 is on in one and off in the other.

    Raises:
        AssertionError: the two differ by more than the order of sums explains.
    """
    difference = float((results[OURS] - results[REFERENCE]).norm() / results[REFERENCE].norm())
    if not difference < 1e-3:
        raise AssertionError(f"{OURS} differs from {REFERENCE} by {difference:.2e} of the norm")


def _gather(what: str, images: int, points: int, widths: Widths, side: int, settings: Settings, rounds: int) -> list[Row]:
    torch.manual_seed(0)
    features = maps(widths, images, (side, side), settings.device)
    pixels, _ = draws(images, points, (side, side), settings.device)
    weight = torch.randn(widths.hidden, sum(widths.channels), device=settings.device).mul_(0.01).requires_grad_()
    bias = torch.zeros(widths.hidden, device=settings.device, requires_grad=True)
    levels = [Level(feature, (stride, stride)) for feature, stride in zip(features, STRIDES, strict=True)]
    grad_output = torch.randn(images, points, widths.hidden, device=settings.device)

    def step(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(levels, pixels, weight, bias), [weight, bias, *features], grad_output)

    ways = {REFERENCE: lambda: step(hypercolumn_linear_reference), OURS: lambda: step(gather_linear)}
    same({name: way()[0] for name, way in ways.items()})
    shape = f"{images}x{points} points of {side}x{side}, {sum(widths.channels)} to {widths.hidden}"
    times = measure(ways, rounds, settings.device)
    return by_contender(what, shape, times, REFERENCE, size=points if what == "points" else None)


def run_gather(settings: Settings) -> list[Row]:
    """Gathering and the first layer, forward and backward, at PixelNet's points and, with one image, at fewer and more."""
    if settings.quick:
        return _gather("gather", 2, 100, QUICK, 64, settings, settings.rounds)
    rows = _gather("gather", 5, 2000, Widths(), 224, settings, settings.rounds)
    for points in (250, 500, 1000, 2000, 4000, 8000):
        rows += _gather("points", 1, points, Widths(), 224, settings, min(settings.rounds, 5))
    return rows


def run_head(settings: Settings) -> list[Row]:
    """The head's training step: from feature maps to all gradients, with dropout and exp-GB."""
    widths = QUICK if settings.quick else Widths()
    side, images = (64, 2) if settings.quick else (224, 5)
    torch.manual_seed(0)
    features = maps(widths, images, (side, side), settings.device)
    pixels, label = draws(images, widths.points, (side, side), settings.device)
    built = heads(widths, settings.device)

    def step(head: PixelNetHead) -> tuple[Tensor, ...]:
        logits = head.classify(head.levels(features, (side, side)), pixels).transpose(1, 2)
        loss = head.loss_decode[0](logits, label, ignore_index=IGNORE)
        return torch.autograd.grad(loss, [*head.parameters(), *features])

    # without dropout, in which they draw differently
    same({name: step(head.eval())[0] for name, head in built.items()})
    ways = {name: partial(step, head.train()) for name, head in built.items()}
    shape = f"{images}x{widths.points} points of {side}x{side}, {widths}"
    return by_contender("head", shape, measure(ways, settings.rounds, settings.device), REFERENCE)


def _dense(size: tuple[int, int], widths: Widths, rounds: int, settings: Settings) -> list[Row]:
    torch.manual_seed(0)
    features = maps(widths, 1, size, settings.device)
    ways = {name: partial(head.eval(), features, size) for name, head in heads(widths, settings.device).items()}
    if size != LARGE:
        same({name: way() for name, way in ways.items()})
    return by_contender("dense", f"{size[0]}x{size[1]}, {widths}", measure(ways, rounds, settings.device), REFERENCE)


@torch.no_grad()
def run_dense(settings: Settings) -> list[Row]:
    """Every pixel of an image; three rounds where one takes over a minute."""
    if settings.quick:
        return _dense((40, 52), QUICK, settings.rounds, settings)
    rounds = settings.rounds if settings.device == "cuda" else 3
    return [
        *_dense((224, 224), Widths(), min(settings.rounds, 10), settings),
        *_dense(LARGE, Widths(), min(settings.rounds, rounds), settings),
    ]


def _train_step(images: int, widths: Widths, side: int, settings: Settings) -> list[Row]:
    torch.manual_seed(0)
    trunk = VGG16Trunk(TAPS).to(settings.device, memory_format=torch.channels_last).train()
    image = torch.randn(images, 3, side, side, device=settings.device).contiguous(memory_format=torch.channels_last)
    pixels, label = draws(images, widths.points, (side, side), settings.device)
    built = {name: head.train() for name, head in heads(widths, settings.device).items()}
    optimizers = {name: torch.optim.SGD([*trunk.parameters(), *head.parameters()], 1e-6, 0.9) for name, head in built.items()}

    def step(name: str) -> None:
        head = built[name]
        with torch.autocast(settings.device, torch.bfloat16):
            logits = head.classify(head.levels(trunk(image), (side, side)), pixels).transpose(1, 2)
            loss = head.loss_decode[0](logits, label, ignore_index=IGNORE)
        loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    wide = 8192 if settings.device == "cuda" else 1024
    a, b, out = torch.randn(3, wide, wide, device=settings.device).bfloat16()
    ways = {name: partial(step, name) for name in built} | {PRODUCT: lambda: torch.mm(a, b, out=out)}
    flops = {PRODUCT: 2 * wide**3}
    for name in built:
        with FlopCounterMode(display=False) as counter:
            step(name)
        flops[name] = counter.get_total_flops()
    times = measure(ways, settings.rounds, settings.device)
    most = flops[PRODUCT] / times[PRODUCT].median
    rows = by_contender("train_step", f"{images}x3x{side}x{side} bfloat16, {widths}", times, REFERENCE)
    return [
        row if row.note else replace(row, roofline_percent=100 * flops[row.contender] / times[row.contender].median / most)
        for row in rows
    ]


def run_train_step(settings: Settings) -> list[Row]:
    """The whole network's step in bfloat16 and channels_last: trunk, head, loss, gradients and SGD.

    The roofline is the step's own arithmetic at the speed that a large product reaches in the same rounds.
    """
    if settings.quick:
        return _train_step(1, Widths(hidden=64, points=100), 64, settings)
    return [row for images in (5, 40) for row in _train_step(images, Widths(), 224, settings)]
