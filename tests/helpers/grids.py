"""A claim file that is small enough for the generated MNIST, and results written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from conftest import on
from mmengine.config import Config

from reproduction.runs import Run, RunResult

PROVENANCE = {
    "git": {"commit": "0123456789", "dirty": False},
    "hardware": {"cpu": "a CPU", "gpu": None, "cores": 1},
    "versions": {"torch": "2", "python": "3"},
}


def tiny(folder: Path, mnist: Path, name: str = "tiny", **changes: object) -> None:
    """Write ``tiny.py`` with some of its keys changed."""
    config = Config(
        dict(
            title="A tiny claim",
            claim="linear outputs beat the softmax.",
            verdict="gain",
            figure="curves",
            options=on(mnist),
            arms=dict(
                softmax=dict(config="classification/mnist_softmax.py", rates=[0.05, 0.2]),
                linear=dict(config="classification/mnist_linear.py", rates=[0.05, 0.1]),
            ),
            metric="accuracy/top1",
            sweep=dict(epochs=2, held_out=100, choose="last"),
            final=dict(epochs=3, trials=3),
            budgets=dict(small=dict(sweep=dict(epochs=1), final=dict(trials=2))),
        )
    )
    config.merge_from_dict(changes)
    (folder / f"{name}.py").write_text(config.pretty_text)


def put(
    run: Run, errors: Sequence[float], diverged: int | None = None, gradients: Sequence[dict] = (), seconds: float = 36.0
) -> None:
    """Write a run's result: its errors in per cent after each validation."""
    steps = [run.epoch * run.every * (number + 1) for number in range(len(errors))]
    accuracy = [100 - error for error in errors]
    losses = [1.0] * len(errors)
    result = RunResult(steps, {"accuracy/top1": accuracy}, losses, diverged, seconds, PROVENANCE)
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "result.json").write_text(json.dumps(asdict(result)))
    if gradients:
        # where the hook of a run that was started once writes
        (run.folder / "20260101_000000").mkdir(exist_ok=True)
        (run.folder / "20260101_000000/gradients.jsonl").write_text("".join(json.dumps(line) + "\n" for line in gradients))
