"""The image lists of VOC 2012 and SBD: which images are for training, and which for evaluation."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gbseg.data.layout import BLANK, MARK, read_list

__all__ = ["HELD_OUT", "OFFICIAL_COUNTS", "abbreviate", "build_lists", "count_problems", "hold_out", "list_bytes", "read_ids"]

#: The number of ids of each list that is made from the official ones.
OFFICIAL_COUNTS: Mapping[str, int] = {
    "train": 1464,
    "val": 1449,
    "trainval": 2913,
    "sbd_train": 8498,
    "sbd_val": 2857,
    "aug": 9118,
    "train_aug": 10582,
    "trainaug": 10582,
    "paper_train": 8398,
    "paper_val": 100,
    "sbd_train_noval": 5623,
}

#: The number of images of SBD's train list that the paper's authors held out for evaluation; they do not say which.
HELD_OUT = 100


def read_ids(path: str | Path) -> list[str]:
    """The ids of a list, in its order. Blank lines, Windows line ends and a byte order mark are ignored.

    Raises:
        ValueError: the file is missing, empty or no text, or a line is no id or a duplicate; the message names file and line.
    """
    try:
        lines = [line for line in read_list(path) if line.fault != BLANK]
    except FileNotFoundError as error:
        raise ValueError(f"there is no list {path}.") from error
    for line in lines:
        fault = f"is no id but a path: {line.id!r}" if "/" in line.id else line.fault
        if fault and fault != MARK:
            raise ValueError(f"{path}, line {line.number} {fault}; a list has one id a line, each once, like 2007_000032.")
    if not lines:
        raise ValueError(f"{path} has no ids.")
    return [line.id for line in lines]


def hold_out(ids: Iterable[str], count: int, seed: int = 0) -> tuple[set[str], set[str]]:
    """Split ids into a training set and ``count`` ids that are held out for evaluation.

    Held out are the ids with the lowest SHA-256 of ``"<seed>:<id>"``: random for every practical purpose, and the same on
    every machine and version and for every order of the ids.

    Returns:
        The ids for training and those for evaluation.
    """
    ids = set(ids)
    order = sorted(ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    held_out = set(order[:count])
    return ids - held_out, held_out


def build_lists(
    train: Iterable[str],
    val: Iterable[str],
    sbd_train: Iterable[str],
    sbd_val: Iterable[str],
    sbd_train_noval: Iterable[str] | None = None,
) -> dict[str, list[str]]:
    """All lists by name, each sorted, from those of VOC and SBD.

    * ``trainval`` = train + val (VOC's own masks);
    * ``aug`` = SBD - trainval, what SBD adds to VOC;
    * ``train_aug`` = train + SBD - val, the usual training list; MMSegmentation calls it ``trainaug``;
    * ``paper_train``, ``paper_val``: SBD's train list with `HELD_OUT` held out (half of it if it is shorter than that).
    """
    sets = {"train": set(train), "val": set(val), "sbd_train": set(sbd_train), "sbd_val": set(sbd_val)}
    sbd = sets["sbd_train"] | sets["sbd_val"]
    sets["trainval"] = sets["train"] | sets["val"]
    sets["aug"] = sbd - sets["trainval"]
    sets["train_aug"] = sets["trainaug"] = (sets["train"] | sbd) - sets["val"]
    held_out = min(HELD_OUT, len(sets["sbd_train"]) // 2)
    sets["paper_train"], sets["paper_val"] = hold_out(sets["sbd_train"], held_out)
    if sbd_train_noval is not None:
        sets["sbd_train_noval"] = set(sbd_train_noval)
    return {name: sorted(sets[name]) for name in OFFICIAL_COUNTS if name in sets}


def count_problems(lists: Mapping[str, Sequence[str]]) -> list[str]:
    """Deviations from `OFFICIAL_COUNTS`, and pairs of lists that share images and must not, each as a clause of a message."""
    problems = [
        f"{name} has {len(ids):,} ids instead of {OFFICIAL_COUNTS[name]:,}"
        for name, ids in lists.items()
        if len(ids) != OFFICIAL_COUNTS[name]
    ]
    for train, val in (("train", "val"), ("sbd_train", "sbd_val"), ("sbd_train_noval", "val")):
        if shared := sorted(set(lists.get(train, ())) & set(lists[val])):
            problems.append(f"{train} and {val} share {len(shared):,} ids, first {shared[0]}")
    return problems


def list_bytes(ids: Iterable[str]) -> bytes:
    """The content of a list's file: one id per line, with a line end after the last."""
    return "".join(f"{name}\n" for name in ids).encode()


def abbreviate(names: Sequence[str], limit: int = 5) -> str:
    """The first names for a message, with an ellipsis if there are more than ``limit``."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
