"""Names of modules: each is one of its kind, and none is hidden by a function."""

import ast
from collections import defaultdict
from pathlib import Path

import gbseg

PACKAGE = Path(gbseg.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))


def test_no_two_modules_share_a_name() -> None:
    folders = defaultdict(list)
    for path in MODULES:
        folders[path.stem].append(str(path.parent.relative_to(PACKAGE)))
    assert {name: places for name, places in folders.items() if len(places) > 1} == {}


def test_no_function_hides_its_module() -> None:
    """`from gbseg.a.b import b` in `gbseg/a/__init__.py` would make `import gbseg.a.b as b` a function."""
    hidden = []
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == path.stem:
                hidden.append(str(path.relative_to(PACKAGE)))
    assert hidden == []
