"""Start the server of `engine_tiny` early: its imports run beside the tests that need no process."""

from collections.abc import Iterator
from importlib.util import find_spec
from multiprocessing import forkserver

import pytest

if find_spec("mmengine"):
    import engine_tiny  # noqa: F401

    forkserver.ensure_running()


@pytest.fixture
def mmengine_scope() -> Iterator[None]:
    """MMEngine's own default scope, whatever an earlier test of this process has set."""
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmengine"):
        yield
