"""Each remedy of the doctor is followed as it is printed: its finding is gone, and no new one came."""

from __future__ import annotations

import ast
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")
from mmengine.config import Config
from mmengine.registry import init_default_scope
from test_doctor import MMSEG, folder, grey_of_palette, grey_png, values

import gbseg
from gbseg.data.masks import write_mask
from gbseg.doctor import (
    Finding,
    dataset_checks,
    examine,
    model_checks,
    package_checks,
    report,
    schedule_checks,
    setting_checks,
)
from gbseg.mm.config import load_config
from gbseg.mm.datasets import list_faults

ROOT = Path(__file__).parents[2]
SOURCE = Path(gbseg.__file__).parent
MODULES = {module.__name__.rpartition(".")[2]: module for module in (
    sys.modules["gbseg.doctor"], dataset_checks, model_checks, package_checks, schedule_checks, setting_checks, list_faults,
)}  # fmt: skip
PROBLEMS = tomllib.loads((SOURCE / "doctor/label_problems.toml").read_text(encoding="utf-8"))
# findings of others are handed on there, or made
HANDED_ON = ("remedied", "judge", "_judge_values", "check_settings.1", "check_settings.2", "check_data.2")
WHY_NOT = {
    "package_checks.check_packages.1": "it installs a package: the tests do not change their own environment",
    "package_checks._unmet.1": "it installs a package",
    "package_checks._unmet.2": "it installs a package",
    "package_checks._overwritten.1": "it removes and installs packages",
    "package_checks._overwritten.2": "it installs a package",
}


@pytest.fixture(autouse=True)
def _scope() -> None:
    init_default_scope("mmseg")


def in_order(tree: ast.AST) -> list[Any]:
    return sorted((node for node in ast.walk(tree) if hasattr(node, "lineno")), key=lambda node: (node.lineno, node.col_offset))


@lru_cache
def sites() -> dict[str, tuple[str, int, int] | list[str]]:
    """Everything in the source that has a remedy: module and lines of a call, or the parts of the text that is yielded."""
    found: dict[str, tuple[str, int, int] | list[str]] = {}
    extra = [SOURCE / "mm/datasets/list_faults.py", SOURCE / "mm/config.py", SOURCE / "mm/component_errors.py"]
    for path in [*sorted((SOURCE / "doctor").glob("*.py")), *extra]:
        module = "doctor" if path.stem == "__init__" else path.stem
        functions = (
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
        )
        for function in functions:
            number = 0
            for node in in_order(function):
                name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
                if name in ("remedied", "ListFault") or (name == "Finding" and len(node.args) > 3):
                    number += 1
                    found[f"{module}.{function.name}.{number}"] = (module, node.lineno, node.end_lineno)
                elif (
                    isinstance(node, ast.Yield)
                    and isinstance(node.value, ast.Tuple)
                    and function.name in ("wrong_values", "config_warnings")
                ):
                    # by its words: other yields come and go
                    text, remedy = node.value.elts
                    found[f"{function.name}: {'_'.join(constants(remedy))}"] = constants(text, remedy)
    problems = {name: problem["text"] for name, problem in PROBLEMS.items() if problem["remedy"]}
    found |= {f"label {name}": re.split(r"\{[^}]*\}", text) for name, text in problems.items()}
    return {name: place for name, place in found.items() if not any(skipped in name for skipped in HANDED_ON)}


def constants(*texts: ast.AST) -> list[str]:
    """What is always the same in f-strings."""
    nodes = [node for text in texts for node in (text.values if isinstance(text, ast.JoinedStr) else [text])]
    return [node.value for node in nodes if isinstance(node, ast.Constant)]


def says(text: str, parts: list[str]) -> bool:
    """Whether a text has all parts, in their order."""
    place = 0
    for part in parts:
        place = text.find(part, place) + len(part)
        if place < len(part):
            return False
    return True


class Case(NamedTuple):
    """A config with a finding.

    Attributes:
        site: what makes the finding.
        text: of the config, below that of `BASES`.
        masks: of the data set, as `test_doctor.folder` takes them.
        damage: what is done to the data set.
        mend: what the remedy says beside lines of a config, and what it leaves to people.
        lines: whether the remedy's lines are followed; False where ``mend`` is another way.
        foreign: whether it inherits MMSegmentation's FCN.
    """

    site: str
    text: str = ""
    masks: Any = None
    damage: Callable[[Path], object] | None = None
    mend: Callable[[Path], object] | None = None
    lines: bool = True
    foreign: bool = False


