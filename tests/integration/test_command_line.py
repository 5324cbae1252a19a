"""The command line itself: help, version, completion, and arguments that are refused before anything heavy is loaded."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gbseg
from gbseg import cli
from gbseg.cli import COMMANDS, build_parser, main
from gbseg.cli.common_options import key_and_value, parse_value

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "mmengine", "mmcv", "mmseg", "mmpretrain", "cv2", "torchvision"]
# of several command lines in one process: the exit status of each, which heavy modules are loaded after it, and what it said
PROBE = f"""
import contextlib, io, json, sys
from gbseg.cli import main
for argv in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(argv)
        except SystemExit as exit:
            status = exit.code
    print(json.dumps([status, sorted(set({HEAVY}) & set(sys.modules)), said.getvalue()]))
"""


def probe(*command_lines: list[str]) -> list[tuple[int, list[str], str]]:
    command = [sys.executable, "-c", PROBE, json.dumps(command_lines)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd=ROOT)
    results = [tuple(json.loads(line)) for line in run.stdout.splitlines()]
    assert len(results) == len(command_lines)
    return results


def test_help_loads_nothing_heavy() -> None:
    for command, result in zip(COMMANDS, probe(*([command, "--help"] for command in COMMANDS)), strict=True):
        assert result[:2] == (0, []), result
        assert f"\nExample:\n    gbseg {command} " in result[2]
    version, help_text = probe(["--version"], ["--help"])
    assert version == (0, [], f"gbseg {gbseg.__version__}\n")
    assert help_text[:2] == (0, []) and "\nExample:\n    gbseg train " in help_text[2]


def test_examples_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        example = re.search(r"Example:\n    gbseg (.*)\n", cli._module(command).__doc__ or "")
        assert example is not None
        argv = shlex.split(example[1])
        for name in argv:
            if name.endswith((".pth", ".dump")):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).touch()
        assert argv[0] == command
        assert callable(build_parser().parse_args(argv).run)


def test_refused_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path
    (folder / "syntax.py").write_text("a = 1\nmodel = dict(\n")
    (folder / "empty.py").touch()
    (folder / "base.py").write_text("_base_ = ['gbseg::demo.py']\n")
    (folder / "binary.py").write_bytes(b"a = '\xff'")
    cases: list[tuple[list[str], int, str]] = [
        (["train", "nothing.py"], 1, "there is no config nothing.py. gbseg brings "),
        (["train", "demo_exgb.py"], 1, "there is no config demo_exgb.py. Perhaps gbseg::demo_expgb.py"),
        (["train", "gbseg::nothing.py"], 1, "configs/nothing.py. gbseg brings "),
        (["train", "mmseg::nothing.py"], 1, "configs/nothing.py. mmseg brings "),
        (["train", "configs"], 1, "configs is a folder, not a config"),
        (["train", "README.md"], 1, "README.md is no config: its name does not end in .py"),
        (["train", f"{folder}/syntax.py"], 1, "syntax.py is no valid Python in line 2: "),
        (["doctor", f"{folder}/empty.py"], 1, "empty.py is empty"),
        (["test", f"{folder}/base.py", "x.pth"], 1, "its _base_ 'gbseg::demo.py' does not exist"),
        (["browse", f"{folder}/binary.py"], 1, "binary.py is no text in UTF-8"),
        (
            ["train", "gbseg::demo_expgb.py", "--work-dir", "README.md"],
            1,
            "README.md is to be a folder, and README.md is a file",
        ),
        (["train", "gbseg::demo_expgb.py", "--work-dir", "README.md/x"], 1, "is to be a folder, and README.md is a file"),
        (["browse", "gbseg::demo_expgb.py", "--out", "README.md"], 1, "README.md is to be a folder, and README.md is a file"),
        (["train", "gbseg::demo_expgb.py", "--launcher", "torch"], 2, "invalid choice: 'torch'"),
        (["doctor", "mmnothing::nothing.py"], 1, "configs of mmnothing were asked for, and mmnothing is not installed."),
        (["test", "gbseg::demo_expgb.py", "no.pth"], 1, "there is no checkpoint no.pth; training writes them"),
        (["predict", "gbseg::demo_expgb.py", "no.pth", "README.md", "--out", "o"], 1, "there is no checkpoint no.pth"),
        (["predict", "gbseg::demo_expgb.py", "README.md", "no*.png", "--out", "o"], 1, "matches nothing as a glob"),
        (["predict", "gbseg::demo_expgb.py", "README.md", "docs/stats.png", "--out", "docs"], 1, "would overwrite it"),
        (["train", "gbseg::demo_expgb.py", "--nothing"], 2, "unrecognized arguments: --nothing"),
        (["train", "gbseg::demo_expgb.py", "--cfg-options", "a"], 2, "--cfg-options: 'a' is not of the form KEY=VALUE"),
        (["train", "gbseg::demo_expgb.py", "--cfg-options", "a=(1,2"], 2, "the brackets in '(1,2' do not match"),
        (["browse", "gbseg::demo_expgb.py", "--split", "all"], 2, "invalid choice: 'all'"),
        (["reproduce", "nothing"], 2, "invalid choice: 'nothing'"),
        (["nothing"], 2, "invalid choice: 'nothing'"),
        ([], 2, "the following arguments are required: COMMAND"),
    ]
    for (argv, expected, message), (status, loaded, said) in zip(cases, probe(*(argv for argv, *_ in cases)), strict=True):
        assert (status, loaded) == (expected, []), (argv, said)
        assert message in said, argv


def test_python_m_gbseg() -> None:
    run = subprocess.run([sys.executable, "-m", "gbseg", "--version"], capture_output=True, text=True, timeout=300, check=True)
    assert run.stdout == f"gbseg {gbseg.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["--print-completion", shell])
    assert exited.value.code == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS) and "fig1a" in script
    if shell == "bash" and shutil.which("bash"):
        (tmp_path / "gbseg.sh").write_text(script)
        (tmp_path / "my_config.py").touch()
        (tmp_path / "my_weights.pth").touch()

        def complete(*words: str) -> set[str]:
            line = (
                f"source gbseg.sh; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
                '_shtab_gbseg; printf "%s\\n" "${COMPREPLY[@]}"'
            )
            run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, cwd=tmp_path)
            return {word.strip() for word in run.stdout.splitlines()}

        assert complete("gbseg", "prep") == {"prepare-voc", "prepare-coco", "prepare-imagenet"}
        assert complete("gbseg", "train", "--res") == {"--resume"}
        assert complete("gbseg", "train", "my_c") == {"my_config.py"}
        assert complete("gbseg", "test", "my_config.py", "my_w") == {"my_weights.pth"}
        assert complete("gbseg", "browse", "--split", "v") == {"val"}


def dict_action(text: str) -> object:
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser()
    parser.add_argument("--options", nargs="+", action=DictAction)
    return parser.parse_args(["--options", text]).options


@pytest.mark.parametrize(
    "text",
    [
        *("1", "-1", "1_000", "01", "+3", "1.5", "1e-3", ".5", "1.", "nan", "inf", "-Infinity", "0x10", "1j"),
        *("true", "True", "FALSE", "None", "none", "NONE", "", " ", "a", "a b", "'a'", "\"a'", "a=b", "x=1=2"),
        *("1,2", "1,", ",", ",,", "1,,2", "a,1.5,None", "[1,2]", "[1, 2]", "[1]", "[]", "()", "(1,)", "(1,2)", "[ ]"),
        *("[(1,2),(3,4)]", "[(1, 2, 3), [a, b], c]", "[[1],[2,[3,(4,)]]]", "'[1,2]'", "['a','b']", '["a", "b"]', "[true,None]"),
        *("[1,2],[3]", "(1,2),3", "a(1),2", "a[1]", "[1", "(", ")", "1)", "['a,b']", "data/x y.png", "[a(1,2),b]", "{1,2}"),
        *("[()]", "((),)", "[[],[]]", "lambda", "mmseg::x.py", "[1,2,]", "[1 2]", "(1)", "[[[1]]]", "(')',1)"),
    ],
)
def test_values_are_those_of_dict_action(text: str) -> None:
    pytest.importorskip("mmengine")
    _compare(text)


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="12a ,()[]'\".=-NoneTrue", max_size=14))
def test_values_are_those_of_dict_action_for_any_text(text: str) -> None:
    pytest.importorskip("mmengine")
    _compare(text)


def _compare(text: str) -> None:
    try:
        expected = dict_action(f"key={text}")["key"]  # type: ignore[index]
    except (AssertionError, RecursionError):
        # brackets that do not match: refused in a sentence, or taken as a part of a string
        try:
            parse_value(text)
        except argparse.ArgumentTypeError as error:
            assert "brackets" in str(error)
        return
    key, value = key_and_value(f"key={text}")
    # repr: nan is not equal to itself, True is equal to 1
    assert (key, repr(value)) == ("key", repr(expected))


def test_options_add_up() -> None:
    parse = build_parser().parse_args
    argv = ["doctor", "gbseg::demo_expgb.py"]
    assert parse(argv).cfg_options is None
    given_twice = parse([*argv, "--cfg-options", "a.b=1", "c=x,y", "--cfg-options", "a.b=2", "d=k=v"])
    assert given_twice.cfg_options == {"a.b": 2, "c": ["x", "y"], "d": "k=v"}


def test_an_error_that_is_no_refusal_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from gbseg.cli import compare

    def run_with(error: str) -> None:
        def run(arguments: argparse.Namespace) -> None:
            exec(error, {"__name__": "gbseg.anything"})

        monkeypatch.setattr(compare, "_run", run)

    run_with("raise ImportError('X needs the package y: pip install y')")
    assert main(["compare", "gbseg::demo_expgb.py"]) == 1
    assert capsys.readouterr().err == "\ngbseg: X needs the package y: pip install y\n"
    run_with("import a_module_that_is_missing")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        main(["compare", "gbseg::demo_expgb.py"])
    monkeypatch.setattr(compare, "_run", lambda arguments: torch.zeros(2).reshape(3))
    with pytest.raises(RuntimeError, match="shape"):
        main(["compare", "gbseg::demo_expgb.py"])
