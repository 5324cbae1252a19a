"""Configs: where they are looked up, what inherits from what, and the paper's numbers in those that we ship."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg")
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from gbseg.config_files import ConfigError
from gbseg.mm.config import config_folder, load_config, run_configs

HERE = Path(__file__).parents[2] / "configs"
MMSEG = config_folder("mmseg")


def _write(folder: Path, text: str) -> Path:
    path = folder / "experiment.py"
    path.write_text(text)
    return path


def _plain(value: Any) -> Any:
    """A config without the scopes that inheritance writes into it."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if key != "_scope_"}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def test_a_shipped_config_by_name_and_by_path() -> None:
    """`gbseg::demo_expgb.py` is the file in configs/, with all that it inherits."""
    by_name, by_path = load_config("gbseg::demo_expgb.py"), load_config(HERE / "demo_expgb.py")
    assert by_name.to_dict() == by_path.to_dict() == load_config(str(HERE / "demo_expgb.py")).to_dict()
    assert by_name.model.type == "PixelNet"
    assert by_name.default_scope == "mmseg"
    assert config_folder("gbseg") == HERE


def test_inheritance_from_gbseg(tmp_path: Path) -> None:
    """A config in another folder inherits from a shipped one, and from those that this inherits from by relative paths."""
    base = load_config(_write(tmp_path, "_base_ = ['gbseg::_base_/runtime.py']\nrandomness = dict(seed=7)\n"))
    expected = runpy.run_path(str(HERE / "_base_" / "runtime.py"))
    assert base.randomness == {"seed": 7}
    assert _plain(base.default_hooks.to_dict()) == _plain(expected["default_hooks"])
    whole = load_config(_write(tmp_path, "_base_ = 'gbseg::demo_expgb.py'\nmodel = dict(backbone=dict(width=0.125))\n"))
    demo = load_config("gbseg::demo_expgb.py").to_dict()
    demo["model"]["backbone"]["width"] = 0.125
    assert _plain(whole.to_dict()) == _plain(demo)


def test_inheritance_from_mmseg(tmp_path: Path) -> None:
    """MMSegmentation's configs, under the name that its users write, also those with bases of their own."""
    base = load_config(_write(tmp_path, "_base_ = ['mmseg::_base_/models/fcn_r50-d8.py']\nmodel = dict(pretrained=None)\n"))
    expected = runpy.run_path(str(MMSEG / "_base_" / "models" / "fcn_r50-d8.py"))["model"]
    assert _plain(base.model.to_dict()) == _plain({**expected, "pretrained": None})
    name = "fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py"
    nested = load_config(_write(tmp_path, f"_base_ = ['mmseg::{name}', 'gbseg::_base_/runtime.py'][:1]\n"))
    assert _plain(nested.to_dict()) == _plain(Config.fromfile(MMSEG / name).to_dict())
    assert load_config(f"mmseg::{name}").model.decode_head.type == "FCNHead"


def test_mmengine_is_as_before_afterwards(tmp_path: Path) -> None:
    """Outside of `load_config`, also after an error in it, mmengine resolves prefixes in its own way."""
    original = Config._get_cfg_path
    load_config("gbseg::demo_expgb.py")
    with pytest.raises(ConfigError, match="NameError"):
        load_config(_write(tmp_path, "model = undefined\n"))
    assert Config._get_cfg_path is original


