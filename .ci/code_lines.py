"""Lines of code of a package: what is left without docstrings, comments and blank lines.

python .ci/code_lines.py gbseg [LIMIT]
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """The number of lines that hold a token of code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def main(folder: str, limit: str | None = None) -> int:
    """Print the lines of every sub-package and their sum; 1 if that is above the limit."""
    counts: dict[str, int] = {}
    for path in sorted(Path(folder).rglob("*.py")):
        counts[str(path.parent)] = counts.get(str(path.parent), 0) + code_lines(path.read_text(encoding="utf-8"))
    for name, count in counts.items():
        print(f"{count:6,}  {name}")
    total = sum(counts.values())
    print(f"{total:6,}  in all{f', of at most {int(limit):,}' if limit else ''}")
    return int(limit is not None and total > int(limit))


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
