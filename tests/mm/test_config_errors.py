"""Configs that are wrong: one sentence each, with file, key, and what may be meant."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg")
import mmengine.registry
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, HOOKS, METRICS, MODELS, DefaultScope, Registry, init_default_scope

import gbseg.mm  # noqa: F401  (registers everything)
from gbseg.cli import main
from gbseg.config_files import ConfigError, misspelt_names, read_sources
from gbseg.data.scenes import write_scenes
from gbseg.doctor import examine
from gbseg.mm import component_errors
from gbseg.mm.component_errors import config_errors
from gbseg.mm.config import KEYS, config_folder, config_warnings, load_config
from gbseg.mm.training import build_runner, train
from gbseg.prediction.segmenter import Segmenter

RESEMBLED = KEYS - {"tta_pipeline"}
SHIPPED = [path for package in ("mmseg", "mmpretrain") for path in sorted(config_folder(package).rglob("*.py"))]
# MMSegmentation's own: a misspelt "model", whose sampler is therefore never used
REAL_MISSPELLING = "bisenetv2_fcn_4xb4-ohem-160k_cityscapes-1024x1024.py"


def test_no_shipped_config_is_suspected_of_a_misspelt_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of MMSegmentation's and MMPretrain's, 450 of which have variables of their own; even as if they were the user's."""
    # some of MMPretrain's inherit from MMDetection, which is no requirement
    complete = [path for path in SHIPPED if "'mmdet::" not in path.read_text()]
    assert len(complete) > 1500
    assert [path for path in complete if misspelt_names(path, RESEMBLED)] == []
    monkeypatch.setattr("gbseg.config_files.config_folder", lambda package: tmp_path)
    suspected = [(path.name, name, key) for path in complete for _, name, key in misspelt_names(path, RESEMBLED)]
    assert suspected == [(REAL_MISSPELLING, "models", "model")]


def test_no_config_of_gbseg_is_suspected() -> None:
    for path in config_folder("gbseg").rglob("*.py"):
        assert misspelt_names(path, RESEMBLED) == []


MISSPELLINGS = [
    *("optim_wraper", "optimwrapper", "train_cfgs", "train_dataloder", "val_evalutor", "defaut_hooks", "custom_hook"),
    *(
        "param_schedule",
        "param_schedulers",
        "randomnes",
        "load_form",
        "work_dirs",
        "modle",
        "models",
        "visualiser",
        "log_levels",
    ),
    *("Test_cfg", "custom_import", "prepar", "run", "compar", "data_preprocesor", "env_configs"),
]


