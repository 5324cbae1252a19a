"""What the hook records, against the deltas of the paper written out and autograd's own gradients."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")
from gbseg import ExpGBLoss
from gbseg.engine import GradientStatsHook


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 6)
        self.output = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(torch.relu(self.hidden(x)))


def _run(folder: Path, iterations: int, **options: Any) -> tuple[list[dict], list[dict[str, np.ndarray]]]:
    """Train with the hook; its records, and the error gradients of every iteration by hand."""
    torch.manual_seed(0)
    network = Network()
    runner = SimpleNamespace(
        model=network,
        iter=0,
        log_dir=str(folder),
        train_dataloader=range(4),
        optim_wrapper=SimpleNamespace(),
        visualizer=SimpleNamespace(_vis_backends={}),
    )
    hook = GradientStatsHook(output="output", layers=["hidden"], **options)
    hook.before_train(runner)
    optimizer, loss = torch.optim.SGD(network.parameters(), lr=0.05), ExpGBLoss(0.1, (0, 6))
    expected = []
    for runner.iter in range(iterations):
        x, y = torch.randn(5, 4), torch.randint(0, 3, (5,))
        hook.before_train_iter(runner, runner.iter)
        optimizer.zero_grad()
        value = loss(network(x), y)
        value.backward()
        with torch.no_grad():
            logits = network(x)
            delta = 0.1 * logits.exp() - 6 * nn.functional.one_hot(y, 3)
            hidden = delta @ network.output.weight * (network.hidden(x) > 0)
        expected.append({"delta": delta.numpy(), "hidden": hidden.numpy(), "logits": logits.double().numpy()})
        hook.after_train_iter(runner, runner.iter)
        optimizer.step()
    lines = (folder / "gradients.jsonl").read_text().splitlines()
    assert not network.output._forward_hooks and not network.hidden._forward_hooks
    return [json.loads(line) for line in lines], expected


def test_records(tmp_path: Path) -> None:
    """Deltas of single rows although the loss is a mean; the hidden layer's; the normaliser; only when they are due."""
    records, expected = _run(tmp_path, 8, interval=3, histograms=(0, 4))
    assert [record["iter"] for record in records] == [0, 3, 4, 6]
    assert [record["epoch"] for record in records] == [0, 0.75, 1, 1.5]
    for record in records:
        by_hand = expected[record["iter"]]
        for name, values in (("output", by_hand["delta"]), ("hidden", by_hand["hidden"])):
            assert record[f"rms/{name}"] == pytest.approx(math.sqrt((values.astype(np.float64) ** 2).mean()), rel=1e-5)
        normaliser = np.sort(np.log(np.exp(by_hand["logits"]).sum(1)))
        assert record["normaliser"] == pytest.approx(
            {"median": normaliser[2], "min": normaliser[0], "max": normaliser[-1]}, rel=1e-5
        )
        assert ("histogram" in record) == (record["iter"] in (0, 4))
    histogram = records[0]["histogram"]
    counts, edges = np.histogram(expected[0]["delta"], 200)
    assert histogram["counts"] == counts.tolist()
    assert (histogram["low"], histogram["high"]) == pytest.approx((edges[0], edges[-1]))


def test_unknown_modules(tmp_path: Path) -> None:
    """They are named, with those that there are."""
    runner = SimpleNamespace(model=Network(), log_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"the model has no head\.fc; it has hidden, output"):
        GradientStatsHook(layers=["hidden"]).before_train(runner)
    with pytest.raises(ValueError, match=r"interval .* must be >= 1, got 0"):
        GradientStatsHook(interval=0)
