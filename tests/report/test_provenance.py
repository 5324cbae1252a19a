"""What a result is stored with."""

import getpass
import json
import platform
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from gbseg.report import run_provenance as module
from gbseg.report.run_provenance import provenance


def test_content() -> None:
    """Moment, machine and versions are those that the libraries themselves give."""
    computed = json.loads(json.dumps(provenance("python tools/train.py x.py", seed=3)))
    assert computed["command"] == "python tools/train.py x.py" and computed["seed"] == 3
    date = datetime.fromisoformat(computed["date"])
    assert date.utcoffset() == timedelta(0) and abs(datetime.now(UTC) - date) < timedelta(minutes=1)
    assert computed["versions"]["torch"] == torch.__version__ and computed["versions"]["numpy"] == np.__version__
    assert computed["versions"]["python"] == platform.python_version()
    assert set(computed["versions"]) == {"python", "torch", "numpy", "mmengine", "mmseg", "gbseg"}
    assert computed["hardware"]["cores"] >= 1 and computed["hardware"]["cpu"]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        kib = int(meminfo.read_text().split("MemTotal:")[1].split()[0])
        assert computed["hardware"]["memory_gib"] == pytest.approx(kib / 2**20, abs=0.1)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    assert computed["hardware"]["gpu"] == gpu
    assert computed["arithmetic"] == {"threads": torch.get_num_threads(), "processes": 1, "deterministic": False}
    assert provenance()["command"] is None and provenance()["seed"] is None


def test_mm_versions() -> None:
    """The maintained distributions' versions are found under the names that code imports."""
    mmengine = pytest.importorskip("mmengine")
    assert provenance()["versions"]["mmengine"] == mmengine.__version__


def test_nothing_private() -> None:
    """No host name, no user name, no absolute path."""
    text = json.dumps(provenance())
    words = text.replace('"', " ").split()
    assert socket.gethostname() not in words and getpass.getuser() not in words
    assert str(Path.home()) not in text and str(Path.cwd()) not in text
    assert not any(word.startswith("/") for word in words)


def test_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is that of the code; new results do not make it dirty, a changed or new file does; no git, no commit."""

    def git(*arguments: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *names, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    source = tmp_path / "gbseg" / "report" / "provenance.py"
    source.parent.mkdir(parents=True)
    source.write_text("1")
    monkeypatch.setattr(module, "__file__", str(source))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance()["git"] == {"commit": None, "dirty": None}
    git("init")
    assert provenance()["git"] == {"commit": None, "dirty": None}  # in a repository, but not of it
    git("add", ".")
    git("commit", "-m", "a")
    assert provenance()["git"] == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text("{}")
    assert provenance()["git"]["dirty"] is False
    (tmp_path / "new.py").write_text("")
    assert provenance()["git"]["dirty"] is True
    (tmp_path / "new.py").unlink()
    source.write_text("2")
    assert provenance()["git"]["dirty"] is True


def test_without_cpuinfo_or_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc and git are missing there is still an answer."""

    def missing(*arguments: object, **settings: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(module.subprocess, "run", missing)
    monkeypatch.setattr(module.Path, "read_text", missing)
    computed = provenance()
    assert computed["git"] == {"commit": None, "dirty": None}
    assert computed["hardware"]["cpu"] == (platform.processor() or platform.machine())
