"""Start the server of `engine_tiny` early: its imports run beside the tests that need no process."""

from importlib.util import find_spec
from multiprocessing import forkserver

if find_spec("mmengine"):
    import engine_tiny  # noqa: F401

    forkserver.ensure_running()
