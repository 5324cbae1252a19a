"""The work of the processes of a pool in tests of the pool itself. Imports little: every process reads it anew."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path


def init_worker(*arguments: object) -> None:
    pass


def work(folders: Sequence[Path], together: bool) -> None:
    """Write a result, break, or die, as the environment says."""
    for folder in folders:
        if folder.name == os.environ.get("BREAK"):
            raise RuntimeError("no good")
        if folder.name == os.environ.get("KILL"):
            os._exit(9)
        result = dict(steps=[1], metrics={"accuracy/top1": [50.0]}, loss=[1.0], diverged=None, seconds=1.0)
        (folder / "result.json").write_text(json.dumps({**result, "provenance": {}}))