def test_options_override(tmp_path: Path) -> None:
    """Keys with dots, of any depth, of lists too, new ones as well; the file is not touched."""
    path = _write(tmp_path, "a = dict(b=dict(c=1, d=2))\ne = [dict(f=1), dict(f=2)]\n")
    config = load_config(path, {"a.b.c": 3, "e.1.f": 5, "a.g.h": "new", "model.type": "New"})
    changed = {key: config.to_dict()[key] for key in ("a", "e", "model")}
    assert changed["a"] == {"b": {"c": 3, "d": 2}, "g": {"h": "new"}}
    assert (changed["e"], changed["model"]) == ([{"f": 1}, {"f": 5}], {"type": "New"})
    assert load_config(path).a.b.c == 1
    assert load_config(path, {}).to_dict() == load_config(path).to_dict()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gbseg::nothing.py", r"there is no config /.*configs/nothing\.py\. gbseg brings \d+, in /.*/configs\."),
        ("mmseg::nothing.py", r"there is no config /.*configs/nothing\.py\. mmseg brings \d+, in /.*/configs\."),
        ("nothing.py", r"there is no config nothing\.py\. gbseg brings \d+, in /"),
        ("demo_exgb.py", r"there is no config demo_exgb\.py\. Perhaps gbseg::demo_expgb\.py"),
        ("gbseg::resnet50_imagenet_expgb.py", r"Perhaps gbseg::classification/resnet50_imagenet_expgb\.py"),
    ],
)
def test_a_config_that_does_not_exist(name: str, message: str) -> None:
    """The message names the path and those with a similar name: experiments, and no bases."""
    with pytest.raises(FileNotFoundError, match=message) as caught:
        load_config(name)
    assert "_base_" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "message"), [("gbseg::", "there is no config gbseg::"), ("configs", "is a folder"), ("README.md", "is no config")]
)
def test_a_path_that_is_no_config(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE.parent)
    with pytest.raises((ConfigError, FileNotFoundError), match=message):
        load_config(name)


def test_a_package_that_is_not_installed() -> None:
    """Not a path error: the package is named."""
    with pytest.raises(ModuleNotFoundError, match="no_such_package is not installed"):
        load_config("no_such_package::demo.py")


def test_runs_of_the_demo(tmp_path: Path) -> None:
    """Each run is the config with its own changes, in its own folder, and knows nothing of the others."""
    config = load_config("gbseg::demo_expgb.py")
    before = config.to_dict()
    runs = run_configs(config, tmp_path)
    assert {"softmax", "expgb"} <= set(runs)
    for name, (one, folder) in runs.items():
        assert folder == tmp_path / name
        assert not {"runs", "prepare", "compare"} & set(one)
        one.train_cfg["max_iters"] = 1
    # a second call, as the comparison after the training makes it, must find what the first found
    assert config.to_dict() == before
    softmax, expgb = runs["softmax"][0], runs["expgb"][0]
    assert softmax.model.decode_head.loss_decode == {"type": "CrossEntropyLoss", "avg_non_ignore": True}
    assert expgb.model.decode_head.loss_decode.type == "ExpGBLoss"
    # what a run does not change is shared
    for key in ("backbone", "test_cfg"):
        assert softmax.model[key] == expgb.model[key] == config.model[key]
    assert softmax.train_dataloader == expgb.train_dataloader


@pytest.mark.parametrize("text", ["a = 1\n", "a = 1\nruns = dict()\n"])
def test_a_config_without_runs_is_one_run(text: str, tmp_path: Path) -> None:
    """Itself, in the folder itself."""
    config = load_config(_write(tmp_path, text))
    assert run_configs(config, tmp_path) == {"": (config, tmp_path)}


def test_runs_merge(tmp_path: Path) -> None:
    """Deep, key by key; `_delete_` replaces; a dotted key is a key."""
    text = """
a = dict(b=1, c=dict(type='A', d=2))
runs = dict(one=dict(a=dict(b=5)), two=dict(a=dict(c=dict(_delete_=True, type='B'))), three={'a.c.d': 7}, four=dict())
"""
    runs = run_configs(load_config(_write(tmp_path, text)), tmp_path)
    assert {name: one.a.to_dict() for name, (one, _) in runs.items()} == {
        "one": {"b": 5, "c": {"type": "A", "d": 2}},
        "two": {"b": 1, "c": {"type": "B"}},
        "three": {"b": 1, "c": {"type": "A", "d": 7}},
        "four": {"b": 1, "c": {"type": "A", "d": 2}},
    }


