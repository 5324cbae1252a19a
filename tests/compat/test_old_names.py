"""Every module of version 0.1.0, and every name that it exported, is still there under its old name, with a warning."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("mmseg")
from gbseg._moved import MODULES, NAMES

LISTED = [line.split(":") for line in (Path(__file__).parent / "old_names.txt").read_text().split()]
OLD_MODULES = [module for module, name in LISTED if not name]
OLD_NAMES = [(module, name) for module, name in LISTED if name]


def new_object(path: str) -> object:
    """A module, or a name of one."""
    if find_spec(path.partition(".")[0]) is not None:
        try:
            return import_module(path)
        except ModuleNotFoundError:
            pass
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def import_afresh(module: str) -> tuple[object, list[str]]:
    """A module that is imported as if for the first time, and the warnings of its import."""
    if module in MODULES:
        sys.modules.pop(module, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        imported = import_module(module)
    return imported, [str(warning.message) for warning in caught if warning.category is FutureWarning]


@pytest.mark.parametrize("module", sorted({*OLD_MODULES, *MODULES}))
def test_module(module: str) -> None:
    imported, messages = import_afresh(module)
    if module not in MODULES:
        assert messages == []
        return
    new = MODULES[module]
    assert f"{module} is {new} now; the old name goes with gbseg 1.0." in messages
    target = import_module(new)
    for name in getattr(target, "__all__", []):
        if f"{module}.{name}" not in NAMES:
            assert getattr(imported, name) is getattr(target, name)


@pytest.mark.parametrize(("module", "name"), OLD_NAMES)
def test_name(module: str, name: str) -> None:
    old = f"{module}.{name}"
    imported, _ = import_afresh(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = getattr(imported, name)
    if old in NAMES:
        assert f"{old} is {NAMES[old]} now; the old name goes with gbseg 1.0." in [str(w.message) for w in caught]
        assert value is new_object(NAMES[old])
    elif module in MODULES:
        assert value is getattr(import_module(MODULES[module]), name)
    else:
        assert not [w for w in caught if w.category is FutureWarning]


@pytest.mark.parametrize("old", NAMES)
def test_renamed(old: str) -> None:
    module, _, name = old.rpartition(".")
    imported, _ = import_afresh(module)
    with pytest.warns(FutureWarning, match=f"{old} is {NAMES[old]} now".replace(".", r"\.")):
        value = getattr(imported, name)
    assert value is new_object(NAMES[old])


def test_nothing_leads_to_another_old_place() -> None:
    for new in (*MODULES.values(), *NAMES.values()):
        assert new not in MODULES and new not in NAMES, new


@pytest.mark.slow
def test_new_places_give_no_warning() -> None:
    """Importing the package as it is uses no old name; old and new names are the same objects, in any order of imports."""
    script = (
        "import warnings\n"
        "warnings.simplefilter('error', FutureWarning)\n"
        "import gbseg.mm, gbseg.prediction.testing, gbseg.doctor, gbseg.cli\n"
        "warnings.simplefilter('ignore', FutureWarning)\n"
        "from gbseg.engine.train import train as first\n"
        "from gbseg.engine import train, test\n"
        "from gbseg.engine.test import test as second\n"
        "import gbseg.engine.train, gbseg.engine.test, gbseg.mm.training, gbseg.prediction.testing\n"
        "assert train is first is gbseg.engine.train is gbseg.mm.training.train\n"
        "assert test is second is gbseg.engine.test is gbseg.prediction.testing.test\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr


def test_the_warning_points_at_the_user(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import gbseg\n\nfrom gbseg.data.voc import VOC_PALETTE\nfrom gbseg.data import prepare\n"
    )
    run = subprocess.run([sys.executable, tmp_path / "mine.py"], capture_output=True, text=True, timeout=300, check=True)
    assert "mine.py:3: FutureWarning: gbseg.data.voc is gbseg.palettes now" in run.stderr


def test_without_a_checkout(tmp_path: Path) -> None:
    script = (
        "import sys\nsys.modules['reproduction'] = None\nimport gbseg\n"
        "try:\n    import gbseg.reproduction.grid\nexcept ModuleNotFoundError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert "it is the folder reproduction/ of a checkout" in run.stdout
