"""The losses under PyTorch's tools: each cell of the table of docs/pytorch.md is tried."""

from __future__ import annotations

import itertools

import pytest
import torch
from loss_tools import LOSSES, TOOLS, cells_of_page, result
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gbseg import ExpGBLoss
from gbseg.losses.labels import LabelRecord


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("tool", "loss"), list(itertools.product(TOOLS, LOSSES)), ids=str)
def test_cell(tool: str, loss: str) -> None:
    """The loss has the value and gradient of its definition under the tool, or is refused; as the page says."""
    assert result(tool, loss) == cells_of_page()[tool, loss]


def test_the_page_has_every_cell_and_no_other() -> None:
    cells = cells_of_page()
    assert set(cells) == set(itertools.product(TOOLS, LOSSES))
    assert all(cell == ("refused" if tool == "`jit.script`" else "yes") for (tool, _), cell in cells.items())


# --- what compiled code for a CPU gets wrong -----------------------------------------------------------------------------


def test_no_reduction_to_an_index_over_bytes() -> None:
    """Inductor's vectorised code for a CPU reads lanes that nothing wrote, in an argmax over 8 bits that are all zero."""
    seen: list[tuple[str, torch.dtype]] = []

    def step(record: Tensor, x: Tensor, label: Tensor) -> Tensor:
        bad = (label < 0) | (label > 3)
        LabelRecord.update(record, label, bad, 4, 255)
        return ExpGBLoss()(x, label)

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        for node in make_fx(graph)(*inputs).graph.nodes:
            values = [argument.meta.get("val") for argument in node.all_input_nodes]
            seen.extend((str(node.target), value.dtype) for value in values if isinstance(value, Tensor))
        return graph

    torch.compiler.reset()
    batch = torch.randn(3, 4, 5, 2), torch.randint(0, 4, (3, 5, 2))
    torch.compile(step, fullgraph=True, backend=backend)(LabelRecord.empty(), *batch)
    bytes_ = [(name, dtype) for name, dtype in seen if dtype in (torch.bool, torch.uint8, torch.int8)]
    assert bytes_, "nothing was seen of the labels"
    indices = ("aten.argm", "aten.max.dim", "aten.min.dim", "aten.sort", "aten.argsort", "aten.topk", "aten.kthvalue")
    assert not [entry for entry in bytes_ if entry[0].startswith(indices)]


@pytest.mark.skipif("not config.getoption('--compilations')", reason="only with --compilations N (300 take half an hour)")
def test_fresh_compilations(request: pytest.FixtureRequest) -> None:
    """Good labels never abort: ``--compilations 300``, each compiled anew by Inductor."""
    rng = torch.Generator().manual_seed(0)
    for count in range(request.config.getoption("--compilations")):
        torch.compiler.reset()
        x = torch.randn(2, 21, 9 + count % 60, 33, generator=rng, requires_grad=True)
        label = torch.randint(0, 21, (2, *x.shape[2:]), generator=rng)
        with torch._inductor.utils.fresh_cache():
            value = torch.compile(ExpGBLoss(), fullgraph=True)(x, label)
        assert value.isfinite(), f"compilation {count}"
        torch.testing.assert_close(value, ExpGBLoss()(x, label))