@pytest.mark.parametrize("name", MISSPELLINGS)
def test_a_misspelt_key_is_named(name: str, tmp_path: Path) -> None:
    """Also where the right key is inherited, and in a base; not where the name is read, or a base has it as well."""
    base, child = tmp_path / "base.py", tmp_path / "child.py"
    base.write_text("_base_ = ['gbseg::subset/softmax.py']\n")
    child.write_text(f"_base_ = ['base.py']\n{name} = dict(a=1)\n")
    ((path, found, key),) = misspelt_names(child, RESEMBLED)
    assert (path, found) == (child, name)
    assert key in KEYS
    ((text, remedy),) = config_warnings(load_config(child))
    assert f"child.py sets {name}, which nothing reads" in text and key in remedy
    child.write_text(f"_base_ = ['base.py']\n{name} = dict(a=1)\nmine = {name}\n")
    assert not misspelt_names(child, RESEMBLED)
    base.write_text(f"_base_ = ['gbseg::subset/softmax.py']\n{name} = dict(a=2)\n")
    child.write_text("_base_ = ['base.py']\n")
    assert misspelt_names(child, RESEMBLED) == [(base, name, key)]
    child.write_text(f"_base_ = ['base.py']\n{name} = dict(a=1)\n")
    assert not misspelt_names(child, RESEMBLED)
    child.write_text(f"_base_ = ['base.py']\nmine = _base_.{name}\n")
    assert not misspelt_names(child, RESEMBLED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim_wraper.optimizer.lr": 5}, "--cfg-options optim_wraper.optimizer.lr: there is no key optim_wraper, perhaps"),
        ({"train_cfgs.max_iters": 5}, "--cfg-options train_cfgs.max_iters: there is no key train_cfgs, perhaps train"),
        ({"zzz": 5}, "--cfg-options zzz: there is no key zzz. A name of your own belongs in the file"),
        ({"param_scheduler.7.end": 5}, "param_scheduler is a list of 1, from 0; it has no 7"),
        ({"param_scheduler.end": 5}, "param_scheduler is a list of 1, from 0; it has no end"),
        ({"train_cfg.max_iters.x": 5}, "train_cfg.max_iters is 1500, which has no x: set train_cfg.max_iters as a whole"),
        ({"model": 5, "model.x": 6}, "cannot be merged"),
    ],
)
def test_options_that_fit_no_key(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config("gbseg::subset/softmax.py", options)


def test_options_that_are_probably_meant_otherwise() -> None:
    """A new key beside a similar one, where nothing would refuse it; a variable, which changes nothing any more."""
    with pytest.warns(
        UserWarning, match="makes a new key cudnn_benchmarks in env_cfg, which has cudnn_benchmark: is that meant"
    ):
        load_config("gbseg::subset/softmax.py", {"env_cfg.cudnn_benchmarks": True})
    config = load_config("gbseg::custom_example.py", {"max_iters": 30})
    ((text, remedy),) = config_warnings(config)
    assert "--cfg-options max_iters changes a variable of the file" in text and "train_cfg.max_iters" in remedy
    # what is known, and new: all of it was accepted before
    valid = {
        "train_cfg.val_begin": 5,
        "model.backbone.new": 1,
        "sync_bn": "torch",
        "tta_model.type": "LinkTTAModel",
        "resume": True,
    }
    assert not list(config_warnings(load_config("gbseg::subset/softmax.py", valid)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(\na = 3", r"config\.py is no valid Python in line 1: '\(' was never closed"),
        ("", r"the config .*config\.py is empty"),
        ("# nothing\n", r"config\.py is empty"),
        ("model = undefined\n", r"config\.py, line 1: NameError: name 'undefined' is not defined"),
        ("a = 1\nb = [][2]\n", r"config\.py, line 2: IndexError: list index out of range"),
        ("_base_ = ['other.py']\n", r"config\.py: its _base_ 'other\.py' does not exist: there is no file .*other\.py"),
        ("_base_ = ['gbseg::demo.py']\n", r"its _base_ 'gbseg::demo\.py' does not exist"),
        ("_base_ = ['mmnothing::demo.py']\n", "mmnothing is not installed"),
        ("_base_ = ['config.py']\n", "inherits from itself: config.py <- config.py"),
        ("_base_ = 5\n", "_base_ is a file or a list of files, not 5"),
        ("custom_imports = dict(imports=['no_module'])\n", "custom_imports fails: No module named 'no_module'"),
        ("_base_ = ['gbseg::subset/softmax.py']\nlog_level = dict(a=1)\n", r"log_level is a dict, and none in .*_delete_=True"),
        ("a = '\0'\n", "no valid Python"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_what_mmengine_replaces_is_no_syntax_error(tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_text(
        "a = {{'$GBSEG_NOT_SET:3'}}\nb = '{{ fileBasename }}'\n_base_ = ['gbseg::_base_/runtime.py']\nc = {{_base_.resume}}\n"
    )
    assert list(read_sources(path)) == [path, config_folder("gbseg") / "_base_/runtime.py"]
    config = load_config(path)
    assert (config.a, config.b, config.c) == (3, "config.py", False)


def own_components() -> list[tuple[str, Registry]]:
    """Everything that gbseg registers, in any registry of mmengine's, mmseg's or mmpretrain's."""
    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    registries = [node for root in roots for node in (root, *root.children.values())]
    return sorted(
        {
            (name, registry.name): (name, registry)
            for registry in registries
            for name, kind in registry.module_dict.items()
            if kind.__module__.startswith("gbseg.")
        }.values(),
        key=lambda entry: (entry[0], entry[1].name),
    )


COMPONENTS = own_components()
# looked at before MMPretrain's data set refuses anything
REQUIRED = {"ClassFolders": dict(data_root="anywhere")}


def test_there_are_components_of_every_kind() -> None:
    names = {name for name, _ in COMPONENTS}
    assert len(names) > 40
    assert names >= {"ExpGBLoss", "PixelNetHead", "VOCSegmentation", "ProgressHook", "ChannelGain", "VOCMetric"}
    assert names >= {"ResumableIterLoop", "ResumableSampler", "BalancedPixelSampler", "CpuAmpOptimWrapper", "write_scenes"}


@pytest.mark.parametrize(("name", "registry"), COMPONENTS, ids=[name for name, _ in COMPONENTS])
def test_a_wrong_argument_of_any_component_of_ours(name: str, registry: Registry) -> None:
    """One line with the key, the nearest and all valid arguments."""
    parameters, takes_any = component_errors._parameters(registry.get(name))
    settings: dict[str, Any] = dict(type=name, zzz_zzz=1, **REQUIRED.get(name, {}))
    # a component without arguments has nothing near
    near = next((key for key in parameters if len(key) > 3), None)
    if near:
        settings[f"{near}x"] = 1
    config = Config(dict(part=settings))
    # whatever default scope an earlier test of this process has set
    scope = DefaultScope.overwrite_default_scope(registry.scope)
    with scope, pytest.raises(ConfigError) as caught, config_errors(config):
        registry.build(dict(settings))
    message = str(caught.value)
    wrong = sorted(settings.keys() - {"type"} - parameters.keys())
    expected = wrong[-1] if takes_any else " and no ".join(wrong)
    assert message.startswith(f"the config: part: {registry.get(name).__name__} takes no {expected}") or takes_any, message
    assert "\n" not in message
    assert near is None or f"It takes {', '.join(parameters)}." in message


def test_the_right_argument_is_guessed() -> None:
    config = Config(dict(loss=dict(type="ExpGBLoss", alfa=0.1)))
    expected = r"loss: ExpGBLoss takes no alfa; is alpha meant\? It takes alpha, targets, "
    with pytest.raises(ConfigError, match=expected), config_errors(config):
        MODELS.build(config.loss)


def test_a_forgotten_delete(tmp_path: Path) -> None:
    """What is inherited is not guessed at: the cure is named."""
    path = tmp_path / "config.py"
    path.write_text(
        "_base_ = ['mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py']\n"
        "model = dict(pretrained=None, decode_head=dict(loss_decode=dict(type='ExpGBLoss')))\n"
    )
    config = load_config(path)
    init_default_scope("mmseg")
    expected = r"model\.decode_head\.loss_decode: ExpGBLoss takes no use_sigmoid, which it inherits: write _delete_=True beside"
    with pytest.raises(ConfigError, match=expected), config_errors(config):
        MODELS.build(config.model)
    path.write_text(path.read_text().replace("type='ExpGBLoss'", "_delete_=True, type='ExpGBLoss'"))
    assert type(MODELS.build(load_config(path).model).decode_head.loss_decode).__name__ == "ExpGBLoss"


@pytest.mark.parametrize("place", ["val_evaluator", "test_evaluator", "val_evaluator.0", "test_evaluator.metrics.1"])
def test_another_metric_by_an_option(place: str, tmp_path: Path) -> None:
    """It need not take what the one before it did; what an option gives is not left out.

    Without `leave_out_arguments`: "VOCMetric takes no iou_metrics, which it inherits".
    """
    path, iou = tmp_path / "config.py", "dict(type='IoUMetric', iou_metrics=['mIoU'], ignore_index=0, prefix='a')"
    values = {"": iou, "0": f"[{iou}]", "metrics.1": f"dict(metrics=[dict(type='VOCMetric'), {iou}])"}
    key, _, rest = place.partition(".")
    path.write_text(f"default_scope = 'mmseg'\n{key} = {values[rest]}\n")
    with pytest.warns(UserWarning, match=rf"{place}\.type=VOCMetric leaves out iou_metrics, which it does not take") as caught:
        config = load_config(path, {f"{place}.type": "VOCMetric"})
    assert len(caught) == 1
    node = config[key] if not rest else config[key][0] if rest == "0" else config[key].metrics[1]
    assert node == dict(type="VOCMetric", ignore_index=0, prefix="a")
    assert METRICS.build(node).ignore_index == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        node = load_config(path, {f"{place}.type": "VOCMetric", f"{place}.iou_metrics": 5})[key]
        assert "iou_metrics=5" in str(node).replace("'iou_metrics': 5", "iou_metrics=5"), "whoever gives it is told"
        load_config(path, {f"{place}.type": "IoUMetric"})


def test_a_type_by_an_option(tmp_path: Path) -> None:
    """The cure that is named for an option is one for an option, and is one."""
    path = tmp_path / "config.py"
    path.write_text("_base_ = ['mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py']\nmodel = dict(pretrained=None)\n")
    options: dict[str, Any] = {"model.decode_head.loss_decode.type": "ExpGBLoss"}
    config = load_config(path, options)
    init_default_scope("mmseg")
    cure = "model.decode_head.loss_decode._delete_=True"
    expected = rf"takes no use_sigmoid, which it inherits, and --cfg-options replaces the type alone: add {cure} to them\. It"
    with pytest.raises(ConfigError, match=expected), config_errors(config):
        MODELS.build(config.model)
    config = load_config(path, options | {cure.removesuffix("=True"): True})
    assert type(MODELS.build(config.model).decode_head.loss_decode).__name__ == "ExpGBLoss"


TINY = """
_base_ = ["gbseg::demo_expgb.py"]
prepare = None
runs = None
compare = None
train_dataloader = dict(batch_size=2, dataset=dict(data_root="{root}"))
val_dataloader = dict(dataset=dict(data_root="{root}"))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
param_scheduler = [dict(type="PolyLR", begin=0, end=2, by_epoch=False)]
model = dict(backbone=dict(width=0.0625), decode_head=dict(in_channels=(4, 8, 16, 32, 32), hidden=(8, 8), num_classes=21))
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_scenes(tmp_path_factory.mktemp("scenes"), train=4, val=2, size=(32, 32))
    path = root / "tiny.py"
    path.write_text(TINY.format(root=root))
    return path


# option, value, message of train and of the doctor, after the file's name
WRONG: list[tuple[str, Any, str]] = [
    ("train_cfg.max_iter", 5, "train_cfg: ResumableIterLoop takes no max_iter; is max_iters or val_interval meant?"),
    ("train_cfg.type", "ResumableLoop", "train_cfg: there is no loop called ResumableLoop; is ResumableIterLoop"),
    ("train_cfg.max_iters", -1, "train_cfg.max_iters is -1."),
    ("train_cfg.max_iters", 0, "train_cfg.max_iters is 0."),
    ("train_cfg.max_iters", "2", "train_cfg.max_iters is '2'."),
    ("train_cfg.max_iters", [1, 2], "train_cfg.max_iters is [1, 2]."),
    ("train_cfg.val_interval", ["x"], "train_cfg.val_interval is ['x']."),
    ("train_cfg.val_interval", 0, "train_cfg.val_interval is 0."),
    ("default_hooks.logger.interval", "5", "default_hooks.logger.interval is '5'."),
    ("default_hooks.logger.interval", [5], "default_hooks.logger.interval is [5]."),
    ("default_hooks.logger.intervall", 5, "default_hooks.logger: LoggerHook takes no intervall; is interval"),
    ("default_hooks.guard.type", "NonFiniteGuard", "default_hooks.guard: there is no hook called NonFiniteGuard; is NonFinite"),
    ("default_hooks.loger.interval", 5, "default_hooks.loger: it has no type."),
    ("optim_wrapper.optimizer.lrr", 5, "optim_wrapper.optimizer: AdamW takes no lrr; is lr meant? It takes lr, betas, eps, we"),
    ("optim_wrapper.optimizer.type", "AdamX", "optim_wrapper.optimizer: there is no optimizer called AdamX; is Adamax or Adam"),
    ("optim_wrapper.optimizer.lr", "1e-3", "TypeError: '<=' not supported between instances of 'float' and 'str'. lr='1e-3' i"),
    ("optim_wrapper.clip_grad.max_nom", 5, "optim_wrapper.clip_grad takes no max_nom; is max_norm meant?"),
    ("optim_wrapper.typ", "OptimWrapper", "optim_wrapper: OptimWrapper takes no typ; is type meant?"),
    ("optim_wrapper", 5, "optim_wrapper is 5."),
    ("param_scheduler.0.type", "PolLR", "param_scheduler[0]: there is no parameter scheduler called PolLR; is PolyLR"),
    ("param_scheduler.0.begin", 3, "param_scheduler[0]: end should be larger than begin, but got begin=3, end=2."),
    ("train_dataloader.batchsize", 5, "train_dataloader: DataLoader takes no batchsize; is batch_size"),
    ("train_dataloader.sampler.type", "Resumable", "train_dataloader.sampler: there is no data sampler called Resumable; is"),
    ("train_dataloader.dataset.type", "VOCSegmentatio", "train_dataloader.dataset: there is no dataset called VOCSegmentatio;"),
    ("train_dataloader.dataset.root", "x", "train_dataloader.dataset: VOCSegmentation takes no root; is data_root meant?"),
    ("train_dataloader.dataset.pipeline.2.type", "RandomFlop", "train_dataloader.dataset.pipeline[2]: there is no transform c"),
    ("train_dataloader.dataset.pipeline.2.probb", 1, "train_dataloader.dataset.pipeline[2]: RandomFlip takes no probb; is pro"),
    ("val_evaluator.type", "VOCMetrc", "val_evaluator: there is no metric called VOCMetrc; is VOCMetric or IoUMetric meant?"),
    ("val_evaluator.outdir", "x", "val_evaluator: VOCMetric takes no outdir; is out_dir meant?"),
    ("val_evaluator", dict(type="IoUMetric", iou_metrics=["mIou"]), "val_evaluator.iou_metrics is ['mIou']."),
    ("test_evaluator", [dict(type="mmseg.IoUMetric", iou_metrics=[])], "test_evaluator[0].iou_metrics is []."),
    ("visualizer.type", "SegLocalVisual", "visualizer: there is no visualizer called SegLocalVisual; is SegLocalVisualizer me"),
    ("visualizer.vis_backends.0.type", "WandbVisBackend", "visualizer.vis_backends[0]: WandbVisBackend needs wandb, which is "),
    ("visualizer.vis_backends.0.type", "MLflowVisBackend", "MLflowVisBackend needs mlflow, which is not installed."),
    ("visualizer.vis_backends.0.type", "Wandb", "there is no vis_backend called Wandb; is WandbVisBackend meant?"),
    ("model.decode_head.loss_decode.alfa", 0.1, "model.decode_head.loss_decode: ExpGBLoss takes no alfa; is alpha meant?"),
    ("model.decode_head.loss_decode.type", "ExpGB", "model.decode_head.loss_decode: there is no model called ExpGB; is ExpGBL"),
    ("model.decode_head", 5, "model.decode_head is 5."),
    ("model", None, "has no model"),
    ("default_scope", "nothing", "default_scope is 'nothing', and there is no such package."),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of every short run: the config's text is laid out anew each time."""
    monkeypatch.setattr(Config, "pretty_text", property(lambda self: repr(self.to_dict())))


@pytest.fixture
def _without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without the packages of experiment trackers."""
    spec = component_errors.find_spec
    monkeypatch.setattr(component_errors, "find_spec", lambda name: None if name in ("wandb", "mlflow") else spec(name))


@pytest.mark.usefixtures("_without_packages")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=[f"{key}={value}" for key, value, _ in WRONG])
def test_training_and_doctor_say_it_in_a_sentence(key: str, value: Any, message: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        train(load_config(tiny, {key: value}), tmp_path)
    said = str(caught.value)
    assert said.startswith(str(tiny)) and message in said
    assert "\n" not in said and len(said) < 600
    found = [finding.text for finding in examine(load_config(tiny, {key: value})) if finding.level == "error"]
    assert any(message in text for text in found), found


def test_a_config_without_its_file(tiny: Path, tmp_path: Path) -> None:
    """Made of a text, or read before the folder was left."""
    options = {"work_dir": str(tmp_path / "made"), "train_cfg.max_iters": 1}
    text = "".join(f"{name} = {value!r}\n" for name, value in load_config(tiny).to_dict().items())
    made = Config.fromstring(text, ".py")
    made.merge_from_dict(options)
    train(made)
    moved = tmp_path / "tiny.py"
    moved.write_text(tiny.read_text())
    config = load_config(moved, options | {"work_dir": str(tmp_path / "moved")})
    moved.unlink()
    train(config)
    assert all((tmp_path / name / "last_checkpoint").is_file() for name in ("made", "moved"))


@pytest.mark.parametrize("key", ["persistent_workers", "prefetch_factor", "multiprocessing_context"])
def test_no_workers(key: str, tiny: Path, tmp_path: Path) -> None:
    """What PyTorch refuses without workers means nothing then, and is left out; with workers it is kept."""
    value: Any = {"persistent_workers": True, "prefetch_factor": 2, "multiprocessing_context": "fork"}[key]
    loaders = ("train_dataloader", "val_dataloader", "test_dataloader")
    options = {f"{loader}.{name}": v for loader in loaders for name, v in ((key, value), ("num_workers", 0))}
    config = load_config(tiny, options)
    runner = build_runner(config, tmp_path)
    runner.train()
    assert runner.iter == 2
    assert config.train_dataloader[key] == value
    kept = build_runner(load_config(tiny, {f"train_dataloader.{key}": value, "train_dataloader.num_workers": 2}), tmp_path)
    assert kept.build_dataloader(kept.cfg.train_dataloader).num_workers == 2
    assert kept.cfg.train_dataloader[key] == value


def test_test_and_segmenter(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = tmp_path / "weights.pth"
    init_default_scope("mmseg")
    torch.save({"state_dict": MODELS.build(load_config(tiny).model).state_dict()}, checkpoint)
    wrong = "model.decode_head.loss_decode.alfa"
    message = "model.decode_head.loss_decode: ExpGBLoss takes no alfa; is alpha meant?"
    with pytest.raises(ConfigError, match=re.escape(message)):
        Segmenter(tiny, checkpoint, "cpu", cfg_options={wrong: 1})
    with pytest.raises(ConfigError, match="there is no key modle, perhaps model"):
        Segmenter(load_config(tiny), checkpoint, "cpu", cfg_options={"modle.x": 1})
    with pytest.raises(ConfigError, match=r"tiny\.py has no test_dataloader, which is needed"):
        config = load_config(tiny)
        config.pop("test_dataloader")
        Segmenter(config, checkpoint, "cpu")
    image = next(tiny.parent.glob("JPEGImages/*.jpg"))
    for argv in (
        ["predict", str(tiny), str(checkpoint), str(image), "--out", str(tmp_path / "out")],
        ["test", str(tiny), str(checkpoint), "--work-dir", str(tmp_path / "test")],
        ["train", str(tiny), "--work-dir", str(tmp_path / "train")],
    ):
        assert main([*argv, "--cfg-options", f"{wrong}=1"]) == 1
        said = capsys.readouterr().err
        assert f"\ngbseg: {tiny}: {message} It takes " in said and "Traceback" not in said
    assert main(["test", str(tiny), str(checkpoint), "--cfg-options", "test_evaluator=None"]) == 1
    assert "gbseg: " in capsys.readouterr().err


def test_what_gbseg_refuses_keeps_its_type_and_gets_the_key(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = {"train_dataloader.dataset.data_root": str(tmp_path / "none")}
    with pytest.raises(FileNotFoundError, match="there is no list") as caught:
        train(load_config(tiny, options), tmp_path)
    assert caught.value.__notes__ == [f"It comes from train_dataloader.dataset in {tiny}."]


def test_errors_of_training_stay_what_they_are(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from mmengine.hooks import Hook

    class FailingHook(Hook):
        def after_train_iter(self, *args: Any, **settings: Any) -> None:
            raise KeyError("a bug")

    monkeypatch.setitem(HOOKS.module_dict, "FailingHook", FailingHook)
    argv = ["train", str(tiny), "--work-dir", str(tmp_path), "--cfg-options", "custom_hooks.0.type=FailingHook"]
    tiny_with_hook = tmp_path / "hook.py"
    tiny_with_hook.write_text(f"_base_ = ['{tiny}']\ncustom_hooks = [dict(type='FailingHook')]\n")
    argv = ["train", str(tiny_with_hook), "--work-dir", str(tmp_path / "work")]
    with pytest.raises(KeyError, match="a bug") as caught:
        main(argv)
    (note,) = caught.value.__notes__
    assert note.startswith("gbseg: gbseg train ") and "KeyError: 'a bug'" in note
    monkeypatch.setenv("GBSEG_TRACEBACK", "1")
    with pytest.raises(ConfigError, match="there is no data sampler called Nothing"):
        main([*argv, "--cfg-options", "train_dataloader.sampler.type=Nothing"])


def test_the_sampler_of_any_registry_is_looked_up_in_its_scope() -> None:
    """A type of another scope is no unknown one."""
    init_default_scope("mmseg")
    assert component_errors.wrong_type(DATA_SAMPLERS, dict(type="DefaultSampler")) is None
    assert component_errors.wrong_type(DATA_SAMPLERS, dict(type=torch.nn.Module)) is None
    assert "is neither a name nor a class" in (component_errors.wrong_type(DATA_SAMPLERS, dict(type=5)) or "")
