"""Every Python block of the pages is executed, or, where it is a config, read and built."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from doc_pages import Block, code_blocks
from PIL import Image

pytest.importorskip("mmseg")
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, DefaultScope
from tiny_segmentors import ROOT, write_segmentor

import gbseg.mm  # noqa: F401  (registers what the configs name)
from gbseg.data.scenes import write_scenes
from gbseg.mm.config import load_config
from gbseg.palettes import VOC_PALETTE

BLOCKS = list(code_blocks("python"))


def is_config(block: Block) -> bool:
    """A config assigns and does nothing else."""
    return all(isinstance(node, ast.Assign) for node in ast.parse(block.text).body)


def base_for(text: str) -> str:
    """What a fragment is added to, where it does not say."""
    if "GBClsHead" in text:
        return "mmpretrain::resnet/resnet18_8xb16_cifar10.py"
    return "mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py"


@pytest.mark.parametrize("block", [b for b in BLOCKS if is_config(b)], ids=lambda b: b.where)
def test_configs_are_built(block: Block, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    names = {node.targets[0].id for node in ast.parse(block.text).body}
    text = block.text if "_base_" in names else f"_base_ = ['{base_for(block.text)}']\n{block.text}"
    if "mmpretrain::" in text and "backbone" not in text:
        # the width of the block's head
        text += "\nmodel['backbone'] = dict(init_cfg=None)\n"
    # configs of gbseg are named as a file beside them would name them
    for config in (ROOT / "configs").glob("*.py"):
        text = text.replace(f'["{config.name}"]', f'["{config}"]')
    file = tmp_path / "block.py"
    file.write_text(text, encoding="utf-8")
    config = load_config(file)
    with DefaultScope.overwrite_default_scope(config.get("default_scope", "mmengine")):
        if "model" in names:
            model = config.model.to_dict()
            model["pretrained"] = None
            model.get("backbone", {})["init_cfg"] = None
            built = MODELS.build({key: value for key, value in model.items() if value is not None})
            losses = [m for m in built.modules() if hasattr(m, "targets")]
            assert losses, "a block that sets the model sets a boosted loss"
        for hook in config.get("custom_hooks", []) if "custom_hooks" in names else []:
            HOOKS.build(hook)
        if "val_evaluator" in names:
            METRICS.build(config.val_evaluator)
        if "tta_model" in names:
            assert MODELS.get(config.tta_model.type) is not None
        if "train_dataloader" in names:
            datasets = config.train_dataloader.dataset.get("datasets", [config.train_dataloader.dataset])
            for dataset in datasets:
                assert DATASETS.get(dataset.type) is not None
                assert (dataset.dataset if "dataset" in dataset else dataset).pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages have made before: data, a photograph, a trained network, a run's records."""
    folder = tmp_path_factory.mktemp("reader")
    write_scenes(folder / "data/scenes", train=4, val=2, size=(48, 64))
    write_scenes(folder / "data/mine", train=4, val=2, size=(48, 64))
    for file in (folder / "data/mine/SegmentationClass").iterdir():
        labels = np.asarray(Image.open(file))
        mask = Image.fromarray(np.where(labels == 255, 255, labels % 3).astype(np.uint8), mode="P")
        mask.putpalette(np.array(VOC_PALETTE, np.uint8).tobytes())
        mask.save(file)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "photo.jpg")
    Image.fromarray(np.array([[[0, 0, 0], [255, 0, 0], [9, 9, 9]]], np.uint8)).save(folder / "colour.png")
    config, checkpoint = write_segmentor(folder / "made")
    for source, target in ((config, "configs/subset/expgb.py"), (checkpoint, "work_dirs/expgb/iter_1500.pth")):
        (folder / target).parent.mkdir(parents=True)
        source.rename(folder / target)
    normaliser = {"median": 1.0, "mean": 2.0, "min": 0.5, "max": 3.0}
    record = {"iter": 0, "epoch": 0.0, "rms/backbone.layers.0": 1.0, "normaliser": normaliser}
    record["histogram"] = {"low": -6.0, "high": 10.0, "counts": [3, 0, 1, 4]}
    lines = folder / "work_dirs/cifar5_expgb/20260101_000000/gradients.jsonl"
    lines.parent.mkdir(parents=True)
    lines.write_text("\n".join(json.dumps(line) for line in ({"start": 0}, record)) + "\n")
    return folder


def _is_of_processes(block: Block) -> bool:
    return "init_process_group" in block.text


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in BLOCKS if _is_of_processes(b)], ids=lambda b: b.where)
def test_scripts_of_two_processes_run(block: Block) -> None:
    """As torchrun would start them."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", block.text], cwd=ROOT, env={**os.environ, **place, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(200) for process in processes] == [0, 0]


@pytest.mark.parametrize("block", [b for b in BLOCKS if not is_config(b) and not _is_of_processes(b)], ids=lambda b: b.where)
def test_scripts_run(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        exec(compile(block.text, block.where, "exec"), names)
    except SystemExit as end:
        assert end.code in (0, None)
    if "accuracy" in names:
        assert float(names["accuracy"]) > 0.9


def test_the_costs_of_scale() -> None:
    """The table of computed costs is what the block above it prints."""
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    (block,) = code_blocks("python", [ROOT / "docs/scale.md"])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block.text, {})
    assert len(printed.getvalue().splitlines()) == 9 and f"|---|\n{printed.getvalue()}\n" in page