def relabel(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def mend(root: Path) -> None:
        for path in (root / "masks").rglob("*.png"):
            with Image.open(path) as image:
                labels = np.array(image)
            Image.fromarray(change(labels)).save(path, format="PNG")

    return mend


def sound(root: Path) -> None:
    """Masks as they should be."""
    shutil.rmtree(root / "masks")
    folder(root / "sound")
    shutil.move(root / "sound/masks", root / "masks")


def write(name: str, content: str = "") -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(content, encoding="utf-8")


def again(text: str) -> Callable[[Path], object]:
    """What a person writes into a config that inherits the bad one, or into that."""
    return lambda root: (root / "fixed.py").write_text(f"_base_ = ['bad.py']\n{text}", encoding="utf-8")


def edit(old: str, new: str) -> Callable[[Path], object]:
    def mend(root: Path) -> None:
        path = root / "bad.py"
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")

    return mend


def encoded(save: Callable[[Path, np.ndarray], object]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for path in (root / "masks").rglob("*.png"):
            with Image.open(path) as image:
                labels = np.array(image)
            save(path, labels)

    return damage


def lowered(bits: int) -> Callable[[Path], None]:
    return encoded(lambda path, labels: path.write_bytes(grey_png(np.minimum(labels, 1 if bits == 1 else 2), bits)))


def all_data(text: str) -> str:
    return "\n".join(f"{split}_dataloader = dict(dataset=dict({text}))" for split in ("train", "val", "test"))


def heads(loss: str, **options: str) -> str:
    """Both heads of the foreign config with a loss of exp-GB's strength."""
    main, auxiliary = options.get("main", ""), options.get("auxiliary", "")
    return (
        f"model = dict(decode_head=dict(loss_decode=dict(_delete_=True, type='{loss}', loss_weight=1 / 16){main}), "
        f"auxiliary_head=dict(loss_decode=dict(_delete_=True, type='{loss}', loss_weight=0.4 / 16){auxiliary}))\n"
    )


IMPORT = "custom_imports = dict(imports=['gbseg.mm'])\n"
GUARD = "custom_hooks = [dict(type='NonFiniteGuardHook')]\n"
RESIZED = relabel(lambda labels: labels.T.copy())
QUERIES = "model = dict(decode_head=dict(_delete_=True, type='Mask2FormerHead', num_classes=21, loss_cls=dict({})))\n"
TWO = all_data("metainfo=dict(classes=('background', 'thing'))") + "\nmodel = dict(decode_head=dict(num_classes=2))"
CV2 = "\n".join(
    f"{split}_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), "
    "dict(type='LoadAnnotations', imdecode_backend='cv2'), dict(type='PackSegInputs')]))"
    for split in ("train", "val", "test")
)
ALBU = (
    "train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', "
    "imdecode_backend='pillow'), dict(type='RandomApply', transforms=[dict(type='Albu', transforms=["
    "dict(type='HorizontalFlip')])]), dict(type='PackSegInputs')]))\ntrain_cfg = dict(type='IterBasedTrainLoop')\n"
)
REAL = "train_cfg = dict(max_iters=100)\nparam_scheduler = [dict(type='PolyLR', begin=0, end={}, by_epoch=False)]"
SUBTRACT = relabel(lambda labels: np.where(labels == 0, 255, labels - 1).astype(np.uint8))

CASES = {
    "a check that stops": Case("doctor._complete.1", "param_scheduler = 5", mend=again("param_scheduler = []")),
    "no data set": Case(
        "dataset_checks.check_data.1",
        "val_dataloader = dict(dataset=dict(type='BaseSegDataset', ann_file='none.txt'))",
        mend=again("val_dataloader = dict(dataset=dict(type='FolderSegmentation', ann_file=''))"),
    ),
    "overlap": Case(
        "dataset_checks.check_data.3",
        "val_dataloader = dict(dataset=dict(data_prefix=dict(img_path='images/train', seg_map_path='masks/train')))",
        mend=again("val_dataloader = dict(dataset=dict(data_prefix=dict(img_path='images/val', seg_map_path='masks/val')))"),
    ),
    "albu": Case("dataset_checks._check_albumentations_seed.1", "custom_imports = dict(imports=[])\n" + ALBU),
    "empty": Case(
        "dataset_checks._check_dataset.1",
        "train_dataloader = dict(dataset=dict(_delete_=True, type='BaseSegDataset', serialize_data=False, "
        "metainfo=dict(classes=('a', 'b', 'c')), "
        "data_root='.', data_prefix=dict(img_path='none', seg_map_path='none'), pipeline=[]))",
        damage=lambda root: (root / "none").mkdir(),
        mend=again(
            "train_dataloader = dict(dataset=dict(data_prefix=dict(img_path='images/train', seg_map_path='masks/train'), "
            "pipeline=[]))"
        ),
    ),
    "missing": Case(
        "dataset_checks._check_dataset.2",
        all_data("type='BaseSegDataset', metainfo=dict(palette=[[0, 0, 0], [1, 1, 1], [2, 2, 2]])"),
        damage=lambda root: (root / "masks/train/3.png").rename(root / "3.png"),
        mend=lambda root: (root / "3.png").rename(root / "masks/train/3.png"),
    ),
    "damaged": Case(
        "dataset_checks._check_dataset.3",
        damage=lambda root: (root / "images/train/3.jpg").write_bytes((root / "images/train/3.jpg").read_bytes()[:400]),
        mend=lambda root: shutil.copy(root / "images/train/2.jpg", root / "images/train/3.jpg"),
    ),
    "size": Case("dataset_checks._check_dataset.4", damage=RESIZED, mend=RESIZED),
    "classes": Case("dataset_checks._check_dataset.5", "model = dict(decode_head=dict(num_classes=21))"),
    "no model": Case("model_checks.check_model.1", "_base_ = ['gbseg::_base_/voc.py', 'gbseg::_base_/runtime.py']\n"),
    "model": Case(
        "model_checks._build.1", "model = dict(decode_head=dict(typ=1))", mend=edit("typ=1", "num_classes=21"), foreign=True
    ),
    "no optimizer": Case(
        "model_checks._check_rates.1", "optim_wrapper = dict(_delete_=True, type='OptimWrapper')", foreign=True
    ),
    "softmax's rate": Case("model_checks._check_rates.2", "optim_wrapper = dict(optimizer=dict(lr=1.0))", foreign=True),
    "rate": Case("model_checks._check_rates.3", IMPORT + GUARD + heads("ExpGBLoss").replace(" / 16", ""), foreign=True),
    "rate and weight": Case(
        "model_checks._check_rates.3",
        IMPORT + GUARD + "optim_wrapper = dict(optimizer=dict(lr=0.1))\n" + heads("ExpGBLoss").replace(" / 16", ""),
        foreign=True,
    ),
    "rate of a weighted loss": Case(
        "model_checks._check_rates.3",
        IMPORT + GUARD + "optim_wrapper = dict(optimizer=dict(lr=0.1))\n" + heads("Pow3GBLoss"),
        foreign=True,
    ),
    "clipped rate": Case(
        "model_checks._check_rates.3",
        IMPORT
        + GUARD
        + "optim_wrapper = dict(optimizer=dict(lr=0.1), clip_grad=dict(_delete_=True, max_norm=1.0))\n"
        + heads("ExpGBLoss").replace(" / 16", ""),
        foreign=True,
    ),
    "rate in lists": Case(
        "model_checks._check_rates.3",
        IMPORT
        + GUARD
        + heads("ExpGBLoss")
        .replace(" / 16", "")
        .replace("loss_decode=dict(_delete_=True, ", "loss_decode=[dict(")
        .replace("0)", "0)]")
        .replace("1)", "1)]")
        .replace("0.4)", "0.4)]"),
        foreign=True,
    ),
    "low rate": Case("model_checks._check_rates.4", "optim_wrapper = dict(optimizer=dict(lr=1e-4))", foreign=True),
    "auxiliary": Case(
        "model_checks._check_auxiliary_losses.1",
        IMPORT + GUARD + heads("ExpGBLoss").partition(", auxiliary_head")[0] + ")",
        foreign=True,
    ),
    "auxiliary boosted alone": Case(
        "model_checks._check_auxiliary_losses.1",
        IMPORT + GUARD + "model = dict("
        "auxiliary_head=dict(loss_decode=dict(_delete_=True, type='ExpGBLoss', loss_weight=0.4 / 16)))",
        foreign=True,
    ),
    "padding": Case("model_checks._check_heads.1", "model = dict(data_preprocessor=dict(seg_pad_val=0))", foreign=True),
    "padding of two": Case("model_checks._check_heads.1", "model = dict(auxiliary_head=dict(ignore_index=254))", foreign=True),
    "sigmoid": Case(
        "model_checks._check_heads.2",
        IMPORT + GUARD + heads("ExpGBLoss", main=", out_channels=1, num_classes=2, threshold=0.3", auxiliary=", num_classes=2"),
        foreign=True,
    ),
    "heads": Case("model_checks._check_heads.3", "model = dict(auxiliary_head=dict(num_classes=3))", foreign=True),
    "ohem": Case(
        "model_checks._check_softmaxes.1",
        "custom_imports = dict(imports=['gbseg'])\n"
        + GUARD.replace("[dict(type='NonFiniteGuardHook')]", "[]")
        + heads("LinearLoss", main=", sampler=dict(type='OHEMPixelSampler', thresh=0.7)").replace(" / 16", ""),
        foreign=True,
    ),
    "tta": Case("model_checks._check_softmaxes.2", IMPORT + GUARD + heads("LinearLoss").replace(" / 16", ""), foreign=True),
    "queries": Case(
        "model_checks._check_softmaxes.3", IMPORT + GUARD + QUERIES.format("type='LinearLoss', loss_weight=2.0"), foreign=True
    ),
    "weights of queries": Case(
        "model_checks._check_softmaxes.4",
        IMPORT + GUARD + QUERIES.format("type='ExpGBLoss', class_weight=[1.0] * 21 + [0.1]"),
        foreign=True,
    ),
    "guard": Case(
        "model_checks._check_nonfinite_guard.1",
        "custom_hooks = [dict(type='OverlapHook')]\n" + IMPORT + heads("ExpGBLoss"),
        foreign=True,
    ),
    "imports": Case(
        "model_checks._check_imports.1",
        "custom_imports = dict(imports=['json', 'gbseg'])\n" + GUARD + heads("ExpGBLoss"),
        foreign=True,
    ),
    "weights": Case("model_checks._check_weights.1", "load_from = 'weights.pth'", mend=write("weights.pth")),
    "optimizer": Case(
        "schedule_checks.check_optimizer.1", "optim_wrapper = dict(optimizer=dict(lrr=1))", mend=edit("lrr=1", "lr=0.001")
    ),
    "schedule": Case("schedule_checks.check_schedule.1", REAL.format(200)),
    "schedule after a warm-up": Case(
        "schedule_checks.check_schedule.1",
        "train_cfg = dict(max_iters=100)\nparam_scheduler = [dict(type='LinearLR', start_factor=0.1, begin=0, end=150, "
        "by_epoch=False), dict(type='PolyLR', begin=150, end=2000, by_epoch=False)]",
    ),
    "backend": Case(
        "setting_checks.check_settings.3",
        "visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='AimVisBackend'), "
        "dict(type='NeptuneVisBackend')])",
    ),
    "component": Case(
        "setting_checks.check_settings.4",
        "train_cfg = dict(typ=1)",
        mend=edit("typ=1", "max_iters=2000"),
    ),
    "listed twice": Case(
        "list_faults.names_listed_twice.1",
        "train_dataloader = dict(dataset=dict(type='VOCSegmentation', ann_file='list.txt', "
        "metainfo=dict(_delete_=True, classes=('background', 'aeroplane', 'bicycle'))))",
        damage=write("list.txt", "0\n1\n0\n"),
        mend=write("list.txt", "0\n1\n"),
    ),
    "lonely masks": Case(
        "list_faults.masks_without_image.1",
        damage=lambda root: (root / "images/train/3.jpg").unlink(),
        mend=lambda root: (root / "masks/train/3.png").unlink(),
    ),
    "misspelt": Case(
        "config_warnings: write _, if that is meant.",
        "optim_wraper = dict(optimizer=dict(lr=0.002))",
        mend=edit("optim_wraper", "optim_wrapper"),
    ),
    "metric": Case(
        "wrong_values: A list of _ is needed.",
        "val_evaluator = dict(_delete_=True, type='IoUMetric', iou_metrics=['mIoI'])",
        mend=edit("mIoI", "mIoU"),
    ),
    "no flag": Case("wrong_values: True or False is needed.", "val_loss = 5", mend=again("val_loss = False")),
    "no dict": Case(
        "wrong_values: A dict, or a list of them, is needed there.", "env_cfg = 5", mend=edit("env_cfg = 5", "env_cfg = dict()")
    ),
    "length": Case(
        "wrong_values: A number from 1 is needed.",
        "train_cfg = dict(val_interval=0)",
        mend=again("train_cfg = dict(val_interval=1)"),
    ),
    "interval": Case(
        "wrong_values: A number is needed.",
        "default_hooks = dict(logger=dict(interval='5'))",
        mend=again("default_hooks = dict(logger=dict(interval=5))"),
    ),
    "clip": Case(
        "wrong_values: It takes _.",
        "optim_wrapper = dict(clip_grad=dict(max_nrm=5))",
        mend=edit("max_nrm", "max_norm"),
    ),
    "scope": Case(
        "wrong_values: Write mmseg, mmpretrain, or where the types are.",
        "default_scope = 'mmsegg'",
        mend=again("default_scope = 'mmseg'"),
    ),
    "palette as colours": Case("label palette read as colours", CV2, damage=encoded(lambda p, labels: write_mask(p, labels))),
    "colours": Case(
        "label stored as colours",
        masks=lambda number: np.dstack([np.arange(600, dtype=np.uint8).reshape(20, 30) % 3] * 3),
        mend=relabel(lambda colours: colours[..., 0]),
    ),
    "numbers": Case(
        "label numbers changed",
        "custom_imports = dict(imports=['gbseg.mm', 'grey_loader'])\n"
        + CV2.replace("'LoadAnnotations', imdecode_backend='cv2'", "'LoadGreyMask', imdecode_backend='cv2'"),
        damage=encoded(lambda path, labels: write_mask(path, labels)),
    ),
    "scaled": Case("label numbers scaled", masks=values(0, 1, 2), damage=lowered(4), mend=relabel(lambda read: read // 17)),
    "jpeg": Case(
        "label JPEG", damage=encoded(lambda path, labels: Image.fromarray(labels).save(path, format="JPEG")), mend=sound
    ),
    "lossy": Case(
        "label lossy",
        damage=encoded(lambda path, labels: Image.fromarray(labels).save(path, format="JPEG2000", irreversible=True)),
        mend=sound,
    ),
    "16 bits": Case(
        "label more than 8 bits",
        masks=lambda number: np.full((20, 30), 300, np.uint16) + np.arange(30, dtype=np.uint16) % 3,
        mend=relabel(lambda labels: (labels.astype(int) - 300).astype(np.uint8)),
    ),
    "1 bit": Case(
        "label fewer than 8 bits",
        TWO,
        masks=values(0, 1),
        damage=lowered(1),
        mend=relabel(lambda labels: labels.astype(np.uint8)),
    ),
    "binary": Case(
        "label binary masks",
        TWO + "\nmodel = dict(decode_head=dict(num_classes=2, ignore_index=254), data_preprocessor=dict(seg_pad_val=254))",
        masks=values(0, 255),
        mend=relabel(lambda mask: mask // 255),
    ),
    "binary, ignored": Case(
        "label binary masks, foreground ignored", TWO, masks=values(0, 255), mend=relabel(lambda mask: mask // 255)
    ),
    "all ignored": Case("label all ignored", masks=values(255), mend=sound),
    "grey palette": Case("label palette stored as grey", masks=grey_of_palette, mend=sound),
    "no class": Case(
        "label no class",
        masks=values(0, 1, 7, 9),
        mend=relabel(lambda labels: np.where(labels > 2, 255, labels).astype(np.uint8)),
    ),
    "1..C": Case("label off by one, without 0", masks=values(1, 2, 3)),
    "1..C, subtracted": Case("label off by one, without 0", masks=values(1, 2, 3), mend=SUBTRACT, lines=False),
    "0..C": Case("label behind the last class", masks=values(0, 1, 2, 3)),
    "background": Case("label background ignored", all_data("reduce_zero_label=True"), masks=values(0, 1, 2)),
    "binary of many": Case("label binary masks of many classes", masks=values(0, 255), mend=relabel(lambda mask: mask // 255)),
    "single": Case("label a single class", masks=values(0), mend=sound),
    "starts at 1": Case("label starts at 1", masks=values(1, 2)),
    "starts at 1, subtracted": Case("label starts at 1", masks=values(1, 2), mend=SUBTRACT, lines=False),
}
# an option of the command line, and no config
OPTION = "config_warnings: give the keys that it computes from _, e.g. train_cfg.max_iters, or change the file."


def test_every_remedy_has_a_case() -> None:
    """Without a case for it, a new remedy fails here."""
    covered = {case.site for case in CASES.values()} | {OPTION, *WHY_NOT}
    assert covered == set(sites())


@pytest.fixture
def sited(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, set[str]]]:
    """The sites of findings, by their text, as they are made."""
    made: dict[str, set[str]] = {}
    calls = {name: place for name, place in sites().items() if isinstance(place, tuple)}

    def recorder(module: str, kind: Any) -> Any:
        def make(*args: Any, **kwargs: Any) -> Any:
            line = sys._getframe(1).f_lineno
            result = kind(*args, **kwargs)
            name = next((name for name, (m, first, last) in calls.items() if m == module and first <= line <= last), None)
            if name is not None:
                made.setdefault(result.text.removesuffix("."), set()).add(name)
            return result

        return make

    for name, module in MODULES.items():
        for attribute in ("Finding", "remedied", "ListFault"):
            if hasattr(module, attribute):
                monkeypatch.setattr(module, attribute, recorder(name, getattr(module, attribute)))
    yield made


def sites_of(finding: Finding, made: dict[str, set[str]]) -> set[str]:
    said = f"{finding.text} -> {finding.remedy}"
    by_text = {name for name, place in sites().items() if isinstance(place, list) and says(said, place)}
    return (by_text if finding.remedy else set()) | made.get(finding.text.removesuffix("."), set())


def configured(root: Path, case: Case) -> Path:
    """The case's data set and config in ``root``; returns the config."""
    folder(root, case.masks)
    text = f"_base_ = ['{MMSEG}']\n"
    if not case.foreign:
        (root / "base.py").write_text(
            f"_base_ = ['{ROOT}/configs/custom_example.py']\nmodel = dict(backbone=dict(weights=None))\n"
            + all_data(f"data_root={str(root)!r}"),
            encoding="utf-8",
        )
        text = "_base_ = ['base.py']\n"
    # in the folder, so that it is named without one
    text = "" if case.text.startswith("_base_") else text
    (root / "bad.py").write_text(text + case.text, encoding="utf-8")
    if case.damage:
        case.damage(root)
    return root / "bad.py"


def groups(remedy: str) -> list[str]:
    """The lines of a config in a remedy, as they are printed; other lines separate alternatives."""
    parts: list[list[str]] = [[]]
    for line in remedy.splitlines():
        if re.match(r"\w+ = ", line):
            parts[-1].append(line)
        elif parts[-1]:
            parts.append([])
    return ["\n".join(part) for part in parts if part]


GREY_LOADER = """
import cv2
from mmcv.transforms import LoadAnnotations
from mmengine.registry import TRANSFORMS

@TRANSFORMS.register_module(force=True)
class LoadGreyMask(LoadAnnotations):
    def transform(self, results):
        results["gt_seg_map"] = cv2.imread(results["seg_map_path"], cv2.IMREAD_GRAYSCALE)
        return results
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_remedy_is_one(name: str, tmp_path: Path, sited: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alternative of it, alone: lines in a config that inherits the bad one, or what it says to do.

    With an auxiliary remedy, rate or imports as they were before, the case of that name fails.
    """
    case = CASES[name]
    if "Albu" in case.text:
        pytest.importorskip("albumentations")
    bad = configured(tmp_path, case)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "grey_loader.py").write_text(GREY_LOADER, encoding="utf-8")
    before = list(examine(load_config(bad)))
    found = [finding for finding in before if case.site in sites_of(finding, sited)]
    assert found, [finding for finding in before if finding.level in ("warning", "error")]
    alternatives = groups(found[0].remedy) if case.lines else []
    # whatever can be written as lines is
    assert alternatives or case.mend
    if case.mend:
        case.mend(tmp_path)
    for lines in alternatives or [""]:
        fixed = tmp_path / "fixed.py"
        if lines:
            bases = "" if "_base_" in lines else "_base_ = ['bad.py']\n"
            fixed.write_text(bases + lines, encoding="utf-8")
        after = list(examine(load_config(fixed if fixed.exists() else bad)))
        places = {(finding.where, finding.text.split(": ")[0]) for finding in found[:1]}
        left = [f for f in after if case.site in sites_of(f, sited) and (f.where, f.text.split(": ")[0]) in places]
        assert not left, (lines, left)
        known = {(site, finding.where) for finding in before for site in sites_of(finding, sited) or {finding.text}}
        new = [
            finding
            for finding in after
            if finding.level in ("warning", "error")
            and not {(site, finding.where) for site in sites_of(finding, sited) or {finding.text}} & known
        ]
        assert not new, (lines, new)


def test_options_that_come_too_late(tmp_path: Path) -> None:
    """The remedy names the keys that are read."""
    bad = configured(tmp_path, Case(OPTION))
    (before,) = [f for f in examine(load_config(bad, {"max_iters": 50})) if "changes a variable" in f.text]
    assert "train_cfg.max_iters" in before.remedy
    options = {"train_cfg.max_iters": 2000}
    assert not [finding for finding in examine(load_config(bad, options)) if finding.level in ("warning", "error")]


@pytest.mark.parametrize("network", ["pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512.py", MMSEG.removeprefix("mmseg::")])
@pytest.mark.parametrize("loss", ["ExpGBLoss", "Pow3GBLoss"])
def test_all_remedies_together(
    network: str, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file at the end of the report leaves nothing to warn of, and the heads' weights as they were to each other.

    Without the remedies knowing of each other, the auxiliary head has 6.4 times the weight of the decode head.
    """
    monkeypatch.chdir(tmp_path)
    text = f"model = dict(decode_head=dict(loss_decode=dict(_delete_=True, type='{loss}')))"
    Path("mine.py").write_text(f"_base_ = ['mmseg::{network}']\n{text}", encoding="utf-8")
    monkeypatch.setattr(sys.modules["gbseg.doctor"], "check_data", lambda *_: iter(()))
    assert report(load_config("mine.py")) == 1
    printed = capsys.readouterr().out
    pasted = printed[printed.index("_base_ = ") :].partition("\n\n")[0]
    Path("fixed.py").write_text(pasted, encoding="utf-8")
    fixed = load_config("fixed.py")
    report(fixed)
    assert " 0 warnings, 0 errors" in capsys.readouterr().out
    decode, auxiliary = (fixed.model[name].loss_decode for name in ("decode_head", "auxiliary_head"))
    strength = {"ExpGBLoss": 16, "Pow3GBLoss": 10}[loss]
    assert decode.loss_weight == pytest.approx(1 / strength) and auxiliary.loss_weight == pytest.approx(0.4 / strength)


def test_a_deliberately_strong_loss_keeps_its_heads_apart(tmp_path: Path) -> None:
    """The rate is already divided by t_pos: the auxiliary loss gets the weight 0.4, and not 0.4 / 16."""
    bad = tmp_path / "bad.py"
    loss = "model = dict(decode_head=dict(loss_decode=dict(_delete_=True, type='ExpGBLoss')))"
    bad.write_text(f"_base_ = ['{MMSEG}']\n{loss}\noptim_wrapper = dict(optimizer=dict(lr=0.01 / 16))", encoding="utf-8")
    (finding,) = [f for f in model_checks.check_model(load_config(bad)) if f.where == "auxiliary"]
    assert "type='ExpGBLoss', loss_weight=0.4)" in finding.remedy


def test_the_users_own_imports_stay(tmp_path: Path) -> None:
    """Without them in the printed list, what they register would be unknown."""
    bad = tmp_path / "bad.py"
    bad.write_text(f"_base_ = ['{MMSEG}']\n{CASES['imports'].text}", encoding="utf-8")
    (finding,) = [f for f in model_checks.check_model(load_config(bad)) if f.where == "imports"]
    assert "imports=['json', 'gbseg', 'gbseg.mm']" in finding.remedy


def test_lines_of_any_value() -> None:
    """Keys that are no names, tuples, lists of dicts: the lines are Python, and what they say."""
    from gbseg.doctor.remedy import config_lines

    config = Config(dict(a=dict(b=[dict(c=1), dict(c=2)], d={"x.y": (1,)}), t=(dict(p=1), dict(p=2))))
    lines = config_lines(config, [("a.b[1].c", 3), ("a.d", {"x.y": (2,), "in": None}), ("t[0].p", 5), ("n.m", "text")])
    read: dict[str, Any] = {}
    exec(lines, {}, read)
    assert read == dict(
        a=dict(b=[dict(c=1), dict(c=3)], d={"x.y": (2,), "in": None}), t=[dict(p=5), dict(p=2)], n=dict(m="text")
    )
