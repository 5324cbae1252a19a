"""Command lines in pages and in the headers of configs are ones that the commands take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT, command_lines

from gbseg.cli import COMMANDS, build_parser
from gbseg.files import REST

pytest.importorskip("mmengine")

TOOLS = {name.replace("-", "_"): name for name in COMMANDS}


def gbseg_commands(text: str) -> list[tuple[str, list[str]]]:
    """(command, arguments) of the lines that run ``gbseg COMMAND`` or ``tools/COMMAND.py``."""
    found = []
    for words in command_lines(text):
        for position, word in enumerate(words):
            tool = re.fullmatch(r"tools/(\w+)\.py", word)
            if tool:
                found.append((TOOLS[tool[1]], words[position + 1 :]))
            elif word == "gbseg" and position == 0 and not words[1].startswith("-"):
                found.append((words[1], words[2:]))
    return found


def shown_commands() -> list[object]:
    """Every command line that a reader may copy, with the page that it is in."""
    cases = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        scripts = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        # in running text a command with its arguments, not one that is merely named
        scripts += re.findall(r"`((?:uv run tools/\w+\.py|python tools/\w+\.py|gbseg \w[\w-]*) [^`]+)`", text)
        cases += [(page, *case) for script in scripts for case in gbseg_commands(script)]
    for config in sorted((ROOT / "configs").rglob("*.py")):
        header = re.match(r"(?:#.*\n)*", config.read_text(encoding="utf-8"))
        lines = re.findall(r"^#   +((?:python|uv run|torchrun|gbseg) [^\\\n]*(?:\\\n#[^\\\n]*)*)$", header[0], re.MULTILINE)
        script = "\n".join(lines).replace("\\\n#", "\\\n")
        cases += [(config, *case) for case in gbseg_commands(script)]
    verdict = (ROOT / "docs/verdict.md").read_text(encoding="utf-8")
    for line in re.findall(r"\| `([^`|]*)`[^|]*\|$", verdict, re.MULTILINE):
        if not line.startswith(("tools/", "configs/")):
            cases.append((ROOT / "docs/verdict.md", "reproduce", line.split()))
    cases = [case for case in cases if "COMMAND" not in case[1] and "--help" not in case[2]]
    return [
        pytest.param(command, arguments, id=f"{page.relative_to(ROOT)}: {command} {' '.join(arguments)}"[:100])
        for page, command, arguments in cases
    ]


def test_pages_have_commands() -> None:
    """The search above finds what it is meant to find."""
    assert len(shown_commands()) > 60


@pytest.mark.parametrize(("command", "arguments"), shown_commands())
def test_shown_commands_are_taken(command: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command's own parser, which refuses a config of the repository that is not there."""
    monkeypatch.chdir(tmp_path)
    for folder in ("configs", "tools"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    # a placeholder: MMEngine reads no config without a suffix
    arguments = ["CONFIG.py" if argument == "CONFIG" else argument for argument in arguments if argument != "&"]
    for argument in arguments:
        # what a reader has by then: a checkpoint, an archive, a config of one's own
        if re.fullmatch(r"[A-Z]{3,}|[^-=*]+\.(pth|dump|py|tar|tgz|jpg)", argument) and not argument.startswith(
            ("configs/", "tools/")
        ):
            (tmp_path / argument).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / argument).write_text("model = dict()\n")
        if re.fullmatch(r"work_dirs/.*/iter_\d+", argument):
            # a checkpoint of several files
            (tmp_path / argument).mkdir(parents=True)
            (tmp_path / argument / REST).write_text("")
    assert vars(build_parser([command]).parse_args([command, *arguments]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    """Files of the repository that a page names in code are there."""
    text = page.read_text(encoding="utf-8")
    pattern = r"(?<![\w/.])((?:gbseg|configs|tools|tests|benchmarks|reproduction|docs|results|\.ci|\.github)/[\w/.-]*\w)"
    names = set(re.findall(pattern, text)) - {"gbseg/gbseg", "gbseg/mIoU", "results/VOC2012/Segmentation/comp6_test_cls"}
    # what a reader is to make, by a placeholder
    assert [name for name in sorted(names) if not (ROOT / name).exists() and not re.search(r"[A-Z]{4}|my_", name)] == []
