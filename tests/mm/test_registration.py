"""One import registers every component that a config can name, whatever configs of earlier versions import."""

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("mmseg")
from gbseg._moved import NAMES

ROOT = Path(__file__).parents[2]
# registered by calls and not by decorators
BY_CALL = {
    "MODELS": {"BoostedLoss", "ExpGBLoss", "LinearLoss", "Pow3GBLoss", "UniformPixelSampler", "BalancedPixelSampler"},
    "FUNCTIONS": {"write_scenes"},
}
SCRIPT = """
import contextlib, importlib, json, os, sys, warnings
warnings.simplefilter("ignore")
import mmengine.registry
from mmengine.config import Config

lists, preload, registries = map(json.loads, sys.argv[1:])
with contextlib.redirect_stdout(sys.stderr):
    for name in preload:
        importlib.import_module(name)
for imports in lists:
    # every list in a process that has not imported gbseg before
    if not os.fork():
        Config.fromstring(f"custom_imports = dict(imports={imports})", ".py")
        modules = {}
        for registry in registries:
            components = getattr(mmengine.registry, registry).module_dict.items()
            modules[registry] = {name: getattr(component, "__module__", "") for name, component in components}
        print(json.dumps(modules), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, imports
"""


def decorated() -> dict[str, set[str]]:
    """The components of the package by the name of their registry, read from the source."""
    names: dict[str, set[str]] = {}
    for path in (ROOT / "gbseg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for decorator in getattr(node, "decorator_list", []):
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(".register_module"):
                    names.setdefault(ast.unparse(decorator.func).split(".")[0], set()).add(node.name)
    return names


def earlier_imports() -> list[list[str]]:
    """The lists in the configs of before."""
    lists = []
    for path in sorted((ROOT / "tests" / "compat" / "configs").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "custom_imports":
                imports = next(keyword.value for keyword in node.value.keywords if keyword.arg == "imports")
                lists.append(ast.literal_eval(imports))
    return lists


def registered(lists: list[list[str]], preload: list[str]) -> list[str]:
    """The output of a fresh process: for each list of imports, what is registered afterwards, registry -> name -> module.

    Args:
        lists: lists of imports.
        preload: foreign packages to import before.
    """
    registries = sorted({*decorated(), *BY_CALL})
    command = [sys.executable, "-c", SCRIPT, *map(json.dumps, (lists, preload, registries))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def check(line: str) -> None:
    """All components are there, and they are gbseg's."""
    modules, names = json.loads(line), decorated()
    assert "ResumableIterLoop" in names["LOOPS"] and {"PixelNetHead", "GBClsHead"} <= names["MODELS"]
    for registry in {*names, *BY_CALL}:
        for name in names.get(registry, set()) | BY_CALL.get(registry, set()):
            assert modules[registry].get(name, "nothing").startswith("gbseg."), f"{registry}: {name}"


@pytest.mark.slow
def test_one_import_registers_everything() -> None:
    """And prints nothing: what the family prints at its first import is swallowed (see gbseg.mm.compat)."""
    lines = registered([["gbseg.mm"]], [])
    assert len(lines) == 1, lines
    check(lines[0])


@pytest.mark.slow
def test_imports_of_earlier_configs() -> None:
    """``imports=['gbseg']`` registers the losses alone; the lists in configs of earlier versions register everything."""
    lists = earlier_imports()
    assert len(lists) == 3
    losses, *lines = registered(
        [["gbseg"], *lists], ["mmseg.datasets", "mmseg.models", "mmpretrain.datasets", "mmpretrain.models"]
    )
    models = json.loads(losses)["MODELS"]
    assert {"BoostedLoss", "ExpGBLoss", "LinearLoss", "Pow3GBLoss"} <= set(models) and "PixelNet" not in models
    assert len(lines) == 3
    for line in lines:
        check(line)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_names_of_earlier_versions() -> None:
    """What was renamed or moved into gbseg.mm is the same object under its old name."""
    moved = {old: new for old, new in NAMES.items() if new.startswith("gbseg.mm.")}
    assert {"gbseg.engine.position.Draw", "gbseg.engine.runner.TerseRunner", "gbseg.engine.browse.seen"} <= set(moved)
    for old, new in moved.items():
        before, now = (getattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in (old, new))
        assert before is now, old
