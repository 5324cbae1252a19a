"""Lists the modules of an earlier version, and the names in their ``__all__``.

python tests/compat/list_names.py fc0ef20 > tests/compat/old_names.txt
"""

import ast
import subprocess
import sys


def names(commit: str) -> list[str]:
    """Every module as ``package.module:``, every name as ``package.module:name``."""
    listed = []
    files = subprocess.check_output(["git", "ls-tree", "-r", "--name-only", commit, "gbseg"], text=True).split()
    for file in files:
        if not file.endswith(".py"):
            continue
        module = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        listed.append(f"{module}:")
        source = subprocess.check_output(["git", "show", f"{commit}:{file}"], text=True)
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
                listed.extend(f"{module}:{name}" for name in ast.literal_eval(node.value))
    return sorted(listed)


if __name__ == "__main__":
    print("\n".join(names(sys.argv[1])))
