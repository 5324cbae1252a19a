"""The order of the tests, MMEngine's globals new for each, and a disk that can be filled for every test that asks for one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # a core for each process of the tests, and for the commands that it starts
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
if not torch.cuda.is_available():
    # before any kernel is made: they run on a CPU, operation by operation
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    help_ = "how often a loss is compiled anew by Inductor, in a loop that CI does not run"
    parser.addoption("--compilations", type=int, default=0, metavar="N", help=help_)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # a broken formula shows within seconds, not behind everything that is built on it
    here = Path(__file__).parent
    formulas = (here / "test_boosting.py", here / "losses")
    # and of two processes none is left alone with the longest files at the end
    items.sort(
        key=lambda item: (
            not any(item.path.is_relative_to(place) for place in formulas),
            not item.path.is_relative_to(here / "integration"),
        )
    )
    if torch.cuda.is_available() or not (found := _triton()) or found >= (3, 9):
        return
    reason = pytest.mark.skip(reason="Triton's interpreter before 3.9 rounds bfloat16 otherwise and fails with numpy 2.4")
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(isinstance(value, str) and value == "triton" for value in parameters):
            item.add_marker(reason)


def _triton() -> tuple[int, ...]:
    """The version of the package, of which there may be none."""
    try:
        return tuple(map(int, version("triton").split(".")[:2]))
    except PackageNotFoundError:
        return ()


@pytest.fixture(autouse=True)
def no_mmengine_globals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test finds the loggers, logged values or default scope of another.

    MMEngine names them by the second: of two runs in one, the second would write to the first's files, and know its best score.
    """
    if "mmengine.runner.runner" in sys.modules:
        # most of a short run's time: it asks compilers for their versions
        monkeypatch.setattr("mmengine.runner.runner.collect_env", dict)
    yield
    if "mmengine.registry" in sys.modules:
        sys.modules["mmengine.logging"].MMLogger._instance_dict.clear()
        # with the best score of a run
        sys.modules["mmengine.logging"].MessageHub._instance_dict.clear()
        sys.modules["mmengine.registry"].DefaultScope._instance_dict.clear()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many KiB, once."""
    point = tmp_path / "disk"
    mounted = []

    def mount(size: int) -> Path:
        point.mkdir()
        command = shutil.which("mount")
        if (
            command is None
            or subprocess.run([command, "-t", "tmpfs", "-o", f"size={size}k", "gbseg", point], check=False).returncode
        ):
            pytest.skip("a small file system cannot be mounted here")
        mounted.append(point)
        return point

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)
