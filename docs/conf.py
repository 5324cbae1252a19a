"""Sphinx configuration: ``python -m sphinx -W --keep-going -b html docs build/docs``."""

import pkgutil
import pydoc
import re
from pathlib import Path
from types import BuiltinFunctionType, BuiltinMethodType

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import gbseg

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/gbseg/gbseg"

project = "gbseg"
author = "the gbseg authors"
copyright = "the gbseg authors"
version = release = gbseg.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
exclude_patterns = ["images/README.md"]  # beside what it describes, for those who look there
html_theme = "furo"
html_title = "gbseg"
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

default_role = "py:obj"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Shapes", "notes_style"), ("Shape", "notes_style"), "Formula", "Source"]
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

# A name in single backticks must exist. Annotations also name types of other packages, whose references are not here (no
# intersphinx: the documentation is built without a network).
nitpicky = True
nitpick_ignore_regex = [(r"py:(?!obj).*", r".*")]

# page of the reference -> its title, and the packages and modules on it
API_PAGES = {
    "losses": ("Boosts and losses", ["gbseg", "gbseg.boosting", "gbseg.losses"]),
    "pixelnet": ("PixelNet's parts", ["gbseg.pixelnet"]),
    "data": ("Data", ["gbseg.data", "gbseg.palettes"]),
    "evaluation": ("Evaluation", ["gbseg.evaluation"]),
    "mm": ("MMEngine, MMSegmentation, MMPretrain", ["gbseg.mm"]),
    "prediction": ("Prediction", ["gbseg.prediction"]),
    "doctor": ("The doctor", ["gbseg.doctor"]),
    "report": ("Reports", ["gbseg.report"]),
    "cli": ("Command line, files, processes", ["gbseg.cli"]),
}
# kernels for a GPU import Triton, which is not everywhere; a command's page is its --help; compat has parts of other packages
NOT_IN_REFERENCE = re.compile(r"gbseg\.cli\..*|gbseg\.mm\.compat|.*\.kernels\.gpu|.*_triton|.*\._\w+")


def write_api_pages(app: Sphinx) -> None:
    """A page for each package, with all its modules, so that none is forgotten."""
    listed = {root for _, roots in API_PAGES.values() for root in roots}
    top_level = [f"gbseg.{module.name}" for module in pkgutil.iter_modules([str(ROOT / "gbseg")])]
    others = [name for name in top_level if name not in listed and not NOT_IN_REFERENCE.fullmatch(name)]
    for page, (title, roots) in API_PAGES.items():
        names = []
        for root in roots + others * (page == "cli"):
            folder = ROOT / root.replace(".", "/")
            inner = [] if root == "gbseg" else [module.name for module in pkgutil.walk_packages([str(folder)], f"{root}.")]
            names += [root, *(name for name in inner if not NOT_IN_REFERENCE.fullmatch(name))]
        text = f"{title}\n{'=' * len(title)}\n"
        for name in names:
            text += f"\n{name}\n{'-' * len(name)}\n\n.. automodule:: {name}\n"
            if (ROOT / name.replace(".", "/")).is_dir():
                # what a package imports from its modules is described there
                text += "   :ignore-module-all:\n"
        file = Path(app.srcdir, "api", f"{page}.rst")
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def resolve_like_python(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    """Resolve a name as the code of its module would: imported names and re-exports lead to where they are defined."""
    if node.get("reftype") != "obj":
        return None
    target, module, owner = node["reftarget"], node.get("py:module"), node.get("py:class")
    if target in getattr(pydoc.locate(f"{module}.{owner}"), "__annotations__", ()):
        # a field, which its class describes
        return content
    prefixes = [f"{module}.{owner}" if module and owner else "", module or "", "" if "." in target else None]
    for prefix in prefixes:
        if prefix is None or not (prefix or "." in target):
            continue
        value = pydoc.locate(f"{prefix}.{target}" if prefix else target)
        if value is not None:
            name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
            domain = env.get_domain("py")
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content) or content
    return None


def skip_functions_of_others(app: Sphinx, what: str, name: str, value: object, skip: bool, options: object) -> bool | None:
    """Leave out attributes that hold a function of another package (``torch.sigmoid``), with its docstring."""
    return True if isinstance(value, BuiltinFunctionType | BuiltinMethodType) else None


def link_to_repository(app: Sphinx, name: str, source: list[str]) -> None:
    """Point links that leave ``docs/`` at the repository, so that a page reads the same here and on GitHub."""
    up = r"\.\./" * (name.count("/") + 1)
    source[0] = re.sub(rf"(?<!!)(\[[^\]]*\]\(){up}(?!\.\./)", rf"\1{REPOSITORY}/blob/main/", source[0])


def setup(app: Sphinx) -> None:
    """Register the above."""
    app.connect("builder-inited", write_api_pages)
    app.connect("autodoc-skip-member", skip_functions_of_others)
    app.connect("missing-reference", resolve_like_python)
    app.connect("source-read", link_to_repository)
