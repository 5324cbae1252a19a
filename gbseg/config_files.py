"""Where config files are: paths, and ``gbseg::NAME.py`` for those that came with a package. No config is read."""

from importlib.util import find_spec
from pathlib import Path

__all__ = ["config_folder", "find_config"]


def config_folder(package: str) -> Path:
    """The folder with the configs of 'gbseg' (in the wheel, or beside the package in a checkout), 'mmseg' or 'mmpretrain'.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"configs of {package} were asked for, and {package} is not installed.")
    package_folder = Path(spec.origin).parent
    if package != "gbseg":
        return package_folder / ".mim" / "configs"
    in_wheel, in_checkout = package_folder / "configs", package_folder.parent / "configs"
    return in_checkout if in_checkout.is_dir() and not in_wheel.is_dir() else in_wheel


def find_config(path: str | Path) -> Path:
    """The file of a config.

    Args:
        path: a file, or ``gbseg::demo_expgb.py`` and ``mmseg::...`` for those that are installed.

    Raises:
        FileNotFoundError: there is no such config; the message lists those of gbseg.
        ModuleNotFoundError: the package before ``::`` is not installed.
    """
    package, _, name = str(path).partition("::")
    file = config_folder(package) / name if name else Path(path)
    if not file.is_file():
        folder = config_folder("gbseg")
        shipped = (path.relative_to(folder) for path in folder.rglob("*.py"))
        names = sorted(f"gbseg::{path}" for path in shipped if not any(part.startswith("_") for part in path.parts))
        raise FileNotFoundError(f"there is no config {file}. gbseg brings: {', '.join(names)}.")
    return file