def test_runs_that_are_files(tmp_path: Path) -> None:
    """A file beside the config, and changes of it: the options of the command line hold for both, against whatever they say."""
    (tmp_path / "other.py").write_text("a = dict(b=2, c=3)\n")
    config = load_config(
        _write(tmp_path, "runs = dict(one='other.py', two=dict(a=dict(b=4, c=5)))\na = dict(b=1)\n"),
        {"a.c": 7, "log_level": "DEBUG"},
    )
    runs = run_configs(config, tmp_path)
    assert {name: one.a.to_dict() for name, (one, _) in runs.items()} == {"one": {"b": 2, "c": 7}, "two": {"b": 4, "c": 7}}
    assert [one.log_level for one, _ in runs.values()] == ["DEBUG", "DEBUG"]
    assert [folder for _, folder in runs.values()] == [tmp_path / "one", tmp_path / "two"]


PAPER = {
    # rate, iterations, loss
    "expgb": (1e-4, 67184, {"type": "ExpGBLoss", "alpha": 0.1, "targets": (0, 16)}),
    "pow3gb": (5e-5, 67184, {"type": "Pow3GBLoss", "alpha": 0.001, "beta": 0.4, "targets": (0, 10)}),
    "softmax": (1e-3, 100776, {"type": "CrossEntropyLoss", "avg_non_ignore": True}),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers(name: str) -> None:
    """What the paper and PixelNet's authors give for VOC: rates, iterations, images, pixels, sizes, architecture."""
    rate, iterations, loss = PAPER[name]
    config = load_config(f"gbseg::pixelnet_{name}.py")
    optimizer = config.optim_wrapper.optimizer
    assert optimizer == {"type": "SGD", "lr": rate, "momentum": 0.9, "weight_decay": 5e-4}
    assert config.train_cfg.max_iters == iterations
    # 8,398 images in batches of 5 are one epoch
    assert iterations * 5 / 8398 == pytest.approx(60 if name == "softmax" else 40, abs=0.01)
    assert config.train_dataloader.batch_size == 5
    [schedule] = config.param_scheduler
    assert (schedule.type, schedule.milestones, schedule.gamma, schedule.by_epoch) == ("MultiStepLR", [100000], 0.1, False)
    head = config.model.decode_head
    assert _plain(head.loss_decode.to_dict()) == _plain(loss)
    assert head.sampler == {"type": "UniformPixelSampler", "num": 2000}
    assert (tuple(head.hidden), head.dropout, head.num_classes, sum(head.in_channels)) == ((4096, 4096), 0.5, 21, 5568)
    assert tuple(config.model.test_cfg.input) == (224, 224)
    transforms = {transform.type: transform for transform in config.train_dataloader.dataset.pipeline}
    assert (tuple(transforms["ResizeAligned"].scale), transforms["ResizeAligned"].keep_ratio) == ((224, 224), False)
    assert transforms["RandomFlip"].prob == 0.5
    assert (transforms["ChannelGain"].low, transforms["ChannelGain"].high) == (0.8, 1.3)


@pytest.mark.parametrize("name", PAPER)
def test_the_optimizer_of_the_paper(name: str) -> None:
    """In the optimizer as mmengine builds it: all biases at twice the rate and without decay, but those of fc6 and fc7."""
    config = load_config(f"gbseg::pixelnet_{name}.py")
    # 600 MB of parameters, of which only the names and shapes matter
    with DefaultScope.overwrite_default_scope("mmseg"), torch.device("meta"):
        model = MODELS.build(config.model)
        optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    rate, decay = PAPER[name][0], 5e-4
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    groups = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    # 13 convolutions, fc6, fc7 and three layers of the head
    assert len(groups) == len(names) == 2 * (13 + 2 + 3)
    for key, group in groups.items():
        doubled = key.endswith(".bias") and "fc" not in key
        assert group["lr"] == pytest.approx(rate * (2 if doubled else 1)), key
        assert group["weight_decay"] == pytest.approx(0 if doubled else decay), key
        assert group["momentum"] == 0.9
