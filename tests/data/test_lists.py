"""The lists: brute force on the field's own ids, official counts, and files that are no lists."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from gbseg.data.lists import OFFICIAL_COUNTS, build_lists, count_problems, hold_out, list_bytes, read_ids

SPLITS = Path(__file__).parents[2].parent / "shared" / "data" / "splits"


def _field() -> tuple[dict[str, list[str]], list[str]]:
    """VOC's lists, and SBD's made of the field's: what train_aug adds, and images of VOC train and val."""
    if not SPLITS.is_dir():
        pytest.skip(f"{SPLITS} is not there (the field's lists)")
    train, val, field = ((SPLITS / f"{name}.txt").read_text().split() for name in ("train", "val", "train_aug"))
    rng = random.Random(0)
    sbd = [name for name in field if name not in set(train)] + rng.sample(train, 1133) + rng.sample(val, 1104)
    rng.shuffle(sbd)
    return {"train": train, "val": val, "sbd_train": sbd[:8498], "sbd_val": sbd[8498:]}, field


def test_the_fields_list() -> None:
    """VOC train + SBD - VOC val is the list that the field trains on, and every count is the official one.

    SBD's own lists are not at hand: they are what the field's list says that they add, and as many of VOC's ids as the official
    counts leave. What is independent: the field's list holds all of VOC train and nothing of VOC val. Its file has 22 ids
    out of order; ours is sorted.
    """
    given, field = _field()
    assert set(given["train"]) < set(field) and not set(given["val"]) & set(field)
    lists = build_lists(**given)
    assert lists["train_aug"] == lists["trainaug"] == sorted(field)
    lines = (SPLITS / "train_aug.txt").read_bytes().splitlines(keepends=True)
    assert list_bytes(lists["train_aug"]) == b"".join(sorted(lines))
    assert {name: len(ids) for name, ids in lists.items()} == {k: v for k, v in OFFICIAL_COUNTS.items() if k in lists}
    assert count_problems(lists) == [] and set(OFFICIAL_COUNTS) - set(lists) == {"sbd_train_noval"}


def test_counts_are_enforced() -> None:
    """One id less, one more, or one that is in both: each is said."""
    given, _ = _field()
    train_id, val_id = given["sbd_train"][0], given["sbd_val"][0]
    assert count_problems(build_lists(**{**given, "sbd_train": given["sbd_train"][1:]}))[0].startswith(
        "sbd_train has 8,497 ids instead of 8,498"
    )
    assert "val has 1,450 ids instead of 1,449" in count_problems(build_lists(**{**given, "val": [*given["val"], "x"]}))
    swapped = [train_id if name == val_id else name for name in given["sbd_val"]]
    assert f"sbd_train and sbd_val share 1 ids, first {train_id}" in count_problems(
        build_lists(**{**given, "sbd_val": swapped})
    )
    noval = count_problems(build_lists(**given, sbd_train_noval=given["val"][:3]))
    assert noval == [
        "sbd_train_noval has 3 ids instead of 5,623",
        f"sbd_train_noval and val share 3 ids, first {min(given['val'][:3])}",
    ]


def test_brute_force() -> None:
    """Every id of small random sets is in exactly the lists that the definitions name; the order of the input is nothing."""
    rng = random.Random(1)
    for _ in range(50):
        names = [f"2007_{n:06d}" for n in range(60)]
        voc = {name: rng.choice(["train", "val", ""]) for name in names}
        sbd = {name: rng.choice(["train", "val", ""]) for name in names}
        given = [[n for n in names if voc[n] == which] for which in ("train", "val")]
        given += [[n for n in names if sbd[n] == which] for which in ("train", "val")]
        lists = build_lists(*given, sbd_train_noval=[n for n in names if sbd[n] == "train" and voc[n] != "val"])
        for name in names:
            expected = {f"sbd_{sbd[name]}"} if sbd[name] else set()
            expected |= {voc[name], "trainval"} if voc[name] else set()
            expected |= {"aug"} if sbd[name] and not voc[name] else set()
            expected |= {"train_aug", "trainaug"} if voc[name] == "train" or (sbd[name] and not voc[name]) else set()
            expected |= {"sbd_train_noval"} if sbd[name] == "train" and voc[name] != "val" else set()
            actual = {which for which, ids in lists.items() if name in ids}
            assert actual - {"paper_train", "paper_val"} == expected
            assert len(actual & {"paper_train", "paper_val"}) == (sbd[name] == "train")
        assert all(ids == sorted(set(ids)) for ids in lists.values())
        assert lists == build_lists(*(rng.sample(ids, len(ids)) for ids in given), sbd_train_noval=lists["sbd_train_noval"])


HELD = {"2007_000007", "2007_000002", "2007_000003"}


def test_hold_out() -> None:
    """The held-out ids never change: these are those of the shell, not of this code.

    ``for n in 0 1 ... 9; do echo "$(echo -n "0:2007_00000$n" | sha256sum) $n"; done | sort | head -3``
    """
    names = [f"2007_00000{n}" for n in range(10)]
    assert hold_out(reversed(names), 3) == (set(names) - HELD, HELD)
    assert hold_out(names, 3, seed=1)[1] != HELD
    digests = {name: hashlib.sha256(f"0:{name}".encode()).hexdigest() for name in names}
    assert max(digests[name] for name in HELD) < min(digests[name] for name in set(names) - HELD)


def test_the_papers_hundred() -> None:
    """100 of SBD's train list, the same whatever the order; in a list of less than 200 half of it."""
    names = [f"2008_{n:06d}" for n in range(8498)]
    lists = build_lists(["a"], ["b"], names, ["c"])
    assert len(lists["paper_val"]) == 100 and len(lists["paper_train"]) == 8398
    # spread like a random choice, not a block: 100 uniform numbers below 8,498 have a mean within 3.5 standard errors
    assert abs(sum(int(name[5:]) for name in lists["paper_val"]) / 100 - 4248.5) < 3.5 * 8498 / 12**0.5 / 10
    assert len(build_lists(["a"], ["b"], names[:20], ["c"])["paper_val"]) == 10


def test_reading(tmp_path: Path) -> None:
    """Windows line ends, empty lines, spaces at the end, a byte order mark, no last line end: all are read over."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf2007_000033\r\n\r\n2007_000032 \r\n  \n2008_000001")
    assert read_ids(path) == ["2007_000033", "2007_000032", "2008_000001"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"2007_000032\n2007_000033  1\n", r"a\.txt, line 2 has several columns: '2007_000033  1'"),
        (b"2007_000032\n\n../../etc/passwd\n", r"line 3 is no id but a path: '../../etc/passwd'"),
        (b"JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png\n", r"line 1 has several columns: 'JPEGImages/2007"),
        (b"a\nb\na\n", r"line 3 names a again, as line 1 does"),
        (b"\n \n", r"a\.txt has no ids"),
        ("2007_000032\n".encode("utf-16"), r"a\.txt is no text in UTF-8"),
        (None, r"there is no list .*a\.txt"),
    ],
)
def test_what_is_no_list(tmp_path: Path, content: bytes | None, words: str) -> None:
    """File and line are named."""
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_ids(tmp_path / "a.txt")
