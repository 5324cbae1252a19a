"""Configs of version 0.1.0 (``configs/``) and the snippets of its README and docs (``snippets.md``) go on working.

Those configs import the lists of modules that 0.1.0 asked for, most of which have moved since.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg")
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, Registry
from mmengine.registry import root as roots

from gbseg._moved import MODULES
from gbseg.cli import COMMANDS, build_parser, main
from gbseg.data.scenes import write_scenes
from gbseg.mm.config import load_config

ROOT = Path(__file__).parents[2]
CONFIGS = Path(__file__).parent / "configs"
FILES = sorted(
    path for path in CONFIGS.rglob("*.py") if not any(part.startswith("_") for part in path.relative_to(CONFIGS).parts)
)
REGISTRIES = [value for value in vars(roots).values() if isinstance(value, Registry)]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (Path(__file__).parent / "snippets.md").read_text(), re.S | re.M)
PYTHON = [block for language, block in BLOCKS if language == "python"]
COMMAND_LINES = [
    line
    for language, block in BLOCKS
    if language == "bash"
    for line in block.replace("\\\n", " ").splitlines()
    if re.search(r"tools/\w+\.py", line)
]


def types_in(value: Any) -> Iterator[str]:
    """All ``type='...'`` of a config; transforms of albumentations, which are in no registry, are left out."""
    if isinstance(value, dict):
        if isinstance(value.get("type"), str):
            yield value["type"]
        for key, item in value.items():
            if not (key == "transforms" and value.get("type") == "SeededAlbu"):
                yield from types_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from types_in(item)


def check_types(config: Config) -> None:
    """Every type name is registered in the config's scope."""
    with DefaultScope.overwrite_default_scope(config.get("default_scope", "mmseg")):
        for name in set(types_in(config.to_dict())):
            assert any(is_registered(registry, name) for registry in REGISTRIES), name


def is_registered(registry: Registry, name: str) -> bool:
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(name) is not None


def build_model(config: Config) -> None:
    """Build the model; its weights are not loaded."""
    with DefaultScope.overwrite_default_scope(config.get("default_scope", "mmseg")):
        assert isinstance(MODELS.build(config.model), torch.nn.Module)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config(path: Path) -> None:
    # as the first user of the old modules
    for module in MODULES:
        sys.modules.pop(module, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = load_config(path)
    if "custom_imports" in config:
        messages = [str(warning.message) for warning in caught if warning.category is FutureWarning]
        assert "gbseg.engine is gbseg.mm now; the old name goes with gbseg 1.0." in messages
    if "model" in config:
        check_types(config)
        build_model(config)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the snippets expect it: the old configs, small data, and a checkpoint of two iterations."""
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(CONFIGS, folder / "configs")
    write_scenes(folder / "data/scenes", train=4, val=2, size=(32, 48), seed=0)
    shutil.copytree(folder / "data/scenes", folder / "data/mine")
    options = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.batch_size=2"]
    options += ["default_hooks.checkpoint.interval=2", "prepare.train=4", "prepare.val=2", "prepare.size=(32,48)"]
    options += ["model.decode_head.sampler.num=50", "compare.images=1"]
    command = [
        sys.executable,
        ROOT / "tools/train.py",
        "configs/demo_expgb.py",
        "--work-dir",
        "work_dirs/demo",
        "--cfg-options",
    ]
    run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=550, check=False, cwd=folder)
    assert run.returncode == 0, run.stderr
    assert "gbseg.engine is gbseg.mm now" in run.stderr
    # the snippets' names for a config and its weights
    run_folder = folder / "work_dirs/demo/expgb"
    shutil.copy(run_folder / "demo_expgb.py", folder / "configs/subset/expgb.py")
    (folder / "work_dirs/expgb").mkdir()
    shutil.copy(run_folder / "iter_2.pth", folder / "work_dirs/expgb/iter_1500.pth")
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(picture).save(folder / "photo.jpg")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "colour.png")
    line = {"iter": 0, "epoch": 0.0, "rms/backbone.layers.0": 1.0, "normaliser": dict(median=1.0, mean=2.0, min=0.5, max=3.0)}
    line["histogram"] = {"low": -6.0, "high": 10.0, "counts": [3, 0, 1, 4]}
    log = folder / "work_dirs/cifar5_expgb/20260101_000000/gradients.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({"start": 0}) + "\n" + json.dumps(line) + "\n")
    return folder


@pytest.mark.slow
def test_short_training(workspace: Path) -> None:
    """Two iterations of each run of the demo, from the old config and its old imports."""
    for name in ("softmax", "expgb"):
        checkpoint = torch.load(workspace / f"work_dirs/demo/{name}/iter_2.pth", weights_only=False)
        assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values() if value.is_floating_point())
    assert (workspace / "work_dirs/demo/comparison.md").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_block(number: int, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = PYTHON[number]
    monkeypatch.chdir(workspace)
    if re.search(r"^(import|from) ", block, re.M):
        file = workspace / f"block_{number}.py"
        file.write_text(block)
        try:
            runpy.run_path(str(file), run_name="__main__")
        except SystemExit as exited:
            assert "found.report()" in block and exited.code in (0, 1)
        return
    # a config, or what is added to one
    if "_base_ =" not in block:
        base = "gbseg::pixelnet_expgb.py"
        if "decode_head" in block and "_delete_" in block:
            base = "mmseg::fcn/fcn_r50-d8_4xb4-40k_voc12aug-512x512.py" if "loss_decode=dict(_delete_" in block else ""
            base = base or "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py"
        elif "GBClsHead" in block:
            base = "../tests_base.py"
        elif "GradientStatsHook" in block:
            base = "classification/cifar5_expgb.py"
        if "tests_base" in base:
            (workspace / "tests_base.py").write_text(
                "default_scope = 'mmpretrain'\nmodel = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18),"
                " neck=dict(type='GlobalAveragePooling'))\n"
            )
        block = f"_base_ = [{base!r}]\n{block}"
    file = workspace / "configs" / f"block_{number}.py"
    file.write_text(block)
    config = load_config(file)
    check_types(config)
    build_model(config)


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMAND_LINES)
def test_command_line(line: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command line is understood; paths of weights and configs that it names exist."""
    monkeypatch.chdir(workspace)
    line = re.sub(r"^.*?tools/(\w+)\.py", r"\1", line.split("#")[0])
    words = subprocess.check_output(["bash", "-c", f"set -f; printf '%s\\n' {line}"], text=True).splitlines()
    # a placeholder: MMEngine reads no config without a suffix
    words = ["CONFIG.py" if word == "CONFIG" else word for word in words]
    for word in words:
        if (word in ("CONFIG.py", "CHECKPOINT") or word.startswith("work_dirs/")) and not Path(word).exists():
            Path(word).parent.mkdir(parents=True, exist_ok=True)
            Path(word).write_text("model = dict()\n")
    command = words[0].replace("_", "-")
    assert command in COMMANDS, shlex.join(words)
    arguments = build_parser([command]).parse_args([command, *words[1:]])
    assert callable(arguments.run)
    if command in ("train", "test", "predict") and "configs/subset/expgb.py" in words:
        assert arguments.config == "configs/subset/expgb.py"


@pytest.mark.slow
def test_predict_from_an_old_config(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    argv = [
        "predict",
        "configs/subset/expgb.py",
        "work_dirs/expgb/iter_1500.pth",
        "photo.jpg",
        "--out",
        "predictions",
        "--overlay",
    ]
    assert main(argv) == 0
    assert Image.open("predictions/photo.png").size == (56, 40)
