"""A finding: what the doctor says about one checked thing."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["ERROR", "LEVELS", "NOTE", "OK", "WARNING", "Finding"]

OK, NOTE, WARNING, ERROR = LEVELS = ("ok", "note", "warning", "error")


class Finding(NamedTuple):
    """One checked thing.

    Attributes:
        level: 'ok'; 'note', something to know; 'warning', training works but perhaps not as meant; 'error', it fails or its
            result is wrong.
        where: the part of config, data or machine.
        text: what is the case, with file and value.
        remedy: what to do; '' if there is nothing to do. What is a change of the config ends in its lines, for a config that
            inherits the one that was checked.
        changes: the same changes, as keys with dots and their new values.
    """

    level: str
    where: str
    text: str
    remedy: str = ""
    changes: tuple[tuple[str, Any], ...] = ()
