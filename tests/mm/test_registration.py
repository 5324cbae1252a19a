"""One import registers every component that a config can name, whatever configs of earlier versions import."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmseg")

ROOT = Path(__file__).parents[2]
# registered by calls and not by decorators
BY_CALL = {
    "MODELS": {"BoostedLoss", "ExpGBLoss", "LinearLoss", "Pow3GBLoss", "UniformPixelSampler", "BalancedPixelSampler"},
    "FUNCTIONS": {"write_scenes"},
}
SCRIPT = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
from mmengine.config import Config
import mmengine.registry
Config.fromstring("custom_imports = dict(imports=" + sys.argv[1] + ")", ".py")
print(json.dumps({
    registry: {name: kind.__module__ for name, kind in getattr(mmengine.registry, registry).module_dict.items()}
    for registry in sys.argv[2:]
}))
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


def registered(imports: list[str]) -> dict[str, dict[str, str]]:
    """What a fresh process has registered after a config with these imports: registry -> name -> module."""
    registries = sorted({*decorated(), *BY_CALL})
    command = [sys.executable, "-c", SCRIPT, repr(imports), *registries]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("imports", [["gbseg.mm"], *earlier_imports()], ids=lambda imports: str(len(imports)))
def test_everything_is_registered(imports: list[str]) -> None:
    """By `gbseg.mm` alone, and by what configs of before import."""
    names = decorated()
    assert {"ResumableIterLoop"} <= names["LOOPS"] and {"PixelNetHead", "GBClsHead"} <= names["MODELS"]
    modules = registered(imports)
    for registry in {*names, *BY_CALL}:
        for name in names.get(registry, set()) | BY_CALL.get(registry, set()):
            assert modules[registry].get(name, "nothing").startswith("gbseg."), f"{registry}: {name} after importing {imports}"


def test_the_losses_alone() -> None:
    """``imports=['gbseg']`` registers the losses, and leaves a foreign config's process without the rest."""
    modules = registered(["gbseg"])
    assert {"BoostedLoss", "ExpGBLoss", "LinearLoss", "Pow3GBLoss"} <= set(modules["MODELS"])
    assert "PixelNet" not in modules["MODELS"]
