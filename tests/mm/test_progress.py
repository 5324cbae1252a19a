"""The progress bar on a real pseudo-terminal, read through a small terminal emulator; and its absence elsewhere."""

import atexit
import os
import pty
import re
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmengine")
import engine_tiny as tiny

HOOK = {"custom_hooks": [{"type": "ProgressHook", "interval": 1, "refresh": 0.0}, {"type": "NonFiniteGuardHook"}]}
SIZE = (200, 120)


def on_terminal(work_dir: Path, terminal: str, **options: Any) -> None:
    """Train with all streams on that terminal."""
    os.environ.update(TERM="xterm", COLUMNS=str(SIZE[1]), LINES=str(SIZE[0]))
    descriptor = os.open(terminal, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    try:
        tiny.runner(tiny.config(work_dir, **options)).train()
        print("the end")
    except Exception:
        traceback.print_exc()
        # what the interpreter does at its end, unlike a process of multiprocessing
        atexit._run_exitfuncs()
        raise SystemExit(1) from None


def screen(raw: str) -> list[str]:
    """The lines that a terminal would show after ``raw``; understands what rich uses."""
    rows, row, column = [""], 0, 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\x1b\].*?(?:\x07|\x1b\\)|[\r\n])", raw):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif re.fullmatch(r"\x1b\[\d*A", part):
            row = max(0, row - int(part[2:-1] or 1))
        elif re.fullmatch(r"\x1b\[2K", part):
            rows[row] = ""
        elif not part.startswith("\x1b"):
            rows[row] = rows[row].ljust(column)[:column] + part + rows[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in rows]


def _watch(folder: Path, **options: Any) -> tuple[int, str]:
    """Run on a new pseudo-terminal; the exit code and all that was written there."""
    master, slave = pty.openpty()
    chunks: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(master, 65536):
                chunks.append(chunk)
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    process = tiny.start(folder, on_terminal, terminal=os.ttyname(slave), **options)
    process.join(300)
    os.close(slave)
    reader.join(10)
    os.close(master)
    return process.exitcode, b"".join(chunks).decode().replace("\r\n", "\n")


def _lines(text: str) -> list[str]:
    """The log lines of training and validation, less what differs from run to run."""
    log_lines = re.findall(r"^.*(Iter\((?:train|val)\).*?) *$", re.sub(r"\x1b\[[0-9;]*m", "", text), re.M)
    return [re.sub(r"(time|eta): *[0-9.:]+ *", "", line).strip() for line in log_lines]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with the hook, but into a file."""
    folder = tmp_path_factory.mktemp("plain")
    # which makes rich believe that any file is a terminal
    assert tiny.run(folder, environment={"FORCE_COLOR": "1"}, **HOOK) == 0
    return folder


def test_no_terminal(plain: Path, tmp_path: Path) -> None:
    """The plain lines of mmengine, and nothing else."""
    text = tiny.output(plain)
    assert not re.search(r"\x1b\[[^m]*[A-Zac-ln-z]", text)
    assert "img/s" not in text
    assert tiny.run(tmp_path, custom_hooks=[]) == 0
    assert _lines(text) == _lines(tiny.output(tmp_path))


def test_terminal(plain: Path, tmp_path: Path) -> None:
    """A bar with everything that was asked for; every log line whole and in order; at the end no trace of the bar."""
    code, raw = _watch(tmp_path, workers=2, **HOOK)
    assert code == 0, raw[-3000:]
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw)
    bar = r"epoch \d\.\d\d \S+ +7/12 loss \d\.\d+ +lr 0.01743 +\d+\.\d img/s +\d:\d\d:\d\d left"
    assert re.search(bar, drawn), drawn[-3000:]
    assert re.search(r"validation \S+ +2/3", drawn)
    shown = screen(raw)
    assert len(_lines("\n".join(shown))) == 12 + 12
    assert _lines("\n".join(shown)) == _lines(tiny.output(plain))
    assert not any("━" in line or "img/s" in line for line in shown)
    assert [line for line in shown if line][-1] == "the end"
    # the cursor is hidden while the bar stands, and comes back
    assert raw.count("\x1b[?25l") == 1
    assert raw.index("\x1b[?25l") < raw.rindex("\x1b[?25h")


def test_error_on_a_terminal(tmp_path: Path) -> None:
    """An exception is shown whole, and the cursor comes back."""
    code, raw = _watch(tmp_path, **HOOK, **{"model.bad_at": 3})
    assert code == 1
    shown = screen(raw)
    assert any(line.startswith("gbseg.mm.hooks.nonfinite_guard.NonFiniteLossError: the loss is not finite") for line in shown)
    assert not any("━" in line for line in shown)
    assert raw.index("\x1b[?25l") < raw.rindex("\x1b[?25h")
