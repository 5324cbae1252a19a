"""Weighted sums of rows and their transpose against a dense matrix; the kernel runs in Triton's interpreter without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("mmseg")
from gbseg.pixelnet import hypercolumn as module
from gbseg.pixelnet.hypercolumn import Level, gather_linear, row_sums, scatter_add_rows

SHAPES = [(1, 1, 1, 1), (7, 5, 13, 4), (3, 1100, 9, 8), (50, 3, 2, 4), (4, 6, 0, 4)]


@pytest.fixture(params=["torch", "triton"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations, on the GPU if there is one."""
    if request.param == "triton":
        pytest.importorskip("triton")
    triton = module._triton_kernel() if request.param == "triton" else None
    monkeypatch.setattr(module, "_kernel_for", lambda table: None if table.dtype == torch.float64 else triton)
    return request.param


def _matrix(index: Tensor, weights: Tensor, rows: int) -> Tensor:
    """(Q, R) in float64: the sums as a product."""
    matrix = torch.zeros(len(index), rows, dtype=torch.float64, device=index.device)
    return matrix.index_put_(
        (torch.arange(len(index), device=index.device).unsqueeze(1), index), weights.double(), accumulate=True
    )


def _case(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows, width, bags, each = shape
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rng = torch.Generator().manual_seed(0)
    table = torch.randn(rows, width, generator=rng, dtype=torch.float64).to(device, dtype)
    index = torch.randint(rows, (bags, each), generator=rng).to(device)
    return table, index, torch.rand(bags, each, generator=rng).to(device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums(shape: tuple[int, ...], dtype: torch.dtype, kernel: str) -> None:
    """Rows in half precision are summed in float32."""
    table, index, weights = _case(shape, dtype)
    actual = row_sums(table, index, weights)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = _matrix(index, weights, len(table)) @ table.double()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_transpose(shape: tuple[int, ...], dtype: torch.dtype, kernel: str) -> None:
    """Rows that are in many bags, in one more than once, and in none."""
    table, index, weights = _case(shape, torch.float32)
    rng = torch.Generator().manual_seed(1)
    values = torch.randn(len(index), table.shape[1], generator=rng, dtype=torch.float64).to(table.device, dtype)
    actual = scatter_add_rows(values, index, weights, len(table))
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = _matrix(index, weights, len(table)).T @ values.double()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


def test_gradients_are_the_same_bits_every_time() -> None:
    """With and without `torch.use_deterministic_algorithms`, which refuses what is not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rng = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 6, side, side, generator=rng).to(device).requires_grad_() for side in (24, 3)]
    weight = torch.randn(16, 12, generator=rng).to(device).requires_grad_()
    points = torch.randint(24, (2, 300, 2), generator=rng).to(device)
    grad_output = torch.randn(2, 300, 16, generator=rng).to(device)

    def gradients() -> tuple[Tensor, ...]:
        levels = [Level(feature, (step, step)) for feature, step in zip(features, (1, 8), strict=True)]
        return torch.autograd.grad(gather_linear(levels, points, weight), [*features, weight], grad_output)

    first = gradients()
    torch.use_deterministic_algorithms(True)
    try:
        second = gradients()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(bool(gradient.any()) for gradient in first)
