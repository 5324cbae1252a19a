"""The lists of VOC 2012 and SBD: which image is trained on, and which is kept for evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gbseg.data.layout import BLANK, MARK, read_list

__all__ = ["HELD_OUT", "OFFICIAL_COUNTS", "build_lists", "count_problems", "hold_out", "list_bytes", "read_ids"]

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
"""How many ids each list has, made of the official ones."""

HELD_OUT = 100
"""How many images of SBD's train list the paper's authors kept for evaluation; which ones they do not say."""


def read_ids(path: str | Path) -> list[str]:
    """The ids of a list, one a line, in its order; empty lines, Windows line ends and a byte order mark are read over.

    Raises:
        ValueError: the file is missing, no text or empty, or a line is no id or comes twice; file and line are named.
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
    """Split ids into those to train on and ``count`` to evaluate on.

    Held out are those whose SHA-256 of ``"<seed>:<id>"`` is lowest: random for every practical purpose, and the same on every
    machine, version and order of the ids.
    """
    ids = set(ids)
    order = sorted(ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    held = set(order[:count])
    return ids - held, held


def build_lists(
    train: Iterable[str],
    val: Iterable[str],
    sbd_train: Iterable[str],
    sbd_val: Iterable[str],
    sbd_train_noval: Iterable[str] | None = None,
) -> dict[str, list[str]]:
    """Every list, by name, sorted, out of those of VOC and SBD.

    * ``trainval`` = train + val (VOC's own masks);
    * ``aug`` = SBD - trainval, what SBD adds to VOC;
    * ``train_aug`` = train + SBD - val, the field's training list; ``trainaug`` is mmseg's name of it;
    * ``paper_train``, ``paper_val``: SBD's train list with `HELD_OUT` held out (half of it where it is smaller than that).
    """
    voc_train, voc_val, first, second = set(train), set(val), set(sbd_train), set(sbd_val)
    sbd = first | second
    paper_train, paper_val = hold_out(first, min(HELD_OUT, len(first) // 2))
    train_aug = (voc_train | sbd) - voc_val
    sets = {
        "train": voc_train,
        "val": voc_val,
        "trainval": voc_train | voc_val,
        "sbd_train": first,
        "sbd_val": second,
        "aug": sbd - voc_train - voc_val,
        "train_aug": train_aug,
        "trainaug": train_aug,
        "paper_train": paper_train,
        "paper_val": paper_val,
    }
    if sbd_train_noval is not None:
        sets["sbd_train_noval"] = set(sbd_train_noval)
    return {name: sorted(ids) for name, ids in sets.items()}


def count_problems(lists: Mapping[str, Sequence[str]]) -> list[str]:
    """What differs from `OFFICIAL_COUNTS`, and lists that share images where they must not, each as a clause."""
    problems = [
        f"{name} has {len(ids):,} ids instead of {OFFICIAL_COUNTS[name]:,}"
        for name, ids in lists.items()
        if len(ids) != OFFICIAL_COUNTS[name]
    ]
    for one, other in (("train", "val"), ("sbd_train", "sbd_val"), ("sbd_train_noval", "val")):
        if shared := sorted(set(lists.get(one, ())) & set(lists[other])):
            problems.append(f"{one} and {other} share {len(shared):,} ids, first {shared[0]}")
    return problems


def list_bytes(ids: Iterable[str]) -> bytes:
    """A list as a file: one id a line, the last one ended as well."""
    return "".join(f"{name}\n" for name in ids).encode()
