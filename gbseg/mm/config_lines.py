"""The values of a config as lines of a file, and what a file that inherits another config has to say."""

import keyword
from collections.abc import Mapping
from typing import Any

__all__ = ["file_lines", "inherited_difference", "value_text"]


def file_lines(values: Mapping[str, Any]) -> str:
    """A line for each key."""
    return "\n".join(f"{key} = {value_text(value)}" for key, value in values.items())


def inherited_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What a config that inherits ``old`` writes to be ``new``."""
    changed: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key)
        if key in old and before == value:
            continue
        if key in old and isinstance(value, Mapping):
            # a dict does not merge with None either
            if isinstance(before, Mapping) and set(before) <= set(value):
                changed[key] = inherited_difference(before, value)
            else:
                changed[key] = {"_delete_": True, **value}
        else:
            changed[key] = value
    return changed


def value_text(value: Any) -> str:
    """A value as a config writes it."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value):
            return f"dict({', '.join(f'{key}={value_text(item)}' for key, item in value.items())})"
        return f"{{{', '.join(f'{key!r}: {value_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        items = ", ".join(map(value_text, value))
        return f"[{items}]" if isinstance(value, list) else f"({items}{',' if len(value) == 1 else ''})"
    return repr(value)
